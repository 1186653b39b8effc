"""Rows of a store of sketches by place in the pool, cut to a few columns: each column of a sketch is a projection of
its own, so any D of K are a sketch too, and cosines of them estimate the same with an error of some (1 - cos²) / √D
(projection kronecker, whose columns share factors: somewhat more). Which D is drawn once for every K.

Source: the pool's store. Memory: 4 D bytes a row that is asked for, and one block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ntk_jax.selection.ranker import Sketches

if TYPE_CHECKING:
    from ntk_jax.storage.arrays import Store


def sketch_features(sketches: Sketches, places: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows [n, D] fp32 of norm 1, [n] bool which of the places have a sketch; the others' rows are zeros). places: [n]
    distinct places in the pool, in any order. D is `dim`, or K where that is less.

    Raises UserError: a damaged block.
    """
    from ntk_jax.selection.sketch_store import ranked_rows

    kept = np.flatnonzero(ranked_rows(sketches.pool))
    known = sketches.places[kept]
    at = np.minimum(np.searchsorted(known, places), max(len(known) - 1, 0))
    there = known[at] == places if len(known) else np.zeros(len(places), bool)
    found = np.zeros((len(places), min(dim, _width(sketches.pool))), np.float32)
    found[there] = stored_rows(sketches.pool, kept[at[there]], dim)
    return found, there


def stored_rows(store: Store, rows: np.ndarray, dim: int) -> np.ndarray:
    """[n, D] fp32 of norm 1 of these rows of a store, in any order, read block by block."""
    from ntk_jax.storage.arrays import read

    columns = _columns(_width(store), dim)
    found = np.zeros((len(rows), len(columns)), np.float32)
    for block in range(store.blocks):
        start, stop = store.block_range(block)
        inside = np.flatnonzero((rows >= start) & (rows < stop))
        if len(inside):
            found[inside] = read(store, "sketch", start, stop)[rows[inside] - start][:, columns]
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return np.divide(found, norms, out=np.zeros_like(found), where=norms > 0)


def _columns(width: int, dim: int) -> np.ndarray:
    return np.arange(width) if dim >= width else np.sort(np.random.default_rng(0).permutation(width)[:dim])


def _width(store: Store) -> int:
    return int(store.arrays["sketch"].shape[1])
