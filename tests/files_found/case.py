"""One row of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """found: what somebody has; happens: what becomes of it, in one phrase (both are Markdown).

    check(folder): makes it in an empty folder, or skips where a third party's files are absent, and asserts that this
    happens."""

    found: str
    happens: str
    check: Callable[[Path], None]


def table(title: str, cases: Sequence[Case]) -> str:
    """The rows as docs/own-data.md has them."""
    rows = [f"| {case.found} | {case.happens} |" for case in cases]
    return "\n".join([f"### {title}", "", "| found | what happens |", "|---|---|", *rows]) + "\n"
