"""Which training something was kept of, in a few characters: what decides its numbers, weights and examples included.

What only decides how it is computed, and so the rounding, is not in it (the mesh, the size of a microbatch): what was
stopped may go on elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import on_host
from ntk_jax.training.unrolled import Course, in_mesh

_SPREAD = 2654435761  # of Knuth's multiplicative hash, so that numbers that change places change the sum
_WIDTHS = {1: jnp.uint8, 2: jnp.uint16}


def parts_of(model: Model, run: Course, held_out: Sequence[TokenRow]) -> list[Any]:
    """Of a training of the model and what is measured after it, for `digest`. All weights are read once, where they
    lie; several hosts call it together."""
    config = dataclasses.replace(run.feed.config, tokens_per_microbatch=1, checkpoint_every=1)
    with in_mesh(run.mesh):
        sums = [on_host(_sum_of_bits(leaf)) for leaf in jax.tree.leaves((run.lora, run.base))]
    rows = [array for row in (*run.feed.rows, *held_out) for array in (row.ids, row.span)]
    known = [model.config, model.scales, str(run.static.dtype), config, run.feed.seed, len(run.feed.rows)]
    return [*known, *sums, *rows]


def digest(parts: Iterable[Any]) -> str:
    """SHA-256 of numbers, texts, settings and arrays."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
        else:
            found.update(f"{part!r};".encode())
    return found.hexdigest()


@jax.jit
def _sum_of_bits(leaf: jax.Array) -> jax.Array:
    """[1 + ndim] uint32: a sum modulo 2^32 of an array's bits, each number's weighted by its place, and the shape. It
    does not depend on how the array lies on devices, since it is of integers."""
    bits = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    bits = jax.lax.bitcast_convert_type(bits, _WIDTHS.get(bits.dtype.itemsize, jnp.uint32)).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    total = jnp.sum(bits * (place * jnp.uint32(_SPREAD) + jnp.uint32(1)), dtype=jnp.uint32)
    return jnp.stack([total, *(jnp.uint32(size) for size in leaf.shape)])
