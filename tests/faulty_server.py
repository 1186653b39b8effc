"""A server on loopback that speaks as OpenAI-compatible ones do, and fails as they do: it counts what reaches it."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """A response. cut: bytes of the content that are sent before the connection breaks. hang: seconds before anything
    is sent."""

    content: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    hang: float = 0.0


def completion(
    text: Any, prompt_tokens: int = 10, completion_tokens: int = 5, finish: str = "stop", **more: Any
) -> Answer:
    """A well-formed response, but for what `more` replaces."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    message = {"role": "assistant", "content": text}
    value = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage, **more}
    return Answer(json.dumps(value).encode())


def error(status: int, message: str = "no", **headers: str) -> Answer:
    """An error as most servers write it."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(json.dumps({"error": {"message": message}}).encode(), status, names)


def echo(body: Mapping[str, Any]) -> Answer:
    """A reply that depends on the request alone."""
    said = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return completion(f"{said} {hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:8]}")


class FaultyServer:
    """answer: what to do with the body of a request, and how often the same body has come before.

    bodies: all that came, in order; keys: the Authorization headers."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer]) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(raw)
                with server._lock:
                    before = server.counts[raw.decode()]
                    server.counts[raw.decode()] += 1
                    server.bodies.append(body)
                    server.keys.append(self.headers["Authorization"])
                    server._now += 1
                    server.most_at_once = max(server.most_at_once, server._now)
                try:
                    self._send(server.answer(body, before))
                finally:
                    with server._lock:
                        server._now -= 1

            def _send(self, answer: Answer) -> None:
                server._ended.wait(answer.hang)
                with contextlib.suppress(OSError):  # the client has given up
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(answer.content)))
                    self.end_headers()
                    self.wfile.write(answer.content[: answer.cut])
                    if answer.cut is not None:
                        self.close_connection = True
                        self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *_: Any) -> None:
                pass

        class Http(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                pass

        self._http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultyServer]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._http.shutdown()
            self._http.server_close()
            thread.join()


class FastTime:
    """A clock that sleeping moves, so that pauses of minutes take no time. One for all threads."""

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()
        self.slept: list[float] = []

    def clock(self) -> float:
        with self._lock:
            return self._now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds
            self.slept.append(seconds)
        time.sleep(0.0005)  # others may go on
