"""Rank statistics of bootstrap resamples, all at once: of M values a, b, of which times [R, M] says how often each is
in a resample, [R] as of the lists written out."""

from __future__ import annotations

import numpy as np


def spearman(a: np.ndarray, b: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Rank correlations, ties at their mean rank; NaN where one of the two is constant."""
    return _correlation(_ranks(a, times), _ranks(b, times), times)


def partial(a: np.ndarray, b: np.ndarray, given: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Partial rank correlations of a and b given a third: of what is left of the ranks of each after a line in the
    ranks of the third; NaN where nothing is left."""
    third = _ranks(given, times)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = 1 / (times * third**2).sum(axis=1)
        slope[~np.isfinite(slope)] = 0.0  # a constant tells nothing
    x, y = (
        r - third * ((times * r * third).sum(axis=1) * slope)[:, None] for r in (_ranks(a, times), _ranks(b, times))
    )
    return _correlation(x, y, times)


def top_overlap(a: np.ndarray, b: np.ndarray, count: int, times: np.ndarray) -> np.ndarray:
    """The share of the `count` best by one that are among the `count` best by the other."""
    most = np.minimum(count, times.sum(axis=1))
    both = [np.zeros_like(times), np.zeros_like(times)]
    for values, best in zip((a, b), both, strict=True):
        order = np.argsort(-values, kind="stable")
        before = np.cumsum(times[:, order], axis=1) - times[:, order]
        best[:, order] = np.clip(most[:, None] - before, 0, times[:, order])
    return np.minimum(*both).sum(axis=1) / np.maximum(most, 1)


def _ranks(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[R, M] ranks less their mean."""
    order = np.argsort(values, kind="stable")
    new = np.diff(values[order], prepend=np.nan) != 0  # the first one is: NaN is unlike all
    place = np.empty(len(values), int)
    place[order] = np.cumsum(new) - 1
    alike = np.add.reduceat(times[:, order], np.flatnonzero(new), axis=1)
    ranks = (np.cumsum(alike, axis=1) - (alike - 1) / 2)[:, place]
    return ranks - (times.sum(axis=1)[:, None] + 1) / 2


def _correlation(x: np.ndarray, y: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Of centred values; NaN where next to nothing of one of them is there."""
    size = np.sqrt((times * x**2).sum(axis=1) * (times * y**2).sum(axis=1))
    found = np.full(len(times), np.nan)
    there = size > 1e-9 * times.sum(axis=1)
    found[there] = (times * x * y).sum(axis=1)[there] / size[there]
    return found
