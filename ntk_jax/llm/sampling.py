"""Which token comes next: greedy, or drawn at a temperature from what top-k, top-p and min-p leave.

Every row has its own settings and its own key, so that a draw does not depend on the rows beside it. The three cuts
are taken in this order, each on what the one before leaves, as transformers takes them: top-k keeps the k likeliest,
top-p (Holtzman et al., arXiv 1904.09751) the fewest of them that hold a share p of their probability, min-p (Nguyen et
al., arXiv 2407.01082) those at least p times as likely as the likeliest. Tokens of equal logits stay or go together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

_LEAST = 1e-20  # of a temperature or a share: what is smaller leaves the likeliest token too, and fp32 may not hold it


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draws:
    """How each of S rows is drawn. temperature [S] float32, 0: greedy. top_p, min_p [S] float32; top_k [S] int32; 1, 0
    and 0 cut nothing. seed [S, 2] uint32 and sample [S] uint32 decide the noise."""

    temperature: Any
    top_p: Any
    top_k: Any
    min_p: Any
    seed: Any
    sample: Any


def draw(logits: jax.Array, draws: Draws, number: jax.Array) -> jax.Array:
    """[S] int32 tokens of logits [S, V] fp32; -1 where these are not finite. number [S]: of the token in its reply,
    from 0, so that each has noise of its own."""
    top = logits.max(axis=-1, keepdims=True)
    greedy = jnp.argmax(logits, axis=-1)
    warm = draws.temperature > 0

    def drawn() -> jax.Array:
        heat = jnp.where(warm, jnp.maximum(draws.temperature, _LEAST), 1.0)[:, None]
        kept = _kept((logits - top) / heat, draws, warm)
        noise = jax.vmap(lambda *key: jax.random.gumbel(_key(*key), logits.shape[1:]))(
            draws.seed, draws.sample, number.astype(jnp.uint32)
        )
        return jnp.where(warm, jnp.argmax(kept + noise, axis=-1), greedy)

    tokens = jax.lax.cond(jnp.any(warm), drawn, lambda: greedy)
    return jnp.where(jnp.isfinite(top[:, 0]), tokens, -1).astype(jnp.int32)


def _key(seed: jax.Array, sample: jax.Array, number: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), sample), number)


def _kept(x: jax.Array, draws: Draws, warm: jax.Array) -> jax.Array:
    """x [S, V], whose largest entries are 0, with -inf for the tokens that are cut away."""
    cut_k, cut_p = warm & (draws.top_k > 0), warm & (draws.top_p < 1)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # Unsigned integers in the order of the floats: negative ones count downwards.
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

    def by_count() -> jax.Array:
        k = jnp.where(cut_k, draws.top_k, x.shape[1])
        lowest = _highest(lambda t: jnp.sum(order >= t[:, None], axis=-1) >= k, len(x))
        return jnp.where(order >= lowest[:, None], x, -jnp.inf)

    def by_mass() -> jax.Array:
        mass = jnp.exp(by_k)
        enough = jnp.where(cut_p, jnp.maximum(draws.top_p, _LEAST), 0.0) * mass.sum(axis=-1)
        lowest = _highest(lambda t: jnp.sum(jnp.where(order >= t[:, None], mass, 0.0), axis=-1) >= enough, len(x))
        return jnp.where((order >= lowest[:, None]) | ~cut_p[:, None], by_k, -jnp.inf)

    by_k = jax.lax.cond(jnp.any(cut_k), by_count, lambda: x)
    by_p = jax.lax.cond(jnp.any(cut_p), by_mass, lambda: by_k)
    return jnp.where(x >= jnp.log(draws.min_p)[:, None], by_p, -jnp.inf)


def _highest(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """[rows] uint32: the largest number for which a condition holds that holds for all smaller ones too, bit by bit: 32
    sums over the vocabulary instead of a sort of it."""

    def try_bit(number: jax.Array, best: jax.Array) -> jax.Array:
        higher = best | (jnp.uint32(1 << 31) >> number.astype(jnp.uint32))
        return jnp.where(holds(higher), higher, best)

    return jax.lax.fori_loop(0, 32, try_bit, jnp.zeros(rows, jnp.uint32))
