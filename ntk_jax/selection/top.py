"""The `count` best of a list of scores, and the one check of that count."""

from __future__ import annotations

import numpy as np

from ntk_jax.errors import UserError


def check_count(count: int, usable: int) -> None:
    """Raises UserError unless `count` of `usable` examples can be selected."""
    if not usable:
        raise UserError("the pool is empty: it has no usable example to select")
    if count < 1:
        raise UserError(f"count = {count}: select at least one example")
    if count > usable:
        raise UserError(f"count = {count} is larger than the pool ({usable} usable examples); lower it or add data")


def top_n(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of [N] scores, best first; equal scores in pool order.

    Raises UserError when N is smaller than `count`, or a score is not a number.
    """
    check_count(count, len(scores))
    if np.isnan(scores).any():
        raise UserError(f"score number {int(np.flatnonzero(np.isnan(scores))[0])} is not a number; score again")
    return np.argsort(-scores, kind="stable")[:count]


def top_places(scores: np.ndarray, usable: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest of [N] scores among the usable ones, best first; a place whose score is NaN has
    none and is passed over; equal scores in pool order. Raises UserError when fewer than `count` are left."""
    known = np.flatnonzero(usable & ~np.isnan(scores))
    return known[top_n(scores[known], count)]
