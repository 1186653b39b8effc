"""What a section of mining's part of the page is made of, and the small things that all of them use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.report.amounts import NOTHING, finite, percent
from ntk_jax.report.layout import Figure, Table
from ntk_jax.report.reading import mapping

MOST_TEXT = 2000  # characters of a text that is shown
MOST_SHOWN = 20  # texts of a kind


@dataclass(frozen=True)
class Text:
    """A text that opens on demand. head: what stands in its line, the first part bold; parts: (heading, text)."""

    head: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Shown:
    """A section. missing: what cannot be shown, in words; folds: tables that open on demand; texts: (title, texts)."""

    missing: Sequence[str] = ()
    leads: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    folds: Sequence[tuple[str, Table]] = ()
    texts: Sequence[tuple[str, Sequence[Text]]] = ()


def cut(value: Any) -> str:
    """A text as it is shown."""
    text = "" if value is None else str(value)
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT].rstrip() + " …"


def numbers_of(value: Any) -> list[float]:
    """The finite numbers of a list. Raises ValueError where one is none: a curve with a hole is not drawn."""
    if not isinstance(value, list):
        raise ValueError("no list of numbers")
    found = [finite(item) for item in value]
    if any(item is None for item in found):
        raise ValueError("a list of numbers holds something else")
    return [item for item in found if item is not None]


def share(part: Any, whole: Any) -> str:
    """`part` of `whole` in percent."""
    a, b = finite(part), finite(whole)
    return NOTHING if a is None or not b else percent(a / b)


def bounded(entry: Any, digits: int = 1) -> str:
    """A share with its interval: 91.0% (84.2% to 95.1%)."""
    found = mapping(entry)
    value, low, high = (finite(found.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return NOTHING
    between = f" ({percent(low, digits)} to {percent(high, digits)})" if low is not None and high is not None else ""
    return percent(value, digits) + between
