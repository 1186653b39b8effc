"""The nearest chunks of a few queries in vectors that are already there: for looking around, not for mining.

`exact` reads the vectors block by block. `faiss` keeps an index of them in memory (an extra, `ann`), for people who ask
again and again; it is approximate beyond some ten thousand vectors.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.mining.search import best_of_block, merge_top
from ntk_jax.mining.seed_layout import lay_out
from ntk_jax.storage.arrays import Store

_EXACT_INDEX = 20_000  # vectors up to which faiss compares all
_SAMPLE = 64  # vectors for each list of an approximate index, by which its lists are laid


def blocks_of(store: Store, name: str = "vectors") -> Iterator[np.ndarray]:
    """The blocks [n, D] of an array of a store, in order."""
    for block in range(store.blocks):
        yield store.read(name, *store.block_range(block))


def nearest(
    vectors: Store | Iterable[np.ndarray],
    queries: np.ndarray,
    k: int,
    *,
    threshold: float | None = None,
    backend: str = "exact",
    index: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(scores [Q, k] fp32, best first; ordinals [Q, k] int64) of the vectors nearest to each of queries [Q, D].

    vectors: a store with an array `vectors`, or blocks [n, D] in order. A score is the product of two vectors. Where
    there are fewer than k, or fewer with at least the threshold, the score is -inf and the ordinal -1.
    backend: `exact`, or `faiss` on the index that `faiss_index` made once (None: it is made now, for this call).
    Raises UserError: queries of another width, k below 1, no vectors, another backend, faiss not installed.
    """
    queries = np.asarray(queries, np.float32)
    if backend not in ("exact", "faiss") or k < 1 or queries.ndim != 2 or not len(queries):
        raise UserError(
            f"backend = {backend!r}, k = {k}, queries of shape {queries.shape}: give exact or faiss, at least one "
            "neighbour and one query"
        )
    blocks = blocks_of(vectors) if isinstance(vectors, Store) else iter(vectors)
    if backend == "faiss":
        score, at = _by_faiss(faiss_index(blocks) if index is None else index, queries, k)
    else:
        score, at = _by_blocks(blocks, queries, k)
    if threshold is not None:
        at = np.where(score >= threshold, at, -1)
        score = np.where(score >= threshold, score, -np.inf).astype(np.float32)
    return score, at


def faiss_index(vectors: Store | Iterable[np.ndarray]) -> Any:
    """An index of all vectors, in memory: of inner products, in lists of neighbours where there are many.

    Raises UserError: faiss is not installed, or there are no vectors."""
    if importlib.util.find_spec("faiss") is None:
        raise UserError("backend = faiss needs faiss; install ntk_jax[ann], or use exact")
    import faiss

    blocks = blocks_of(vectors) if isinstance(vectors, Store) else vectors
    parts = [np.ascontiguousarray(block, np.float32) for block in blocks]
    if not parts:
        raise UserError("there are no vectors to search; embed the chunks first")
    count, width = sum(map(len, parts)), parts[0].shape[1]
    index: Any
    if count <= _EXACT_INDEX:
        index = faiss.IndexFlatIP(width)
    else:
        lists = int(4 * math.sqrt(count))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        chosen = np.sort(np.random.default_rng(0).choice(count, min(count, _SAMPLE * lists), replace=False))
        index.train(np.concatenate(list(_rows(parts, chosen))))
        index.nprobe = max(8, lists // 32)
    for part in parts:
        index.add(part)
    return index


def _rows(parts: list[np.ndarray], chosen: np.ndarray) -> Iterator[np.ndarray]:
    start = 0
    for part in parts:
        yield part[chosen[(chosen >= start) & (chosen < start + len(part))] - start]
        start += len(part)


def _by_faiss(index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if index.d != queries.shape[1]:
        raise UserError(f"queries have {queries.shape[1]} numbers, the index {index.d}: use the encoder that made it")
    score, at = index.search(np.ascontiguousarray(queries), k)
    return np.where(at >= 0, score, -np.inf).astype(np.float32), at.astype(np.int64)


def _by_blocks(blocks: Iterable[np.ndarray], queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    seeds = lay_out(queries, np.ones((len(queries), 1), bool))
    score, at, first = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64), 0
    for vectors in blocks:
        n = len(vectors)
        block = best_of_block(vectors, np.arange(n), n, seeds, top=k, first=first, above=score[:, -1])
        score, at = merge_top((score, at), (block.top_score, block.top_chunk))
        first += n
    if not first:
        raise UserError("there are no vectors to search; embed the chunks first")
    return score, at
