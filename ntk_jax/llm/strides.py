"""The compiled steps of the sampler: prompts into free slots, and a stride of tokens for every slot.

Their shapes depend on the number of slots and on a prompt's own length, not on what else is answered: matrix products
of one shape give a row the same numbers whatever the other rows hold.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ntk_jax.llm.sampling import Draws, draw
from ntk_jax.models.cache import STRIDE, Cache, empty_stride, read_prompts, read_token, with_prompts, with_stride
from ntk_jax.models.head import head_matrix
from ntk_jax.parallel.rules import whole

NOTHING = -2  # in the output of a stride: the slot was at its end


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """What S slots hold, arrays [S].

    token: the last one drawn, which the model has not read. prompt: how many tokens it has. start: the place of the
    reply's first token in the cache. made: tokens of the reply, `token` with them. limit: how many it may have. alive:
    whether it goes on.
    """

    token: Any
    prompt: Any
    start: Any
    made: Any
    limit: Any
    alive: Any
    draws: Draws


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def begin(
    graphdef: Any,
    dtype: Any,
    lora: Any,
    base: Any,
    cache: Cache,
    prompts: tuple[jax.Array, jax.Array],
    slots: jax.Array,
    draws: Draws,
) -> tuple[jax.Array, Cache]:
    """The first tokens [R] of the replies to R prompts (tokens [R, T], lengths [R]), and the cache with the prompts in
    slots [R], as in `models.cache.with_prompts`."""
    hidden, kept = read_prompts(graphdef, lora, base, *prompts, dtype=dtype)
    tokens = draw(_logits(hidden, base), draws, jnp.zeros_like(slots))
    return tokens, with_prompts(cache, kept, slots)


@functools.partial(jax.jit, static_argnums=(0, 1))
def stride(
    graphdef: Any, dtype: Any, lora: Any, base: Any, cache: Cache, rows: Rows, ends: jax.Array
) -> tuple[jax.Array, Cache]:
    """[STRIDE, S] int32: the next tokens of every slot, up to its end; NOTHING behind it. And what `write` puts into
    the cache. ends [E]: the tokens that end a reply."""
    places = jnp.arange(cache.length)
    first, written = rows.start[:, None], rows.made[:, None] - 1
    seen = (places < rows.prompt[:, None]) | ((places >= first) & (places < first + written))

    def step(state: Any) -> Any:
        number, token, made, alive, out, new = state
        positions = rows.prompt + made - 1
        hidden, new = read_token(graphdef, lora, base, cache, new, number, token, positions, seen, dtype=dtype)
        drawn = draw(_logits(hidden, base), rows.draws, made)
        out = out.at[number].set(jnp.where(alive, drawn, NOTHING))
        made = made + alive
        token = jnp.where(alive & (drawn >= 0), drawn, token)
        alive = alive & (drawn >= 0) & (made < rows.limit) & ~jnp.any(drawn[:, None] == ends, axis=-1)
        return number + 1, token, made, alive, out, new

    state = (
        jnp.int32(0),
        rows.token,
        rows.made,
        rows.alive,
        jnp.full((STRIDE, len(rows.token)), NOTHING, jnp.int32),
        empty_stride(cache),
    )
    *_, out, new = jax.lax.while_loop(lambda state: (state[0] < STRIDE) & jnp.any(state[3]), step, state)
    return out, new


@functools.partial(jax.jit, donate_argnums=0)
def write(cache: Cache, new: Cache, rows: Rows) -> Cache:
    """The cache with what a stride read of the slots that were not at their end."""
    return with_stride(cache, new, jnp.where(rows.alive, rows.start + rows.made - 1, -1))


def _logits(hidden: jax.Array, base: Any) -> jax.Array:
    """[S, V] fp32 of hidden states [S, D]: the head's rows come first in the product, because a product of a few rows
    with many columns is slow on a CPU, and so is the search for the best of a row that lies across."""
    head = whole(head_matrix(base).astype(hidden.dtype))
    return jnp.einsum("vd,sd->vs", head, hidden, preferred_element_type=jnp.float32).T
