"""What each stage computes: examples, tokens and FLOPs, by the formulas that the stages themselves report with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax

from ntk_jax.config import TrainSection
from ntk_jax.estimate.facts import Facts
from ntk_jax.estimate.workload import Examples, Questions
from ntk_jax.kernels.parameters import split_parameters
from ntk_jax.kernels.projections import projection_flops
from ntk_jax.models.attention import query_blocks
from ntk_jax.pipeline import stages_of
from ntk_jax.report.amounts import metric
from ntk_jax.stages.context import Run
from ntk_jax.stages.pool import resolved_votes
from ntk_jax.stages.selection import directions_at_once
from ntk_jax.training.flops import forward_flops, gradient_flops, matrix_parameters, score_flops, training_flops
from ntk_jax.training.order import count_seen, count_steps


@dataclass(frozen=True)
class Work:
    """One line of the estimate: a stage, or an arm of it.

    tokens: real ones. flops: of these, by formula. computed: FLOPs with the padding of the rows, what a device does.
    kind: what its time is like, a forward (or forward-mode) or a backward pass.
    """

    stage: str
    examples: float
    tokens: float
    flops: float
    computed: float
    kind: Literal["forward", "backward"] = "forward"
    arm: str | None = None

    @property
    def name(self) -> str:
        return self.stage if self.arm is None else f"{self.stage} {self.arm}"


@dataclass(frozen=True)
class Workload:
    """What a run reads."""

    pool: Examples
    domain: Examples
    questions: Questions


def works(run: Run, load: Workload, facts: Facts) -> list[Work]:
    """The stages of this run, in order, `report` left out."""
    config, found = run.config, []
    for stage in stages_of(config):
        if stage == "warmup":
            if config.warmup.max_steps != 0:
                found.append(_training(run, "warmup", config.warmup, load, 0, None))
        elif stage == "gradient":
            found.append(_gradient(run, load))
        elif stage == "preselect":
            if config.preselect.method == "votes":
                found.append(_votes(run, load))
        elif stage == "score":
            found.append(_score(run, load, candidates(run, load)))
        elif stage == "sketch":
            found.append(_sketch(run, load))
        elif stage == "select":
            found.append(_select(run, load))
        elif stage == "finetune":
            found += _finetune(run, load)
        elif stage == "evaluate" and load.questions.count:
            found.append(_evaluate(run, load))
    _state(run, load, facts)
    return found


def candidates(run: Run, load: Workload) -> float:
    """Usable examples that are scored or sketched."""
    votes = resolved_votes(run.config)
    return min(load.pool.count, votes["preselect.keep"]) if votes else load.pool.count


def whole_pool(run: Run, load: Workload) -> Work:
    """Exact scores of the whole pool, whether the run makes them or not."""
    return _score(run, load, load.pool.count)


# -- the stages ------------------------------------------------------------------------------------------------------


def _gradient(run: Run, load: Workload) -> Work:
    score, domain = run.config.score, load.domain
    if score.direction not in ("mean_gradient", "adam"):  # a file: read, not computed
        return Work("gradient", 0, 0, 0.0, 0.0, "backward")
    flops = _gradient_flops(run, domain.total, domain.count * domain.span)
    return Work("gradient", domain.count, domain.total, flops, flops / domain.fill, "backward")


def _votes(run: Run, load: Workload) -> Work:
    """A forward pass over pool and domain, and the cosines between them, 2 Nd N D."""
    tokens = load.pool.total + load.domain.total
    trunk = forward_flops(run.base.config, round(tokens), lora_parameters=run.adapter_size)
    cosines = 2.0 * load.domain.count * load.pool.count * run.base.config.hidden_size
    return Work("preselect", load.pool.count, tokens, trunk + cosines, trunk / load.pool.fill + cosines)


def _score(run: Run, load: Workload, count: float) -> Work:
    tokens = count * load.pool.tokens
    flops = _score_flops(run, tokens, count * load.pool.span, run.objective.channels)
    return Work("score", count, tokens, flops, flops / load.pool.fill)


def _sketch(run: Run, load: Workload) -> Work:
    """A backward pass an example, one example a row, and the projection of its gradient."""
    pool, domain, count = load.pool, load.domain, candidates(run, load)
    examples, tokens = count + domain.count, count * pool.tokens + domain.total
    spans, channels = count * pool.span + domain.count * domain.span, run.objective.channels
    theta = split_parameters(run.base, run.config.score.parameters)[0]
    project = examples * channels * projection_flops(run.projection, theta)
    flops = _gradient_flops(run, tokens, spans)
    padded = _gradient_flops(run, examples * run.row_length, spans)
    return Work("sketch", examples, tokens, flops + project, padded + project, "backward")


def _select(run: Run, load: Workload) -> Work:
    """For each selected example that the report shows: its gradient, and the domain scored along it."""
    shown, domain = min(run.config.report.examples, run.config.select.count), load.domain
    tokens, spans = shown * load.pool.tokens, shown * load.pool.span
    together = directions_at_once(run)
    passes, channels = -(-shown // together), run.objective.channels * together
    score = passes * _score_flops(run, domain.total, domain.count * domain.span, channels)
    gradient, padded = (_gradient_flops(run, total, spans) for total in (tokens, shown * run.row_length))
    return Work(
        "select", shown, tokens + passes * domain.total, gradient + score, padded + score / domain.fill, "backward"
    )


def _finetune(run: Run, load: Workload) -> Iterator[Work]:
    section, count = run.config.finetune, run.config.select.count
    steps = count_steps(round(load.domain.count) + count, run.train_config(section))
    for arm in run.config.evaluate.arms:
        if arm != "base":
            yield _training(run, "finetune", section, load, 0 if arm == "domain" else count, arm, steps)


def _evaluate(run: Run, load: Workload) -> Work:
    """Every arm reads every question once."""
    arms, asked = len(run.config.evaluate.arms), load.questions
    tokens, labels = arms * asked.count * asked.tokens, arms * asked.count * asked.labels
    flops = forward_flops(run.base.config, round(tokens), round(labels), lora_parameters=run.adapter_size)
    return Work("evaluate", arms * asked.count, tokens, flops, flops)


# -- their parts -----------------------------------------------------------------------------------------------------


def _training(
    run: Run, stage: str, section: TrainSection, load: Workload, extra: int, arm: str | None, steps: int | None = None
) -> Work:
    """A training on the domain and `extra` pool examples; steps: instead of what the section says."""
    domain, pool, count = load.domain, load.pool, round(load.domain.count) + extra
    tokens = (domain.count * domain.tokens + extra * pool.tokens) / max(count, 1)
    responses = (domain.count * domain.responses + extra * pool.responses) / max(count, 1)
    settings = run.train_config(section) if steps is None else run.train_config(section, max_steps=steps)
    seen = count_seen(count, settings)
    remat, size = recomputes(run), run.adapter_size
    flops = training_flops(run.base.config, round(seen * tokens), round(seen * responses), remat, lora_parameters=size)
    fill = pool.training_fill if extra else domain.training_fill
    return Work(stage, seen, seen * tokens, flops, flops / fill, "backward", arm)


def keys_per_query(length: int) -> float:
    """Keys that a query of a row meets on average, in attention as it is computed: block by block, masked after."""
    return sum((stop - start) * stop for start, stop in query_blocks(length)) / length


def recomputes(run: Run) -> bool:
    """Whether training computes layers again in the backward pass, as `training.train` decides."""
    return run.base.config.hidden_size >= 1024


def _score_flops(run: Run, tokens: float, spans: float, directions: int) -> float:
    labels = 0 if run.objective.is_linear else round(spans)
    return score_flops(run.base.config, round(tokens), labels, directions=directions, **run.differentiated)


def _gradient_flops(run: Run, tokens: float, spans: float) -> float:
    labels, channels = 0 if run.objective.is_linear else round(spans), run.objective.channels
    return gradient_flops(run.base.config, round(tokens), labels, directions=channels, **run.differentiated)


def _state(run: Run, load: Workload, facts: Facts) -> None:
    """The rules by which FLOPs were counted."""
    shape, pool, config = run.base.config, load.pool, run.config
    trunk = matrix_parameters(shape)
    facts.known(
        "P", trunk, f"{metric(trunk)} in the layers' matrices", "the model's shape; without embedding, head, norms"
    )
    keys = keys_per_query(run.row_length)
    attention = forward_flops(shape, 1, context=keys) - forward_flops(shape, 1)
    facts.assume(
        "attention's own products",
        0.0,
        f"not counted: a query meets {keys:,.0f} keys of a row of {run.row_length:,}, its own example's or not, and "
        f"that adds {100 * attention / (2 * trunk):.1f}% to a forward pass, {300 * attention / (4 * trunk):.1f}% to a "
        "score",
        "models/decoder.py, training/flops.py",
    )
    facts.assume(
        "padding",
        pool.fill,
        f"packed rows of {run.row_length:,} are {100 * pool.fill:.0f}% full (at most 16 examples each), in training "
        f"{100 * pool.training_fill:.0f}%, in evaluation wholly",
        "the pool's tokens, packed; for a pool that is not here as full as examples of one length would be",
    )
    if resolved_votes(config):
        facts.assume(
            "candidates",
            candidates(run, load),
            "as long as the pool on average",
            "longer or shorter ones may be preferred",
        )
    if "finetune" in stages_of(config):
        facts.assume(
            "selected examples",
            config.select.count,
            "as long as the pool on average",
            "longer or shorter ones may be preferred",
        )
    leaves = jax.tree.leaves(split_parameters(run.base, config.score.parameters)[0])
    size = sum(leaf.size for leaf in leaves)
    facts.known("parameters differentiated", size, metric(size), f"score.parameters {config.score.parameters}")
