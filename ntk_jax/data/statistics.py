"""What became of the records of a source: how many are kept, truncated or dropped and why, and how long they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import family_of
from ntk_jax.data.tokens import Dropped

PERCENTILES = (5, 25, 50, 75, 95)


class DataStatistics:
    """Counts (record, row) pairs as `as_rows` gives them; memory grows with distinct lengths, not with records."""

    def __init__(self, group_by: str = "auto") -> None:
        self._group_by = group_by
        self._records = self._truncated = 0
        self._dropped: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()
        self._spans: Counter[int] = Counter()
        self._families: Counter[str] = Counter()

    def add(self, record: Mapping[str, Any] | None, row: TokenRow | Dropped) -> None:
        """Counts one example; record is None for token rows, which belong to no family."""
        self._records += 1
        if isinstance(row, Dropped):
            self._dropped[row.reason] += 1
            return
        self._truncated += row.truncated
        self._notes.update(row.notes)
        self._lengths[len(row.ids)] += 1
        self._spans[int(row.span.sum())] += 1
        if record is not None:
            self._families[family_of(record, self._group_by)] += 1

    def to_dict(self) -> dict[str, Any]:
        """records, kept, truncated, dropped {reason: n}, notes {what became of their words: n}, tokens, span_tokens,
        lengths and span_lengths
        {"5", "25", "50", "75", "95", "max"} in tokens of the kept examples, families {name: kept examples}."""
        return {
            "records": self._records,
            "kept": self._lengths.total(),
            "truncated": self._truncated,
            "dropped": dict(sorted(self._dropped.items())),
            "notes": dict(sorted(self._notes.items())),
            "tokens": sum(length * count for length, count in self._lengths.items()),
            "span_tokens": sum(length * count for length, count in self._spans.items()),
            "lengths": _percentiles(self._lengths),
            "span_lengths": _percentiles(self._spans),
            "families": dict(sorted(self._families.items())),
        }


def _percentiles(histogram: Counter[int]) -> dict[str, int]:
    """Nearest rank: the smallest length that at least p% of the examples do not exceed."""
    ordered, total = sorted(histogram.items()), histogram.total()
    if not total:
        return {}
    found = {}
    for percent in PERCENTILES:
        seen = 0
        for length, count in ordered:
            seen += count
            if seen * 100 >= percent * total:
                found[str(percent)] = length
                break
    return found | {"max": ordered[-1][0]}
