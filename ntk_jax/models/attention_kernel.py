"""Attention and its forward-mode derivative in one pass over the keys, as a Pallas kernel for GPUs (Triton).

Of a query with scores s = qk, their changes ṡ = q̇k + qk̇ and weights p = exp(s - m), m the largest score so far,

    o = Σ p v / l        ȯ = Σ p [v̇ + (ṡ - c) v] / l        l = Σ p        c = Σ p ṡ / l

are quotients of sums over keys, and a sum over keys can be taken block by block: when m moves, all of them are scaled
by exp(m_old - m_new) (online softmax, arXiv 1805.02867; FlashAttention, arXiv 2205.14135; the tangent beside it as in
Dao-AILab/flash-attention#1672). c is the mean so far: when it moves, the sum of ȯ loses (c_new - c_old) Σ p v. It could
be taken off at the end alone, but changes that all keys share may be large, and in bf16 their rounding would drown the
rest. So no score leaves the chip: memory holds q, k, v, o and their tangents, nothing of size T x T, not even a mask.

`models/attention.py` is the same function in plain XLA: the oracle of the tests, and the default, because this kernel
was measured on one GPU at one shape (docs/performance.md).

Letters: H head width, N query heads, t and s queries and keys of a block, m directions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ntk_jax.errors import UserError
from ntk_jax.parallel.rules import on_own_rows

Attention = Literal["auto", "xla", "pallas"]
MEASURED = (128, jnp.dtype(jnp.bfloat16))  # width of a head and type, docs/performance.md
SMALLEST = 16  # sides of a product on a GPU's matrix units


@dataclass(frozen=True)
class Kernel:
    """How the kernel is cut up: static, and powers of two from 16 on. The defaults are the fastest of four on an H200
    in bf16 at H = 128 (`scripts/benchmark_attention.py`); other cuts are up to four times slower.

    queries, keys: of a block. directions: tangents that one program carries along, sharing its p; each costs registers
    for one more [queries, H] sum, so m of them by default are m programs. warps, stages: Triton's. interpret: run the
    kernel's operations one by one as plain XLA, which any device can, slowly: for tests.
    """

    queries: int = 128
    keys: int = 64
    directions: int = 1
    warps: int = 8
    stages: int = 2
    interpret: bool = False


def forward_mode_of(
    attention: Attention | Kernel, mesh: jax.sharding.Mesh | None, head_dim: int, dtype: Any
) -> Kernel | bool:
    """What `hidden_states` takes as forward_mode: a kernel, or True for the rule in plain XLA.

    attention: `xla`, `pallas`, `auto` (the kernel where it can run and was measured: in bf16 with heads 128 wide), or a
    kernel as it is wanted. Raises UserError where `pallas` cannot run.
    """
    if isinstance(attention, Kernel):
        return attention
    platform = jax.default_backend()
    reason = None
    if platform != "gpu":
        reason = f"its kernel is written for GPUs, and this is a {platform}"
    elif mesh is not None and mesh.shape["tensor"] > 1:
        reason = "its kernel wants all heads of a row on one device, and the mesh's tensor axis splits them"
    if attention == "pallas" and reason:
        raise UserError(f"attention = pallas: {reason}; take attention = xla")
    unknown = attention == "auto" and (head_dim, jnp.dtype(dtype)) != MEASURED
    return True if attention == "xla" or reason or unknown else Kernel()


def first_keys(segments: jax.Array) -> jax.Array:
    """[B, T] int32: the place in the row where the token's segment begins.

    All that the kernel asks about visibility: two tokens are of one segment if these are equal, and keys before the
    smallest one of a block of queries need not be looked at.
    """

    def of_row(row: jax.Array) -> jax.Array:
        _, firsts, which = jnp.unique(row, size=row.size, return_index=True, return_inverse=True)
        return firsts[which].astype(jnp.int32)

    return jax.vmap(of_row)(segments)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def attend_online(q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, kernel: Kernel) -> jax.Array:
    """Grouped-query attention [B, T, N, H] of q [B, T, N, H] (already scaled) and k, v [B, T, kv, H], causal and inside
    segments; first as of `first_keys`. For `jax.jvp`, under any `vmap`s; it has no backward pass."""
    still = (jnp.zeros((1, *x.shape), x.dtype) for x in (q, k, v))  # layers before the first differentiated one
    return _with_tangents(kernel)(first, q, k, v, *still)[0]


@attend_online.defjvp
def _(kernel: Kernel, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (q, k, v, first), (dq, dk, dv, _) = primals, tangents
    out, change = _with_tangents(kernel)(first, q, k, v, dq[None], dk[None], dv[None])
    return out, change[0]


@functools.cache
def _with_tangents(kernel: Kernel) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(first, q, k, v, m of each tangent [m, ...]) → (output, its m changes [m, B, T, N, H]), with a rule for `vmap`.

    The batching rule of a Pallas call would give the whole call an axis more, so that every direction computed p and
    the output anew, and the primal pass of all later layers with them. Here a mapped axis of tangents is more
    directions, and one of primals more rows.
    """

    @jax.custom_batching.custom_vmap
    def both(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = (0, 0, 0, 0, 1, 1, 1)  # where B is, in each of the arguments
        return on_own_rows(functools.partial(_blocks, kernel), arrays, rows, (0, 1))

    @both.def_vmap
    def _(count: int, mapped: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        every = [x if own else jnp.broadcast_to(x, (count, *x.shape)) for x, own in zip(arrays, mapped, strict=True)]
        if not any(mapped[:4]):
            out, change = both(*arrays[:4], *(x.reshape(-1, *x.shape[2:]) for x in every[4:]))
            return (out, change.reshape(count, -1, *change.shape[1:])), (False, True)
        primals = (x.reshape(-1, *x.shape[2:]) for x in every[:4])
        tangents = (x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:]) for x in every[4:])
        out, change = both(*primals, *tangents)
        change = change.reshape(change.shape[0], count, -1, *change.shape[2:]).swapaxes(0, 1)
        return (out.reshape(count, -1, *out.shape[1:]), change), (True, True)

    return both


def _blocks(kernel: Kernel, first: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One program for each block of queries, head, row and group of directions. A row and a head that do not fill their
    blocks are padded: with tokens after all others in a segment of their own, and with zeros."""
    rows, length, heads, width = arrays[0].shape
    fits = pl.next_power_of_2(max(length, SMALLEST))
    queries, keys = min(kernel.queries, fits), min(kernel.keys, fits)
    long = pl.cdiv(length, max(queries, keys)) * max(queries, keys)
    wide = pl.next_power_of_2(max(width, SMALLEST))
    first = jnp.pad(first, ((0, 0), (0, long - length)), constant_values=length)
    space = ((0, long - length), (0, 0), (0, wide - width))
    q, k, v, dq, dk, dv = (jnp.pad(x, ((0, 0),) * (x.ndim - 3) + space) for x in arrays)

    m, sharing = dq.shape[0], heads // k.shape[2]
    directions = max(n for n in range(1, min(m, kernel.directions) + 1) if m % n == 0)
    groups = m // directions

    def of_queries(block: Any, head: Any, row: Any) -> tuple[Any, ...]:
        return lax.div(row, groups), block, head, 0

    def of_keys(block: Any, head: Any, row: Any) -> tuple[Any, ...]:
        return lax.div(row, groups), 0, lax.div(head, sharing), 0

    def tangent(place: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        return lambda block, head, row: (lax.rem(row, groups), *place(block, head, row))

    query = pl.BlockSpec((None, queries, None, wide), of_queries)
    key = pl.BlockSpec((None, long, None, wide), of_keys)
    moved_query = pl.BlockSpec((directions, None, queries, None, wide), tangent(of_queries))
    moved_key = pl.BlockSpec((directions, None, long, None, wide), tangent(of_keys))
    out, change = pl.pallas_call(
        functools.partial(_program, keys=keys, groups=groups),
        grid=(long // queries, heads, rows * groups),
        in_specs=[
            pl.BlockSpec((None, long), lambda block, head, row: (lax.div(row, groups), 0)),
            *(query, key, key, moved_query, moved_key, moved_key),
        ],
        out_specs=[query, moved_query],
        out_shape=[jax.ShapeDtypeStruct(x.shape, v.dtype) for x in (q, dq)],
        compiler_params=triton.CompilerParams(num_warps=kernel.warps, num_stages=kernel.stages),
        interpret=kernel.interpret,
        name="attention_with_tangents",
    )(first, q, k, v, dq, dk, dv)
    return out[:, :length, :, :width], change[:, :, :length, :, :width]


def _program(
    first: Any, q: Any, k: Any, v: Any, dq: Any, dk: Any, dv: Any, out: Any, moved_out: Any, *, keys: int, groups: int
) -> None:
    """One block of queries of one head against the keys that it may see, with the tangents of one group of directions.

    References: first [T], q [t, H], k, v [T, H], dq [d, t, H], dk, dv [d, T, H], out [t, H], moved_out [d, t, H].
    Products take the arrays' dtype and sum in fp32, at the matmul precision that jax is set to.
    """
    directions, (queries, width) = range(dq.shape[0]), q.shape
    begin = pl.program_id(0) * queries
    place = begin + lax.broadcasted_iota(jnp.int32, (queries, 1), 0)
    own_first = first[pl.ds(begin, queries)]
    query, moved_query = q[...], [dq[j] for j in directions]

    def meet(number: Any, sums: Any) -> Any:
        """Adds a block of keys to the sums over keys."""
        largest, total, values, means, moved_values = sums
        at = pl.ds(number * keys, keys)
        key, value = k[at, :], v[at, :]
        seen = place >= number * keys + lax.broadcasted_iota(jnp.int32, (1, keys), 1)
        seen &= own_first[:, None] == first[at][None, :]

        scores = jnp.where(seen, _by_width(query, key), _MASKED)
        now_largest = jnp.maximum(largest, scores.max(axis=1))
        kept = jnp.exp(largest - now_largest)
        # Until a query sees its first key it weighs what it does not see with exp(0); that key then scales it all away.
        # The weights that are summed are those that meet the values, rounded: o is a mean of values exactly.
        weights = jnp.exp(scores - now_largest[:, None]).astype(value.dtype)
        wide = weights.astype(jnp.float32)
        now_total = kept * total + wide.sum(axis=1)
        now_means, now_moved_values = [], []
        for j in directions:
            change = _by_width(moved_query[j], key) + _by_width(query, dk[j, at, :])
            mean = (kept * total * means[j] + (wide * change).sum(axis=1)) / now_total
            moved = (wide * (change - mean[:, None])).astype(value.dtype)
            before = moved_values[j] - (mean - means[j])[:, None] * values
            now_means.append(mean)
            now_moved_values.append(kept[:, None] * before + _by_keys(moved, value) + _by_keys(weights, dv[j, at, :]))
        return now_largest, now_total, kept[:, None] * values + _by_keys(weights, value), now_means, now_moved_values

    none, nowhere = jnp.zeros(queries, jnp.float32), jnp.zeros((queries, width), jnp.float32)
    start = none + _MASKED, none, nowhere, [none for _ in directions], [nowhere for _ in directions]
    lower, upper = lax.div(jnp.min(own_first), keys), lax.div(begin + queries + keys - 1, keys)
    _, total, values, _, moved_values = lax.fori_loop(lower, upper, meet, start)
    for j in directions:
        moved_out[j] = (moved_values[j] / total[:, None]).astype(moved_out.dtype)

    @pl.when(lax.rem(pl.program_id(2), groups) == 0)  # the other groups have the same output
    def once() -> None:
        out[...] = (values / total[:, None]).astype(out.dtype)


def _by_width(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """[t, s] fp32 products of [t, H] and [s, H]."""
    return lax.dot_general(queries, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _by_keys(weights: jax.Array, values: jax.Array) -> jax.Array:
    """[t, H] fp32 products of [t, s] and [s, H]."""
    return jnp.dot(weights, values, preferred_element_type=jnp.float32)


_MASKED = -1e30  # finite: a difference of two of them is 0 and not NaN
