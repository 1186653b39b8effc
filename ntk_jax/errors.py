"""The exceptions that are one line for the user; every package may raise them, and the command line catches them.

A `Note` is such a line too, where nothing failed."""

from __future__ import annotations

import warnings


class UserError(ValueError):
    """One clear line: what is wrong, where (file, line, parameter or example id), and how to put it right. Exit code 2.

    A ValueError too, so that a notebook or a service may catch it without knowing this package.
    """


class TryAgain(Exception):
    """One clear line: what failed outside, such as a network; the same command again goes on. Exit code 1."""


class Note(UserWarning):
    """One clear line: a file is read otherwise than it may seem, and nothing failed. A warning, so that a notebook
    shows it once and may filter it; the command line prints it on stderr, and `ntk-jax doctor` in its list."""


def note(line: str) -> None:
    """Gives the line as a `Note`."""
    warnings.warn(line, Note, stacklevel=3)
