"""Grouped-query attention in plain XLA, inside segments and branches, and its rule for forward mode.

Plain XLA on purpose: fused kernels are custom_vjp and have no forward mode, on which the directional score stands. The
one kernel that has it is `attention_kernel.py`, an option.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntk_jax.models.attention_kernel import Kernel, attend_online, first_keys


def visibility(segments: jax.Array, branches: jax.Array | None, forward_mode: bool | Kernel) -> jax.Array:
    """What `attend` takes as seen: a mask [B, T, T], or for a kernel, which needs none, the [B, T] of `first_keys`."""
    if not isinstance(forward_mode, Kernel):
        return attention_mask(segments, branches)
    if branches is not None:
        raise ValueError("the attention kernel knows segments only; branches need forward_mode = True or False")
    return first_keys(segments)


def attention_mask(segments: jax.Array, branches: jax.Array | None) -> jax.Array:
    """[B, T, T] bool, query by key: causal by place in the row, same segment, compatible branch."""
    seen = (segments[:, :, None] == segments[:, None, :]) & jnp.tri(segments.shape[1], dtype=bool)
    if branches is not None:
        seen &= (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    return seen


def attend(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, forward_mode: bool | Kernel = False) -> jax.Array:
    """Grouped-query attention [B, T, heads·H] of q [B, T, heads, H] (already scaled) and k, v [B, T, kv, H].

    Queries are grouped by the key/value head they share, which is never repeated. Rows are cut into blocks of
    queries, and a block meets only the keys before its end: about half the work of the full square, and scores
    of one block at a time in memory. Softmax in fp32. seen: as of `visibility`. forward_mode: the same function with
    `_block_with_tangent`, or by a kernel that has tangents.
    """
    rows, length, heads, width = q.shape
    if isinstance(forward_mode, Kernel):
        return attend_online(q, k, v, seen, forward_mode).reshape(rows, length, heads * width)
    attend_block = _block_with_tangent if forward_mode else _block
    kv = k.shape[2]
    q = q.reshape(rows, length, kv, heads // kv, width)
    outputs = []
    for start, stop in query_blocks(length):
        here = seen[:, None, start:stop, None, :stop]
        outputs.append(attend_block(q[:, start:stop], k[:, :stop], v[:, :stop], here))
    out = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)
    return out.reshape(rows, length, heads * width)


def _block(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    """[B, t, kv, g, H] of a block of queries q [B, t, kv, g, H] and the keys and values [B, s, kv, H] before its end;
    seen [B, 1, t, 1, s]."""
    scores = jnp.where(seen, _products(q, k), _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bktgs,bskh->btkgh", weights, v)


@jax.custom_jvp
def _block_with_tangent(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    """`_block`, whose derivative passes the square of scores as seldom as it can: what a score spends on attention is
    memory traffic. q̇k + qk̇ is one product over twice the width, and softmax's sum is divided by after the values.

    Sums are of the weights as rounded as those that meet the values: a change of scores that all keys share, however
    large, then cancels, where in bf16 its rounding would drown the rest."""
    return _weigh(q, k, v, seen)[0].astype(v.dtype)


@_block_with_tangent.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (q, k, v, seen), (dq, dk, dv, _) = primals, tangents
    out, weights, total = _weigh(q, k, v, seen)
    change = _products(jnp.concatenate([dq, q], axis=-1), jnp.concatenate([k, dk], axis=-1))
    moved = (weights * jnp.where(seen, change, 0.0)).astype(v.dtype)
    by_weight = _values_of(moved, v) + _values_of(weights, dv)
    mean_change = _per_query(moved.sum(axis=-1, dtype=jnp.float32))
    tangent = (by_weight - out * mean_change) / total
    return out.astype(v.dtype), tangent.astype(v.dtype)


def _weigh(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(output in fp32, unnormalised weights [B, kv, t, g, s] in v's dtype, their sums [B, t, kv, g, 1] fp32)."""
    scores = jnp.where(seen, _products(q, k), _MASKED)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True)).astype(v.dtype)
    total = _per_query(weights.sum(axis=-1, dtype=jnp.float32))
    return _values_of(weights, v) / total, weights, total


def _products(q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum("btkgh,bskh->bktgs", q, k, preferred_element_type=jnp.float32)


def _values_of(weights: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("bktgs,bskh->btkgh", weights, v, preferred_element_type=jnp.float32)


def _per_query(x: jax.Array) -> jax.Array:
    """[B, kv, t, g] → [B, t, kv, g, 1]."""
    return x.transpose(0, 2, 1, 3)[..., None]


def query_blocks(length: int) -> list[tuple[int, int]]:
    """(start, stop) of the blocks of queries of a row; those of one block meet the keys [0, stop)."""
    block = max(_MIN_BLOCK, -(-length // _MAX_BLOCKS))
    return [(start, min(start + block, length)) for start in range(0, length, block)]


_MIN_BLOCK = 256  # queries; smaller blocks leave matmul units idle
_MAX_BLOCKS = 8  # the loop is unrolled, so this bounds compile time
_MASKED = -1e30  # finite, so that no mask whatever can make NaN of a row or its derivative
