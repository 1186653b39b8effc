"""What pages are made of: tables, figures, notices and parts as plain data, and the templates that lay them out.

Every value that a template prints is escaped, unless it is markup already, and stripped of what HTML cannot carry; a
name that a template misspells is an error and not an empty place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from ntk_jax.report.markup import Html, clean

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Cell:
    """A table cell with more to it than a text: something small beside it, a warning flag, a badge, a drawing."""

    text: object = ""
    small: str | tuple[str, ...] = ()  # lines beside it
    flag: str | None = None
    badge: str | None = None
    bars: Sequence[tuple[str, str]] = ()  # (CSS class, CSS width) of thin bars; the numbers stand in the same row
    big: bool = False
    class_: str | None = None  # None: by the column
    style: str = ""
    scope: str = ""  # row or rowgroup makes it a heading
    rowspan: int = 1

    @property
    def smalls(self) -> tuple[str, ...]:
        """The lines beside it, one or several."""
        return (self.small,) if isinstance(self.small, str) else self.small


@dataclass(frozen=True)
class Table:
    """Columns from `text_columns` on are numbers, set flush right; the first cell of a row heads it. `groups` puts a
    row of (title, columns spanned) above the header; `total` sets the last row off."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str
    text_columns: int = 1
    groups: Sequence[tuple[str, int]] = ()
    total: bool = False

    @property
    def cells(self) -> list[list[Cell]]:
        """All cells with their class and scope decided."""
        return [[self._cell(value, column) for column, value in enumerate(row)] for row in self.rows]

    def _cell(self, value: object, column: int) -> Cell:
        if not isinstance(value, Cell):
            value = Cell(value)
        if value.class_ is None:
            value = replace(value, class_="number" if column >= self.text_columns else "")
        return replace(value, scope="row") if column == 0 and not value.scope else value


@dataclass(frozen=True)
class Figure:
    """A drawing under its title, with how to read it and perhaps what was found."""

    title: str
    drawing: Html
    how: str
    found: str = ""


@dataclass(frozen=True)
class Fact:
    """A line of the head: what something is, with a note in small letters."""

    name: str
    value: object
    note: str = ""


@dataclass(frozen=True)
class Notice:
    """Something a reader must know before believing a number; `anchor` is the section that shows it."""

    anchor: str
    title: str
    text: str
    cases: tuple[str, ...] = ()  # where it was seen


@dataclass(frozen=True)
class Section:
    """A titled part of the page: `anchor` and `name` are what the list of contents points with."""

    anchor: str
    name: str
    html: Html


@dataclass(frozen=True)
class Part:
    """What one pipeline puts on the page; the first line of the verdict is the finding."""

    kicker: str
    title: str
    facts: Sequence[Fact] = ()
    verdict: Sequence[str] = ()
    warnings: Sequence[Notice] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def render(template: str, folder: Path = TEMPLATES, **values: Any) -> Html:
    """A template of `folder` filled in; it may import the macros of the report's own `macros.html`."""
    return Html(_environment(folder).get_template(template).render(**values))


@cache
def _environment(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _printable(value: object) -> object:
    if value is None:
        return ""
    return value if hasattr(value, "__html__") and not isinstance(value, jinja2.Undefined) else clean(str(value))
