"""The decoder with memory: keys and values of what was read are kept, so that one more token costs one token's work.

A cache has slots, each with one text. Tokens are read in strides: while one lasts, the cache is only read, and what the
new tokens add lies beside it (a loop that also wrote the cache would copy it at every step); then it is written, all of
the stride at once. A text's numbers do not depend on what the other slots hold, nor on how long the cache is: every sum
over positions is taken in blocks of one size, whose sums are added in order, and blocks that are not seen add exact
zeros. (XLA's products on some processors round the last rows of a block otherwise; there the last bit depends on the
slot.)
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
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import Layer, Pure, rms_norm
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


def read_pieces(
    graphdef: Any,
    lora: Pure,
    base: Pure,
    cache: Cache,
    tokens: jax.Array,
    lengths: jax.Array,
    slots: jax.Array,
    places: jax.Array,
    *,
    dtype: Any,
) -> tuple[jax.Array, Cache]:
    """The hidden state [R, D], after the final norm, of the last token of each of R pieces of prompts, and the cache
    with what is kept of them.

    tokens [R, T] int32, the first lengths [R] of each row; what is kept of the others means nothing. slots, places: as
    in `with_pieces`. A piece sees what its slot holds of the places before its own: earlier pieces of its prompt, which
    may be rows of the same call, as every layer is written before it is read.
    """
    model = nnx.merge(graphdef, nnx.State(dict(lora)), nnx.State(dict(base)))
    layer_def, stack = nnx.split(model.layers)
    rows, length = tokens.shape
    x, turn = embedded(model.config, base, tokens, places[:, None] + jnp.arange(length), dtype)

    def step(state: tuple[jax.Array, Cache], own: Any) -> tuple[tuple[jax.Array, Cache], None]:
        weights, number = own
        return read_pieces_layer(nnx.merge(layer_def, weights), *state, number, turn, slots, places), None

    (x, cache), _ = jax.lax.scan(step, (x, cache), (stack, jnp.arange(model.config.num_layers)))
    return last_of_pieces(model.config, base, x, lengths), cache


def embedded(
    config: ModelConfig, base: Pure, tokens: jax.Array, positions: jax.Array, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """(x [R, T, D] of tokens [R, T], `rope.rotation` of positions [R, T]): what the first layer is given."""
    return split_rows(whole(base["embed"])[tokens].astype(dtype)), rope.rotation(config, positions)


def read_pieces_layer(
    layer: Layer,
    x: jax.Array,
    cache: Cache,
    number: jax.Array,
    turn: tuple[jax.Array, jax.Array],
    slots: jax.Array,
    places: jax.Array,
) -> tuple[jax.Array, Cache]:
    """One layer of `read_pieces`, x [R, T, D]. number: of the layer in the cache."""
    rows, length = x.shape[:2]
    numbers = jnp.broadcast_to(number, rows)

    def blocks(x: jax.Array) -> jax.Array:
        """[R, T, kv, H] → [1, R, kv, n, c, H]."""
        return x.reshape(1, rows, -1, min(length, BLOCK), *x.shape[2:]).transpose(0, 1, 4, 2, 3, 5)

    q, k, v = layer.queries_keys_values(x, turn)
    cache = with_pieces(cache, Cache(blocks(k).swapaxes(4, 5), blocks(v)), slots, places, numbers)
    given = (q, cache.keys, cache.values, slots, places, numbers)
    (attended,) = on_own_rows(_attend_before, given, (0, 1, 1, 0, 0, 0), (0,))
    return layer.after_attention(x, attended), cache


def last_of_pieces(config: ModelConfig, base: Pure, x: jax.Array, lengths: jax.Array) -> jax.Array:
    """[R, D], after the final norm, of the last token of each piece."""
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return rms_norm(last, base["norm"], config.norm_eps)


def with_pieces(cache: Cache, new: Cache, slots: jax.Array, places: jax.Array, layers: jax.Array) -> Cache:
    """The cache with R pieces of texts, in layers from layers [R] on, in slots [R], -1 is nowhere, from places [R] on.
    A piece lies in one block or is some whole ones. On a mesh all is spread over its rows, and the slots of a device's
    pieces are its own, counted from its first."""

    def written(into: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        given = (into, new, slots, places, layers)
        return on_own_rows(functools.partial(_put, axis), given, (1, 1, 0, 0, 0), (1,))[0]

    return Cache(written(cache.keys, new.keys, 5), written(cache.values, new.values, 4))


def piece_at(cache: Cache, slots: jax.Array, places: jax.Array, length: int) -> Cache:
    """`length` places of one slot from a place on, as a cache of one slot, whole on every device of a mesh. slots,
    places: one for each of the devices that the slots are spread over, as in `with_pieces`; -1 for all but one."""

    def cut(axis: int, x: jax.Array, slots: jax.Array, places: jax.Array) -> tuple[jax.Array]:
        sizes = [x.shape[0], 1, x.shape[2], max(1, length // BLOCK), *x.shape[4:]]
        sizes[axis] = min(length, BLOCK)
        return (jax.lax.dynamic_slice(x, _corner(axis, 0, slots[0], places[0]), sizes),)

    def found(x: jax.Array, axis: int) -> jax.Array:
        of_each = on_own_rows(functools.partial(cut, axis), (x, slots, places), (1, 0, 0), (1,))[0]
        return jax.lax.dynamic_slice_in_dim(whole(of_each), jnp.argmax(whole(slots) >= 0), 1, axis=1)

    return Cache(found(cache.keys, 5), found(cache.values, 4))


def with_stride(cache: Cache, stride: Cache, places: jax.Array) -> Cache:
    """The cache with a stride of every slot at its place [slots], a multiple of STRIDE; -1 is nowhere."""

    def put(axis: int, into: jax.Array, new: jax.Array, places: jax.Array) -> tuple[jax.Array]:
        slots = jnp.where(places < 0, -1, jnp.arange(len(places)))
        return _put(axis, into, new, slots, places, jnp.zeros_like(places))

    def written(into: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        return on_own_rows(functools.partial(put, axis), (into, new, places), (1, 1, 0), (1,))[0]

    return Cache(written(cache.keys, stride.keys, 5), written(cache.values, stride.values, 4))


def _put(
    axis: int, into: jax.Array, new: jax.Array, slots: jax.Array, places: jax.Array, layers: jax.Array
) -> tuple[jax.Array]:
    """Keys or values with `new` in them; axis: that of the places of a block."""

    def one(row: jax.Array, into: jax.Array) -> jax.Array:
        at = _corner(axis, layers[row], slots[row], places[row])
        part = jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1)
        there = jax.lax.dynamic_slice(into, at, part.shape)
        return jax.lax.dynamic_update_slice(into, jnp.where(slots[row] < 0, there, part), at)

    return (jax.lax.fori_loop(0, len(slots), one, into),)


def _corner(axis: int, layer: Any, slot: jax.Array, place: jax.Array) -> tuple[Any, ...]:
    """Where a piece begins in keys or values."""
    block, offset = place // BLOCK, place % BLOCK
    at = (layer, slot, 0, block, *(offset if axis == other else 0 for other in (4, 5)))
    return tuple(jnp.maximum(jnp.int32(number), 0) for number in at)


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
    x, turn = embedded(model.config, base, tokens[:, None], positions[:, None], dtype)

    def step(x: jax.Array, own: Any) -> tuple[jax.Array, Cache]:
        weights, far, recent = own
        return read_token_layer(nnx.merge(layer_def, weights), x, far, recent, number, turn, seen)

    x, stride = jax.lax.scan(step, x, (stack, cache, stride))
    return rms_norm(x[:, 0], base["norm"], model.config.norm_eps), stride


def read_token_layer(
    layer: Layer,
    x: jax.Array,
    far: Cache,
    recent: Cache,
    number: jax.Array,
    turn: tuple[jax.Array, jax.Array],
    seen: jax.Array,
) -> tuple[jax.Array, Cache]:
    """One layer of `read_token`, x [slots, 1, D]. far, recent: this layer of the cache and of the stride."""
    q, k, v = layer.queries_keys_values(x, turn)
    k, v = k[:, 0, :, None, :, None], v[:, 0, :, None, None, :]
    recent = Cache(
        jax.lax.dynamic_update_slice_in_dim(recent.keys, k, number, axis=4),
        jax.lax.dynamic_update_slice_in_dim(recent.values, v, number, axis=3),
    )
    near = jnp.broadcast_to(jnp.arange(STRIDE) <= number, (len(x), STRIDE))
    return layer.after_attention(x, _attend((far, recent), (seen, near), q[:, 0])), recent


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


def _attend_before(
    q: jax.Array, keys: jax.Array, values: jax.Array, slots: jax.Array, places: jax.Array, layers: jax.Array
) -> tuple[jax.Array]:
    """Attention [R, T, heads·H] of pieces of queries, q [R, T, heads, H] (scaled), from places [R] on, to what their
    slots hold in one layer up to each query's own place. Softmax in fp32, block by block in order with the highest
    score so far; a block behind a query changes nothing of its sums."""
    rows, length, heads, width = q.shape
    kv, group = keys.shape[2], heads // keys.shape[2]
    q = q.reshape(rows, length, kv, group, width).transpose(0, 2, 3, 1, 4).reshape(rows, kv, group * length, width)
    own = jnp.tile(places[:, None] + jnp.arange(length), (1, group))[:, None, :, None]

    def block(x: jax.Array, number: jax.Array) -> jax.Array:
        def of(slot: jax.Array, layer: jax.Array) -> jax.Array:
            at = (layer, jnp.maximum(slot, 0), 0, number, 0, 0)
            return jax.lax.dynamic_slice(x, at, (1, 1, kv, 1, *x.shape[4:]))[0, 0, :, 0]

        return jax.vmap(of)(slots, layers)

    def step(number: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, sums = state
        found = jnp.einsum("rkqh,rkhc->rkqc", q, block(keys, number), preferred_element_type=jnp.float32)
        found = jnp.where(number * BLOCK + jnp.arange(BLOCK) <= own, found, _MASKED)
        higher = jnp.maximum(top, found.max(axis=-1, keepdims=True))
        weights, shrunk = jnp.exp(found - higher).astype(values.dtype), jnp.exp(top - higher)
        more = jnp.einsum("rkqc,rkch->rkqh", weights, block(values, number), preferred_element_type=jnp.float32)
        total = total * shrunk + weights.sum(axis=-1, keepdims=True, dtype=jnp.float32)
        return higher, total, sums * shrunk + more

    zeros = jnp.zeros((rows, kv, group * length, 1))
    state = (zeros + _MASKED, zeros, jnp.zeros(q.shape))
    _, total, sums = jax.lax.fori_loop(0, (places.max() + length - 1) // BLOCK + 1, step, state)
    out = (sums / total).astype(values.dtype).reshape(rows, kv, group, length, width)
    return (out.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads * width),)


def _split_slots(x: jax.Array) -> jax.Array:
    """Pins [L, slots, ...] to slots over the mesh's rows, where x lives on a mesh."""
    return split_rows(x.swapaxes(0, 1)).swapaxes(0, 1)
