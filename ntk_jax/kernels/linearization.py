"""How far a fine-tuned function is from its linearisation: what the NTK regime promises to be small.

f_lin(θ) = f(θ_0) + J(θ_0)(θ − θ_0) (Lee et al., arXiv 1902.06720). Gradient descent on f stays in the NTK regime as
long as f moves as f_lin does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.kernels.backbone import SpanMean, span_mean, stacked
from ntk_jax.kernels.parameters import Tree
from ntk_jax.models.head import head_matrix
from ntk_jax.models.model import Model

AT_ONCE = 16  # examples pushed forward together


def linearization_gap(model: Model, moved: Tree, rows: Sequence[TokenRow]) -> dict[str, float]:
    """How the logits, averaged over each row's span and centred, get from the model's adapter θ_0 to `moved`.

    `gap` = ‖f(θ) − f_lin(θ)‖ / ‖f(θ) − f(θ_0)‖ over all rows: 0 in the linear regime, about 1 where the linearisation
    explains nothing. `cosine`: between f(θ) − f(θ_0) and J(θ_0)(θ − θ_0). `moved`: ‖f(θ) − f(θ_0)‖ / ‖f(θ_0)‖.
    `distance`: ‖θ − θ_0‖ / ‖θ_0‖. All 0 (cosine 1) when nothing moved.
    """
    function, theta, frozen, _ = span_mean(model, "lora")
    head = np.asarray(head_matrix(model.base), np.float64)
    metric = (head - head.mean(axis=0)).T @ (head - head.mean(axis=0))  # ‖C W h‖² = hᵀ metric h
    every, parts = stacked(rows), []
    for start in range(0, len(rows), AT_ONCE):
        block = jax.tree.map(lambda leaf, s=start: leaf[s : s + AT_ONCE], every)
        parts.append(jax.tree.map(np.asarray, _three(function, theta, moved, frozen, block)))
    before, linear, after = (np.concatenate(leaves).astype(np.float64) for leaves in zip(*parts, strict=True))

    def inner(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.einsum("nd,de,ne->", x, metric, y, optimize=True))

    step = after - before
    square = inner(step, step)
    distance = _norm(jax.tree.map(jnp.subtract, moved, theta)) / _norm(theta)
    if square == 0:
        return {"gap": 0.0, "cosine": 1.0, "moved": 0.0, "distance": distance}
    return {
        "gap": float(np.sqrt(inner(step - linear, step - linear) / square)),
        "cosine": inner(step, linear) / max(float(np.sqrt(square * inner(linear, linear))), 1e-300),
        "moved": float(np.sqrt(square / inner(before, before))),
        "distance": distance,
    }


def _norm(tree: Tree) -> float:
    return float(np.sqrt(sum(float(jnp.vdot(leaf, leaf)) for leaf in jax.tree.leaves(tree))))


@functools.partial(jax.jit, static_argnames="function")
def _three(function: SpanMean, theta: Tree, moved: Tree, frozen: Any, x: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(h(θ_0), J(θ_0)(θ − θ_0), h(θ)), [N, D] each: the head is linear and comes later."""
    tangent = jax.tree.map(jnp.subtract, moved, theta)

    def one(x: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        value, pushed = jax.jvp(lambda theta: function(theta, frozen, x), (theta,), (tangent,))
        return value, pushed, function(moved, frozen, x)

    return jax.vmap(one)(x)
