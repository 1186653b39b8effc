"""Percentile bootstrap intervals for accuracies and for paired differences between arms.

Questions are what varies: each resample draws questions with replacement, within each task, and an average
over tasks is the mean of the tasks' resampled accuracies. All arms of one comparison see the same draws, so
that the interval of a difference profits from what the arms have in common (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapters 13 and 15).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ntk_jax.errors import UserError

BLOCK = 1 << 22  # draws held at once: 32 MiB of indices


def resampled_means(values: np.ndarray, *, resamples: int, seed: Sequence[int]) -> np.ndarray:
    """Means of resampled questions, [resamples, A] float64.

    values: [N, A]: for each question the correctness (or any number) in each of A arms; all arms share each draw.
    seed: a sequence of ints, such as (run seed, task number), so that tasks draw apart.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    if count == 0:
        raise UserError("a bootstrap interval needs at least one question; none was left to evaluate")
    generator = np.random.default_rng(list(seed))
    means = np.empty((resamples, values.shape[1]))
    block = max(1, BLOCK // count)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        draws = generator.integers(0, count, (stop - start, count))
        means[start:stop] = values[draws].mean(axis=1)
    return means


def interval(means: np.ndarray, confidence: float) -> tuple[float, float]:
    """The central percentile interval of resampled means [resamples]; (low, high)."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)
