"""One order out of several rankings: what is best for every domain first, whatever scale each domain's scores have."""

from __future__ import annotations

import numpy as np


def in_turn(scores: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """[n] int64 rows of [N, M] scores: the best of each column, then the second best of each, and so on, each row once.

    Probabilities of two classifiers, or cosines with two sets of seeds, are not on one scale: by the largest of them a
    sample could be of one domain alone. Of one column it is that column's order; of equal scores the earlier row first.
    allowed: [N, M] bool, the columns in which a row counts; a row with none is left out. None: all.
    """
    count, columns = scores.shape
    rank = np.full((count, columns), count, np.int64)
    for column in range(columns):
        rows = np.arange(count) if allowed is None else np.flatnonzero(allowed[:, column])
        ordered = rows[np.argsort(-scores[rows, column], kind="stable")]
        rank[ordered, column] = np.arange(len(ordered))
    best, column_of = rank.min(axis=1), rank.argmin(axis=1)
    chosen = np.flatnonzero(best < count)
    return chosen[np.lexsort((column_of[chosen], best[chosen]))].astype(np.int64)
