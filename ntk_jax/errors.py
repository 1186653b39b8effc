"""The exceptions that are one line for the user; every package may raise them, and the command line catches them.

A `Note` is such a line too, where nothing failed."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Iterable

LONGEST = 300  # characters of a message
HEAD = 0.64  # share of them for its beginning, which says what and where; the end says what to do


class UserError(ValueError):
    """One clear line: what is wrong, where (file, line, parameter or example id), and how to put it right. Exit code 2.

    A ValueError too, so that a notebook or a service may catch it without knowing this package. Whatever a message
    quotes, it is one line of at most `LONGEST` characters, without control characters.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class TryAgain(Exception):
    """One clear line: what failed outside, such as a network; the same command again goes on. Exit code 1. The line is
    as that of `UserError`."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class Note(UserWarning):
    """One clear line: a file is read otherwise than it may seem, and nothing failed. A warning, so that a notebook
    shows it once and may filter it; the command line prints it on stderr, and `ntk-jax doctor` in its list."""


def note(line: str) -> None:
    """Gives the line as a `Note`."""
    warnings.warn(one_line(line), Note, stacklevel=3)


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text without its middle where it is longer, control characters escaped."""
    if len(text) > 2 * LONGEST:  # escapes only make it longer
        text = text[:LONGEST] + "\N{HORIZONTAL ELLIPSIS}" + text[-LONGEST:]
    text = "".join(map(_escaped, text))
    if len(text) > longest:
        head = int(HEAD * longest)
        text = f"{text[:head]} \N{HORIZONTAL ELLIPSIS} {text[head + 3 - longest :]}"
    return text


def shown(value: object) -> str:
    """A value for a message: its repr, whatever its size or depth, in few characters."""
    try:
        return _SHOWN.repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes
        return f"a {type(value).__name__} too large to show"


def listed(names: Iterable[object], most: int = 100) -> str:
    """Names for a message, as many as there is room for."""
    found = ", ".join(map(str, names)) or "none"
    return found if len(found) <= most else found[: most - 3].rpartition(",")[0] + ", ..."


_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 80
_SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxdict = _SHOWN.maxset = 6
_SHOWN.maxlevel = 3


def _escaped(character: str) -> str:
    """What cannot be printed, line ends of all kinds among it, as Python writes it."""
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
