"""NTK-Selector's table of stages: what each reads, writes and depends on. A run has those that lead to its last one.

| stage      | reads                             | writes (in its own folder)                                         |
|------------|-----------------------------------|---------------------------------------------------------------------|
| warmup     | domain                            | adapter/, second_moment.safetensors, history.jsonl                  |
| gradient   | domain, warmup                    | direction.safetensors                                               |
| preselect  | pool, warmup                      | hidden.zarr, votes.npz                                              |
| score      | pool, warmup, gradient, preselect | scores.zarr                                                         |
| sketch     | pool, domain, warmup, preselect   | pool.zarr, domain.zarr                                              |
| embed      | pool, domain, warmup, preselect   | pool.zarr, domain.zarr                                              |
| items      | evaluation items, warmup          | items.zarr                                                         |
| losses     | pool, warmup, preselect           | losses.zarr                                                         |
| subspace   | domain, warmup                    | gram.zarr, spectrum.npz, directions.safetensors                     |
| low_rank   | pool, subspace, preselect         | scores.zarr                                                         |
| less       | pool, domain, warmup, preselect   | <checkpoint>/pool.zarr, <checkpoint>/domain.zarr                    |
| pool       | pool                              | account.zarr                                                        |
| select     | what its methods need             | <method>.jsonl, selection.jsonl, scores.npz, <method>.dropped.jsonl |
| align      | select, warmup                    | examples.json                                                       |
| finetune   | domain, select                    | <arm>/adapter, <arm>/history.jsonl, <arm>/summary.json              |
| evaluate   | finetune                          | results.json, predictions/<arm>/, losses/<arm>/                     |
"""

from __future__ import annotations

from typing import Any

from ntk_jax.engine.stage import Address, Pipeline, Stage
from ntk_jax.pipelines.common.sections import evaluation_reads
from ntk_jax.pipelines.select import config as settings
from ntk_jax.pipelines.select.proxy import selecting_inputs, selecting_reads

_HERE = "ntk_jax.pipelines.select"
# No gradient depends on how the score computes attention; a score does, by rounding, as on its batch_tokens.
_GRADIENT = tuple(
    f"score.{key}"
    for key in ("objective", "span", "normalize", "parameters", "probes", "direction", "batch_tokens")
    + ("block_examples",)
)
_SKETCHED = tuple(f"score.{key}" for key in ("objective", "span", "normalize", "parameters", "probes", "batch_tokens"))


def _after_preselect(*others: str) -> Any:
    """Builds on these, and on pre-selection where there is one."""
    return lambda config: (*others, *(("preselect",) if config.preselect.method == "votes" else ()))


def _reads_candidates(*others: str) -> Any:
    """Reads these and what decides which examples are candidates."""
    votes = {"votes": ("preselect",), "none": ("preselect.method",)}
    return lambda config: ("data.pool", "data.pool_limit", *votes[config.preselect.method], *others)


def _embed_after(config: Any) -> tuple[str, ...]:
    """The base model's embeddings need no warm-up."""
    return _after_preselect(*(("warmup",) if config.embedding.model == "warm" else ()))(config)


def _embed_reads(config: Any) -> tuple[str, ...]:
    """It may be the first stage of all."""
    own = ("seed", *selecting_reads(config), "score.batch_tokens", "score.block_examples", "embedding")
    return tuple(_reads_candidates(*own, "data.domain", "data.domain_limit")(config))


def _items_after(config: Any) -> tuple[str, ...]:
    return ("warmup",) if config.embedding.model == "warm" else ()


def _items_reads(config: Any) -> tuple[str, ...]:
    return ("seed", *selecting_reads(config), "score.batch_tokens", "score.block_examples", "embedding")


def _warmup_reads(config: Any) -> tuple[str, ...]:
    return ("seed", *selecting_reads(config), "lora", "data.domain", "data.domain_limit", "warmup")


def _warmup_keeps(config: Any) -> tuple[str, ...]:
    """Checkpoints on its way are asked for by one ranker only."""
    return ("select.less.checkpoints",) if settings.keeps_checkpoints(config) else ()


def _pool_reads(config: Any) -> tuple[str, ...]:
    return ("seed", *selecting_reads(config), "data.pool", "data.pool_limit", "score.span", "score.block_examples")


def _select_after(config: Any) -> tuple[str, ...]:
    """What the methods of a run need."""
    found = [
        *(["score"] if settings.needed(config, "scores") else []),
        *(["sketch"] if settings.needed(config, "sketches") else []),
        *(["embed"] if settings.needed(config, "embeddings") else []),
        *(["items"] if config.select.clean.decontaminate_cosine is not None else []),
        *(["losses"] if settings.needed(config, "losses") else []),
        *(["low_rank"] if settings.needed(config, "components") else []),
        *(["less"] if settings.needed(config, "checkpoints") else []),
        *(["preselect"] if settings.counts_votes(config) else []),
    ]
    return tuple(found) or ("pool",)


def _select_reads(config: Any) -> tuple[str, ...]:
    """The options of methods that are not asked for decide nothing."""
    options = (f"select.{method}" for method in config.select.methods)
    data = (f"data.{key}" for key in ("domain", "pool", "domain_limit", "pool_limit"))
    return (
        "seed",
        *settings.repeat_keys(config),
        *data,
        "select.count",
        "select.methods",
        *options,
        *settings.refines(config),
    )


def _finetune_reads(config: Any) -> tuple[str, ...]:
    own = ("model", "lora", "data.domain", "data.domain_limit", "finetune")
    return ("seed", *settings.repeat_keys(config), *own)


def _final(config: Any) -> tuple[str, ...]:
    return ("evaluate", *(("align",) if settings.shown_examples(config) else ()))


PIPELINE = Pipeline(
    name="select",
    command="run",
    title="NTK-Selector",
    help="all stages of NTK-Selector in order, resumable",
    description=(
        "Runs the stages that this config uses in order, skips what is finished in the run directory, writes "
        "the report, and prints accuracies and losses at the end."
    ),
    config=Address(f"{_HERE}.config:SelectConfig"),
    open=Address(f"{_HERE}.state:open_run"),
    inputs=Address(f"{_HERE}.state:input_hashes"),
    final=_final,
    check=Address(f"{_HERE}.state:check_settings"),
    resolved=settings.resolved,
    facts=Address(f"{_HERE}.arms:facts"),
    part=Address(f"{_HERE}.report:part"),
    beside=Address("ntk_jax.pipelines.common.tensorboard:write_events"),
    terminal=Address(f"{_HERE}.terminal:terminal"),
    load=Address(f"{_HERE}.load:load"),
    measure=Address(f"{_HERE}.measure:measured_rate"),
    notes=Address(f"{_HERE}.costs:notes"),
    doctor=Address(f"{_HERE}.doctor:checks"),
    export=Address(f"{_HERE}.export:export"),
    spoken=("select", "evaluate"),
    distributed=True,
    stages=(
        Stage(
            name="warmup",
            title="Warm-up",
            help="fine-tune LoRA on the domain",
            description="Fine-tunes a LoRA adapter on the domain examples, so that the kernel is taken at a point that "
            "has learnt from the domain. Reads data.domain and the section warmup; writes warmup/.",
            function=Address(f"{_HERE}.warmup:warmup"),
            reads=_warmup_reads,
            keeps=_warmup_keeps,
            inputs=selecting_inputs("domain"),
            check=Address(f"{_HERE}.warmup:check"),
            check_inputs=Address(f"{_HERE}.warmup:check_inputs"),
            cost=Address(f"{_HERE}.costs:warmup"),
        ),
        Stage(
            name="gradient",
            title="Domain gradient",
            help="the domain's mean gradient",
            description="One backward pass over the domain set at the warm-up adapter. Reads warmup/; writes "
            "gradient/direction.safetensors.",
            function=Address(f"{_HERE}.gradient:gradient"),
            after=lambda config: ("warmup",),
            reads=_GRADIENT,
            inputs=("direction",),
            check=Address(f"{_HERE}.score:check"),
            check_inputs=Address(f"{_HERE}.gradient:check_inputs"),
            cost=Address(f"{_HERE}.costs:gradient"),
        ),
        Stage(
            name="preselect",
            title="Pre-selection",
            help="the paper's votes",
            description="With preselect.method votes: each domain example votes for its nearest pool examples by mean "
            "hidden state, and those with most votes go on. With none, the default, the whole pool goes on and "
            "there is nothing to do. Writes preselect/.",
            function=Address(f"{_HERE}.preselect:preselect"),
            after=lambda config: ("warmup",),
            reads=("data.pool", "data.pool_limit", "preselect", "score.batch_tokens", "score.block_examples"),
            inputs=("pool",),
            stores=lambda config: ("hidden.zarr",),
            check=Address(f"{_HERE}.preselect:check"),
            check_inputs=Address(f"{_HERE}.score:check_pool"),
            cost=Address(f"{_HERE}.costs:preselect"),
        ),
        Stage(
            name="score",
            title="Scoring",
            help="the kernel score of every candidate",
            description="The mean kernel of every candidate with the domain: one forward-mode derivative along the "
            "direction of gradient/. Writes score/scores.zarr block by block.",
            function=Address(f"{_HERE}.score:score"),
            after=_after_preselect("gradient"),
            reads=_reads_candidates("score.attention"),
            inputs=("pool",),
            stores=lambda config: ("scores.zarr",),
            check=Address(f"{_HERE}.score:check"),
            check_inputs=Address(f"{_HERE}.score:check_inputs"),
            cost=Address(f"{_HERE}.costs:score"),
        ),
        Stage(
            name="sketch",
            title="Sketching",
            help="projected gradients of pool and domain, in zarr stores",
            description="The gradient of every candidate and of every domain example, projected to sketch.dim numbers, "
            "whose inner products estimate the kernel. Reads warmup/ and preselect/; writes sketch/pool.zarr and "
            "sketch/domain.zarr block by block. The method sketch of select.methods selects by them.",
            function=Address(f"{_HERE}.sketch:sketch"),
            after=_after_preselect("warmup"),
            reads=_reads_candidates(*_SKETCHED, "sketch"),
            inputs=("pool",),
            stores=lambda config: ("pool.zarr", "domain.zarr"),
            check=Address(f"{_HERE}.sketch:check"),
            check_inputs=Address(f"{_HERE}.sketch:check_inputs"),
            cost=Address(f"{_HERE}.costs:sketch"),
        ),
        Stage(
            name="embed",
            title="Embedding",
            help="averaged hidden states of pool and domain, in zarr stores",
            description="An embedding of every candidate and of every domain example: hidden states behind the last "
            "layer, averaged as the section embedding says. Reads preselect/, and warmup/ with embedding.model warm; "
            "writes embed/pool.zarr and embed/domain.zarr block by block. The methods embedding and tsds select by "
            "them.",
            function=Address(f"{_HERE}.embed:embed"),
            after=_embed_after,
            reads=_embed_reads,
            inputs=selecting_inputs("domain", "pool"),
            stores=lambda config: ("pool.zarr", "domain.zarr"),
            check_inputs=Address(f"{_HERE}.embed:check_inputs"),
            cost=Address(f"{_HERE}.costs:embed"),
        ),
        Stage(
            name="items",
            title="Evaluation items",
            help="embeddings of the evaluation items that no selection may hold",
            description="An embedding of every item of select.clean.decontaminate, as the section embedding says, for "
            "select.clean.decontaminate_cosine. Reads warmup/ with embedding.model warm; writes items/items.zarr.",
            function=Address(f"{_HERE}.items:items"),
            after=_items_after,
            reads=_items_reads,
            inputs=selecting_inputs("decontaminate"),
            cost=Address(f"{_HERE}.costs:items"),
        ),
        Stage(
            name="losses",
            title="Losses",
            help="the loss of every candidate before and after the warm-up",
            description="The loss of every candidate's response, nats a token, under the model as it is and under the "
            "warmed-up one. Reads warmup/ and preselect/; writes losses/losses.zarr block by block. The methods "
            "perplexity and paths select by them.",
            function=Address(f"{_HERE}.losses:losses"),
            after=_after_preselect("warmup"),
            reads=_reads_candidates("score.batch_tokens", "score.block_examples"),
            inputs=("pool",),
            stores=lambda config: ("losses.zarr",),
            check=Address(f"{_HERE}.losses:check"),
            check_inputs=Address(f"{_HERE}.score:check_pool"),
            cost=Address(f"{_HERE}.costs:losses"),
        ),
        Stage(
            name="subspace",
            title="Main directions",
            help="the main directions of the domain's gradients",
            description="The singular value decomposition of the gradients of the domain's examples, from their Gram "
            "matrix: select.low_rank.components directions, each a weighted backward pass. Reads warmup/; writes "
            "subspace/gram.zarr block by block and subspace/directions.safetensors.",
            function=Address(f"{_HERE}.subspace:subspace"),
            after=lambda config: ("warmup",),
            reads=(*_SKETCHED, "select.low_rank.components"),
            stores=lambda config: ("gram.zarr",),
            check=Address(f"{_HERE}.subspace:check"),
            check_inputs=Address(f"{_HERE}.subspace:check_inputs"),
            cost=Address(f"{_HERE}.costs_gradients:subspace"),
        ),
        Stage(
            name="low_rank",
            title="Scoring along main directions",
            help="every candidate along the domain's main directions",
            description="One forward-mode derivative of every candidate along each direction of subspace/, with one "
            "primal pass for all. Writes low_rank/scores.zarr block by block. The method low_rank of select.methods "
            "selects by them.",
            function=Address(f"{_HERE}.low_rank:low_rank"),
            after=_after_preselect("subspace"),
            reads=_reads_candidates("score.attention", "score.block_examples"),
            inputs=("pool",),
            stores=lambda config: ("scores.zarr",),
            check_inputs=Address(f"{_HERE}.score:check_inputs"),
            cost=Address(f"{_HERE}.costs_gradients:low_rank"),
        ),
        Stage(
            name="less",
            title="LESS",
            help="sketches at checkpoints of the warm-up",
            description="At each checkpoint that the warm-up kept: the Adam update of every candidate and the loss "
            "gradient of every domain example, projected as the section sketch says. Writes "
            "less/<checkpoint>/pool.zarr and domain.zarr block by block. The method less of select.methods selects by "
            "them.",
            function=Address(f"{_HERE}.less:less"),
            after=_after_preselect("warmup"),
            reads=_reads_candidates("score.batch_tokens", "sketch", "select.less.momentum", "select.less.checkpoints"),
            inputs=("pool",),
            stores=settings.less_stores,
            check=Address(f"{_HERE}.less:check"),
            check_inputs=Address(f"{_HERE}.less:check_inputs"),
            cost=Address(f"{_HERE}.costs_gradients:less"),
        ),
        Stage(
            name="pool",
            title="Pool",
            help="lengths of the pool, for methods that need no model",
            description="Tokenizes the pool and keeps what became of every example, for runs whose methods look "
            "at texts and lengths only. Writes pool/account.zarr block by block.",
            function=Address(f"{_HERE}.tokenize:tokenize"),
            reads=_pool_reads,
            inputs=selecting_inputs("pool"),
            stores=lambda config: ("account.zarr",),
            check_inputs=Address(f"{_HERE}.score:check_pool"),
            cost=Address(f"{_HERE}.costs:pool"),
        ),
        Stage(
            name="select",
            title="Selection",
            help="the best N of every method, as records",
            description="Takes the select.count best by each of select.methods, ties in pool order, without what "
            "select.clean and select.quotas leave out, or the most diverse of them by select.diversity. Writes "
            "select/<method>.jsonl: the records with score, rank and method added; select/selection.jsonl is the first "
            "method's; select/<method>.dropped.jsonl says what was left out and why; select/scores.npz has all scores, "
            "for `ntk-jax diagnose`.",
            function=Address(f"{_HERE}.select:select"),
            after=_select_after,
            reads=_select_reads,
            inputs=("domain", "decontaminate"),
            shows=("report.group_by", "report.useful"),
            check=Address(f"{_HERE}.select:check"),
            check_inputs=Address(f"{_HERE}.select:check_inputs"),
            cost=Address(f"{_HERE}.costs:select"),
        ),
        Stage(
            name="align",
            title="Alignment",
            help="selected examples beside the domain example each aligns with",
            description="For the best report.examples of the first selection the domain example with the "
            "largest kernel, for the report. Writes align/examples.json.",
            function=Address(f"{_HERE}.align:align"),
            after=lambda config: ("select", "warmup"),
            shows=("report.examples", "report.group_by", *_SKETCHED, "score.attention"),
            cost=Address(f"{_HERE}.costs:align"),
        ),
        Stage(
            name="finetune",
            title="Fine-tuning",
            help="one adapter for each arm",
            description="Fine-tunes one LoRA adapter an arm of evaluate.arms: domain only, domain + what each method "
            "selected, with the same number of steps. Writes finetune/<arm>/adapter, which peft loads.",
            function=Address(f"{_HERE}.finetune:finetune"),
            after=lambda config: ("select",),
            reads=_finetune_reads,
            shows=("evaluate.arms",),  # an arm that is trained stays as it is, whatever arms are added or left out
            inputs=("model", "domain"),
            parts=("arms",),
            check=Address(f"{_HERE}.finetune:check"),
            check_inputs=Address(f"{_HERE}.finetune:check_inputs"),
            cost=Address(f"{_HERE}.costs:finetune"),
        ),
        Stage(
            name="evaluate",
            title="Evaluation",
            help="accuracy and held-out loss of every arm",
            description="Multiple-choice accuracy, and for files without choices held-out loss, on evaluate.files with "
            "bootstrap intervals, and prints the tables. Writes evaluate/.",
            function=Address(f"{_HERE}.evaluate:evaluate"),
            after=lambda config: ("finetune",),
            reads=lambda config: (*evaluation_reads(config), "score.batch_tokens"),
            inputs=("evaluate",),
            shows=("evaluate.arms", "evaluate.metrics", "evaluate.bootstrap", "evaluate.confidence"),
            check=Address(f"{_HERE}.evaluate:check"),
            check_inputs=Address(f"{_HERE}.evaluate:check_inputs"),
            cost=Address(f"{_HERE}.costs:evaluate"),
        ),
    ),
)
