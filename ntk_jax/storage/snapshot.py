"""Copies of SQLite files that other connections may be writing to: what has been committed, as one file.

A file in WAL mode has its newest transactions in a file beside it, so that neither file alone is the database.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

SUFFIX = ".sqlite"
_BESIDE = ("-wal", "-shm")


def is_database(name: str) -> bool:
    """Whether a file is one, by its name."""
    return name.endswith(SUFFIX)


def is_beside(name: str) -> bool:
    """Whether a file is a part of a database, which means nothing without it."""
    return any(name.endswith(SUFFIX + end) for end in _BESIDE)


def newest(path: str) -> os.stat_result | None:
    """Of the file of newest transactions; None where there is none, or an empty one, as a reader leaves it."""
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(path + _BESIDE[0])
        return found if found.st_size else None
    return None


def snapshot(path: Path, target: Path) -> None:
    """Writes what the database holds at one moment into a file. Raises sqlite3.Error: it is damaged."""
    target.unlink(missing_ok=True)
    address = f"{path.absolute().as_uri()}?mode=ro"
    with (
        contextlib.closing(sqlite3.connect(address, uri=True)) as source,
        contextlib.closing(sqlite3.connect(target)) as made,
    ):
        source.backup(made)


def forget_beside(path: Path) -> None:
    """Deletes what an older file at this path has left beside it."""
    for end in _BESIDE:
        path.with_name(path.name + end).unlink(missing_ok=True)
