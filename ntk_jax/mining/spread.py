"""A few of many vectors that lie far apart: for a labelled set that is to be small and varied."""

from __future__ import annotations

import numpy as np

from ntk_jax.errors import UserError

_STREAM = 0xA83  # apart from every other use of a seed


def spread(vectors: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Places of `count` of [n, D] unit vectors that lie far apart, in the order taken: first a random one, then always
    the one whose nearest taken one is the farthest (Gonzalez, Clustering to minimize the maximum intercluster distance,
    1985). Cost: count x n x D. Raises UserError: count above n."""
    if not 1 <= count <= len(vectors):
        raise UserError(f"count = {count}: give at least 1 and at most the {len(vectors)} there are")
    taken = [int(np.random.default_rng([seed, _STREAM]).integers(len(vectors)))]
    nearest = vectors @ vectors[taken[0]]
    nearest[taken[0]] = np.inf
    for _ in range(count - 1):
        place = int(nearest.argmin())
        taken.append(place)
        nearest = np.maximum(nearest, vectors @ vectors[place])
        nearest[place] = np.inf
    return np.array(taken, np.int64)
