"""The two compiled steps of counting votes: cosines of a block with the domain, and the largest of each row."""

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
