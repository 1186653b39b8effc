"""Text for a terminal: columns under each other, and signs that every terminal and every `grep` knows."""

from __future__ import annotations

from collections.abc import Sequence

from ntk_jax.report.markup import clean

# Printed numbers are copied into shells and searched for, where a typographic minus would not be found.
_PLAIN = str.maketrans({"−": "-", "–": "-", "“": '"', "”": '"', "×": "x", "ρ": "rho", "²": "^2", "‖": "|", "⚠": "!"})


def plain(text: str) -> str:
    """The same text in plain signs, without characters that could steer the terminal."""
    return clean(text).translate(_PLAIN)


def align(rows: Sequence[Sequence[str]], rules_before: set[int]) -> list[str]:
    """Columns of equal width, the first to the left and the others to the right, with rules before some rows."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        if number in rules_before:
            lines.append("  ".join("-" * width for width in widths))
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def label(text: object, most: int = 32) -> str:
    """A label on one line, cut where it is long: labels come from files and may hold anything."""
    words = " ".join(clean(str(text)).split())
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"
