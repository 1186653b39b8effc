"""Per-example gradients: the features g(x) = ∇θ s(θ; x) themselves, where a mean or a direction is not enough.

Over LoRA leaves they come from one batched backward pass: each row of the batch is given its own copy of the adapter,
[L, B, ...] instead of [L, ...], so that the gradient of the batch's total with respect to the copies is the gradient of
each example. The copies are small, the frozen weights are shared, and no `vmap` touches attention. Other parameters go
through `vmap` of the gradient of one row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import Batch, TokenRow
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import Tree, only_adapters, split_parameters
from ntk_jax.kernels.rows import Layout, batches_of, frozen_readout, make_step, on_devices
from ntk_jax.kernels.step import Step, example_totals
from ntk_jax.models.model import Model


def example_gradients(
    model: Model, rows: Sequence[TokenRow], objective: Objective, layout: Layout, *, parameters: str = "lora"
) -> Iterator[tuple[np.ndarray, Tree]]:
    """(ordinals [B], gradients with leaves [B, C, ...] fp32) of batches of rows, the shortest first; ordinal -1 is an
    empty row.

    layout: must not be packed, for a row is an example here. But for rounding a row's gradient depends neither on its
    padding nor on its neighbours. On a mesh the gradients stay spread over the devices like the rows.
    """
    if layout.packed:
        raise ValueError("per-example gradients need one example a row: Layout(packed=False)")
    theta, rest = split_parameters(model, parameters)
    step, read = make_step(model, objective, layout, parameters), frozen_readout(model, objective, parameters)
    for packed in batches_of(rows, layout, objective):
        yield packed.index[:, 0], example_gradient_step(step, theta, rest, read, on_devices(packed.batch, layout))


@functools.partial(jax.jit, static_argnames="step")
def example_gradient_step(step: Step, theta: Tree, rest: Tree, read: jax.Array | None, batch: Batch) -> Tree:
    """Leaves [B, C, ...] fp32: the gradient of every row's C values."""
    if only_adapters(step.parameters) or "base" not in theta:
        return _by_copies(step, theta, rest, read, batch)
    return _by_vmap(step, theta, rest, read, batch)


def _by_copies(step: Step, theta: Tree, rest: Tree, read: jax.Array | None, batch: Batch) -> Tree:
    rows = batch.tokens.shape[0]
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:, None], (leaf.shape[0], rows, *leaf.shape[1:])), theta)
    gradient = _per_channel(step, lambda copies: example_totals(step, copies, rest, read, batch), copies)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 2, 0).astype(jnp.float32), gradient)  # from [C, L, B, ...]


def _by_vmap(step: Step, theta: Tree, rest: Tree, read: jax.Array | None, batch: Batch) -> Tree:
    def one(row: Batch) -> Tree:
        alone = jax.tree.map(lambda leaf: leaf[None], row)
        return _per_channel(step, lambda theta: example_totals(step, theta, rest, read, alone), theta)

    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), jax.vmap(one)(batch))


def _per_channel(step: Step, values: Callable[[Tree], jax.Array], theta: Tree) -> Tree:
    """Leaves [C, ...]: the gradient of each of C totals, one backward pass each."""
    _, pull_back = jax.vjp(values, theta)
    return jax.lax.map(lambda cotangent: pull_back(cotangent)[0], jnp.eye(step.objective.channels))
