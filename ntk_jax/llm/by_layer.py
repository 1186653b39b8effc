"""The steps of `strides` for a model whose layers lie apart (`models/apart.py`): a program a layer, called in turn.

The cache is a tuple of caches of one layer each. Shapes depend on what those of `strides` depend on, and so does what a
row's numbers depend on.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ntk_jax.llm import strides
from ntk_jax.llm.sampling import Draws, draw
from ntk_jax.llm.strides import NOTHING, Pieces, Rows, Said, beginning, logits_of, seen_by
from ntk_jax.models.apart import Apart
from ntk_jax.models.cache import (
    STRIDE,
    Cache,
    embedded,
    empty_cache,
    empty_stride,
    last_of_pieces,
    read_pieces_layer,
    read_token_layer,
)
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import rms_norm

Caches = tuple[Cache, ...]


_Turn = tuple[jax.Array, jax.Array]


def empty(config: ModelConfig, slots: int, length: int, dtype: Any, mesh: Mesh | None = None) -> Caches:
    """As `strides.empty`; there is no mesh."""
    assert mesh is None
    one = dataclasses.replace(config, num_layers=1)
    return tuple(empty_cache(one, slots, length, dtype) for _ in range(config.num_layers))


def length_of(caches: Caches) -> int:
    """Places of a slot."""
    return caches[0].length


def longer_or_shorter(caches: Caches, length: int) -> Caches:
    """As `strides.longer_or_shorter`."""
    return tuple(strides.longer_or_shorter(cache, length) for cache in caches)


def taken(caches: Caches, slots: jax.Array, places: jax.Array, length: int) -> Caches:
    """As `strides.taken`."""
    return tuple(strides.taken(cache, slots, places, length) for cache in caches)


def given_back(caches: Caches, pieces: Caches, slots: jax.Array, places: jax.Array) -> Caches:
    """As `strides.given_back`."""
    return tuple(strides.given_back(cache, piece, slots, places) for cache, piece in zip(caches, pieces, strict=True))


def read(model: Apart, caches: Caches, pieces: Pieces, draws: Draws) -> tuple[Any, Caches]:
    """As `strides.read`."""
    x, turn = _pieces(model.config, model.dtype, model.base, pieces)
    found = []
    for layer, cache in zip(model.layers, caches, strict=True):
        x, cache = _piece_layer(model.definition, layer, x, cache, turn, pieces)
        found.append(cache)
    if not np.any(pieces.last):
        return np.full(len(pieces.slots), NOTHING, np.int32), tuple(found)
    return _first(model.config, model.base, x, pieces, draws), tuple(found)


def stride(model: Apart, caches: Caches, rows: Rows, ends: Any) -> tuple[jax.Array, Caches]:
    """As `strides.stride`."""
    said, seen = _beginning(rows, length_of(caches))
    new = [_empty_stride(cache) for cache in caches]
    while True:
        x, turn = _token(model.config, model.dtype, model.base, said, rows)
        for number, (layer, cache) in enumerate(zip(model.layers, caches, strict=True)):
            x, new[number] = _token_layer(model.definition, layer, x, cache, new[number], said.number, turn, seen)
        said = _after(model.config, model.base, x, said, rows, ends)
        if int(said.number) == STRIDE or not np.any(said.alive):
            return said.out, tuple(new)


def write(caches: Caches, new: Caches, rows: Rows) -> Caches:
    """As `strides.write`."""
    return tuple(strides.write(cache, more, rows) for cache, more in zip(caches, new, strict=True))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pieces(config: ModelConfig, dtype: Any, base: Any, pieces: Pieces) -> tuple[jax.Array, _Turn]:
    return embedded(config, base, pieces.tokens, pieces.places[:, None] + jnp.arange(pieces.tokens.shape[1]), dtype)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _piece_layer(
    definition: Any, weights: Any, x: jax.Array, cache: Cache, turn: _Turn, pieces: Pieces
) -> tuple[jax.Array, Cache]:
    layer = nnx.merge(definition, weights)
    return read_pieces_layer(layer, x, cache, jnp.int32(0), turn, pieces.slots, pieces.places)


@functools.partial(jax.jit, static_argnums=0)
def _first(config: ModelConfig, base: Any, x: jax.Array, pieces: Pieces, draws: Draws) -> jax.Array:
    hidden = last_of_pieces(config, base, x, pieces.lengths)
    return draw(logits_of(hidden, base), draws, jnp.zeros_like(pieces.slots))


@functools.partial(jax.jit, static_argnums=1)
def _beginning(rows: Rows, length: int) -> tuple[Said, jax.Array]:
    return beginning(rows), seen_by(rows, length)


_empty_stride = jax.jit(empty_stride)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _token(config: ModelConfig, dtype: Any, base: Any, said: Said, rows: Rows) -> tuple[jax.Array, _Turn]:
    return embedded(config, base, said.token[:, None], said.positions(rows)[:, None], dtype)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _token_layer(
    definition: Any,
    weights: Any,
    x: jax.Array,
    cache: Cache,
    new: Cache,
    number: jax.Array,
    turn: _Turn,
    seen: jax.Array,
) -> tuple[jax.Array, Cache]:
    far, recent = (Cache(one.keys[0], one.values[0]) for one in (cache, new))
    x, recent = read_token_layer(nnx.merge(definition, weights), x, far, recent, number, turn, seen)
    return x, Cache(recent.keys[None], recent.values[None])


@functools.partial(jax.jit, static_argnums=0)
def _after(config: ModelConfig, base: Any, x: jax.Array, said: Said, rows: Rows, ends: jax.Array) -> Said:
    return said.after(rms_norm(x[:, 0], base["norm"], config.norm_eps), base, rows, ends)
