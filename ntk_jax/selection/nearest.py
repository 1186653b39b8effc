"""The compiled steps of comparing unit rows: cosines of a block with the domain and the largest of each row, for votes,
and how many near-duplicates each has."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@jax.jit
def cosines_with(queries: jax.Array, block: jax.Array) -> jax.Array:
    """[Nd, n] inner products of unit rows [Nd, D] and [n, D]."""
    return jnp.einsum("qd,nd->qn", queries, block, precision="highest")


@functools.partial(jax.jit, static_argnames="k")
def largest(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(values, indices) [Nd, k] of the largest of each row; of equal values the lower index comes first."""
    return jax.lax.top_k(values, k)


@jax.jit
def duplicates_among(some: jax.Array, rows: jax.Array, sigma: jax.Array) -> jax.Array:
    """[n] of some unit rows [n, D] among rows [N, D]: Σ max(0, 1 - d² / σ²) over all N, d the distance."""
    cosines = jnp.einsum("nd,md->nm", some, rows, precision="highest")
    return jnp.maximum(0.0, 1.0 - (2.0 - 2.0 * cosines) / sigma**2).sum(axis=1)
