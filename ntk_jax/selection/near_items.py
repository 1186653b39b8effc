"""Examples that are like an evaluation item by their embeddings, whose words an n-gram does not find, such as those of
a paraphrase.

Each example has the item of the largest cosine, the first of equals; it is refused where that is at least the
threshold. Source: the embeddings of pool and items, as Lee et al. (Platypus, arXiv 2308.07317) hold training questions
against test questions. How large a cosine means a copy depends on what embeds: hidden states of a language model all
point into a narrow cone, and another question in the same words may be nearer than a paraphrase.

Cost: 2 N m D FLOPs on the device and one reading of the pool's embeddings. Memory: 4 m D bytes of the items, a block,
and 12 N bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from ntk_jax.selection.clean import NEAR_ITEM, Refusal
from ntk_jax.selection.nearest import cosines_with

ITEMS_AT_ONCE = 4096  # that a block is compared with: bounds the products in memory

ROUNDING = 1e-6  # of a product of unit rows in fp32: what is the same has a cosine a little below 1


@dataclass(frozen=True)
class NearItems:
    """Refuses what is like an evaluation item. ids, files: of each item. nearest, cosine: [N] by place in the pool, the
    item nearest to each example and their cosine; NaN for an example without an embedding, which is not compared.
    compared: items that have an embedding."""

    threshold: float
    ids: Sequence[str]
    files: Sequence[str]
    nearest: np.ndarray
    cosine: np.ndarray
    compared: int

    def refuse(self, place: int) -> Refusal | None:
        """See `clean.Check`."""
        cosine = float(self.cosine[place])
        if not cosine >= self.threshold - ROUNDING:
            return None
        item = int(self.nearest[place])
        return Refusal(NEAR_ITEM, self.ids[item], self.files[item], round(min(cosine, 1.0), 6))

    def keep(self, place: int) -> None:
        """Whatever stays, the items are the same."""


def nearest_items(blocks: Iterable[np.ndarray], items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([n] int64 the item nearest to each row, the first of equals; [n] fp32 their cosine, NaN for a row that is zero
    or not finite).

    blocks: [k, D] each, n rows in all; items: [m, D], m at least 1. Of any norm and float dtype; an item that is zero
    or not finite is near to nothing.
    """
    wanted, known = _units(items)
    nearest, cosines = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for block in blocks:
        rows, there = _units(block)
        best, where = np.full(len(rows), -np.inf, np.float32), np.zeros(len(rows), np.int64)
        for start in range(0, len(wanted), ITEMS_AT_ONCE):
            part = slice(start, start + ITEMS_AT_ONCE)
            found = np.asarray(cosines_with(jnp.asarray(wanted[part]), jnp.asarray(rows)))
            found = np.where(known[part, None], found, -np.inf)
            own = found.argmax(axis=0)
            value = found[own, np.arange(len(rows))]
            better = value > best
            best, where = np.where(better, value, best), np.where(better, start + own, where)
        nearest.append(where)
        cosines.append(np.where(there & np.isfinite(best), best, np.nan).astype(np.float32))
    return np.concatenate(nearest), np.concatenate(cosines)


def _units(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([n, D] fp32 rows of norm 1, or 0; [n] bool which have a direction)."""
    wide = np.asarray(rows, np.float32)
    largest = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    there = np.isfinite(largest[:, 0]) & (largest[:, 0] > 0)
    scaled = np.where(there[:, None], wide / np.where(there[:, None], largest, 1.0), 0.0)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(norms > 0, norms, 1.0), there
