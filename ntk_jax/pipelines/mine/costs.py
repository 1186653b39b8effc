"""What mining will cost: tokens through the encoder and the model, calls and tokens of the language model, disk.

The encoder's pass over the corpus is the largest part by far of what is computed; seeds, labels and the classifier are
small beside it, and training costs what its tokens cost.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.sources import count_records
from ntk_jax.data.words import written_words
from ntk_jax.engine.costs import Cost, Disk, Grounds, Work
from ntk_jax.engine.rates import Rate
from ntk_jax.evaluation.accuracy import task_files
from ntk_jax.llm.estimate import Calls, Counts
from ntk_jax.mining.corpus.documents import Document
from ntk_jax.mining.corpus.files import corpus_files
from ntk_jax.mining.corpus.readers import read_piece
from ntk_jax.models.checkpoint import read_object
from ntk_jax.models.encoder import abstract_encoder
from ntk_jax.models.encoder_config import is_encoder, parse_encoder_config
from ntk_jax.models.hub import load_tokenizer, read_config
from ntk_jax.models.model import Model
from ntk_jax.pipelines.common.llm import estimate_llm
from ntk_jax.pipelines.common.shape import abstract_model, model_folder
from ntk_jax.pipelines.mine.config import MineConfig, asks_llm, domain_names, mined_names
from ntk_jax.pipelines.mine.corpus import settings_of
from ntk_jax.pipelines.mine.label import own_labels
from ntk_jax.pipelines.mine.seeds import own_seeds
from ntk_jax.report.amounts import metric
from ntk_jax.training.flops import forward_flops, matrix_parameters, training_flops

PROMPT = 600  # tokens of a question for a seed
JUDGED = 500  # tokens of a question about a chunk
QUESTION_ABOUT = 60  # tokens of the question whose answer is yes or no
VERDICT = 60  # tokens of a verdict
BYTES_A_WORD = 3.0  # of text in compressed Parquet, with what stands beside it
QUESTION = 150  # tokens of an evaluation record


@dataclass(frozen=True)
class EncoderShape:
    """What the estimate must know of an encoder. parameters: of its matrices."""

    parameters: float
    dim: int
    tokenizer: Any


@dataclass(frozen=True)
class Load:
    """What the costs are computed from. words, chunks: that are mined. tokens: of these, as the encoder reads them."""

    config: MineConfig
    encoder: EncoderShape
    model: Model | None
    words: float
    chunks: float
    tokens: float
    seeds: int
    grounds: Grounds
    devices: int = 1


def load(config: MineConfig, grounds: Grounds) -> Load:
    """Reads a sample of the corpus and the shapes of encoder and model; nothing is downloaded.

    Raises UserError: the corpus' files are not here and estimate.words is not given, or the model's shape is not.
    """
    section = config.estimate
    encoder = _encoder(config, grounds)
    words, per_word = _words(config, encoder, grounds)
    chunks = max(1.0, words / (0.9 * config.corpus.words))
    if config.corpus.limit is not None and config.corpus.limit < chunks:
        words, chunks = words * config.corpus.limit / chunks, float(config.corpus.limit)
        grounds.known("chunks", config.corpus.limit, f"{config.corpus.limit:,}", "corpus.limit")
    else:
        grounds.assume("chunks", round(chunks), f"{chunks:,.0f}", f"{words:,.0f} words, corpus.words a chunk, 90% full")
    written = config.seeds.per_domain * len(domain_names(config))
    seeds = written + len(own_seeds(config))
    model, devices = None, section.devices or jax.device_count()
    if config.pretrain.tokens:
        found = abstract_model(config, grounds)
        model = found.base
    return Load(config, encoder, model, words, chunks, words * per_word, seeds, grounds, devices)


def seeds(load: Load) -> Cost:
    """Replies of the language model, and the seeds' embeddings."""
    tokens = 300.0 * load.seeds
    flops = 2.0 * load.encoder.parameters * tokens
    work = Work(load.seeds, tokens, flops, flops, memory=4.0 * load.encoder.parameters)
    return Cost((work,), Disk(4000.0 * load.seeds))


def corpus(load: Load) -> Cost:
    """Nothing for the device; the documents, before and after duplicates are dropped."""
    return Cost((), Disk(2 * BYTES_A_WORD * load.words))


def embed(load: Load) -> Cost:
    """A pass of the encoder over the corpus, and the products with all seeds."""
    section, dim = load.config.embed, load.encoder.dim
    flops = 2.0 * load.encoder.parameters * load.tokens + 2.0 * load.chunks * load.seeds * dim
    width = 4.0 if load.config.encoder.dtype == "float32" else 2.0
    batch = section.batch_tokens or 32_768
    memory = width * (load.encoder.parameters + 12.0 * batch * dim)
    rows = load.chunks * (2.0 * dim * section.keep + 8.0 * len(domain_names(load.config)) + 4.0)
    blocks = -(-load.chunks // section.block_chunks)
    nearest = blocks * load.seeds * 12.0 * min(section.neighbours, load.chunks)
    return Cost((Work(load.chunks, load.tokens, flops, flops, memory=memory),), Disk(rows + nearest))


def label(load: Load) -> Cost:
    """Nothing for the device."""
    return Cost((), Disk(4096.0))


def classify(load: Load) -> Cost:
    """The classifier over the corpus; without kept embeddings, or where it is the encoder, another pass of that."""
    domains = len(domain_names(load.config))
    section = load.config.classify
    kept = section.kind == "ngrams" or (section.kind == "head" and load.config.embed.keep)
    again = 0.0 if kept else load.tokens
    flops = 2.0 * load.encoder.parameters * again + 2.0 * load.chunks * load.encoder.dim * domains
    work = Work(load.chunks, again, flops, flops, memory=4.0 * load.encoder.parameters)
    disk = Disk(4.0 * load.chunks * domains + 0.1 * 6.5 * load.words)
    if section.kind != "encoder":
        return Cost((work,), disk)
    return Cost((_tuning(load), work), dataclasses.replace(disk, passing=3 * 12.0 * load.encoder.parameters))


def _tuning(load: Load) -> Work:
    """The training of the encoder: a forward pass and twice that backward, and layers computed once more."""
    section = load.config.label
    positives = load.seeds * section.per_seed
    if section.most is not None:
        positives = min(positives, section.most * len(domain_names(load.config)))
    if section.source == "documents":
        positives = len(own_labels(load.config))
    most = section.sample if section.source == "llm" else positives * (1 + section.negatives)
    tokens = load.config.classify.epochs * load.tokens * min(1.0, most / load.chunks)
    flops = 2.0 * load.encoder.parameters * tokens
    memory = 16.0 * load.encoder.parameters
    return Work(min(most, load.chunks), tokens, 3.0 * flops, 4.0 * flops, "backward", memory, "fine-tuning")


def audit(load: Load) -> Cost:
    """Verdicts of the language model."""
    return Cost((), Disk(1000.0 * load.config.audit.chunks * len(mined_names(load.config))))


def pretrain(load: Load) -> Cost:
    """The same tokens for every arm and share, and the perplexity of held-out text on the way."""
    section, model = load.config.pretrain, load.model
    assert model is not None
    runs = _runs(load.config)
    adapter, base = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (model.lora, model.base))
    whole = section.parameters == "all"
    tokens = float(runs * section.tokens)
    flops = training_flops(
        model.config,
        round(tokens),
        round(tokens),
        remat=model.config.hidden_size >= 1024,
        parameters=section.parameters,
        lora_parameters=0 if whole else adapter,
    )
    width, trained = jnp.dtype(model.dtype).itemsize, base if whole else adapter
    activations = section.tokens_per_microbatch * model.config.num_layers * model.config.hidden_size * width
    inside = section.tokens_per_microbatch * (8 * model.config.hidden_size + 3 * model.config.intermediate_size) * width
    memory = width * base + 16.0 * trained + activations + inside
    kept = runs * (width * base if whole else 4.0 * adapter) + 4.0 * tokens
    work = Work(runs, tokens, flops, flops, "backward", memory)
    looked = _held_out(load, 1 + runs * section.evaluations, width * base + inside)
    asked, odds = _asked(load, width * base + activations)
    return Cost((work, *looked, *asked), Disk(kept + odds, 3 * 12.0 * trained))


def _runs(config: MineConfig) -> int:
    """Trainings: every arm with every share; general text has one."""
    return sum(1 if arm == "general" else len(config.pretrain.shares) for arm in config.pretrain.arms)


def _held_out(load: Load, times: int, memory: float) -> tuple[Work, ...]:
    """The perplexity of held-out text, taken so many times."""
    section, model = load.config.pretrain, load.model
    files = (*section.held_out, *section.held_out_general)
    if not files or model is None:
        return ()
    most = section.held_out_tokens or load.config.model.max_length
    documents = sum(min(count_records(file), section.held_out_limit or 2**62) for file in task_files(files).values())
    tokens = float(times * documents * most)
    load.grounds.assume(
        "tokens of a held-out document", most, f"{most:,}", "pretrain.held_out_tokens, all of them full"
    )
    flops = forward_flops(model.config, round(tokens), round(tokens))
    return (Work(times * documents, tokens, flops, flops, memory=memory, part="perplexity"),)


def _asked(load: Load, memory: float) -> tuple[tuple[Work, ...], float]:
    """(the model's pass over the corpus for every domain, bytes of its odds) where an arm is chosen by its own yes."""
    if "autods" not in load.config.pretrain.arms or load.model is None:
        return (), 0.0
    domains = len(mined_names(load.config))
    tokens, count = domains * (load.tokens + QUESTION_ABOUT * load.chunks), domains * load.chunks
    flops = forward_flops(load.model.config, round(tokens), 0)
    return (Work(count, tokens, flops, flops, memory=memory, part="yes or no"),), 4.0 * count


def evaluate(load: Load) -> Cost:
    """A forward pass of every arm over the records."""
    section, model = load.config.evaluate, load.model
    assert model is not None
    arms = 1 + _runs(load.config) if section.arms is None else len(section.arms)
    records = sum(min(count_records(file), section.limit or 2**62) for file in section.files)
    each = min(QUESTION * (1 + section.shots), load.config.model.max_length)
    tokens = float(arms * records * each)
    rule = "this command's own rule" + (
        ", each of evaluate.shots as many, to model.max_length" if section.shots else ""
    )
    load.grounds.assume("tokens of an evaluation record", each, f"{each}", rule)
    flops = forward_flops(model.config, round(tokens), round(tokens / 10))
    return Cost((Work(arms * records, tokens, flops, flops),), Disk(200.0 * arms * records))


def notes(load: Load, rate: Rate | None) -> tuple[dict[str, Any], list[str]]:
    """The calls of the language model: how many, their tokens, their price and their time."""
    config = load.config
    if not asks_llm(config):
        return {"llm": None}, ["No language model is asked."]
    found: dict[str, Calls] = {}
    domains, speed = len(domain_names(config)), config.estimate.reply_tokens_per_second
    counts = {
        "seeds": Counts(config.seeds.per_domain * domains, PROMPT, config.seeds.max_tokens),
        "label": Counts(_label_calls(config), JUDGED, VERDICT),
        "audit": Counts(
            round(config.audit.chunks * len(mined_names(config)) * (2 + config.audit.planted)), JUDGED, VERDICT
        ),
    }
    for stage, count in counts.items():
        if count.calls:
            found[stage] = estimate_llm(config.llm, count, speed)
    lines = [f"{stage} asks {config.llm.model}: {calls}." for stage, calls in found.items()]
    cap = config.llm.cap
    if cap is not None:
        money = sum(calls.money for calls in found.values())
        lines.append(
            f"llm.cap = {cap:g} is {'enough' if money <= cap else 'less than the worst case, so it may stop'}."
        )
    values = {stage: {"calls": c.calls, "money": c.money, "seconds": c.seconds} for stage, c in found.items()}
    return {"llm": values}, lines


def _label_calls(config: MineConfig) -> int:
    if config.label.source == "llm":
        return config.label.sample
    return config.label.judged * len(mined_names(config))


def _encoder(config: MineConfig, grounds: Grounds) -> EncoderShape:
    path = config.encoder.path
    folder = model_folder(path)
    if folder is None or not (folder / "config.json").is_file():
        grounds.assume("encoder", None, "33 million parameters, 384 wide", f"{path} is not here: a small one is taken")
        return EncoderShape(21e6, 384, None)
    hf = read_object(folder / "config.json")
    if is_encoder(hf):
        shape = parse_encoder_config(hf, str(folder / "config.json"))
        leaves = jax.tree_util.tree_flatten_with_path(abstract_encoder(shape, jnp.float32)[1])[0]
        matrices = [leaf.size for key, leaf in leaves if key[-1] == jax.tree_util.DictKey("kernel")]
        size, dim, vocabulary, special = float(sum(matrices)), shape.hidden_size, shape.vocab_size, None
    else:
        decoder = read_config(folder)
        size, dim, vocabulary = float(matrix_parameters(decoder)), decoder.hidden_size, decoder.vocab_size
        special = decoder.special_tokens
    grounds.known("encoder", size, f"{metric(size)} parameters in its matrices, {dim:,} wide", str(folder))
    tokenizer = load_tokenizer(folder, vocabulary, special) if special else load_tokenizer(folder, vocabulary)
    return EncoderShape(size, dim, tokenizer)


def _words(config: MineConfig, encoder: EncoderShape, grounds: Grounds) -> tuple[float, float]:
    """(words of the corpus that are left, the encoder's tokens a word)."""
    section = config.estimate
    texts, total = _sampled(config) if section.words is None or encoder.tokenizer is not None else ([], 0.0)
    if section.words is not None:
        total = float(section.words)
        grounds.assume("words", section.words, f"{section.words:,}", "estimate.words")
    else:
        grounds.assume(
            "words", round(total), f"{total:,.0f}", f"by the bytes of {len(texts):,} documents that were read"
        )
    per_word = section.tokens_per_word
    texts = [text[:20_000] for text in texts]
    words = sum(len(written_words(text)) for text in texts)
    if encoder.tokenizer is not None and words:
        found = encoder.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        per_word = sum(map(len, found)) / words
        grounds.known("tokens a word", per_word, f"{per_word:.2f}", f"tokenized {len(texts):,} documents")
    else:
        grounds.assume("tokens a word", per_word, f"{per_word:g}", "estimate.tokens_per_word")
    grounds.assume("share that is left", section.kept, f"{section.kept:g}", "estimate.kept")
    return total * section.kept, per_word


def _sampled(config: MineConfig) -> tuple[list[str], float]:
    """(texts of the first documents of every file, words of all files): words a byte of a file, from its beginning."""
    pieces, settings = corpus_files(config.corpus.files), settings_of(config)
    each, texts, total = max(1, config.estimate.documents // len(pieces)), [], 0.0
    per_byte: list[float] = []
    for piece in pieces[: config.estimate.documents]:
        found: list[Document] = []
        for one in read_piece(piece, settings.reading, Counter()):
            if isinstance(one, Document):
                found.append(one)
            if len(found) >= each:
                break
        here = [document.text or (document.page or b"").decode("utf8", "replace") for document in found]
        texts += here
        # A compressed file holds about three times its bytes of text.
        packed = 3.0 if piece.path.endswith((".gz", ".xz", ".zst", ".parquet")) else 1.0
        size = sum(len(text.encode("utf8", "replace")) for text in here)
        words = sum(len(written_words(text)) for text in here)
        per_byte.append(packed * words / size if size else 0.0)
        total += per_byte[-1] * piece.size
    rest = sum(piece.size for piece in pieces[config.estimate.documents :])
    return texts, total + rest * float(np.mean(per_byte)) if per_byte else 0.0
