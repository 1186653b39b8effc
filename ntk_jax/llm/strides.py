"""The compiled steps of the sampler: pieces of prompts into their slots, and a stride of tokens for every slot.

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
from ntk_jax.models.cache import (
    STRIDE,
    Cache,
    empty_stride,
    piece_at,
    read_pieces,
    read_token,
    with_pieces,
    with_stride,
)
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pieces:
    """R pieces of prompts: tokens [R, T], the first lengths [R] of each, from places [R] on in slots [R], both as in
    `models.cache.with_pieces`. last [R]: whether the prompt ends with it."""

    tokens: Any
    lengths: Any
    slots: Any
    places: Any
    last: Any


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def read(
    graphdef: Any, dtype: Any, lora: Any, base: Any, cache: Cache, pieces: Pieces, draws: Draws
) -> tuple[jax.Array, Cache]:
    """The first tokens [R] of the replies to prompts that end here, and the cache with the pieces."""
    given = (pieces.tokens, pieces.lengths, pieces.slots, pieces.places)
    hidden, cache = read_pieces(graphdef, lora, base, cache, *given, dtype=dtype)

    def first() -> jax.Array:
        return draw(_logits(hidden, base), draws, jnp.zeros_like(pieces.slots))

    # One program for both, so that a piece has the same numbers whoever ends beside it.
    return jax.lax.cond(jnp.any(pieces.last), first, lambda: jnp.full_like(pieces.slots, NOTHING)), cache


taken = jax.jit(piece_at, static_argnums=3)


@functools.partial(jax.jit, donate_argnums=0)
def given_back(cache: Cache, piece: Cache, slots: jax.Array, places: jax.Array) -> Cache:
    """The cache with what `taken` returned, in one slot from a place on; slots, places: as there."""
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(x), len(slots), *x.shape[2:])), piece)
    return with_pieces(cache, rows, slots, places, jnp.zeros_like(slots))


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
    with many columns is slow on a CPU, and so is the search for the best of a row that lies across. On a CPU two to
    seven columns cost six times what eight do."""
    head, count = whole(head_matrix(base).astype(hidden.dtype)), len(hidden)
    if 1 < count < 8:
        hidden = jnp.pad(hidden, [(0, 8 - count), (0, 0)])
    return jnp.einsum("vd,sd->vs", head, hidden, preferred_element_type=jnp.float32).T[:count]
