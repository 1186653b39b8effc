"""The config of NTK-Selector."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ntk_jax.kernels.names import Over, Pooling
from ntk_jax.pipelines.common.sections import (
    DataSection,
    DevicesSection,
    EvaluateSection,
    LoRASection,
    MeshSection,
    ModelSection,
    ReportSection,
    ScoreSection,
    ShapeSection,
    TrainSection,
)
from ntk_jax.selection.clean import CleanOptions
from ntk_jax.selection.diversity import DiversityOptions
from ntk_jax.selection.quotas import QuotaOptions
from ntk_jax.selection.rankers import RANKERS
from ntk_jax.settings import Count, Fraction, Positive, Range, section, setting


@dataclass(frozen=True)
class ProxySection:
    """A smaller model that selects in place of `model`, which is then fine-tuned and evaluated. Its LoRA is of the
    shape that `lora` says; how texts become tokens is otherwise as in `model`."""

    path: str | None = setting(None, "a Hugging Face directory, a hub id, or builtin:model; null: model itself selects")
    adapter: str | None = setting(None, "a PEFT directory of the proxy to start from instead of fresh LoRA")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type of its computation and frozen weights")
    quantization: Literal["int8", "float8_e4m3fn"] | None = setting(
        None, "hold its layers' frozen matrices in 8 bits; null: as dtype"
    )
    max_length: Annotated[int, Range(2)] | None = setting(
        None, "its tokens of an example; longer ones are dropped or truncated, as model.overflow says; null: as model's"
    )
    template: Literal["auto", "chat", "plain"] = setting("auto", "as model.template, of its tokenizer")
    template_options: Mapping[str, Any] | None = setting(None, "as model.template_options, of its template")
    ignore_config_keys: tuple[str, ...] = setting((), "as model.ignore_config_keys, of its config.json")


@dataclass(frozen=True)
class PreselectSection:
    """The paper's coarse stage. `none` scores the whole pool exactly."""

    method: Literal["none", "votes"] = setting(
        "none", "votes: each domain example votes for its nearest candidates, as the paper does"
    )
    keep: Count | None = setting(None, "M, candidates that go on; null: 4 N, or all there are")
    neighbours: Count | None = setting(None, "K, candidates that an example votes for; null: M / 4")


@dataclass(frozen=True)
class SketchSection:
    """Projected gradients of pool and domain in stores. Objective, span, normalize, parameters and probes are those of
    `score`, the seed is the run's."""

    projection: Literal["rademacher", "countsketch", "kronecker"] = setting("rademacher", "how a gradient is projected")
    dim: Count = setting(8192, "K, the paper's; at most the number of parameters differentiated")
    sparsity: Count = setting(1, "nonzeros a parameter, for projection countsketch")
    dtype: Literal["float16", "float32"] = setting(
        "float16", "type of the stored unit rows; moves their products by 1e-3 at most"
    )
    block_examples: Count = setting(2048, "examples sketched between two commits; one block of rows is in memory")


@dataclass(frozen=True)
class EmbeddingSection:
    """The embeddings that the methods embedding and tsds compare: hidden states behind the last layer, averaged. The
    defaults are those of RDS+ (arXiv 2503.01807)."""

    model: Literal["base", "warm"] = setting("base", "the model as it is, or with the warm-up's adapter")
    pooling: Pooling = setting("position", "the i-th token counts i times, or all alike (mean)")
    span: Over = setting("all", "all tokens of an example, or the positions that predict its response")


@dataclass(frozen=True)
class _Select:
    """How the selection is made: the best N by each method, ties by pool order."""

    methods: tuple[str, ...] = setting(
        ("kernel", "random"),
        f"selections made, each written to select/<method>.jsonl, the first also to select/selection.jsonl: "
        f"{', '.join(RANKERS)}",
    )
    count: Count = setting(9000, "N, examples of each selection")
    clean: CleanOptions = section(CleanOptions)
    quotas: QuotaOptions = section(QuotaOptions)
    diversity: DiversityOptions = section(DiversityOptions)


# Each ranker's options are a section under its name, so that a ranker is added in one place (`selection/rankers.py`).
SelectSection: Any = dataclasses.make_dataclass(
    "SelectSection",
    [(name, ranker.options, section(ranker.options)) for name, ranker in RANKERS.items()],
    bases=(_Select,),
    frozen=True,
    namespace={"__doc__": _Select.__doc__, "__module__": __name__},
)


@dataclass(frozen=True)
class FinetuneSection(TrainSection):
    """The training of every arm: all with as many steps, and the domain and what was selected mixed in the same way."""

    mixture: Literal["concat", "domain_share", "selected_then_domain", "replay"] = setting(
        "concat",
        "concat: shuffled together; domain_share: so much of every step is the domain's, within an example; "
        "selected_then_domain: in turns; replay: in turns, with selected examples among the domain's",
    )
    domain_share: Annotated[float, Range(0, 1, open=True)] | None = setting(
        None,
        "the domain's share of the examples, or of the steps where they take turns; null: its share of all examples",
    )
    replay_share: Annotated[float, Range(0, 1, open=True)] = setting(
        0.25, "of replay, the share of selected examples in the domain's steps"
    )


@dataclass(frozen=True)
class EstimateSection(DevicesSection):
    """`ntk-jax estimate`: what to take for files, weights and devices that are not here. What is here is counted."""

    proxy_shape: ShapeSection = section(ShapeSection)
    pool_examples: Count | None = setting(None, "examples in all pool files")
    domain_examples: Count | None = setting(None, "examples in all domain files")
    tokens_per_example: Positive | None = setting(None, "mean tokens of prompt and response, after truncation")
    response_share: Fraction = setting(0.5, "share of an example's tokens that are its response")
    questions: Count | None = setting(None, "questions and other records in all files of evaluate.files together")
    tokens_per_question: Positive | None = setting(
        None, "mean tokens of a prompt, once, and all its choices; null: estimate.tokens_per_example"
    )
    choice_tokens: Positive = setting(16.0, "tokens in all choices of a question together")
    bytes_per_token: Positive = setting(4.5, "bytes of a record's text for each of its tokens")
    id_bytes: Count = setting(32, "bytes of the longest id")
    sample: Annotated[int, Range(2)] = setting(400, "pool records that are tokenized, where they are here")
    reported: str = setting(
        "", "a cost reported elsewhere and its source, printed beside that of scoring the whole pool"
    )


@dataclass(frozen=True)
class SelectConfig:
    """NTK-Selector: from a domain and a pool to a selection, adapters trained on it and their evaluation."""

    out: str = setting("", "the run directory: a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
    seed: Annotated[int, Range(0, 2**32 - 1)] = setting(0, "seed of everything random")
    repeat_seed: Annotated[int, Range(0, 2**32 - 1)] | None = setting(
        None,
        "seed of what is drawn behind the scores: random selections, the noise of dsir, the sample of tsds, the fresh "
        "adapter of finetune (not one of model.adapter) and its order; null: seed. With another one the same scores "
        "are trained on once more",
    )
    model: ModelSection = section(ModelSection)
    proxy: ProxySection = section(ProxySection)
    lora: LoRASection = section(LoRASection)
    data: DataSection = section(DataSection)
    warmup: TrainSection = section(TrainSection)
    score: ScoreSection = section(ScoreSection)
    preselect: PreselectSection = section(PreselectSection)
    sketch: SketchSection = section(SketchSection)
    embedding: EmbeddingSection = section(EmbeddingSection)
    select: SelectSection = section(SelectSection)
    finetune: FinetuneSection = section(FinetuneSection)
    evaluate: EvaluateSection = section(EvaluateSection)
    report: ReportSection = section(ReportSection)
    estimate: EstimateSection = section(EstimateSection)
    mesh: MeshSection = section(MeshSection)


def repeat_seed(config: SelectConfig) -> int:
    """The seed of what is drawn behind the scores."""
    return config.seed if config.repeat_seed is None else config.repeat_seed


def repeat_keys(config: SelectConfig) -> tuple[str, ...]:
    """What stages that draw by it read of `repeat_seed`: nothing where it makes no difference."""
    return ("repeat_seed",) if repeat_seed(config) != config.seed else ()


def rankers_of(config: SelectConfig) -> list[str]:
    """The methods of this run in the order in which they are made: a method that looks at another's selection comes
    after it."""
    waiting, ordered = list(dict.fromkeys(config.select.methods)), []
    while waiting:
        ready = [m for m in waiting if not set(RANKERS[m].after(getattr(config.select, m))) & set(waiting)]
        ordered += ready[:1] or waiting[:1]
        waiting.remove(ordered[-1])
    return ordered


def needed(config: SelectConfig, what: str) -> bool:
    """Whether this run needs `scores`, `sketches`, `votes`, `embeddings` or `losses`: a method of it does, or what is
    left out is found by them."""
    if what == "embeddings" and config.select.clean.decontaminate_cosine is not None:
        return True
    return any(what in RANKERS[method].needs for method in config.select.methods if method in RANKERS)


def cleans(config: SelectConfig) -> bool:
    """Whether anything is left out of selections for what its text or its sketch holds."""
    clean = config.select.clean
    return bool(clean.decontaminate) or clean.near_duplicates is not None or clean.cosine is not None


def diversifies(config: SelectConfig, method: str) -> bool:
    """Whether a method's selection is made of its best candidates by what they cover together."""
    part = config.select.diversity
    matched = bool(RANKERS[method].after(getattr(config.select, method)))
    return part.method != "none" and (method in part.methods if part.methods is not None else not matched)


def refines(config: SelectConfig) -> tuple[str, ...]:
    """The sections by which selections differ from the best N of each method."""
    part = config.select
    used = {"clean": cleans(config), "quotas": part.quotas.on, "diversity": part.diversity.method != "none"}
    return tuple(f"select.{name}" for name, on in used.items() if on)


def arms_of(config: SelectConfig) -> tuple[str, ...]:
    """The arms that are trained and compared, controls first."""
    if config.evaluate.arms is not None:
        return config.evaluate.arms
    first, *others = dict.fromkeys(config.select.methods)
    return ("base", "domain", *others, first)


def shown_examples(config: SelectConfig) -> bool:
    """Whether selected examples are shown beside a domain example: by the kernel, so where a warm-up is made."""
    by_gradients = ("scores", "sketches", "components", "checkpoints")
    return config.report.examples > 0 and any(needed(config, what) for what in by_gradients)


def resolved_votes(config: SelectConfig) -> dict[str, int]:
    """preselect.keep (M, by default 4 N) and preselect.neighbours (K, by default M / 4) where votes are counted."""
    part = config.preselect
    if not counts_votes(config):
        return {}
    keep = part.keep or 4 * config.select.count
    return {"preselect.keep": keep, "preselect.neighbours": part.neighbours or max(1, keep // 4)}


def resolved(config: SelectConfig) -> dict[str, int]:
    """All settings whose default is computed, where they are used."""
    less = {"select.less.checkpoints": checkpoints_kept(config)} if keeps_checkpoints(config) else {}
    return resolved_votes(config) | less


def keeps_checkpoints(config: SelectConfig) -> bool:
    """Whether the warm-up keeps checkpoints with Adam's moments on its way."""
    return needed(config, "checkpoints")


def checkpoints_kept(config: SelectConfig) -> int:
    """How many: select.less.checkpoints, by default one at the end of each epoch, or 4 where steps are counted."""
    epochs = 4 if config.warmup.max_steps is not None else math.ceil(config.warmup.epochs)
    return config.select.less.checkpoints or max(1, epochs)


def less_stores(config: SelectConfig) -> tuple[str, ...]:
    """The stores of the stage less, two a checkpoint, below its folder."""
    return tuple(f"{n}/{kind}.zarr" for n in range(1, checkpoints_kept(config) + 1) for kind in ("domain", "pool"))


def counts_votes(config: SelectConfig) -> bool:
    """Whether hidden states of the pool are taken and votes counted: for pre-selection, or for a ranker."""
    return config.preselect.method == "votes" or needed(config, "votes")
