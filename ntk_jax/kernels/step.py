"""The two compiled steps everything rests on: the gradient of a batch's total, and the directional derivative.

Both see pure trees and a `Batch`; `Step` is their only static argument, so equal settings share one compilation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ntk_jax.data.batch import Batch
from ntk_jax.kernels.names import Over, Pooling
from ntk_jax.kernels.objectives import Objective, example_values, readout, segment_members
from ntk_jax.kernels.parameters import Tree, join_parameters
from ntk_jax.models.attention_kernel import Kernel
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix


@dataclass(frozen=True)
class Step:
    """Everything static: the module's definition, the compute dtype and what is differentiated."""

    graphdef: Any
    dtype: Any
    objective: Objective
    parameters: str
    max_segments: int
    pooled: bool = False  # also return each segment's mean hidden state
    forward_mode: bool | Kernel = True  # attention of the directional derivative, see `hidden_states`


def _values(
    step: Step, theta: Tree, rest: Tree, read: jax.Array | None, batch: Batch, **mode: Any
) -> tuple[jax.Array, jax.Array | None]:
    """([B, S, C] example values, [B, S, D] mean hidden states or None). mode: remat or forward_mode, see
    `hidden_states`."""
    lora, base = join_parameters(theta, rest, step.parameters)
    hidden = hidden_states(
        step.graphdef, lora, base, batch.tokens, batch.positions, batch.segments, dtype=step.dtype, **mode
    )
    if read is None:  # the head is differentiated too
        read = readout(step.objective, head_matrix(base))
    values = example_values(step.objective, hidden, batch, read, step.max_segments)
    pooled = None
    if step.pooled:
        members = segment_members(batch.segments, step.max_segments)
        pooled = jnp.einsum("bts,btd->bsd", members, hidden.astype(jnp.float32))
        pooled = jax.lax.stop_gradient(pooled / jnp.maximum(members.sum(axis=1), 1.0)[..., None])
    return values, pooled


def example_totals(step: Step, theta: Tree, rest: Tree, read: jax.Array | None, batch: Batch) -> jax.Array:
    """[C]: the sum of s(θ; x) over the batch's examples, for each channel, ready for a backward pass."""
    return _values(step, theta, rest, read, batch, remat=True)[0].sum(axis=(0, 1))


@functools.partial(jax.jit, static_argnames="step")
def gradient_step(step: Step, theta: Tree, rest: Tree, read: jax.Array | None, batch: Batch) -> Tree:
    """Gradient of Σ_x s(θ; x) over the batch: shaped like theta, with a leading channel axis [C, ...], fp32.

    One forward pass; one backward pass a channel, in turn, so that memory does not grow with the probes.
    """

    _, pull_back = jax.vjp(lambda theta: example_totals(step, theta, rest, read, batch), theta)
    gradient = jax.lax.map(lambda cotangent: pull_back(cotangent)[0], jnp.eye(step.objective.channels))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient)


@functools.partial(jax.jit, static_argnames="step")
def weighted_gradient_step(
    step: Step, theta: Tree, rest: Tree, read: jax.Array | None, weights: jax.Array, batch: Batch
) -> Tree:
    """Leaves [k, C, ...] fp32: Σ_x w_k(x) ∇θ s_c(θ; x) over the batch's examples for each of k weightings, [B, S, k]
    weights. One forward pass serves all, and a backward pass each; no gradient of a single example is ever there."""
    _, pull_back = jax.vjp(lambda theta: _values(step, theta, rest, read, batch, remat=True)[0], theta)

    def one(number: jax.Array) -> Tree:
        weighting, channel = jnp.divmod(number, step.objective.channels)
        own = jnp.take(weights, weighting, axis=-1)[..., None]  # [B, S, 1]
        return pull_back(own * (jnp.arange(step.objective.channels) == channel))[0]

    count = weights.shape[-1]
    found = jax.lax.map(one, jnp.arange(count * step.objective.channels))
    return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]).astype(jnp.float32), found)


@functools.partial(jax.jit, static_argnames="step")
def directional_step(
    step: Step, theta: Tree, rest: Tree, read: jax.Array | None, directions: Tree, batch: Batch
) -> tuple[jax.Array, jax.Array | None]:
    """([B, S, m] fp32 directional derivatives, [B, S, D] mean hidden states or None).

    directions: leaves [m, C, ...]: for each of m directions one tangent per channel. Forward mode: nothing is
    saved for a backward pass, and the primal pass is shared by all directions because under `vmap` only the
    tangents carry the direction axis. Cost (1 + mC)·2P_model FLOPs a token; no logits for linear objectives.
    """
    count = jax.tree.leaves(directions)[0].shape[0]
    channels = step.objective.channels
    stacked = jax.tree.map(lambda leaf, d: d.reshape(-1, *leaf.shape).astype(leaf.dtype), theta, directions)

    def along(tangent: Tree) -> tuple[jax.Array, jax.Array | None]:
        def values(theta: Tree) -> tuple[jax.Array, jax.Array | None]:
            return _values(step, theta, rest, read, batch, forward_mode=step.forward_mode)

        _, derivative, pooled = jax.jvp(values, (theta,), (tangent,), has_aux=True)
        return derivative, pooled

    derivatives, pooled = jax.vmap(along, out_axes=(0, None))(stacked)  # [m·C, B, S, C]
    derivatives = derivatives.reshape(count, channels, *derivatives.shape[1:])
    # Channel c's tangent is paired with channel c's value; the mean over channels is the probes' average.
    paired = jnp.einsum("mcbsc->bsmc", derivatives).mean(axis=-1)
    return paired, pooled


@functools.partial(jax.jit, static_argnames=("step", "pooling", "over"))
def pooled_step(
    step: Step, theta: Tree, rest: Tree, batch: Batch, pooling: Pooling = "mean", over: Over = "all"
) -> jax.Array:
    """[B, S, D] fp32 final hidden states of each segment, averaged (one forward pass): what votes and embeddings
    compare. pooling, over: as `kernels.score.pooled_hidden_states` says."""
    lora, base = join_parameters(theta, rest, step.parameters)
    hidden = hidden_states(step.graphdef, lora, base, batch.tokens, batch.positions, batch.segments, dtype=step.dtype)
    weights = segment_members(batch.segments, step.max_segments)
    if over == "response":
        weights = weights * batch.span[..., None]
    if pooling == "position":  # positions restart at 0 in each segment
        weights = weights * (batch.positions[..., None] + 1)
    total = jnp.einsum("bts,btd->bsd", weights, hidden.astype(jnp.float32), precision="highest")
    return total / jnp.maximum(weights.sum(axis=1), 1.0)[..., None]
