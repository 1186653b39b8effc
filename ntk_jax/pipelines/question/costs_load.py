"""What the costs of a run of questions are computed from: the target without its weights, the documents, counted and a
sample of them cut where they are here, and the calls that follow from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from ntk_jax.data.sources import sample_indices
from ntk_jax.data.words import written_words
from ntk_jax.engine.costs import Grounds
from ntk_jax.errors import UserError
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.hub import read_config
from ntk_jax.pipelines.common.evaluated_reads import here, spread
from ntk_jax.pipelines.common.model import RunModel
from ntk_jax.pipelines.common.shape import abstract_model, model_folder
from ntk_jax.pipelines.question.calls import QUESTION, Line, Sizes, calls_of
from ntk_jax.pipelines.question.chunk import ROOM
from ntk_jax.pipelines.question.config import QuestionConfig
from ntk_jax.pipelines.question.documents import documents_at, read_documents
from ntk_jax.questions.chunks import chunk_documents
from ntk_jax.training.flops import head_parameters, matrix_parameters

WORDS_A_DOCUMENT = 5000  # where only the words of all documents are known
FULL = 0.9  # of a chunk's words, that it has where documents are not here


@dataclass(frozen=True)
class Player:
    """A model of this process that answers. bytes: of its weights; slots: replies that it writes at once."""

    name: str
    shape: ModelConfig
    bytes: float
    itemsize: int
    slots: int


@dataclass(frozen=True)
class Load:
    """documents: that are asked about. chunks: of these, words: in all of them. kept: questions of all generations.
    tokens: of training that these have, and that each other method writes. players: {section: who answers in this
    process}, None for the target. devices: of the run's mesh."""

    config: QuestionConfig
    model: RunModel
    documents: float
    chunks: int
    words: float
    sizes: Sizes
    kept: float
    tokens: float
    lines: list[Line]
    players: dict[str | None, Player]
    grounds: Grounds

    @property
    def slots(self) -> int:
        """Questions that are looked for in a generation."""
        return self.chunks * self.config.ask.per_chunk

    @property
    def devices(self) -> int:
        """Of the run's mesh."""
        mesh = self.model.mesh
        return 1 if mesh is None else mesh.size

    @property
    def record(self) -> int:
        """Tokens of a kept question with its answer."""
        return self.sizes.question + self.sizes.answer


@dataclass(frozen=True)
class _Documents:
    """documents: all that are used. Of them all chunks and words; tokens of a chunk, its mean and the most."""

    documents: float
    chunks: float
    words: float
    passage: int
    longest: int


def load(config: QuestionConfig, grounds: Grounds) -> Load:
    """Reads the documents, cuts a sample of them, and reads the shapes of the models; nothing is downloaded.

    Raises UserError: the documents are not here and estimate.words is not given, or the
    model's shape is not.
    """
    model = abstract_model(config, grounds)
    per_word, count = _counter(config, model, grounds)
    found = _here(config, count, grounds) if here(config.documents.files) else _assumed(config, per_word, grounds)
    share = config.documents.trained
    chunks = max(1.0, share * found.chunks)
    if config.documents.chunks is not None:
        chunks = min(chunks, float(config.documents.chunks))
    whole = round(chunks)
    words = found.words * chunks / max(found.chunks, 1.0)
    grounds.known(
        "chunks", whole, f"{whole:,} are asked about, {words:,.0f} words", "documents.trained, documents.chunks"
    )
    answer = max(1, round(config.estimate.answer_words * per_word))
    grounds.assume("tokens of an answer", answer, f"{answer}", "estimate.answer_words")
    sizes = Sizes(found.passage, found.longest, QUESTION, min(answer, config.ask.answer_tokens))
    slots = whole * config.ask.per_chunk
    grounds.assume(
        "share that is kept",
        config.estimate.kept_questions,
        f"{config.estimate.kept_questions:g}",
        "estimate.kept_questions",
    )
    kept = config.estimate.kept_questions * slots
    kept = config.ask.generations * (kept if config.ask.count is None else min(kept, float(config.ask.count)))
    own = config.ask.tokens or kept * (sizes.question + sizes.answer)
    documents = min(share * found.documents, float(whole))
    lines = calls_of(config, slots, sizes, round(own), documents, words)
    players = {owner: _player(config, owner, model, grounds) for owner in _owners(config, lines)}
    return Load(config, model, documents, whole, words, sizes, kept, own, lines, players, grounds)


def _counter(config: QuestionConfig, model: RunModel, grounds: Grounds) -> tuple[float, Callable[[str], int]]:
    """(tokens a word, the count of a text's tokens) of the target."""
    tokenizer, per_word = model.base.tokenizer, config.estimate.tokens_per_word
    if tokenizer is None:
        grounds.assume("tokens a word", per_word, f"{per_word:g}", "estimate.tokens_per_word")
        return per_word, lambda text: round(per_word * len(written_words(text)))
    return per_word, lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _here(config: QuestionConfig, count: Callable[[str], int], grounds: Grounds) -> _Documents:
    """Counted in the files; a seeded sample is cut as the stage does it."""
    section = config.documents
    count_all = sum(1 for _ in read_documents(config))
    total = min(count_all, section.limit or count_all)
    grounds.known("documents", total, f"{total:,} of {count_all:,} records", f"counted in {', '.join(section.files)}")
    few = sample_indices(count_all, min(total, config.estimate.documents), config.seed)
    sample = list(documents_at(config, few))
    found = chunk_documents(
        sample,
        words=section.words,
        count_tokens=count,
        max_tokens=config.model.max_length - ROOM - config.ask.answer_tokens,
        languages=section.languages,
    )
    used = len({chunk.document for chunk in found.chunks})
    tokens = np.array([count(chunk.text) for chunk in found.chunks])
    scale = total / len(sample)
    dropped = len(sample) - used
    grounds.known(
        "tokens of a chunk",
        float(tokens.mean()),
        spread(tokens) + (f"; {dropped:,} of the documents have none" if dropped else ""),
        f"cut and tokenized {len(sample):,} documents into {len(tokens):,} chunks of at most {section.words:,} words",
    )
    words = sum(len(chunk.text.split()) for chunk in found.chunks)
    return _Documents(scale * used, scale * len(tokens), scale * words, round(float(tokens.mean())), int(tokens.max()))


def _assumed(config: QuestionConfig, per_word: float, grounds: Grounds) -> _Documents:
    section, documents = config.estimate, config.documents
    if section.words is None:
        names = ", ".join(documents.files) or "no file"
        raise UserError(
            f"documents.files: none of {names} is here; give the files, or the words of all of them as estimate.words"
        )
    every = max(1, round(section.words / WORDS_A_DOCUMENT))
    total = min(every, documents.limit or every)
    words = section.words * total / every
    rule = f"one for {WORDS_A_DOCUMENT:,} words, this command's own rule"
    grounds.assume("documents", total, f"{total:,} of {words:,.0f} words", f"estimate.words; {rule}")
    chunk = min(FULL * documents.words, words / total)
    passage = max(1, round(chunk * per_word))
    grounds.assume("tokens of a chunk", passage, f"{passage:,}", f"documents.words, {FULL:.0%} full")
    return _Documents(float(total), words / chunk, words, passage, max(passage, round(documents.words * per_word)))


def _owners(config: QuestionConfig, lines: list[Line]) -> list[str | None]:
    """The sections, None for the target, whose models answer in this process."""
    owners = dict.fromkeys(line.owner for line in lines)
    return [owner for owner in owners if owner is None or getattr(config, owner).kind == "model"]


def _player(config: QuestionConfig, owner: str | None, model: RunModel, grounds: Grounds) -> Player:
    own = model.base.config
    itemsize = jnp.dtype(config.model.dtype).itemsize
    if owner is None:
        return Player("target", own, _bytes(own, itemsize), itemsize, config.target.slots)
    section = getattr(config, owner)
    width = jnp.dtype(section.dtype).itemsize
    folder = model_folder(section.model)
    if folder is None or not (folder / "config.json").is_file():
        grounds.assume(f"{owner} model", None, "as large as the target", f"{section.model} is not here")
        return Player(owner, own, _bytes(own, width), width, section.slots)
    shape = read_config(folder)
    size = _bytes(shape, width)
    grounds.known(f"{owner} model", size, f"{size / 1e9:.2f} GB of weights", str(folder / "config.json"))
    return Player(owner, shape, size, width, section.slots)


def _bytes(shape: ModelConfig, itemsize: int) -> float:
    """Of the weights, without norms and biases."""
    return float(itemsize) * (matrix_parameters(shape) + (1 if shape.tied else 2) * head_parameters(shape))
