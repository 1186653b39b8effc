"""Sketches of examples: their gradients, projected to K numbers, whose inner products estimate the kernel's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.models.model import Model
from ntk_jax.ntk.objectives import Objective
from ntk_jax.ntk.parameters import Tree, split_parameters
from ntk_jax.ntk.per_example import example_gradients
from ntk_jax.ntk.projections import Projection, check_width, project_with_key
from ntk_jax.ntk.rows import Layout


def sketches(
    model: Model,
    rows: Sequence[TokenRow],
    objective: Objective,
    layout: Layout,
    projection: Projection,
    *,
    parameters: str = "lora",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """[N, K] fp32 in the order of the rows, with E⟨z_i, z_j⟩ = ⟨g(x_i), g(x_j)⟩ over the projection's seed; under
    `probe` the mean over its channels, each of which has a projection of its own.

    Raises UserError: no rows, K larger than P, or a gradient that is not finite (naming the example).
    """
    if not rows:
        raise UserError("there are no examples to sketch; give at least one")
    check_width(projection, split_parameters(model, parameters)[0])
    out = np.zeros((len(rows), projection.dim), np.float32)
    done = 0
    for ordinals, gradients in example_gradients(model, rows, objective, layout, parameters=parameters):
        used = ordinals >= 0
        out[ordinals[used]] = np.asarray(_of_channels(projection, gradients, objective.channels))[used]
        done += int(used.sum())
        if progress:
            progress(done, len(rows))
    bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
    if len(bad):
        name = rows[int(bad[0])].id or f"number {int(bad[0])}"
        raise UserError(
            f"example {name}: its gradient is not finite ({len(bad)} of {len(rows)} so); check the weights with "
            "`ntk-jax doctor`, or compute in float32"
        )
    return out


def _of_channels(projection: Projection, gradients: Tree, channels: int) -> jax.Array:
    """[B, K]: the sum over channels of their projections, by √C, so that inner products are means over channels."""
    key = jax.random.key(projection.seed, impl="threefry2x32")
    total = 0.0
    for channel in range(channels):
        part = jax.tree.map(lambda leaf, channel=channel: leaf[:, channel : channel + 1], gradients)
        own = jax.random.fold_in(key, channel)
        total = total + project_with_key(projection.kind, projection.dim, projection.sparsity, own, part)[:, 0]
    return total / np.sqrt(np.float32(channels))
