"""The file in which replies and attempts are kept: SQLite in WAL mode, one writer at a time, several processes."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

from ntk_jax.errors import UserError

FILE = "calls.sqlite"
VERSION = 1  # of the tables
WAIT_SECONDS = 60.0  # for another process's transaction

_TABLES = """
CREATE TABLE replies (
  key TEXT PRIMARY KEY, model TEXT NOT NULL, request TEXT NOT NULL, text TEXT NOT NULL, finish TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, reason TEXT, at REAL NOT NULL
);
CREATE TABLE attempts (
  number INTEGER PRIMARY KEY, key TEXT NOT NULL, sent REAL NOT NULL, reserved INTEGER NOT NULL, cost INTEGER,
  outcome TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, seconds REAL
);
CREATE TABLE account (
  only INTEGER PRIMARY KEY CHECK (only = 1), reserved INTEGER NOT NULL, spent INTEGER NOT NULL,
  attempts INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO account VALUES (1, 0, 0, 0, 0, 0);
"""


class Database:
    """One connection, used by all threads in turn. A transaction that has ended is on the disk (synchronous = FULL:
    it waits for the disk, some milliseconds, which a call to a model takes many times over)."""

    def __init__(self, folder: str | Path) -> None:
        """Opens the file in a folder, or makes it there.

        Raises UserError: the folder cannot be written to, or the file is damaged or of another version.
        """
        self.path = Path(folder) / FILE
        self._lock = threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            weakref.finalize(self, self._connection.close)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            with self.transaction() as connection:
                found = connection.execute("PRAGMA user_version").fetchone()[0]
                if found == 0:
                    for statement in _TABLES.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {VERSION}")
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{self.path}: cannot be opened ({reason}); correct that, or move the file away") from None
        if found not in (0, VERSION):
            self.close()
            raise UserError(f"{self.path} is of another version (tables {found}, here {VERSION}); use that version")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside is kept, or nothing of it. Raises UserError: the disk is full or the file is
        damaged."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise UserError(f"{self.path}: {error}; what is kept is safe, and the same command goes on") from None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For queries alone. Raises UserError: the file is damaged."""
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise UserError(f"{self.path}: {error}; move the damaged file away") from None

    def close(self) -> None:
        """Nothing can be kept afterwards."""
        with self._lock:
            self._connection.close()
