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
    empty_cache,
    empty_stride,
    piece_at,
    read_pieces,
    read_token,
    resized,
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
        return draw(logits_of(hidden, base), draws, jnp.zeros_like(pieces.slots))

    # One program for both, so that a piece has the same numbers whoever ends beside it.
    return jax.lax.cond(jnp.any(pieces.last), first, lambda: jnp.full_like(pieces.slots, NOTHING)), cache


taken = jax.jit(piece_at, static_argnums=3)
longer_or_shorter = jax.jit(resized, static_argnums=1)
empty = empty_cache


def length_of(cache: Cache) -> int:
    """Places of a slot."""
    return cache.length


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
    seen = seen_by(rows, cache.length)

    def step(state: tuple[Said, Cache]) -> tuple[Said, Cache]:
        said, new = state
        given = (said.number, said.token, said.positions(rows), seen)
        hidden, new = read_token(graphdef, lora, base, cache, new, *given, dtype=dtype)
        return said.after(hidden, base, rows, ends), new

    state = (beginning(rows), empty_stride(cache))
    said, new = jax.lax.while_loop(lambda state: (state[0].number < STRIDE) & jnp.any(state[0].alive), step, state)
    return said.out, new


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Said:
    """How far a stride is. number: of the next token in it. token, made, alive: [S], as of `Rows`. out: [STRIDE, S]."""

    number: Any
    token: Any
    made: Any
    alive: Any
    out: Any

    def positions(self, rows: Rows) -> jax.Array:
        """[S] of the tokens that are read next."""
        return rows.prompt + self.made - 1

    def after(self, hidden: jax.Array, base: Any, rows: Rows, ends: jax.Array) -> Said:
        """One token further. hidden [S, D]: of the tokens that were read."""
        drawn = draw(logits_of(hidden, base), rows.draws, self.made)
        out = self.out.at[self.number].set(jnp.where(self.alive, drawn, NOTHING))
        made = self.made + self.alive
        token = jnp.where(self.alive & (drawn >= 0), drawn, self.token)
        alive = self.alive & (drawn >= 0) & (made < rows.limit) & ~jnp.any(drawn[:, None] == ends, axis=-1)
        return Said(self.number + 1, token, made, alive, out)


def beginning(rows: Rows) -> Said:
    """Of a stride."""
    out = jnp.full((STRIDE, len(rows.token)), NOTHING, jnp.int32)
    return Said(jnp.int32(0), rows.token, rows.made, rows.alive, out)


def seen_by(rows: Rows, length: int) -> jax.Array:
    """[S, length] bool: the places of the cache that the tokens of a stride see."""
    places = jnp.arange(length)
    first, written = rows.start[:, None], rows.made[:, None] - 1
    return (places < rows.prompt[:, None]) | ((places >= first) & (places < first + written))


@functools.partial(jax.jit, donate_argnums=0)
def write(cache: Cache, new: Cache, rows: Rows) -> Cache:
    """The cache with what a stride read of the slots that were not at their end."""
    return with_stride(cache, new, jnp.where(rows.alive, rows.start + rows.made - 1, -1))


def logits_of(hidden: jax.Array, base: Any) -> jax.Array:
    """[S, V] fp32 of hidden states [S, D]: the head's rows come first in the product, because a product of a few rows
    with many columns is slow on a CPU, and so is the search for the best of a row that lies across. On a CPU two to
    seven columns cost six times what eight do."""
    head, count = whole(head_matrix(base).astype(hidden.dtype)), len(hidden)
    if 1 < count < 8:
        hidden = jnp.pad(hidden, [(0, 8 - count), (0, 0)])
    return jnp.einsum("vd,sd->vs", head, hidden, preferred_element_type=jnp.float32).T[:count]
