"""Servers that answer prompts, and what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faulty_server import Answer, FastTime, FaultyServer, completion, echo, error

from files_found.case import Case
from ntk_jax.errors import UserError
from ntk_jax.llm.database import FILE, Database
from ntk_jax.llm.ledger import Ledger
from ntk_jax.llm.limits import Pace
from ntk_jax.llm.parsing import Failure, Parsed, parse_json
from ntk_jax.llm.request import Reply, Request
from ntk_jax.llm.server import Server, ServerClient
from ntk_jax.pipelines.common.llm import LLMSection, check_llm

TITLE = "OpenAI-compatible servers and their replies (`llm`)"


def _ask(folder: Path, answer: Any) -> Reply:
    fast = FastTime()
    with FaultyServer(answer).running() as server:
        pace = Pace(clock=fast.clock, sleep=fast.sleep)
        client = ServerClient(Server("m", server.url, timeout=5.0), Ledger(Database(folder)), pace)
        [(_, reply)] = client.ask([Request(({"role": "user", "content": "hello"},))])
        return reply


def _tried_again(first: Answer) -> Any:
    def check(folder: Path) -> None:
        reply = _ask(folder, lambda body, before: first if before == 0 else echo(body))
        assert reply.finish == "stop" and reply.text.startswith("hello ")

    return check


def _ends(status: int, message: str) -> Any:
    def check(folder: Path) -> None:
        with pytest.raises(UserError, match=message):
            _ask(folder, lambda body, before: error(status))

    return check


def _counted(folder: Path) -> None:
    reply = _ask(folder, lambda body, before: error(400, "prompt too long"))
    assert (reply.finish, reply.reason) == ("failed", "HTTP 400: prompt too long")


def _no_text(folder: Path) -> None:
    reply = _ask(folder, lambda body, before: completion(None))
    assert (reply.finish, reply.reason) == ("failed", "no text")


def _large(folder: Path) -> None:
    assert len(_ask(folder, lambda body, before: completion("x" * 2**20)).text) == 2**20


def _read(text: str, how: str) -> Any:
    def check(folder: Path) -> None:
        assert parse_json(text) == Parsed({"a": "b"}, how)  # type: ignore[arg-type]

    return check


def _unread(text: str) -> Any:
    def check(folder: Path) -> None:
        found = parse_json(text)
        assert isinstance(found, Failure) and found.raw == text

    return check


def _refused(message: str, **settings: Any) -> Any:
    def check(folder: Path) -> None:
        with pytest.raises(UserError, match=message):
            check_llm(LLMSection(kind="server", model="m", **settings))

    return check


def _damaged(folder: Path) -> None:
    (folder / FILE).write_bytes(b"no database, but a text")
    with pytest.raises(UserError, match="cannot be opened"):
        Database(folder)


AWAY = "https://api.example.com/v1"
CASES = [
    Case(
        "429 or 503, with `Retry-After` or without",
        "all calls pause, 60 seconds at most; tried again, not counted as an attempt",
        _tried_again(error(429, Retry_After="7200")),
    ),
    Case("500", "tried again, nothing billed", _tried_again(error(500))),
    Case("HTML with status 200", "tried again, counted as billed", _tried_again(Answer(b"<html>hello</html>"))),
    Case("a body that is cut", "tried again, counted as billed", _tried_again(Answer(completion("x").content, cut=20))),
    Case("no choices", "tried again", _tried_again(completion("x", choices=[]))),
    Case("null content each time", "counted as failed, kept, and not paid for again", _no_text),
    Case("400, 413, 422", "this request is counted as failed, the others go on", _counted),
    Case("401, 403", "the run ends with one line", _ends(401, "does not accept the key")),
    Case("404", "the run ends with one line", _ends(404, "usually ends in /v1")),
    Case("a reply of 1 MB", "taken whole", _large),
    Case("JSON between fences or in prose", "read", _read('Here:\n```json\n{"a": "b"}\n```\n', "json")),
    Case("JSON that is cut or has stray commas", "repaired, and counted so", _read('{"a": "b",', "repaired")),
    Case("`{}`, or no JSON", "asked for once more, then counted with its text", _unread("{}")),
    Case("a server elsewhere without prices", "refused", _refused("price_in and llm.price_out", base_url=AWAY)),
    Case("`llm.cap: 0`", "refused", _refused("llm.cap is 0", base_url=AWAY, price_in=1.0, price_out=1.0, cap=0)),
    Case("`calls.sqlite` that is no database", "refused", _damaged),
]
