"""Scores of chunks against all seeds, taken block by block as the chunks are embedded.

One pass on the device gives both what labels are made from: for each chunk and domain the best seed, and for each seed
the chunks nearest to it. Nothing of the corpus' size is in memory: a block's scores exist for some hundred seeds at a
time, and what remains of a block is small. No index is built, for every chunk is met once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.mining.seed_layout import TILE, Seeds, lay_out

_ROWS = 64  # chunks of a block are filled up to a multiple of this
_FEW = (16, 64)  # of a seed's nearest chunks: what is tried before all of them are sorted


@dataclass(frozen=True)
class Block:
    """What remains of a block of n chunks.

    best: [n, M] fp32, the best score of a chunk over the seeds of each domain; -inf for a domain without seeds.
    best_seed: [n, M] int32, that seed; -1 where there is none. top_score: [S, k] fp32, each seed's nearest chunks, best
    first; -inf where there are fewer. top_chunk: [S, k] int64, their ordinals in the corpus; -1 where there are fewer.
    """

    best: np.ndarray
    best_seed: np.ndarray
    top_score: np.ndarray
    top_chunk: np.ndarray


def best_of_block(
    vectors: np.ndarray,
    owner: np.ndarray,
    chunks: int,
    seeds: np.ndarray | Seeds,
    domain_of_seed: np.ndarray | None = None,
    *,
    top: int,
    combine: str = "best",
    first: int = 0,
    above: np.ndarray | None = None,
    dtype: str = "float32",
) -> Block:
    """The scores of a block of chunks against all seeds.

    vectors: [W, D] of windows; owner: [W], whose they are, ascending over 0..chunks - 1, each chunk at least once. A
    score is the product of two vectors: the cosine, where both have length 1.
    seeds: [S, D] with domain_of_seed [S, M] bool, or what `lay_out` made of them, once for many blocks.
    top: chunks that are kept for each seed. combine: a chunk's score is its `best` window's, or the `mean` of theirs.
    first: the ordinal in the corpus of the block's first chunk.
    above: [S], keep for a seed only chunks with a greater score, such as its `top`-th best of the blocks before: then
    there is little to sort.
    dtype: of the products. With `bfloat16` twice as many chunks are kept at first, and all that is kept is scored again
    in fp32: scores are exact, and only what differs by a rounding error of bf16 may be another seed or chunk.
    Raises UserError: vectors of another width than the seeds or not finite, a bad owner, top, combine or dtype.
    """
    laid = (
        seeds if isinstance(seeds, Seeds) else lay_out(seeds, np.zeros(0) if domain_of_seed is None else domain_of_seed)
    )
    vectors, owner = _checked(vectors, owner, chunks, laid)
    if top < 1 or combine not in ("best", "mean") or dtype not in ("float32", "bfloat16"):
        raise UserError(
            f"top = {top}, combine = {combine!r}, dtype = {dtype!r}: top is at least 1, combine best or mean"
        )
    if combine == "mean":
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        vectors = np.add.reduceat(vectors, starts, axis=0) / np.diff(starts, append=len(owner))[:, None]
        owner = np.arange(chunks)
    windows = _filled(vectors.astype(np.float32), owner, chunks)
    kept = min(top, len(windows[0]))
    least = np.full(len(laid.place), -np.inf, np.float32) if above is None else np.asarray(above, np.float32)
    floor = np.where(laid.ordinal >= 0, least[laid.ordinal], np.inf).astype(np.float32)  # nothing for nobody's places
    options: Any = {"top": kept, "dtype": dtype, "filled": len(windows[0]) > chunks}
    found = _search(*windows, chunks, floor, laid.vectors, laid.group, laid.member, **options)
    best, at, score, chunk = (np.asarray(value) for value in found)
    is_there, fill = np.isfinite(score[laid.place]), ((0, 0), (0, top - kept))
    return Block(
        np.ascontiguousarray(best[:, :chunks].T),
        np.ascontiguousarray(np.where(np.isfinite(best), laid.ordinal[at], -1)[:, :chunks].T.astype(np.int32)),
        np.pad(score[laid.place], fill, constant_values=-np.inf),
        np.pad(np.where(is_there, chunk[laid.place] + np.int64(first), -1), fill, constant_values=-1),
    )


def merge_top(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The k best of two lists (score [S, k], chunk [S, k]) of each seed, best first; of equal scores, a's before b's.
    Lists of several blocks are merged in order of the blocks."""
    k = a[0].shape[1]
    score, chunk = a[0].copy(), a[1].copy()
    new = b[0] > a[0][:, -1:]
    changed, width = np.flatnonzero(new[:, 0]), int(new.sum(axis=1).max(initial=0))  # mostly little is new
    scores = np.concatenate([a[0][changed], b[0][changed, :width]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    score[changed] = np.take_along_axis(scores, order, axis=1)
    chunks = np.concatenate([a[1][changed], b[1][changed, :width]], axis=1)
    chunk[changed] = np.take_along_axis(chunks, order, axis=1)
    return score, chunk


def _checked(vectors: np.ndarray, owner: np.ndarray, chunks: int, seeds: Seeds) -> tuple[np.ndarray, np.ndarray]:
    vectors, owner = np.asarray(vectors), np.asarray(owner)
    width = seeds.vectors.shape[-1]
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise UserError(
            f"vectors of shape {vectors.shape} against seeds of {width} numbers each: they come from two encoders; "
            "embed both with one"
        )
    steps = np.diff(owner, prepend=-1, append=chunks)
    if owner.shape != vectors.shape[:1] or not chunks or (steps < 0).any() or (steps > 1).any() or owner[0]:
        raise UserError(f"owner must name each of the {chunks} chunks in order, once for each of its windows")
    if not np.isfinite(vectors).all():
        bad = int(owner[np.argmin(np.isfinite(vectors).all(axis=1))])
        raise UserError(f"the vector of chunk {bad} of this block holds NaN or Inf; embed it again")
    return vectors, owner


def _filled(vectors: np.ndarray, owner: np.ndarray, chunks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first windows [N, D], further windows [E, D], whose [E]): N and E are rounded up, so that few shapes compile.
    What fills E up are copies of the first chunk's first window, which change no maximum."""
    is_first = np.diff(owner, prepend=-1) > 0
    rows, others = -(-chunks // _ROWS) * _ROWS, int(np.count_nonzero(~is_first))
    firsts = np.zeros((rows, vectors.shape[1]), np.float32)
    firsts[:chunks] = vectors[is_first]
    more = 1 << (others - 1).bit_length() if others else 0
    further, whose = np.repeat(vectors[:1], more, axis=0), np.zeros(more, np.int32)
    further[:others], whose[:others] = vectors[~is_first], owner[~is_first]
    return firsts, further, whose


@functools.partial(jax.jit, static_argnames=("top", "dtype", "filled"))
def _search(
    firsts: jax.Array,
    further: jax.Array,
    whose: jax.Array,
    chunks: jax.Array,
    floor: jax.Array,
    seeds: jax.Array,
    group: jax.Array,
    member: jax.Array,
    *,
    top: int,
    dtype: str,
    filled: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(best [M, N], its place among the seeds [M, N], top scores [P, top], their chunks [P, top]). filled: the last of
    the N rows are no chunks. What is done to all scores is a pass over memory each, and there are as few as can be."""
    rows, (steps, step, width) = firsts.shape[0], seeds.shape
    is_chunk = jnp.arange(rows) < chunks
    # Rounding may lift a chunk that bf16 has below the floor: there, nothing is left out at first.
    wide, floor = (min(rows, 2 * top), jnp.full_like(floor, -jnp.inf)) if dtype == "bfloat16" else (top, floor)
    low, low_further = firsts.astype(dtype).T, further.astype(dtype).T

    def some_seeds(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, ...]]:
        """Seeds by chunks: every reduction is then elementwise over vectors of neighbours."""
        own, least = part[0].astype(dtype), part[1]
        scores = _products(own, low)
        if further.shape[0]:
            scores = scores.at[:, whose].max(_products(own, low_further))
        if filled:
            scores = jnp.where(is_chunk, scores, -jnp.inf)
        tiles = scores.reshape(step // TILE, TILE, rows)
        tile_best = tiles.max(axis=1)
        number = jnp.arange(TILE, dtype=jnp.int32)[:, None]
        tile_at = jnp.where(tiles == tile_best[:, None], number, TILE - 1).min(axis=1)
        return None, (tile_best, tile_at, *_top_above(scores, least, wide))

    _, (tile_best, tile_at, score, chunk) = jax.lax.scan(some_seeds, None, (seeds, floor.reshape(steps, step)))
    best, at = _of_domains(tile_best.reshape(-1, rows), tile_at.reshape(-1, rows), group, member)
    score, chunk = score.reshape(-1, wide), chunk.reshape(-1, wide)
    if dtype == "bfloat16":
        flat = seeds.reshape(-1, width)
        best = _rescored_best(at, best, firsts, further, whose, flat)
        score, chunk = _rescored_top(chunk, score, firsts, further, whose, flat, top)
    return best, at, score, chunk


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b in fp32: with full products where a and b are fp32, which accelerators would round."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32, precision="highest" if a.dtype == jnp.float32 else None)


def _of_domains(
    tile_best: jax.Array, tile_at: jax.Array, group: jax.Array, member: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(best [M, N], place of its seed [M, N]) of the tiles' best [tiles, N]: by set of domains, then by domain."""
    sets, tiles = member.shape[0], tile_best.shape[0]
    of_set = jax.ops.segment_max(tile_best, group, sets, indices_are_sorted=True)
    place = jnp.arange(tiles, dtype=jnp.int32)[:, None] * TILE + tile_at
    place = jnp.where(tile_best == of_set[group], place, tiles * TILE - 1)
    place_of_set = jax.ops.segment_min(place, group, sets, indices_are_sorted=True)

    def of_domain(has: jax.Array) -> tuple[jax.Array, jax.Array]:
        among = jnp.where(has[:, None], of_set, -jnp.inf)
        best = among.max(axis=0)
        return best, jnp.where(among == best, place_of_set, tiles * TILE - 1).min(axis=0)

    return jax.lax.map(of_domain, member.T)


def _top_above(
    scores: jax.Array, floor: jax.Array, top: int, few: tuple[int, ...] = _FEW
) -> tuple[jax.Array, jax.Array]:
    """`_top`, of which what is not above the floor [P] may be missing (-inf). Sorting for a long list takes longer than
    the products, and after some blocks few chunks are above any seed's floor."""
    if not few or top <= few[0]:
        return _top(scores, top)
    peaks, inside, place = _of_best_stripes(scores, few[0])
    # All that is above a floor is among these few if it lies in few stripes, and is not much there.
    above = jnp.maximum((peaks > floor[:, None]).sum(axis=1), (inside > floor[:, None]).sum(axis=1))

    def these() -> tuple[jax.Array, jax.Array]:
        value, at = jax.lax.top_k(inside, few[0])
        rest = ((0, 0), (0, top - few[0]))
        return jnp.pad(value, rest, constant_values=-jnp.inf), jnp.pad(place(at), rest)

    return jax.lax.cond(above.max() <= few[0], these, lambda: _top_above(scores, floor, top, few[1:]))


def _top(scores: jax.Array, top: int) -> tuple[jax.Array, jax.Array]:
    """The `top` best of each row of [P, N] and where they are."""
    _, inside, place = _of_best_stripes(scores, top)
    value, at = jax.lax.top_k(inside, top)
    return value, place(at)


def _of_best_stripes(scores: jax.Array, top: int) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]:
    """(peaks [P, W] of all stripes of rows of [P, N], the scores [P, h · top] in the `top` stripes with the highest
    peaks, a function from places there to places in a row). The best of a row are in these stripes, which are some
    hundred where chunks are thousands."""
    rows, chunks = scores.shape
    height = min(1 << max(0, round(math.log2(chunks / top) / 2)), _ROWS)
    stripes = scores.reshape(rows, height, chunks // height)
    peaks = stripes.max(axis=1)
    if height == 1:
        return peaks, peaks, lambda at: at
    _, stripe = jax.lax.top_k(peaks, top)
    inside = jnp.take_along_axis(stripes, stripe[:, None], axis=2).reshape(rows, height * top)

    def place(at: jax.Array) -> jax.Array:
        return at // top * (chunks // height) + jnp.take_along_axis(stripe, at % top, axis=1)

    return peaks, inside, place


def _rescored_best(
    at: jax.Array, best: jax.Array, firsts: jax.Array, further: jax.Array, whose: jax.Array, seeds: jax.Array
) -> jax.Array:
    """[M, N]: the scores of the seeds at these places, in fp32; a domain without seeds keeps what it has."""

    def of_domain(place: jax.Array) -> jax.Array:
        score = (firsts * seeds[place]).sum(-1)
        return score.at[whose].max((further * seeds[place[whose]]).sum(-1))

    return jnp.where(jnp.isfinite(best), jax.lax.map(of_domain, at), best)


def _rescored_top(
    chunk: jax.Array,
    score: jax.Array,
    firsts: jax.Array,
    further: jax.Array,
    whose: jax.Array,
    seeds: jax.Array,
    top: int,
) -> tuple[jax.Array, jax.Array]:
    """(scores [P, top] in fp32, chunks [P, top]): the best of these candidates [P, wide]."""

    def of_seed(one: Any) -> jax.Array:
        seed, own, known = one
        value = (firsts[own] * seed).sum(-1)
        if further.shape[0]:
            others = (further * seed).sum(-1)
            value = jnp.maximum(value, jnp.where(whose == own[:, None], others, -jnp.inf).max(-1))
        return jnp.where(jnp.isfinite(known), value, known)

    exact = jax.lax.map(of_seed, (seeds, chunk, score), batch_size=min(16, len(seeds)))
    value, order = jax.lax.top_k(exact, top)
    return value, jnp.take_along_axis(chunk, order, axis=1)
