"""A client that answers what was asked before from what is kept, and keeps each new reply before it gives it out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ntk_jax.llm.cache import Cache, canonical, key_of
from ntk_jax.llm.database import Database
from ntk_jax.llm.request import Client, Progress, Reply, Request


class Kept:
    """A `Client` around another one, which is made when the first reply is missing.

    name: that of the model, part of what is kept; models of other weights need other names. more: what else decides
    replies. ask_failed_again: requests that have failed, and whose failure was kept, are asked again.
    """

    def __init__(
        self,
        client: Client | Callable[[], Client],
        database: Database,
        *,
        name: str | None = None,
        more: Mapping[str, Any] | None = None,
        ask_failed_again: bool = False,
    ) -> None:
        self._client = None if callable(client) else client
        self._make = client if callable(client) else None
        if name is None:
            name = self._inner().name
        self.name = name
        self.database = database
        self._cache = Cache(database)
        self._more = more
        self._ask_failed_again = ask_failed_again

    def ask(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[tuple[int, Reply]]:
        """As `Client.ask`. Equal requests are asked once. Progress counts what was there before as done."""
        texts = [canonical(self.name, request, self._more) for request in requests]
        keys = [key_of(text) for text in texts]
        there = self._cache.get(list(dict.fromkeys(keys)), failed=not self._ask_failed_again)
        places: dict[str, list[int]] = {}  # of what is missing
        for ordinal, key in enumerate(keys):
            if key not in there:
                places.setdefault(key, []).append(ordinal)
        done = len(keys) - sum(map(len, places.values()))
        if progress is not None and done:
            progress(done, len(keys), "")
        for ordinal, key in enumerate(keys):
            if key in there:
                yield ordinal, there[key]
        if not places:
            return
        missing = list(places)
        first = [places[key][0] for key in missing]
        spent = ""

        def remember(_done: int, _total: int, what: str) -> None:
            nonlocal spent
            spent = what

        for number, reply in self._inner().ask([requests[ordinal] for ordinal in first], remember):
            key = missing[number]
            if reply.finish != "failed":
                self._cache.put(key, self.name, texts[first[number]], reply)
            done += len(places[key])
            if progress is not None:
                progress(done, len(keys), spent)
            yield first[number], reply
            for ordinal in places[key][1:]:
                yield ordinal, dataclasses.replace(reply, cached=True)

    def _inner(self) -> Client:
        if self._client is None:
            assert self._make is not None
            self._client = self._make()
        return self._client
