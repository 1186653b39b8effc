"""Peak memory of a device for each stage: what lies there all the stage long, and the temporaries of its step by the
formulas of `models.memory`. Activations are not taken as split over the axis `tensor`, so there it is too much."""

from __future__ import annotations

import math

import jax

from ntk_jax.data.packing import row_lengths
from ntk_jax.kernels.low_rank import DIRECTIONS_AT_ONCE
from ntk_jax.kernels.projections import BLOCK
from ntk_jax.kernels.rows import layout_for
from ntk_jax.kernels.sketch import GRADIENT_BYTES
from ntk_jax.models.memory import Shape, backward_bytes, forward_bytes, score_bytes
from ntk_jax.parallel.rules import param_shardings
from ntk_jax.pipelines.select import subspace
from ntk_jax.pipelines.select.align import alignment_layout, directions_at_once
from ntk_jax.pipelines.select.load import Questions, Volume
from ntk_jax.pipelines.select.low_rank import scoring_layout
from ntk_jax.pipelines.select.state import SelectRun


def recomputes(run: SelectRun) -> bool:
    """Whether training computes layers again in the backward pass, as `training.train` decides."""
    return run.model.base.config.hidden_size >= 1024


def peak_memory(run: SelectRun, stage: str, pool: Volume, questions: Questions) -> int:
    """Bytes on the fullest device while a stage computes: what stays (`resident`), and the step's temporaries."""
    return round(resident(run, stage) + temporaries(run, stage, shape_of(run, stage, pool, questions)))


def resident(run: SelectRun, stage: str) -> float:
    """Bytes that lie on a device all the stage long: its part of the weights, the adapter, what is shaped like it.

    Training keeps the model's adapter, the one trained, Adam's two moments, the summed gradient, and for a checkpoint
    a copy of three of these; all fp32.
    """
    theta = 4.0 * sum(leaf.size for leaf in jax.tree.leaves(run.theta))
    low, channels = 4.0 * run.model.adapter_size, run.objective.channels
    extra = {
        "warmup": 8 * low,
        "finetune": 8 * low,
        "gradient": 2 * channels * theta,  # the sum, and a batch's part
        "score": 2 * channels * theta,  # the direction, and it scaled to norm 1
        "sketch": 12.0 * BLOCK * run.config.sketch.dim,  # signs, and what they are made from
        "less": 12.0 * BLOCK * run.config.sketch.dim
        + 3 * low,  # signs; a checkpoint's adapter, and Adam's moments there
        "subspace": subspace.GRADIENT_BYTES + 2.0 * channels * theta * DIRECTIONS_AT_ONCE,
        "low_rank": 2 * channels * theta * run.config.select.low_rank.components,
        "align": 2 * channels * theta * directions_at_once(run),
        "losses": low,  # the warmed-up adapter beside the model's own
    }
    return weights(run) + low + extra.get(stage, 0.0)


def weights(run: SelectRun) -> float:
    """Bytes of the frozen weights on a device; where they are split, also one layer's and the embedding gathered; where
    they are quantized, also the largest matrix of a layer as it meets the activations."""
    leaves = jax.tree.leaves(run.model.base.base)
    widened = 0.0
    if run.model.base.quantization:
        largest = max(leaf.size for leaf in jax.tree.leaves(run.model.base.base["layers"]))
        widened = largest / run.model.base.config.num_layers * run.model.base.dtype.itemsize
    if run.model.mesh is None:
        return float(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)) + widened
    parts = jax.tree.leaves(param_shardings(run.model.base.base, run.model.mesh))
    own = sum(
        math.prod(part.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, part in zip(leaves, parts, strict=True)
    )
    if run.model.mesh.shape["fsdp"] * run.model.mesh.shape["tensor"] == 1:
        return float(own) + widened
    layers = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.model.base.base["layers"]))
    embed = run.model.base.base["embed"]
    layer = layers / run.model.base.config.num_layers / run.model.mesh.shape["tensor"]
    return float(own + layer + embed.size * embed.dtype.itemsize) + widened / run.model.mesh.shape["tensor"]


def shape_of(run: SelectRun, stage: str, pool: Volume, questions: Questions) -> Shape:
    """The shape of the stage's step on one device."""
    shards = 1 if run.model.mesh is None else run.model.mesh.shape["data"] * run.model.mesh.shape["fsdp"]
    if stage in ("warmup", "finetune"):
        section = run.config.warmup if stage == "warmup" else run.config.finetune
        rows = max(1, section.tokens_per_microbatch // (run.row_length * shards))
        return Shape(rows, run.row_length, round(rows * run.row_length * pool.responses / pool.tokens))
    if stage == "evaluate":
        length = -(-questions.longest // 64) * 64
        layout = layout_for(length, run.config.score.batch_tokens, run.model.mesh)
        rows = layout.rows_per_batch // shards
        return Shape(rows, length, round(rows * length * questions.labels / max(questions.tokens, 1)))
    layouts = {
        "align": lambda: alignment_layout(run),
        "low_rank": lambda: scoring_layout(run, run.config.select.low_rank.components),
        "subspace": lambda: subspace.gram_layout(run),
    }
    rows = layouts.get(stage, lambda: run.layout)().rows_per_batch // shards
    if stage in ("sketch", "less"):
        rows = min(rows, max(1, GRADIENT_BYTES // (4 * _gradient_size(run, stage))))
    if (run.objective.is_linear and stage not in ("less", "losses")) or stage in ("preselect", "embed", "items"):
        return Shape(rows, run.row_length)
    share = round(run.row_length * (pool.responses if stage == "losses" else pool.span) / pool.tokens)
    return Shape(rows, run.row_length, rows * min(run.row_length, 1 << max(share - 1, 0).bit_length()))


def temporaries(run: SelectRun, stage: str, shape: Shape) -> float:
    """Bytes of the step's temporaries, by the formulas above."""
    model, channels = run.model.base.config, run.objective.channels
    size = run.model.base.dtype.itemsize
    if stage in ("preselect", "embed", "items", "losses", "evaluate"):
        return forward_bytes(model, shape, size)
    if stage in ("warmup", "finetune"):
        return backward_bytes(model, shape, size, recomputes(run))
    kernel = run.config.score.attention == "pallas"
    if stage == "score":
        return score_bytes(model, shape, size, channels, kernel)
    if stage == "align":  # the domain along several directions at once
        return score_bytes(model, shape, size, directions_at_once(run) * channels, kernel)
    if stage == "low_rank":
        return score_bytes(model, shape, size, run.config.select.low_rank.components * channels, kernel)
    backward = backward_bytes(model, shape, size, True, 1.0 if stage == "less" else run.differentiated["late"])
    # Every row has an adapter of its own, and a gradient, of which two batches are alive; under less also its update.
    alive = {"sketch": 1 / channels + 2, "subspace": 1 / channels + 2, "less": 4}
    if stage not in alive:
        return backward
    rows, one = float(shape.rows), 4.0 * _gradient_size(run, stage)
    if stage != "subspace":  # a batch of the shortest examples has more of them
        rows = min(rows * (shape.length // row_lengths(shape.length)[0]), max(1, GRADIENT_BYTES // one))
    return backward + rows * alive[stage] * one


def _gradient_size(run: SelectRun, stage: str) -> int:
    """Numbers in the gradient of an example, over all channels."""
    if stage == "less":
        return run.model.adapter_size
    return run.objective.channels * sum(leaf.size for leaf in jax.tree.leaves(run.theta))
