"""Parameters of a test over two lists, without the cost of all their pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def crossed(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """All pairs (one of first, one of second). By default run those with the head of either list, so that each value
    has its turn; the others are slow."""
    slow = (pytest.mark.slow,)
    return [
        pytest.param(a, b, marks=() if i == 0 or j == 0 else slow, id=f"{name_of(a)}-{name_of(b)}")
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]


def name_of(value: Any) -> str:
    return getattr(value, "__name__", str(value))
