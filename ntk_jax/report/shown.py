"""Sections of plain data: sentences, figures, tables and texts that open on demand, and the small things that those who
make them use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.report.amounts import NOTHING, count, finite, percent
from ntk_jax.report.layout import Figure, Section, Table, render
from ntk_jax.report.markup import Html
from ntk_jax.report.reading import RunDirectory, mapping

MOST_TEXT = 2000  # characters of a text that is shown
MOST_SHOWN = 20  # texts of a kind
# What a damaged file raises when its values are not where they belong.
_DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration, ArithmeticError)


@dataclass(frozen=True)
class Text:
    """A text that opens on demand. head: what stands in its line, the first part bold; parts: (heading, text)."""

    head: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Shown:
    """A section. missing: what cannot be shown, in words; folds: tables that open on demand; texts: (title, texts);
    more: markup behind them."""

    missing: Sequence[str] = ()
    leads: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    folds: Sequence[tuple[str, Table]] = ()
    texts: Sequence[tuple[str, Sequence[Text]]] = ()
    more: Sequence[Html] = ()


def section_of(anchor: str, name: str, title: str, shown: Shown) -> Section:
    """The section on the page. anchor: its id; name: in the list of contents."""
    return Section(anchor, name, render("shown.html", anchor=anchor, title=title, shown=shown))


def safely(run: RunDirectory, what: str, of: str, make: Callable[[], Any], otherwise: Any) -> Any:
    """A part of the page; where a file is damaged, what stands there otherwise, and a line among the problems. what:
    the part, of: whose it is, both for people."""
    try:
        return make()
    except _DAMAGED as error:
        run.problems.append(f"{what} of {of} holds values that cannot be shown ({type(error).__name__}: {error})")
        return otherwise


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


def percent_of(n: Any, total: Any) -> str:
    """A count with its share: 12 (0.6%)."""
    a, b = finite(n), finite(total)
    return count(n) if a is None or not b else f"{count(a)} ({percent(a / b)})"
