"""The decoder with memory: keys and values of what was read are kept, so that one more token costs one token's work.

A cache has slots, each with one text. Tokens are read in strides: while one lasts, the cache is only read, and what the
new tokens add lies beside it (a loop that also wrote the cache would copy it at every step); then it is written, all of
the stride at once. A text's numbers do not depend on what the other slots hold, nor on how long the cache is: every sum
over positions is taken in blocks of one size, whose sums are added in order, and blocks that are not seen add exact
zeros.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ntk_jax.models import rope
from ntk_jax.models.attention import attend, attention_mask
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import Pure, rms_norm
from ntk_jax.parallel.hosts import place
from ntk_jax.parallel.rules import ROWS, on_own_rows, split_rows, whole

BLOCK = 128  # places whose weighted values are summed together
STRIDE = 8  # tokens between two writes of the cache; divides BLOCK
_MASKED = -1e30  # finite, so that no mask can make NaN


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """keys (turned) [L, slots, kv, n, H, c] and values [L, slots, kv, n, c, H] of n blocks of c places in the compute
    dtype: each as the product that reads it wants it. Places are where a token lies, positions what the rotary
    embedding goes by: a stride begins at a place that is a multiple of STRIDE, wherever the prompt ends."""

    keys: Any
    values: Any

    @property
    def length(self) -> int:
        """Places of a slot."""
        return self.keys.shape[3] * self.keys.shape[5]


def empty_cache(config: ModelConfig, slots: int, length: int, dtype: Any, mesh: Mesh | None = None) -> Cache:
    """A cache of zeros, its slots over the mesh's rows. length: a multiple of BLOCK."""
    outer = (config.num_layers, slots, config.num_kv_heads, length // BLOCK)
    shapes = [(*outer, *inner) for inner in ((config.head_dim, BLOCK), (BLOCK, config.head_dim))]
    zeros = [jnp.zeros(shape, dtype) for shape in shapes]
    if mesh is not None:
        zeros = place(zeros, [NamedSharding(mesh, PartitionSpec(None, ROWS))] * 2)
    return Cache(*zeros)


def empty_stride(cache: Cache) -> Cache:
    """Zeros for the next STRIDE tokens of every slot: one block of so many places."""
    layers, slots, kv, _, width, _ = cache.keys.shape
    shapes = [(layers, slots, kv, 1, *inner) for inner in ((width, STRIDE), (STRIDE, width))]
    return Cache(*(_split_slots(jnp.zeros(shape, cache.keys.dtype)) for shape in shapes))


def resized(cache: Cache, length: int) -> Cache:
    """The same with more places a slot, or with fewer: what lies behind is lost. length: a multiple of BLOCK."""
    blocks = length // BLOCK
    more = max(0, blocks - cache.keys.shape[3])

    def change(x: jax.Array) -> jax.Array:
        margins = [(0, more if axis == 3 else 0) for axis in range(x.ndim)]
        return _split_slots(jnp.pad(x, margins)[:, :, :, :blocks])

    return jax.tree.map(change, cache)


def read_prompts(
    graphdef: Any, lora: Pure, base: Pure, tokens: jax.Array, lengths: jax.Array, *, dtype: Any
) -> tuple[jax.Array, Cache]:
    """The hidden state [R, D], after the final norm, of the last token of each prompt, and what is kept of them: a
    cache of R slots in which each prompt begins at place 0.

    tokens [R, T] int32, the first lengths [R] of each row; what is kept of the others means nothing.
    """
    rows, length = tokens.shape
    model = nnx.merge(graphdef, nnx.State(dict(lora)), nnx.State(dict(base)))
    layer_def, stack = nnx.split(model.layers)
    turn = rope.rotation(model.config, jnp.broadcast_to(jnp.arange(length), tokens.shape))
    seen = attention_mask((jnp.arange(length) < lengths[:, None]).astype(jnp.int32), None)

    def blocks(x: jax.Array) -> jax.Array:
        """[R, T, kv, H] → [R, kv, n, c, H]."""
        x = jnp.pad(x, [(0, 0), (0, -length % BLOCK), (0, 0), (0, 0)])
        return x.reshape(rows, -1, BLOCK, *x.shape[2:]).transpose(0, 3, 1, 2, 4)

    def step(x: jax.Array, own: Any) -> tuple[jax.Array, Cache]:
        layer = nnx.merge(layer_def, own)
        q, k, v = layer.queries_keys_values(x, turn)
        return layer.after_attention(x, attend(q, k, v, seen)), Cache(blocks(k).swapaxes(3, 4), blocks(v))

    x = split_rows(whole(model.embed[...])[tokens].astype(dtype))
    x, kept = jax.lax.scan(step, x, stack)
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return rms_norm(last, model.norm[...], model.config.norm_eps), kept


def with_prompts(cache: Cache, kept: Cache, slots: jax.Array) -> Cache:
    """The cache with what `read_prompts` kept of R prompts in slots [R]; -1 is nowhere. On a mesh both are spread over
    its rows, and the slots of a device's prompts are its own, counted from its first."""

    def put(into: jax.Array, new: jax.Array, slots: jax.Array) -> tuple[jax.Array]:
        def one(row: jax.Array, into: jax.Array) -> jax.Array:
            at = (0, jnp.maximum(slots[row], 0), 0, 0, 0, 0)
            part = jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1)
            there = jax.lax.dynamic_slice(into, at, part.shape)
            return jax.lax.dynamic_update_slice(into, jnp.where(slots[row] < 0, there, part), at)

        return (jax.lax.fori_loop(0, len(slots), one, into),)

    return jax.tree.map(lambda into, new: on_own_rows(put, (into, new, slots), (1, 1, 0), (1,))[0], cache, kept)


def with_stride(cache: Cache, stride: Cache, places: jax.Array) -> Cache:
    """The cache with a stride of every slot at its place [slots], a multiple
    of STRIDE; -1 is nowhere."""

    def put(axis: int, into: jax.Array, new: jax.Array, places: jax.Array) -> tuple[jax.Array]:
        def one(slot: jax.Array, into: jax.Array) -> jax.Array:
            block, offset = places[slot] // BLOCK, places[slot] % BLOCK
            at = (0, slot, 0, jnp.maximum(block, 0), *(offset if axis == other else 0 for other in (4, 5)))
            part = jax.lax.dynamic_slice_in_dim(new, slot, 1, axis=1)
            there = jax.lax.dynamic_slice(into, at, part.shape)
            return jax.lax.dynamic_update_slice(into, jnp.where(places[slot] < 0, there, part), at)

        return (jax.lax.fori_loop(0, len(places), one, into),)

    def written(into: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        return on_own_rows(functools.partial(put, axis), (into, new, places), (1, 1, 0), (1,))[0]

    return Cache(written(cache.keys, stride.keys, 5), written(cache.values, stride.values, 4))


def read_token(
    graphdef: Any,
    lora: Pure,
    base: Pure,
    cache: Cache,
    stride: Cache,
    number: jax.Array,
    tokens: jax.Array,
    positions: jax.Array,
    seen: jax.Array,
    *,
    dtype: Any,
) -> tuple[jax.Array, Cache]:
    """The hidden state [slots, D], after the final norm, of one more token in every slot, and the stride with it.

    number: of the token in the stride, of which it sees itself and those before. tokens, positions: [slots] int32.
    seen: [slots, S] bool, the places of the cache that a slot's token sees.
    """
    model = nnx.merge(graphdef, nnx.State(dict(lora)), nnx.State(dict(base)))
    layer_def, stack = nnx.split(model.layers)
    turn = rope.rotation(model.config, positions[:, None])
    near = jnp.broadcast_to(jnp.arange(STRIDE) <= number, (len(tokens), STRIDE))

    def step(x: jax.Array, own: Any) -> tuple[jax.Array, Cache]:
        weights, far, recent = own
        layer = nnx.merge(layer_def, weights)
        q, k, v = layer.queries_keys_values(x, turn)
        k, v = k[:, 0, :, None, :, None], v[:, 0, :, None, None, :]
        recent = Cache(
            jax.lax.dynamic_update_slice_in_dim(recent.keys, k, number, axis=4),
            jax.lax.dynamic_update_slice_in_dim(recent.values, v, number, axis=3),
        )
        return layer.after_attention(x, _attend((far, recent), (seen, near), q[:, 0])), recent

    x = split_rows(whole(model.embed[...])[tokens[:, None]].astype(dtype))
    x, stride = jax.lax.scan(step, x, (stack, cache, stride))
    return rms_norm(x[:, 0], model.norm[...], model.config.norm_eps), stride


def _attend(parts: tuple[Cache, ...], seen: tuple[jax.Array, ...], q: jax.Array) -> jax.Array:
    """Attention [slots, 1, heads·H] of one query a slot, q [slots, heads, H] (scaled), to the seen [slots, S] places
    of all parts, which are one layer of a cache each. Softmax in fp32."""
    slots, heads, width = q.shape
    kv, kind = parts[0].keys.shape[1], parts[0].values.dtype
    q = q.reshape(slots, kv, heads // kv, width)
    scores = []
    for part, mask in zip(parts, seen, strict=True):
        n, c = part.keys.shape[2], part.keys.shape[4]
        q_blocks = jnp.broadcast_to(q[:, :, None], (slots, kv, n, heads // kv, width))
        found = jnp.einsum("bkngh,bknhc->bkngc", q_blocks, part.keys, preferred_element_type=jnp.float32)
        scores.append(jnp.where(mask.reshape(slots, 1, n, 1, c), found, _MASKED))
    tops = [found.max(axis=(2, 4)) for found in scores]
    top = jnp.stack(tops).max(axis=0)[:, :, None, :, None]
    sums = jnp.zeros((slots, kv, heads // kv, width)), jnp.zeros((slots, kv, heads // kv, 1))
    for part, found in zip(parts, scores, strict=True):
        weights = jnp.exp(found - top).astype(kind)
        values = jnp.einsum("bkngc,bknch->nbkgh", weights, part.values, preferred_element_type=jnp.float32)
        total = weights.sum(axis=-1, keepdims=True, dtype=jnp.float32).transpose(2, 0, 1, 3, 4)
        # in order, however many blocks there are
        sums, _ = jax.lax.scan(lambda all_, one: (jax.tree.map(jnp.add, all_, one), None), sums, (values, total))
    return (sums[0] / sums[1]).astype(kind).reshape(slots, 1, heads * width)


def _split_slots(x: jax.Array) -> jax.Array:
    """Pins [L, slots, ...] to slots over the mesh's rows, where x lives on a mesh."""
    return split_rows(x.swapaxes(0, 1)).swapaxes(0, 1)
