"""Texts whose embeddings point the same way."""

from __future__ import annotations

import numpy as np

BLOCK = 1024  # rows compared with all others at once


def first_alike(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """[N] int64: for each row the first row that stays and has a cosine of at least `threshold` with it; itself, where
    there is none. vectors: [N, D], of any length; a row of zeros is like no other."""
    rows = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    first = np.arange(len(unit))
    for start in range(0, len(unit), BLOCK):
        alike = unit[start : start + BLOCK] @ unit[: start + BLOCK].T >= threshold
        for i in range(start, min(start + BLOCK, len(unit))):
            before = np.flatnonzero(alike[i - start, :i])
            stays = before[first[before] == before]
            if len(stays):
                first[i] = stays[0]
    return first
