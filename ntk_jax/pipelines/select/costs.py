"""What each stage costs: examples, tokens and FLOPs by the formulas that the stages themselves report with, the
memory of a device, and the files that are left."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from ntk_jax.data.sources import count_records
from ntk_jax.engine.costs import Cost, Disk, Work
from ntk_jax.engine.estimate import hours_of
from ntk_jax.engine.estimate_text import device_time
from ntk_jax.engine.rates import Rate
from ntk_jax.kernels.projections import check_width, projection_flops
from ntk_jax.models.memory import keys_per_query
from ntk_jax.pipelines.common.evaluated_reads import here
from ntk_jax.pipelines.common.sections import TrainSection
from ntk_jax.pipelines.common.training import train_config
from ntk_jax.pipelines.select.account import ARRAYS
from ntk_jax.pipelines.select.align import directions_at_once
from ntk_jax.pipelines.select.arms import arms
from ntk_jax.pipelines.select.config import (
    FinetuneSection,
    checkpoints_kept,
    cleans,
    diversifies,
    keeps_checkpoints,
    resolved_votes,
)
from ntk_jax.pipelines.select.load import Load, Questions
from ntk_jax.pipelines.select.memory import peak_memory, recomputes
from ntk_jax.pipelines.select.state import evaluation_items_of
from ntk_jax.report.amounts import metric
from ntk_jax.selection.diversity import diversity_flops
from ntk_jax.training.blend import phases_of
from ntk_jax.training.checkpoints import KEPT
from ntk_jax.training.flops import forward_flops, gradient_flops, matrix_parameters, score_flops, training_flops
from ntk_jax.training.order import count_seen, count_steps

ACCOUNT_BYTES = sum(np.dtype(dtype).itemsize for _, dtype in ARRAYS.values())  # bytes of what is kept of an example
SMALL = 4096  # the JSON files of a stage: fingerprint, manifest, checksums, summary
_ARRAY = 1500  # zarr's description of an array, with some others beside those of the account
_STEP = 170  # a line of history.jsonl
_SELECTED = 90  # what a selection adds to a record: score, rank, method
_LOSS = 80  # a line of a held-out example
_BYTES_PER_TOKEN = 5  # of a generated answer, as JSON
_PREDICTED = 160  # a prediction, beside the text of its choices and 24 bytes a choice


def warmup(load: Load) -> Cost:
    """A training on the domain; its files are an adapter and Adam's second moments."""
    section, low = load.run.config.warmup, _adapter_bytes(load)
    if section.max_steps == 0:
        return Cost((), Disk(low + SMALL))
    steps = count_steps(round(load.domain.count), train_config(section))
    work = _training(load, "warmup", section, 0, None)
    config = load.run.config
    kept = 3 * low * checkpoints_kept(config) if keeps_checkpoints(config) else 0.0  # an adapter and two moments each
    return Cost((work,), Disk(2 * low + kept + _STEP * steps + SMALL, _checkpoint_bytes(load)))


def gradient(load: Load) -> Cost:
    """A backward pass over the domain."""
    run, domain = load.run, load.domain
    disk = Disk(run.objective.channels * 4.0 * _theta_size(load) + SMALL)
    if run.config.score.direction not in ("mean_gradient", "adam"):  # a file: read, not computed
        return Cost((), disk)
    flops = _gradient_flops(load, domain.total, domain.count * domain.span)
    work = Work(domain.count, domain.total, flops, flops / domain.fill, "backward", _memory(load, "gradient"))
    return Cost((work,), disk)


def preselect(load: Load) -> Cost:
    """A forward pass over pool and domain, and the cosines between them, 2 Nd N D."""
    run, pool = load.run, load.pool
    base = run.model.base
    tokens, width = pool.total + load.domain.total, base.config.hidden_size
    trunk = forward_flops(base.config, round(tokens), lora_parameters=run.model.adapter_size)
    cosines = 2.0 * load.domain.count * pool.count * width
    work = Work(pool.count, tokens, trunk + cosines, trunk / pool.fill + cosines, memory=_memory(load, "preselect"))
    disk = store_bytes(pool.records, run.config.score.block_examples, 2.0 * width + ACCOUNT_BYTES) + 20 * pool.records
    return Cost((work,), Disk(disk + SMALL))


def score(load: Load) -> Cost:
    """A forward pass with one tangent, over the candidates."""
    count = candidates(load)
    disk = store_bytes(count, load.run.config.score.block_examples, 4.0 + ACCOUNT_BYTES)
    return Cost((_score(load, count),), Disk(disk + SMALL))


def sketch(load: Load) -> Cost:
    """A backward pass an example, one example a row, and the projection of its gradient. Raises UserError: the sketch
    is wider than the gradient."""
    run, pool, domain, count = load.run, load.pool, load.domain, candidates(load)
    check_width(run.projection, run.theta)
    examples, tokens = count + domain.count, count * pool.tokens + domain.total
    spans, channels = count * pool.span + domain.count * domain.span, run.objective.channels
    project = examples * channels * projection_flops(run.projection, run.theta)
    flops = _gradient_flops(load, tokens, spans)
    padded = _gradient_flops(load, count * pool.tokens / pool.single_fill + domain.total / domain.single_fill, spans)
    work = Work(examples, tokens, flops + project, padded + project, "backward", _memory(load, "sketch"))
    section = run.config.sketch
    row = section.dim * np.dtype(section.dtype).itemsize + 8.0 + ACCOUNT_BYTES
    stored = sum(
        store_bytes(number, min(section.block_examples, round(number)), row + ids)
        for number, ids in ((count, pool.id_bytes), (domain.count, domain.id_bytes))
    )
    return Cost((work,), Disk(stored + SMALL))


def embed(load: Load) -> Cost:
    """A forward pass over candidates and domain, without the head."""
    run, pool, domain, count = load.run, load.pool, load.domain, candidates(load)
    tokens, width = count * pool.tokens + domain.total, run.model.base.config.hidden_size
    flops = forward_flops(run.model.base.config, round(tokens), lora_parameters=run.model.adapter_size)
    work = Work(count + domain.count, tokens, flops, flops / pool.fill, memory=_memory(load, "embed"))
    row, size = 2.0 * width + ACCOUNT_BYTES, run.config.score.block_examples
    stored = store_bytes(count, size, row) + store_bytes(domain.count, min(size, round(domain.count)), row)
    return Cost((work,), Disk(stored + SMALL))


def items(load: Load) -> Cost:
    """A forward pass over the evaluation items, and their cosines with the candidates, which select takes."""
    run, count, pool = load.run, candidates(load), load.pool
    files = [file for file, _ in evaluation_items_of(run.config)]
    number, text = sum(count_records(file) for file in files if here([file])), "counted in select.clean.decontaminate"
    if not number:
        number = round(sum(part.count for part in (load.questions, load.held_out, load.generated)))
        text = "the files are not here: as many as questions and other records are evaluated"
    load.grounds.assume("evaluation items", number, f"{number:,}, as long as the pool on average", text)
    base = run.model.base.config
    trunk = forward_flops(base, round(number * pool.tokens), lora_parameters=run.model.adapter_size)
    cosines = 2.0 * number * count * base.hidden_size
    memory = _memory(load, "items")
    work = Work(number, number * pool.tokens, trunk + cosines, trunk / pool.fill + cosines, memory=memory)
    row, size = 2.0 * base.hidden_size + ACCOUNT_BYTES, run.config.score.block_examples
    return Cost((work,), Disk(store_bytes(number, max(1, min(size, number)), row) + SMALL))


def losses(load: Load) -> Cost:
    """A forward pass over the candidates with each of two models, and the head at the responses."""
    run, count = load.run, candidates(load)
    tokens, labels = count * load.pool.tokens, count * load.pool.responses
    once = forward_flops(run.model.base.config, round(tokens), round(labels), lora_parameters=run.model.adapter_size)
    work = Work(2 * count, 2 * tokens, 2 * once, 2 * once / load.pool.fill, memory=_memory(load, "losses"))
    disk = store_bytes(count, run.config.score.block_examples, 8.0 + ACCOUNT_BYTES)
    return Cost((work,), Disk(disk + SMALL))


def pool(load: Load) -> Cost:
    """Tokenizing alone: nothing for the device."""
    return Cost((), Disk(store_bytes(load.pool.records, load.run.config.score.block_examples, ACCOUNT_BYTES) + SMALL))


def select(load: Load) -> Cost:
    """Sorting: nothing for the device."""
    config = load.run.config
    records = (len(config.select.methods) + 1) * config.select.count * (load.pool.bytes + _SELECTED)
    _state_selected(load)
    _state_refined(load)
    return Cost((), Disk(records + 40 * min(1500, load.pool.count) + 2 * SMALL))


def align(load: Load) -> Cost:
    """For each selected example that the report shows: its gradient, and the domain scored along it."""
    run, domain, pool = load.run, load.domain, load.pool
    shown = min(run.config.report.examples, run.config.select.count)
    tokens, spans = shown * pool.tokens, shown * pool.span
    together = directions_at_once(run)
    passes, channels = -(-shown // together), run.objective.channels * together
    scores = passes * _score_flops(load, domain.total, domain.count * domain.span, channels)
    gradients, padded = (_gradient_flops(load, total, spans) for total in (tokens, shown * run.row_length))
    work = Work(
        shown,
        tokens + passes * domain.total,
        gradients + scores,
        padded + scores / domain.fill,
        "backward",
        _memory(load, "align"),
    )
    return Cost((work,), Disk(shown * (pool.bytes + domain.bytes + 200) + SMALL))


def finetune(load: Load) -> Cost:
    """A training of every arm but the base, all with the same number of steps."""
    load = load.target
    config, low = load.run.config, _adapter_bytes(load)
    steps = count_steps(round(load.domain.count) + config.select.count, train_config(config.finetune))
    works = tuple(_finetunings(load, steps))
    return Cost(works, Disk(len(works) * (low + _STEP * steps + SMALL), _checkpoint_bytes(load)))


def evaluate(load: Load) -> Cost:
    """Every arm reads every question, and every held-out example, once, and writes its answers."""
    load = load.target
    number, asked, held_out, generated = len(arms(load.run.config)), load.questions, load.held_out, load.generated
    lines = number * (asked.count * (_PREDICTED + 2 * asked.bytes) + held_out.count * _LOSS)
    lines += number * generated.count * (_LOSS + _BYTES_PER_TOKEN * generated.labels)
    parts = {"accuracy": asked, "loss": held_out, "generated": generated}
    works = {part: _evaluation(load, found, number) for part, found in parts.items() if found.count}
    if len(works) > 1:
        works = {part: replace(work, part=part) for part, work in works.items()}
    return Cost(tuple(works.values()), Disk(lines + SMALL * (1 + sum(found.files for found in parts.values()))))


def _evaluation(load: Load, found: Questions, number: int) -> Work:
    run = load.run
    tokens, labels = number * found.count * found.tokens, number * found.count * found.labels
    size = run.model.adapter_size
    flops = forward_flops(run.model.base.config, round(tokens), round(labels), lora_parameters=size)
    memory = peak_memory(run, "evaluate", load.pool, found)
    return Work(number * found.count, tokens, flops, flops, memory=memory)


def candidates(load: Load) -> float:
    """Usable examples that are scored, sketched, embedded or measured."""
    if load.run.config.preselect.method == "none":
        return load.pool.count
    return min(load.pool.count, resolved_votes(load.run.config)["preselect.keep"])


def notes(load: Load, rate: Rate | None) -> tuple[dict[str, Any], list[str]]:
    """(further values, lines): exact scores of the whole pool, whether the run makes them or not, and the rules by
    which FLOPs were counted."""
    _state_rules(load)
    config, whole = load.run.config, _score(load, load.pool.count)
    hours = hours_of(whole, rate)
    four = 4.0 * matrix_parameters(load.run.model.base.config) * whole.tokens
    at_peak = None if rate is None or rate.peak is None else whole.flops / rate.peak / 3600
    text = (
        f"Exact scores of the whole pool ({round(whole.examples):,} examples, {metric(round(whole.tokens))} tokens, "
        f"objective {config.score.objective}): {metric(whole.flops, 'FLOP')}, where 4 × P × tokens is "
        f"{metric(four, 'FLOP')}"
    )
    if hours is not None and rate is not None:
        text += f"; {device_time(hours)} of one {rate.device}"
        if at_peak is not None and rate.peak is not None:
            reached = 100 * rate.forward / rate.peak
            text += f" at {reached:.0f}% of {rate.peak / 1e12:g} TFLOP/s, {device_time(at_peak)} at 100%"
    reported = config.estimate.reported
    values = {
        "examples": round(whole.examples),
        "tokens": round(whole.tokens),
        "flops": whole.flops,
        "flops_of_4_p": four,
        "device_hours": hours,
        "device_hours_at_peak": at_peak,
        "reported": reported,
        "objective": config.score.objective,
    }
    proxy = {"proxy": config.model.path} if load.other else {}
    return {"model": load.target.run.config.model.path, **proxy, "whole_pool": values}, [
        text + "." + (f" {reported.rstrip('.')}." if reported else "")
    ]


# -- their parts -----------------------------------------------------------------------------------------------------


def _score(load: Load, count: float) -> Work:
    tokens = count * load.pool.tokens
    flops = _score_flops(load, tokens, count * load.pool.span, load.run.objective.channels)
    return Work(count, tokens, flops, flops / load.pool.fill, memory=_memory(load, "score"))


def _finetunings(load: Load, steps: int) -> Iterator[Work]:
    config = load.run.config
    for arm in arms(config):
        if arm.trained:
            extra = config.select.count if arm.method or arm.file else 0
            yield _training(load, "finetune", config.finetune, extra, arm.name, steps)


def _training(
    load: Load, stage: str, section: TrainSection, extra: int, part: str | None, steps: int | None = None
) -> Work:
    """A training on the domain and `extra` pool examples; steps: instead of what the section says."""
    run, domain, pool, count = load.run, load.domain, load.pool, round(load.domain.count) + extra
    seen = count_seen(count, train_config(section) if steps is None else train_config(section, max_steps=steps))
    share = domain.count / max(count, 1)
    if isinstance(section, FinetuneSection) and extra and steps is not None:
        mixed = section.mixture, round(domain.count), extra, section.batch_size, steps
        if phases := phases_of(*mixed, section.domain_share, section.replay_share):
            seen = sum(many * size for many, size, _ in phases)
            share = sum(own for _, _, own in phases) / seen
    tokens = share * domain.tokens + (1 - share) * pool.tokens
    responses = share * domain.responses + (1 - share) * pool.responses
    remat, size = recomputes(run), run.model.adapter_size
    flops = training_flops(
        run.model.base.config, round(seen * tokens), round(seen * responses), remat, lora_parameters=size
    )
    fill = pool.training_fill if extra else domain.training_fill
    return Work(seen, seen * tokens, flops, flops / fill, "backward", _memory(load, stage), part)


def _memory(load: Load, stage: str) -> float:
    return peak_memory(load.run, stage, load.pool, load.questions)


def _theta_size(load: Load) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(load.run.theta))


def _adapter_bytes(load: Load) -> float:
    return 4.0 * load.run.model.adapter_size


def _checkpoint_bytes(load: Load) -> float:
    """Orbax keeps two checkpoints of the trained parameters and Adam's two moments, and writes a third beside them."""
    return (KEPT + 1) * 3 * _adapter_bytes(load)


def store_bytes(rows: float, block: int, row: float) -> float:
    """Bytes of a store: the last block is as long as the others on disk."""
    return -(-round(rows) // max(block, 1)) * block * row + _ARRAY * len(ARRAYS)


def _score_flops(load: Load, tokens: float, spans: float, directions: int) -> float:
    run = load.run
    labels = 0 if run.objective.is_linear else round(spans)
    return score_flops(run.model.base.config, round(tokens), labels, directions=directions, **run.differentiated)


def _gradient_flops(load: Load, tokens: float, spans: float) -> float:
    run = load.run
    labels, channels = 0 if run.objective.is_linear else round(spans), run.objective.channels
    return gradient_flops(run.model.base.config, round(tokens), labels, directions=channels, **run.differentiated)


def _state_selected(load: Load) -> None:
    config = load.run.config
    names = ["selected examples", *(["candidates"] if config.preselect.method == "votes" else [])]
    for name, number in zip(names, (config.select.count, candidates(load)), strict=False):
        load.grounds.assume(name, number, "as long as the pool on average", "longer or shorter ones may be preferred")


def _state_refined(load: Load) -> None:
    """What cleaning and diversity take beside the device."""
    config, grounds = load.run.config, load.grounds
    if cleans(config):
        grounds.assume(
            "examples left out", 0, "not counted", "few beside those selected; a line of some 200 bytes each"
        )
    part = config.select.diversity
    methods = [method for method in config.select.methods if diversifies(config, method)]
    if methods:
        number = min(math.ceil(part.candidates * config.select.count), round(load.pool.count))
        flops = len(methods) * diversity_flops(part.method, config.select.count, number, part.dim)
        size = (12.0 if part.method == "dpp" else 4.0) * number * part.dim
        text = f"{metric(flops, 'FLOP')} and {metric(size, 'B')} on the host, not counted among the device's"
        grounds.known("diversity", flops, text, f"{number:,} candidates a method, selection/diversity.py")


def _state_rules(load: Load) -> None:
    """The rules by which FLOPs and memory were counted."""
    run, pool, grounds = load.run, load.pool, load.grounds
    shape = run.model.base.config
    trunk, size = matrix_parameters(shape), _theta_size(load)
    grounds.known(
        "P", trunk, f"{metric(trunk)} in the layers' matrices", "the model's shape; without embedding, head, norms"
    )
    keys = keys_per_query(run.row_length)
    attention = forward_flops(shape, 1, context=keys) - forward_flops(shape, 1)
    grounds.assume(
        "attention's own products",
        0.0,
        f"not counted: a query meets {keys:,.0f} keys of a row of {run.row_length:,}, its own example's or not, and "
        f"that adds {100 * attention / (2 * trunk):.1f}% to a forward pass, {300 * attention / (4 * trunk):.1f}% to a "
        "score",
        "models/decoder.py, training/flops.py",
    )
    grounds.assume(
        "padding",
        pool.fill,
        f"packed rows of {run.row_length:,} are {100 * pool.fill:.0f}% full (at most 16 examples each), in training "
        f"{100 * pool.training_fill:.0f}%, in evaluation wholly",
        "the pool's tokens, packed; for a pool that is not here as full as examples of one length would be",
    )
    grounds.known("parameters differentiated", size, metric(size), f"score.parameters {run.config.score.parameters}")
    grounds.assume(
        "memory",
        None,
        "weights, adapter, optimizer and live activations, without XLA's workspace",
        "a model of the compiled steps, models/memory.py; within a factor of 2 of the CPU compiler's account "
        "of small shapes",
    )
