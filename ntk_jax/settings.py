"""How a setting says what it is: its default, its range and its meaning, beside the field that holds it.

Every dataclass that a user can set (a section of a config, the options of a ranker) is made of such fields. The config
reader checks values by them, and `--help` and docs/config.md are written from them, so nothing is stated twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

HELP = "help"  # the key of a field's metadata


@dataclass(frozen=True)
class Range:
    """The values a number may take; both ends belong unless `open`."""

    low: float
    high: float = math.inf
    open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN and infinity never are."""
        inside = self.low < value < self.high if self.open else self.low <= value <= self.high
        return inside and (isinstance(value, int) or math.isfinite(value))

    def __str__(self) -> str:
        low, high = (int(end) if float(end).is_integer() else end for end in (self.low, self.high))
        if self.high == math.inf:
            return f"above {low}" if self.open else f"at least {low}"
        return f"between {low} and {high}" + (", both excluded" if self.open else "")


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open=True)]
NotNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


def setting(default: Any, help: str) -> Any:
    """A field with its default and its meaning, in a sentence without a full stop."""
    return dataclasses.field(default=default, metadata={HELP: help})


def section(factory: Callable[[], Any]) -> Any:
    """A field that holds further settings; the docstring of its class is its meaning."""
    return dataclasses.field(default_factory=factory)
