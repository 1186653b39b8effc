"""Sketches by forward mode, to check those of `sketch`: no backward pass, and no differentiation code in common.

z_k(x) = ⟨Π_k, g(x)⟩ = d/dε s(θ + ε Π_k; x) at ε = 0, one directional derivative for each row k of the dense Rademacher
matrix Π. K of them cost K forward passes and more: this is a check, not a way to make sketches.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import Tree, split_parameters
from ntk_jax.kernels.projections import Projection, check_width, dense_columns
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.score import directional_scores
from ntk_jax.models.model import Model

AT_ONCE = 8  # rows of Π that share a primal pass; divides every K, which is a multiple of 32


def forward_sketches(
    model: Model,
    rows: Sequence[TokenRow],
    objective: Objective,
    layout: Layout,
    projection: Projection,
    *,
    parameters: str = "lora",
) -> np.ndarray:
    """[N, K] fp32, equal to `sketches` with the same `rademacher` projection up to rounding. layout: packed or not.
    Memory: 8 C P signs, and as many tangents of the forward pass.

    Raises UserError: another kind of projection, no rows, K larger than P, a value that is not finite.
    """
    if projection.kind != "rademacher":
        raise UserError(f"projection {projection.kind!r}: forward mode takes the rows of rademacher; use that")
    if not rows:
        raise UserError("there are no examples to sketch; give at least one")
    theta, _ = split_parameters(model, parameters)
    check_width(projection, theta)
    out = np.zeros((len(rows), projection.dim), np.float32)
    for start in range(0, projection.dim, AT_ONCE):
        directions = _rows_of_projection(projection, start, objective, theta)
        scores = directional_scores(model, rows, directions, objective, layout, parameters=parameters)
        # A score is the mean over channels; a sketch is their sum by √C.
        out[:, start : start + AT_ONCE] = scores.values * np.sqrt(np.float32(objective.channels))
    return out


def _rows_of_projection(projection: Projection, start: int, objective: Objective, theta: Tree) -> Tree:
    """Rows [start, start + AT_ONCE) of each channel's Π, as directions: leaves [m, ...], or [m, C, ...] for probes."""
    key = jax.random.key(projection.seed, impl="threefry2x32")
    leaves, structure = jax.tree.flatten(theta)
    directions = []
    for number, leaf in enumerate(leaves):
        channels = []
        for channel in range(objective.channels):
            own = jax.random.fold_in(jax.random.fold_in(key, channel), number)
            columns = _columns(own, leaf.size, projection.dim, jnp.int32(start))  # [P, m]
            channels.append(columns.T.reshape(AT_ONCE, *leaf.shape))
        directions.append(jnp.stack(channels, axis=1) if objective.kind == "probe" else channels[0])
    return jax.tree.unflatten(structure, directions)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _columns(key: jax.Array, size: int, dim: int, start: jax.Array) -> jax.Array:
    return dense_columns(key, size, dim, start, AT_ONCE)
