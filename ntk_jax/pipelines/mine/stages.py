"""DoPAMine's table of stages: what each reads, writes and depends on.

| stage    | reads                     | writes (in its own folder)                                            |
|----------|---------------------------|------------------------------------------------------------------------|
| seeds    | domains, own seeds        | seeds.jsonl, replies.sqlite (calls, replies, spend)                    |
| corpus   | corpus.files              | chunks-*.parquet, drops.json                                           |
| embed    | seeds, corpus             | seeds.npy, chunks.zarr, nearest.zarr                                   |
| label    | embed                     | labels.npz, thresholds.json                                            |
| classify | label, embed, corpus      | classifier/, probabilities.zarr, mined.jsonl                           |
| audit    | classify                  | verdicts.jsonl                                                         |
| pretrain | classify, corpus          | <arm>/: adapter or model, history.jsonl, perplexity.json, summary.json |
| evaluate | pretrain                  | results.json, predictions/<arm>/, losses/<arm>/                        |
"""

from __future__ import annotations

from typing import Any

from ntk_jax.engine.stage import Address, Pipeline, Stage
from ntk_jax.pipelines.common.sections import evaluation_reads
from ntk_jax.pipelines.mine import config as settings

_HERE = "ntk_jax.pipelines.mine"
# Which files there are counts by their contents; who works on them, and how many at once, decides nothing.
_CORPUS = tuple(
    f"corpus.{key}"
    for key in ("columns", "limit", "shards", "extractor", "page_seconds", "languages", "quality", "gopher", "words")
    + ("min_words", "exact_duplicates", "near_duplicates", "paragraph_words", "overlap")
)
_LLM = ("llm.kind", "llm.model", "llm.base_url", "llm.dtype", "llm.body")


def _pretrain_after(config: Any) -> tuple[str, ...]:
    return ("classify",)


def _final(config: Any) -> tuple[str, ...]:
    """What a run of this config leads up to: the audit and the training where they are asked for."""
    last = ("evaluate",) if config.evaluate.files else ("pretrain",)
    trained = last if config.pretrain.tokens else ()
    return ("classify", *(("audit",) if config.audit.chunks else ()), *trained)


def _label_reads(config: Any) -> tuple[str, ...]:
    return ("label", *(_LLM if config.label.judged or config.label.source == "llm" else ()))


def _seeds_reads(config: Any) -> tuple[str, ...]:
    """Who writes them decides nothing where nobody does."""
    return ("seed", "domains", "contrast", "seeds", *(_LLM if settings.writes_seeds(config) else ()))


PIPELINE = Pipeline(
    name="mine",
    command="mine",
    title="DoPAMine",
    help="mine a domain's text from a large corpus, and train on it",
    description=(
        "From the words for a domain and a corpus to the domain's text in it: seeds that a language model writes, "
        "their nearest neighbours as a labelled set, a classifier that spreads the labels over the corpus, an audit, "
        "and continual pre-training beside controls. Runs the stages that this config uses in order and skips what is "
        "finished. Writes RUN/mined.jsonl: documents with where they came from and why they were taken."
    ),
    config=Address(f"{_HERE}.config:MineConfig"),
    open=Address(f"{_HERE}.state:open_run"),
    inputs=Address(f"{_HERE}.state:input_hashes"),
    final=_final,
    check=Address(f"{_HERE}.state:check"),
    facts=Address(f"{_HERE}.state:facts"),
    part=Address(f"{_HERE}.report:part"),
    beside=Address(f"{_HERE}.classify:write_mined"),
    terminal=Address(f"{_HERE}.terminal:terminal"),
    load=Address(f"{_HERE}.costs:load"),
    notes=Address(f"{_HERE}.costs:notes"),
    doctor=Address(f"{_HERE}.doctor:checks"),
    export=Address(f"{_HERE}.export:export"),
    search=Address(f"{_HERE}.search:search"),
    spoken=("seeds", "label", "classify", "audit", "pretrain", "evaluate"),
    stages=(
        Stage(
            name="seeds",
            title="Seeds",
            help="texts that stand for a domain, written or your own",
            description="Has a language model write seeds for every domain (document type, length and demeanour drawn "
            "for each), or takes your own; drops what does not parse and near-duplicates, and counts both. "
            "Writes seeds/seeds.jsonl.",
            function=Address(f"{_HERE}.seeds:seeds"),
            reads=_seeds_reads,
            inputs=("seeds", "llm", "encoder"),
            check=Address(f"{_HERE}.seeds:check"),
            cost=Address(f"{_HERE}.costs:seeds"),
        ),
        Stage(
            name="corpus",
            title="Corpus",
            help="documents out of web archives and files, cleaned and cut into chunks",
            description="Reads corpus.files shard by shard: main text, language, quality rules, exact and near "
            "duplicates, overlap with evaluation files; every drop is counted by its reason. Writes "
            "corpus/chunks-*.parquet.",
            function=Address(f"{_HERE}.corpus:corpus"),
            reads=("seed", *_CORPUS),
            inputs=("corpus", "decontaminate"),
            stores=lambda config: ("shards.zarr",),
            check=Address(f"{_HERE}.corpus:check"),
            cost=Address(f"{_HERE}.costs:corpus"),
        ),
        Stage(
            name="embed",
            title="Embedding",
            help="every chunk's embedding and its nearest seeds, in one pass",
            description="Embeds the corpus and compares it with all seeds on the device, block by block: the best seed "
            "of every chunk in every domain, and the nearest chunks of every seed. Writes embed/chunks.zarr and "
            "embed/nearest.zarr.",
            function=Address(f"{_HERE}.embed:embed"),
            after=lambda config: ("seeds", "corpus"),
            reads=("encoder", "embed"),
            inputs=("encoder",),
            stores=lambda config: ("chunks.zarr", "nearest.zarr"),
            check_inputs=Address(f"{_HERE}.embed:check_inputs"),
            cost=Address(f"{_HERE}.costs:embed"),
        ),
        Stage(
            name="label",
            title="Labels",
            help="a labelled set from nearest seeds, with calibrated thresholds",
            description="Suggests a threshold for each domain (from judged chunks or from the cosines themselves), and "
            "takes the chunks above it, a few for each seed, and negatives; or your own documents, or what a language "
            "model labels. Writes label/labels.npz.",
            function=Address(f"{_HERE}.label:label"),
            after=lambda config: ("embed",),
            reads=_label_reads,
            inputs=("llm", "labels"),
            check=Address(f"{_HERE}.label:check"),
            cost=Address(f"{_HERE}.costs:label"),
        ),
        Stage(
            name="classify",
            title="Classifier",
            help="learns the labels, scores the whole corpus, takes the domain's text",
            description="Trains a multi-label classifier on the labelled set, measures it on the held-out part, scores "
            "every chunk of the corpus and takes those above its thresholds. Writes classify/probabilities.zarr and "
            "classify/mined.jsonl, which RUN/mined.jsonl is.",
            function=Address(f"{_HERE}.classify:classify"),
            after=lambda config: ("label",),
            reads=("classify",),
            stores=lambda config: ("probabilities.zarr",),
            check=Address(f"{_HERE}.classify:check"),
            cost=Address(f"{_HERE}.costs:classify"),
        ),
        Stage(
            name="audit",
            title="Audit",
            help="a language model judges a sample of what was mined",
            description="Asks the language model whether mined chunks belong to their domain, with wrong labels "
            "planted among them, so that its own errors are known. Writes audit/verdicts.jsonl.",
            function=Address(f"{_HERE}.audit:audit"),
            after=lambda config: ("classify",),
            reads=("audit", *_LLM),
            inputs=("llm",),
            cost=Address(f"{_HERE}.costs:audit"),
        ),
        Stage(
            name="pretrain",
            title="Continual pre-training",
            help="one model for each arm, on mined and on control text",
            description="Trains the model on the same number of tokens for every arm of pretrain.arms, with general "
            "text mixed in, and takes the perplexity of held-out text of the domain and of general text along the way. "
            "Writes pretrain/<arm>/.",
            function=Address(f"{_HERE}.arms:pretrain"),
            after=_pretrain_after,
            reads=("model", "lora", "pretrain"),
            inputs=("model", "pretrain"),
            shows=("pretrain.arms",),
            check=Address(f"{_HERE}.arms:check"),
            check_inputs=Address(f"{_HERE}.arms:check_inputs"),
            cost=Address(f"{_HERE}.costs:pretrain"),
        ),
        Stage(
            name="evaluate",
            title="Evaluation",
            help="accuracy and held-out loss of every arm",
            description="Multiple-choice accuracy, held-out loss and generated answers of every arm on evaluate.files "
            "with bootstrap intervals. Writes evaluate/.",
            function=Address(f"{_HERE}.evaluate:evaluate"),
            after=lambda config: ("pretrain",),
            reads=evaluation_reads,
            inputs=("evaluate",),
            shows=("evaluate.arms", "evaluate.metrics", "evaluate.bootstrap", "evaluate.confidence"),
            check=Address(f"{_HERE}.evaluate:check"),
            check_inputs=Address(f"{_HERE}.evaluate:check_inputs"),
            cost=Address(f"{_HERE}.costs:evaluate"),
        ),
    ),
)
