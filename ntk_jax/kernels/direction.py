"""Directions in parameter space: where they come from and how they are transformed.

A direction is a pytree shaped like the parameters differentiated (one leading axis more for the channels of
`probe`, and one more again for a batch of m directions).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import Tree, split_parameters
from ntk_jax.kernels.rows import Layout, batches_of, frozen_readout, make_step, on_devices
from ntk_jax.kernels.step import gradient_step
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import is_distributed, on_host

Progress = Callable[[int, int], None]


def mean_gradient(
    model: Model,
    rows: Sequence[TokenRow],
    objective: Objective,
    layout: Layout,
    *,
    parameters: str = "lora",
    progress: Progress | None = None,
) -> Tree:
    """ḡ = (1/N) Σ_i ∇θ s(θ; x_i), fp32, shaped like theta (with a leading [C] axis when the objective has probes).

    progress(done, total): examples whose gradients are computed, not merely on their way.
    One ordinary backward pass over the rows, packed; nothing per example is stored. Kernel scores are then
    mean_i ⟨g(x_i), g(x)⟩ = ⟨ḡ, g(x)⟩ (arXiv 2511.07380, score of stage 2).

    Raises UserError for no rows, or when the gradient is not finite.
    """
    if not rows:
        raise UserError("the set to average gradients over is empty; give at least one example")
    theta, rest = split_parameters(model, parameters)
    step, read = make_step(model, objective, layout, parameters), frozen_readout(model, objective, parameters)
    total: Tree | None = None
    done, waiting = 0, None
    for packed in itertools.chain(batches_of(rows, layout, objective), [None]):
        ahead = None
        if packed:
            part = gradient_step(step, theta, rest, read, on_devices(packed.batch, layout))
            total, mark = (part, _mark(part)) if total is None else _add(total, part)
            ahead = int((packed.index >= 0).sum()), mark
        if waiting:  # one batch behind: the host packs while the device computes, and no more than two are under way
            jax.block_until_ready(waiting[1])
            done += waiting[0]
            if progress:
                progress(done, len(rows))
        waiting = ahead
    assert total is not None
    mean, finite = _mean(total, np.float32(len(rows)), objective.kind == "probe")
    if not finite:
        raise UserError(
            f"the mean gradient over {len(rows)} examples (first: {rows[0].id or 0}) is not finite; check the weights "
            "with `ntk-jax doctor`, or compute in float32"
        )
    # As host arrays where several processes hold it: it goes to the disk, and meets other placements.
    return jax.tree.map(on_host, mean) if is_distributed() else mean


@functools.partial(jax.jit, donate_argnums=0)
def _add(a: Tree, b: Tree) -> tuple[Tree, jax.Array]:
    total = jax.tree.map(jnp.add, a, b)
    return total, _mark(total)


@jax.jit
def _mark(total: Tree) -> jax.Array:
    """One number of a sum: it is there when the sum is, and to wait for it holds no copy of the sum."""
    return jax.tree.leaves(total)[0].ravel()[0]


@functools.partial(jax.jit, static_argnames="keep_channels")
def _mean(total: Tree, count: jax.Array, keep_channels: bool) -> tuple[Tree, jax.Array]:
    """(mean, whether all of it is finite). One compiled program: leaf by leaf, dispatch would cost more than this."""
    mean = jax.tree.map(lambda leaf: (leaf if keep_channels else leaf[0]) / count, total)
    return mean, jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(mean)]).all()


def adam_preconditioned(direction: Tree, second_moment: Tree, epsilon: float = 1e-8) -> Tree:
    """ḡ / (√v + ε): the direction of one Adam step (LESS, arXiv 2402.04333 §3.1). v: bias-corrected, like theta.

    Raises UserError when the moments are shaped unlike the direction.
    """

    def divide(d: jax.Array, v: jax.Array) -> jax.Array:
        if d.shape[d.ndim - v.ndim :] != v.shape:
            raise UserError(f"second moments of shape {v.shape} do not fit a direction of shape {d.shape}")
        return d / (jnp.sqrt(v) + epsilon)

    try:
        return jax.tree.map(divide, direction, second_moment)
    except UserError:  # a ValueError too, but it says already what is wrong
        raise
    except ValueError:
        raise UserError("second moments and direction have different leaves; both must come from one adapter") from None


def stack_directions(directions: Sequence[Tree]) -> Tree:
    """One batch of m directions, for [N, m] scores that share the primal pass."""
    if not directions:
        raise UserError("no directions to stack")
    return jax.jit(lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))(list(directions))


def direction_norm(direction: Tree) -> float:
    """Euclidean norm over all leaves."""
    return float(np.sqrt(sum(float(jnp.vdot(leaf, leaf)) for leaf in jax.tree.leaves(direction))))
