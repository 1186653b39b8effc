"""Replies that are there already: the same request to the same model has the same reply, and is never paid twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ntk_jax.llm.database import Database
from ntk_jax.llm.request import Reply, Request

AT_ONCE = 500  # keys in one query; older builds of SQLite allow 999 parameters


def canonical(model: str, request: Request, more: Mapping[str, Any] | None = None) -> str:
    """The request as one JSON text, the same however its numbers and mappings were written. It knows the model by its
    name alone, not by the address of whoever serves it. more: what else decides the reply."""
    fields: dict[str, Any] = dataclasses.asdict(request)
    for name in ("temperature", "top_p", "min_p"):
        fields[name] = float(fields[name])
    tree = {"model": model, **fields, **({"more": dict(more)} if more else {})}
    return json.dumps(tree, sort_keys=True, separators=(",", ":"))  # ASCII: half a surrogate pair stays what it is


def key_of(canonical_text: str) -> str:
    """Hexadecimal SHA-256: the key of a reply."""
    return hashlib.sha256(canonical_text.encode("ascii")).hexdigest()


class Cache:
    """The table `replies` of a database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def get(self, keys: Sequence[str], *, failed: bool = True) -> dict[str, Reply]:
        """The replies that are there. failed: also those that say that there is none."""
        found: dict[str, Reply] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            with self.database.reading() as connection:
                rows = connection.execute(
                    "SELECT key, text, finish, prompt_tokens, completion_tokens, reason FROM replies WHERE key IN "
                    f"({','.join('?' * len(some))})",
                    some,
                ).fetchall()
            for key, text, finish, prompt_tokens, completion_tokens, reason in rows:
                if failed or finish != "failed":
                    found[key] = Reply(text, finish, prompt_tokens, completion_tokens, reason, cached=True)
        return found

    def put(self, key: str, model: str, request: str, reply: Reply, within: sqlite3.Connection | None = None) -> None:
        """Keeps a reply; one that is there stays, unless it had failed. request: as `canonical` writes it. within: a
        transaction that has begun."""
        if within is None:
            with self.database.transaction() as connection:
                self.put(key, model, request, reply, connection)
            return
        within.execute(
            "INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
            "text = excluded.text, finish = excluded.finish, reason = excluded.reason, at = excluded.at, "
            "prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens "
            "WHERE replies.finish = 'failed'",
            (
                *(key, model, request, reply.text, reply.finish),
                *(reply.prompt_tokens, reply.completion_tokens, reply.reason, time.time()),
            ),
        )
