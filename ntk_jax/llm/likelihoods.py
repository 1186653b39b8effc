"""Likelihoods that are kept beside the replies, so that a run that goes on computes none twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ntk_jax.llm.database import Database

Found = tuple[float, int] | None  # (sum in nats, tokens), None where a text cannot be measured
_AT_ONCE = 500  # rows of one query or transaction


class KeptLikelihoods:
    """Computes what is not kept. name: of the model, with whatever else decides the numbers. compute(records): of each
    of them; called with what is missing, in blocks, each of which is kept before the next is begun."""

    def __init__(
        self,
        compute: Callable[[Sequence[Mapping[str, Any]]], Sequence[Found]],
        database: Database,
        name: str,
        block: int = 256,
    ) -> None:
        self._compute, self._database, self._name, self._block = compute, database, name, block

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> list[Found]:
        """Of each record, in order; equal ones are computed once."""
        keys = [self._key(record) for record in records]
        found = self._kept(keys)
        missing = [n for n in dict.fromkeys(keys) if n not in found]
        places = {key: place for place, key in reversed(list(enumerate(keys)))}
        for start in range(0, len(missing), self._block):
            part = missing[start : start + self._block]
            values = self._compute([records[places[key]] for key in part])
            with self._database.transaction() as connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                    [(key, json.dumps(value)) for key, value in zip(part, values, strict=True)],
                )
            found |= dict(zip(part, values, strict=True))
        return [found[key] for key in keys]

    def _key(self, record: Mapping[str, Any]) -> str:
        own = {key: record[key] for key in ("messages", "prompt", "response") if key in record}
        text = json.dumps([self._name, own], sort_keys=True)
        return f"likelihood {hashlib.sha256(text.encode()).hexdigest()}"

    def _kept(self, keys: Sequence[str]) -> dict[str, Found]:
        found: dict[str, Found] = {}
        for part in _parts(list(dict.fromkeys(keys))):
            marks = ", ".join("?" * len(part))
            with self._database.reading() as connection:
                rows = connection.execute(f"SELECT name, value FROM facts WHERE name IN ({marks})", part).fetchall()
            for name, value in rows:
                read = json.loads(value)
                found[name] = None if read is None else (float(read[0]), int(read[1]))
        return found


def _parts(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), _AT_ONCE):
        yield keys[start : start + _AT_ONCE]
