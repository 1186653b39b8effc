"""Top-N by score, the random control, and how a selection is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.storage.atomic import plain


def top_n(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of [N] scores, best first; equal scores in pool order.

    Raises UserError when N is smaller than `count`, or a score is not a number.
    """
    _check_count(count, len(scores))
    if np.isnan(scores).any():
        raise UserError(f"score number {int(np.flatnonzero(np.isnan(scores))[0])} is not a number; score again")
    return np.argsort(-scores, kind="stable")[:count]


def random_n(pool: int, count: int, seed: int) -> np.ndarray:
    """The control: `count` distinct indices below `pool`, in random order, from the seed."""
    _check_count(count, pool)
    return np.random.default_rng([seed, 0x5E1]).permutation(pool)[:count]


def selected_records(
    records: Iterable[tuple[int, Mapping[str, Any]]], chosen: np.ndarray, scores: np.ndarray, method: str
) -> Iterator[dict[str, Any]]:
    """The chosen records in rank order, unchanged but for "score", "rank" (from 1) and "method" added (replaced, when
    the pool is itself a selection).

    records: (index, record) of the pool in any order; only chosen ones are kept in memory.
    scores: [N], by the same index; NaN, for an example that was not scored, becomes null.
    """
    rank = {int(index): position for position, index in enumerate(chosen)}
    found: list[dict[str, Any] | None] = [None] * len(chosen)
    for index, record in records:
        if index in rank:
            place = rank[index]
            score = None if np.isnan(scores[index]) else float(f"{scores[index]:.9g}")  # nine digits hold every fp32
            found[place] = {**record, "score": score, "rank": place + 1, "method": method}
    for place, entry in enumerate(found):
        if entry is None:
            raise UserError(
                f"pool example {int(chosen[place])} was scored but is no longer in the pool; did a file change?"
            )
        yield entry


def record_line(record: Mapping[str, Any]) -> str:
    """One JSON line, keys in the order they came. NaN and infinity, which JSON lacks, become null; half a surrogate
    pair, which UTF-8 lacks, stays the escape it was."""
    line = json.dumps(plain(record), ensure_ascii=False, allow_nan=False)
    try:
        line.encode("utf8")
    except UnicodeEncodeError:
        return json.dumps(plain(record), allow_nan=False)
    return line


def _check_count(count: int, pool: int) -> None:
    if count < 1:
        raise UserError(f"select.count = {count}: select at least one example")
    if count > pool:
        raise UserError(
            f"select.count = {count} is larger than the pool ({pool} usable examples); lower it or add data"
        )
