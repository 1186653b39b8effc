"""How a selection is written: the chosen records in rank order, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.storage.atomic import plain


def selected_records(
    records: Iterable[tuple[int, Mapping[str, Any]]], chosen: np.ndarray, scores: np.ndarray, method: str
) -> Iterator[dict[str, Any]]:
    """The chosen records in rank order, unchanged but for "score", "rank" (from 1) and "method" added (replaced, when
    the pool is itself a selection).

    records: (index, record) of the pool in any order; only chosen ones are kept in memory.
    scores: [N], by the same index; NaN, for an example that was not scored, becomes null.
    Raises UserError: a chosen record is not among them.
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
