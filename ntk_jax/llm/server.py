"""Any OpenAI-compatible server as a client: many calls at once, with retries of its own and no others.

A library that retries by itself hides attempts from the ledger, so calls go out through httpx alone. The key is read
from the environment, is held in the headers of the connection, and stands in no file, message or representation.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from ntk_jax.errors import TryAgain, UserError
from ntk_jax.llm import wire
from ntk_jax.llm.cache import Cache, canonical, key_of
from ntk_jax.llm.ledger import Attempt, Ledger
from ntk_jax.llm.limits import Pace
from ntk_jax.llm.request import Progress, Reply, Request
from ntk_jax.llm.wire import Capabilities, Outcome

CONNECT_SECONDS = 10.0
LARGEST = 64 * 2**20  # bytes of a response
GRACE_SECONDS = 10.0  # for calls under way when all is stopped, whose replies are paid for
SHORTEST_KEY = 6  # characters; a shorter one is a placeholder, and is not looked for in what a server says


@dataclass(frozen=True)
class Server:
    """Where a server is and how it is called.

    model: its name there. base_url: as http://localhost:8000/v1. key: sent as a bearer token. timeout: seconds until an
    attempt is given up. attempts: for one request, before it counts as failed; those turned away because the server is
    busy do not count. patience: seconds without a single reply before a busy server is given up. more: further fields
    of every body; they belong to what is asked.
    """

    model: str
    base_url: str = field(repr=False)
    key: str | None = field(default=None, repr=False)
    workers: int = 8
    timeout: float = 120.0
    attempts: int = 5
    patience: float = 900.0
    more: Mapping[str, Any] = field(default_factory=dict)


class ServerClient:
    """A `Client`. Each reply is in the ledger's database, beside its cost, before it is given out.

    name: the model's. able: what the server honours; `probe` finds it out.
    """

    def __init__(
        self, server: Server, ledger: Ledger, pace: Pace | None = None, able: Capabilities | None = None
    ) -> None:
        """Raises UserError: base_url is no address, or no header can hold the key."""
        self.name = server.model
        self.able = able or Capabilities()
        self.server = server
        self.ledger = ledger
        self.pace = pace or Pace()
        self._cache = Cache(ledger.database)
        self._answered = False  # has this server ever replied
        self._in_vain = 0  # requests one after another that had no reply
        self._busy_since: float | None = None
        if server.key and not (server.key.isascii() and server.key.isprintable() and " " not in server.key):
            raise UserError("the server's key has spaces, line ends or characters beyond ASCII; give the key alone")
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every address, which may be a secret
        headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
        try:
            address = server.base_url.rstrip("/").removesuffix("/chat/completions") + "/"
            parts = urlsplit(address)  # of httpx and the standard library each lets something pass
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError
            self._http = httpx.Client(
                base_url=httpx.URL(address),
                headers=headers,
                timeout=httpx.Timeout(server.timeout, connect=CONNECT_SECONDS, pool=None),
                limits=httpx.Limits(max_connections=server.workers + 1, max_keepalive_connections=server.workers + 1),
            )
        except (ValueError, httpx.InvalidURL):
            raise UserError("the server's address is malformed; give one such as http://localhost:8000/v1") from None
        weakref.finalize(self, self._http.close)

    def ask(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[tuple[int, Reply]]:
        """As `Client.ask`. Raises UserError: the server does not accept the key or knows no such model, or the cap is
        spent; TryAgain: it has not replied for long. Replies of calls under way are waited for and kept first."""
        todo = deque((ordinal, request, False) for ordinal, request in enumerate(requests))
        results: queue.SimpleQueue[tuple[int, Reply] | BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._work, args=(todo, results, stop), daemon=True)
            for _ in range(min(self.server.workers, len(requests)))
        ]
        for thread in threads:
            thread.start()
        failure: BaseException | None = None
        running, done = len(threads), 0
        try:
            while running:
                item = results.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    failure = failure or item
                else:
                    done += 1
                    if progress is not None:
                        progress(done, len(requests), self.ledger.line())
                    yield item
        finally:
            stop.set()
            end = time.monotonic() + GRACE_SECONDS
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Ends the connections."""
        self._http.close()

    def exchange(
        self,
        request: Request,
        body: Mapping[str, Any],
        key: str,
        stopped: Callable[[], bool] = lambda: False,
        keep: Callable[[Any, Outcome], None] | None = None,
        attempts: int | None = None,
    ) -> Outcome | None:
        """Sends a body until there is an answer, or none can be hoped for.

        The outcome is `reply`, `refused`, or `failed` after all attempts (the server's unless given); None: `stopped`
        became true. keep(connection, outcome) writes what must be kept together with the costs.
        Raises UserError and TryAgain as `ask`.
        """
        failures = 0
        while not stopped():
            last = failures + 1 >= (attempts or self.server.attempts)
            if not self.pace.wait(wire.likely_tokens(request) + request.max_tokens, stopped):
                return None
            worst = wire.most_tokens(request, self.server.more), wire.most_reply_tokens(request, body)
            attempt = self.ledger.reserve(key, *worst, stopped)
            if attempt is None:
                return None
            sent = self.pace.now()
            outcome = self._attempt(request, body, attempt, keep, last)
            if outcome.kind == "fatal":
                raise UserError(f"the server of {self.name}: {outcome.reason}")
            if outcome.kind == "busy":
                self.pace.pause(sent, outcome.wait)
                self._check_patience(outcome)
                continue
            self._busy_since = None
            if outcome.kind in ("reply", "refused"):
                self.pace.went_well()
                return outcome
            failures += 1
            if last:
                return outcome
            self.pace.rest(self.pace.back_off(failures), stopped)
        return None

    def _work(
        self,
        todo: deque[tuple[int, Request, bool]],
        results: queue.SimpleQueue[tuple[int, Reply] | BaseException | None],
        stop: threading.Event,
    ) -> None:
        """One worker: takes (ordinal, request, whether it failed before) until there are none left. What failed at no
        cost comes once more after all others: the server may be back by then."""
        try:
            while not stop.is_set():
                try:
                    ordinal, request, again = todo.popleft()
                except IndexError:
                    break
                outcome = self._answer(request, stop.is_set)
                if outcome is None:
                    break
                if outcome.kind == "failed" and not outcome.billed and not again:
                    todo.append((ordinal, request, True))
                else:
                    results.put((ordinal, outcome.reply(request)))
        except BaseException as error:  # given to whoever asked
            stop.set()
            results.put(error)
        finally:
            results.put(None)

    def _answer(self, request: Request, stopped: Callable[[], bool]) -> Outcome | None:
        text = canonical(self.name, request, self.server.more)
        key = key_of(text)

        def keep(connection: Any, outcome: Outcome) -> None:
            self._cache.put(key, self.name, text, outcome.reply(request), connection)

        body = wire.body_of(self.name, request, self.able, self.server.more)
        outcome = self.exchange(request, body, key, stopped, keep)
        if outcome is not None and outcome.kind == "reply":
            self._answered, self._in_vain = True, 0
        elif outcome is not None:
            self._count_in_vain(outcome)
        return outcome

    def _attempt(
        self,
        request: Request,
        body: Mapping[str, Any],
        attempt: Attempt,
        keep: Callable[[Any, Outcome], None] | None,
        last: bool,
    ) -> Outcome:
        """Sends once and settles. A failure that was paid for is kept too when it is the last, so that it is not paid
        for again."""
        outcome = self._send("completions" if "prompt" in body else "chat/completions", body)
        final = outcome.kind == "reply" or (last and outcome.kind == "failed" and outcome.billed)
        writes = (lambda connection: keep(connection, outcome)) if keep is not None and final else None
        self.ledger.settle(attempt, outcome.reason or outcome.kind, outcome.tokens, outcome.billed, writes)
        return outcome

    def _send(self, path: str, body: Mapping[str, Any]) -> Outcome:
        """One POST. The whole response must come within twice the time-out, however slowly it drips."""
        content = json.dumps(body).encode("ascii")  # half a surrogate pair, which UTF-8 cannot hold, stays an escape
        end = time.monotonic() + 2 * self.server.timeout
        received = bytearray()
        try:
            with self._http.stream(
                "POST", path, content=content, headers={"Content-Type": "application/json"}
            ) as response:
                for piece in response.iter_bytes():
                    received += piece
                    if len(received) > LARGEST:
                        return Outcome("failed", f"a response of more than {LARGEST // 2**20} MB")
                    if time.monotonic() > end:
                        return Outcome("failed", "time-out: the response did not end")
                return self._without_key(wire.read_response(response.status_code, response.headers, bytes(received)))
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return Outcome("failed", "no connection", billed=False)
        except httpx.TimeoutException:
            return Outcome("failed", "time-out")
        except httpx.HTTPError as error:  # its text may name the address
            return Outcome("failed", f"the connection broke ({type(error).__name__})")

    def _without_key(self, outcome: Outcome) -> Outcome:
        """A server may repeat the key in what it says."""
        key = self.server.key or ""
        if len(key) < SHORTEST_KEY or (key not in outcome.text and key not in outcome.reason):
            return outcome
        return dataclasses.replace(
            outcome, text=outcome.text.replace(key, "[key]"), reason=outcome.reason.replace(key, "[key]")
        )

    def _check_patience(self, outcome: Outcome) -> None:
        now = self.pace.now()
        if self._busy_since is None:
            self._busy_since = now
        elif now - self._busy_since > self.server.patience:
            raise TryAgain(
                f"the server of {self.name} has turned away all calls for {self.server.patience:.0f} s "
                f"({outcome.reason}); the same command goes on later, with what is kept"
            )

    def _count_in_vain(self, outcome: Outcome) -> None:
        """Some requests fail for reasons of their own; when all do, something else is wrong."""
        self._in_vain += 1
        many = self._in_vain > max(8, self.server.workers)
        if many and outcome.kind == "refused" and not self._answered:
            raise UserError(f"the server of {self.name} refuses all requests, {self._in_vain} so far: {outcome.reason}")
        if outcome.kind == "failed" and (many or (not self._answered and not outcome.billed)):
            raise TryAgain(
                f"the server of {self.name} has not replied to {self._in_vain} request(s) in a row "
                f"({outcome.reason}); the same command goes on when it does, with what is kept"
            )
