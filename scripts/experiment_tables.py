"""Means over the runs of an experiment, and tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from experiment_results import CONFIDENCE
from scipy.special import stdtrit

Rows = Sequence[Mapping[str, Any]]


def over_runs(rows: Rows, by: str, key: str) -> dict[str, dict[str, Any]]:
    """{name: value, low, high, runs}: means over runs and their t intervals, best first. There is none of one run, nor
    of runs that all have the same value, such as repeats of what nothing was drawn for."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row[key] is not None:
            values.setdefault(row[by], []).append(row[key])
    found: dict[str, dict[str, Any]] = {}
    for name, each in sorted(values.items(), key=lambda item: -float(np.mean(item[1]))):
        half = half_width(each) if len(set(each)) > 1 else None
        mean = float(np.mean(each))
        ends = {"low": None if half is None else mean - half, "high": None if half is None else mean + half}
        found[name] = {"value": mean, **ends, "runs": len(each)}
    return found


def half_width(values: Sequence[float]) -> float:
    """Of the 95% t interval about the mean of at least two values."""
    count = len(values)
    return float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2) * np.std(values, ddof=1)) / count**0.5


def mean_cell(one: Mapping[str, Any] | None, interval: bool = True, digits: int = 2) -> str:
    if one is None:
        return "–"
    value, low, high = (None if one[key] is None else f"{one[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}" if low is None or not interval else f"{value} [{low}, {high}] ({one['runs']})"


def pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
