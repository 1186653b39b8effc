"""Parameters of a test over two lists, without the cost of all their pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def crossed(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """All pairs (one of first, one of second). By default run as few as give each value of both its turn: the i-th with
    the i-th, the shorter list taken in rounds; the others are slow."""
    n, m = len(first), len(second)
    turns = {(i % n, i % m) for i in range(max(n, m))}
    return [
        pytest.param(a, b, marks=() if (i, j) in turns else (pytest.mark.slow,), id=f"{name_of(a)}-{name_of(b)}")
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]


def name_of(value: Any) -> str:
    return getattr(value, "__name__", str(value))
