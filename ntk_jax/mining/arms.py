"""What each way of choosing would train on, at equal tokens: the arms that a mined corpus is compared with.

An arm is an order of chunks and a budget. By score: best first. At random: a seeded draw. Resampled: a draw without
replacement in proportion to importance weights (DSIR). Every arm is filled until its tokens reach the budget, the last
chunk being the one that crosses it; whoever trains on it cuts the last row, so that all arms have the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ntk_jax.errors import UserError

_STREAM = 0xA83


@dataclass(frozen=True)
class Arm:
    """chunks: [n] int64 in the order they were chosen; tokens: of all of them, at least the budget."""

    chunks: np.ndarray
    tokens: int


def by_score(scores: np.ndarray, tokens: np.ndarray, budget: int, usable: np.ndarray | None = None) -> Arm:
    """The chunks of the largest of [N] scores, equal ones in order of the corpus; NaN is never chosen.

    tokens: [N] of each chunk. usable: [N] bool; None: all. Raises UserError: fewer tokens than the budget.
    """
    free = ~np.isnan(scores) if usable is None else usable & ~np.isnan(scores)
    known = np.flatnonzero(free)
    return _filled(known[np.argsort(-scores[known], kind="stable")], tokens, budget)


def at_random(tokens: np.ndarray, budget: int, seed: int, usable: np.ndarray | None = None) -> Arm:
    """Chunks drawn at random. Raises UserError: fewer tokens than the budget."""
    free = np.arange(len(tokens)) if usable is None else np.flatnonzero(usable)
    return _filled(np.random.default_rng([seed, _STREAM]).permutation(free), tokens, budget)


def resampled(
    log_weights: np.ndarray, tokens: np.ndarray, budget: int, seed: int, usable: np.ndarray | None = None
) -> Arm:
    """Chunks drawn without replacement in proportion to exp(log_weights) [N]: the largest sums with Gumbel noise.

    Raises UserError: fewer tokens than the budget.
    """
    noise = np.random.default_rng([seed, _STREAM, 1]).gumbel(size=len(log_weights))
    return by_score(log_weights + noise, tokens, budget, usable)


def spread(vectors: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Places of `count` of [n, D] unit vectors that lie far apart, in the order taken: first a random one, then always
    the one whose nearest taken one is the farthest (Gonzalez, Clustering to minimize the maximum intercluster distance,
    1985). For a labelled set that is to be small and varied. Cost: count x n x D. Raises UserError: count above n."""
    if not 1 <= count <= len(vectors):
        raise UserError(f"count = {count}: give at least 1 and at most the {len(vectors)} there are")
    taken = [int(np.random.default_rng([seed, _STREAM, 2]).integers(len(vectors)))]
    nearest = vectors @ vectors[taken[0]]
    nearest[taken[0]] = np.inf
    for _ in range(count - 1):
        place = int(nearest.argmin())
        taken.append(place)
        nearest = np.maximum(nearest, vectors @ vectors[place])
        nearest[place] = np.inf
    return np.array(taken, np.int64)


def _filled(order: np.ndarray, tokens: np.ndarray, budget: int) -> Arm:
    """The beginning of an order whose tokens reach the budget."""
    if budget < 1:
        raise UserError(f"a budget of {budget} tokens trains nothing; give at least 1")
    sums = np.cumsum(np.asarray(tokens, np.int64)[order])
    total = int(sums[-1]) if len(sums) else 0
    if total < budget:
        raise UserError(f"an arm of {budget:,} tokens cannot be filled: the chunks it may take have {total:,}")
    last = int(np.searchsorted(sums, budget))
    return Arm(order[: last + 1].astype(np.int64), int(sums[last]))
