"""Texts as unit vectors without a model: hashed words and pairs of words, weighted by how rare they are.

    x = Σ_g (1 + log c_g) log((1 + n) / (1 + df_g)) s_g e_{h(g)}

over the n-grams g of a text, with df over the n texts and a hash that gives each n-gram one of D columns and a sign
(Weinberger et al., arXiv 0902.2206): inner products of such rows are those of the long rows in the mean. The same text
among the same others has the same row on every machine.

Source: texts. Cost: one pass over them. Memory: 12 bytes for each different n-gram of each text, then 4 D for a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ntk_jax.data.words import mix
from ntk_jax.mining.hashing import hashed_counts

BUCKETS = 1 << 20
_MIX = np.uint64(0xD1B54A32D192ED03)


def text_features(
    texts: Iterable[str], dim: int, *, longest: int = 2, progress: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """[n, dim] fp32 of norm 1; zeros for a text without words, or of words that all texts have. longest: words of an
    n-gram. progress(texts done)."""
    counts: list[tuple[np.ndarray, np.ndarray]] = []
    frequency = np.zeros(BUCKETS, np.int32)
    for text in texts:
        buckets, times = hashed_counts(text, BUCKETS, longest)
        frequency[buckets] += 1
        counts.append((buckets.astype(np.int32), times.astype(np.float32)))
        progress(len(counts))
    rarity = np.log((1 + len(counts)) / (1 + frequency)).astype(np.float32)
    codes = mix((np.arange(BUCKETS, dtype=np.uint64) + np.uint64(1)) * _MIX)
    columns, signs = (codes % np.uint64(dim)).astype(np.int64), np.where(codes >> np.uint64(63), 1, -1)
    rows = np.zeros((len(counts), dim), np.float32)
    for row, (buckets, times) in zip(rows, counts, strict=True):
        weights = (1 + np.log(times)) * rarity[buckets] * signs[buckets]
        row[:] = np.bincount(columns[buckets], weights, minlength=dim)
        row /= max(float(np.linalg.norm(row)), 1e-12)
    return rows
