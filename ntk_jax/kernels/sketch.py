"""Sketches of examples: their gradients, projected to K numbers, whose inner products estimate the kernel's.

Memory, whatever the number of examples (`sketch_batches`): the gradients of a batch, 4 B C P bytes, of which a few
copies are alive at once (those of the next batch, and what the backward pass makes them from), bounded by
`GRADIENT_BYTES` a device; the signs of one block of coordinates, 4 BLOCK K bytes and what they are made from; and 4 B K
bytes of rows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import Tree, split_parameters
from ntk_jax.kernels.per_example import example_gradients
from ntk_jax.kernels.projections import Projection, check_width, project_with_key
from ntk_jax.kernels.rows import Layout
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import on_host

GRADIENT_BYTES = 2**30  # of the gradients of one batch, a device: where P is large, fewer rows make a batch


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
    out = np.zeros((len(rows), projection.dim), np.float32)
    batches = sketch_batches(model, rows, objective, layout, projection, parameters=parameters, progress=progress)
    for ordinals, part, _ in batches:
        out[ordinals] = part
    return out


def sketch_batches(
    model: Model,
    rows: Sequence[TokenRow],
    objective: Objective,
    layout: Layout,
    projection: Projection,
    *,
    parameters: str = "lora",
    budget: int = GRADIENT_BYTES,
    feature: Callable[[Tree], Tree] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(ordinals [b], sketches [b, K] fp32, norms [b] fp32) of batches of rows, the shortest first; all of them as
    `sketches`.

    norms: ‖g(x)‖ itself, not estimated; under `probe` the root of the mean over channels of ‖g_c(x)‖².
    feature: what of the gradients, leaves [B, C, ...], is sketched in their place, of the same shapes.
    budget: bytes of a batch's gradients on a device. A row's sketch does not depend on it, beyond rounding.
    A batch is given out when the next one is already on its way, so that the device computes while the host stores.
    """
    if not rows:
        raise UserError("there are no examples to sketch; give at least one")
    theta = split_parameters(model, parameters)[0]
    check_width(projection, theta)
    layout = within_budget(layout, theta, objective.channels, budget)
    done = 0
    waiting: tuple[np.ndarray, jax.Array, jax.Array] | None = None
    for batch in itertools.chain(example_gradients(model, rows, objective, layout, parameters=parameters), [None]):
        if batch and feature:
            batch = batch[0], feature(batch[1])
        ahead = batch and (batch[0], *_of_channels(projection, batch[1], objective.channels))
        if waiting:
            found = _read(rows, *waiting)
            yield found
            done += len(found[0])
            if progress:
                progress(done, len(rows))
        waiting, batch = ahead, None  # and no hold on its gradients


def within_budget(layout: Layout, theta: Tree, channels: int, budget: int) -> Layout:
    """The layout with no more rows a batch, however short they are, than have their gradients within `budget` bytes a
    device; at least one."""
    size = 4 * channels * sum(leaf.size for leaf in jax.tree.leaves(theta))
    shards = 1 if layout.mesh is None else layout.mesh.shape["data"] * layout.mesh.shape["fsdp"]
    most = shards * max(1, budget // size)
    return dataclasses.replace(layout, rows_per_batch=min(layout.rows_per_batch, most), most_rows=most)


def _read(
    rows: Sequence[TokenRow], ordinals: np.ndarray, z: jax.Array, norms: jax.Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Brings a batch to the host, without its empty rows. Raises UserError: a row is not finite."""
    used = ordinals >= 0
    found = ordinals[used], on_host(z)[used], on_host(norms)[used]
    bad = np.flatnonzero(~(np.isfinite(found[1]).all(axis=1) & np.isfinite(found[2])))
    if len(bad):
        ordinal = int(found[0][bad[0]])
        raise UserError(
            f"example {rows[ordinal].id or f'number {ordinal}'}: its gradient is not finite ({len(bad)} of the "
            f"{len(found[0])} in its batch so); check the weights with `ntk-jax doctor`, or compute in float32"
        )
    return found


def _of_channels(projection: Projection, gradients: Tree, channels: int) -> tuple[jax.Array, jax.Array]:
    """([B, K], [B]): the sum over channels of their projections, by √C, so that inner products are means over channels;
    and the root of the mean over channels of the squared norms."""
    key = jax.random.key(projection.seed, impl="threefry2x32")
    return _project(projection.kind, projection.dim, projection.sparsity, channels, key, gradients)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _project(
    kind: str, dim: int, sparsity: int, channels: int, key: jax.Array, gradients: Tree
) -> tuple[jax.Array, jax.Array]:
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(gradients)]

    def add(total: jax.Array, channel: jax.Array) -> tuple[jax.Array, None]:
        part = [jax.lax.dynamic_slice_in_dim(leaf, channel, 1, axis=1) for leaf in leaves]
        own = jax.random.fold_in(key, channel)
        return total + project_with_key(kind, dim, sparsity, own, part)[:, 0], None

    # One after another, compiled once: unrolled, 16 probes took minutes to compile.
    zero = jnp.zeros((leaves[0].shape[0], dim), jnp.float32)
    total, _ = jax.lax.scan(add, zero, jnp.arange(channels))
    # The largest entry is taken out first: squares leave fp32's range long before the entries do.
    axes = [tuple(range(1, leaf.ndim)) for leaf in leaves]
    largest = jnp.stack([jnp.abs(leaf).max(axis) for leaf, axis in zip(leaves, axes, strict=True)]).max(axis=0)
    scale = jnp.where(largest > 0, largest, 1.0)
    squares = [
        jnp.square(leaf / scale.reshape(-1, *[1] * (leaf.ndim - 1))).sum(axis)
        for leaf, axis in zip(leaves, axes, strict=True)
    ]
    root = jnp.sqrt(jnp.float32(channels))
    return total / root, scale * jnp.sqrt(jnp.stack(squares).sum(axis=0)) / root
