"""Who answers prompts in a run: a model in this process, or a server; with all that is kept of it in one file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ntk_jax.errors import UserError, note
from ntk_jax.llm.database import Database
from ntk_jax.llm.estimate import Calls, Counts, Rate, estimate_calls
from ntk_jax.llm.kept import Kept
from ntk_jax.llm.ledger import Ledger, Prices
from ntk_jax.llm.limits import Pace
from ntk_jax.llm.probe import line, probe
from ntk_jax.llm.request import Client, Request
from ntk_jax.llm.server import Server, ServerClient
from ntk_jax.settings import Count, NotNegative, Positive, setting


@dataclass(frozen=True)
class LLMSection:
    """Who writes and judges texts: a model in this process, or any OpenAI-compatible server. Replies are kept in the
    run directory, and none is paid for twice."""

    kind: Literal["model", "server"] = setting("model", "model: in this process; server: over HTTP")
    model: str = setting("", "model: a directory, a hub id, or builtin:model; server: the model's name there")
    base_url: str | None = setting(None, "server: its address, such as http://localhost:8000/v1")
    base_url_env: str | None = setting(
        None, "server: the environment variable that holds its address instead, which then is written nowhere"
    )
    key_env: str | None = setting(
        None, "server: the environment variable that holds the key, such as OPENAI_API_KEY; null: it needs none"
    )
    workers: Count = setting(8, "server: calls at once")
    requests_per_minute: Count | None = setting(None, "server: calls sent in any minute, at most")
    tokens_per_minute: Count | None = setting(None, "server: tokens of prompts and replies in any minute, at most")
    price_in: NotNegative | None = setting(
        None, "server: what a million tokens of prompts cost, in any unit of money; 0: nothing"
    )
    price_out: NotNegative | None = setting(None, "server: what a million tokens of replies cost, in the same unit")
    cap: NotNegative | None = setting(None, "server: the most that a run may spend, in the same unit; null: no cap")
    timeout: Positive = setting(120.0, "server: seconds until a call without a reply is given up")
    attempts: Count = setting(5, "server: calls for one request before it counts as failed, a busy server not counted")
    patience: Positive = setting(900.0, "server: seconds of nothing but `too many requests` before the run stops")
    body: Mapping[str, Any] | None = setting(
        None, "server: further fields of every call, such as {reasoning_effort: low}"
    )
    ask_failed_again: bool = setting(False, "ask once more what was paid for and had no usable reply")
    slots: Count = setting(16, "model: replies written at once")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "model: of weights and computation")


def check_llm(section: LLMSection, name: str = "llm") -> None:
    """Raises UserError: settings with which no call can be made, or none should. name: of the section."""
    if not section.model:
        raise UserError(f"{name}.model is not set; give the model that writes, or its name at the server")
    if section.kind == "model":
        return
    if (section.base_url is None) == (section.base_url_env is None):
        given = "both are" if section.base_url is not None else "neither is"
        raise UserError(f"{name}: give {name}.base_url or {name}.base_url_env; {given} set")
    _check_body(section.body or {}, name)
    if section.cap == 0:
        raise UserError(f"{name}.cap is 0, so no call could be made; give more, or null for no cap")
    if section.base_url is not None and "@" in section.base_url:
        raise UserError(f"{name}.base_url holds a password; give the key by {name}.key_env")
    if section.base_url is not None and section.price_in is None and not _near(section.base_url):
        _no_price(section, name)
    if (section.price_in is None) != (section.price_out is None) or (
        section.price_in is None and (section.cap is not None or section.key_env is not None)
    ):
        _no_price(section, name)


def _check_body(body: Mapping[str, Any], name: str) -> None:
    """Raises UserError: fields without which no reply can be read, or whose cost has no bound."""
    for key in ("model", "messages", "prompt", "stream", "n"):
        if key in body:
            raise UserError(f"{name}.body: {key} is decided by the run itself; leave it out")
    for key in ("max_tokens", "max_completion_tokens"):
        if key in body and not (type(body[key]) is int and body[key] > 0):
            raise UserError(f"{name}.body: {key} must be a whole number of at least 1: it bounds what a call costs")


def open_client(
    section: LLMSection,
    folder: str | Path,
    model: Callable[[], Client] | None = None,
    *,
    identity: str | None = None,
    name: str = "llm",
) -> Kept:
    """Whoever answers, with what is kept in `folder`.

    model: makes the client in this process, when a reply is missing for the first time. identity: the model's name for
    what is kept, where its path does not say which weights it has. name: of the section.
    Raises UserError: as `check_llm`; a variable of the environment is not set. `ask` raises as `probe` too, for a
    server is asked what it honours before the first call (a `Note` says what it does not).
    """
    check_llm(section, name)
    if section.kind == "model":
        if model is None:
            raise UserError(f"{name}.kind: this needs a server")
        return Kept(model, Database(folder), name=identity or section.model, ask_failed_again=section.ask_failed_again)
    url = section.base_url if section.base_url is not None else _variable(section.base_url_env, f"{name}.base_url_env")
    if section.price_in is None and not _near(url):
        _no_price(section, name)
    server = Server(
        section.model,
        url,
        None if section.key_env is None else _variable(section.key_env, f"{name}.key_env"),
        workers=section.workers,
        timeout=section.timeout,
        attempts=section.attempts,
        patience=section.patience,
        more=dict(section.body or {}),
    )
    database = Database(folder)
    ledger = Ledger(database, _prices(section), section.cap)

    def probed() -> Client:
        client = ServerClient(server, ledger, Pace(section.requests_per_minute, section.tokens_per_minute))
        ignored = line(probe(client))
        if ignored is not None:
            note(f"{section.model}: {ignored}")
        return client

    return Kept(probed, database, name=section.model, more=server.more, ask_failed_again=section.ask_failed_again)


def account(folder: str | Path) -> dict[str, Any]:
    """{"attempts", "spent", "reserved", "prompt_tokens", "completion_tokens", "outcomes": {outcome: attempts}} of all
    calls to servers that are kept in `folder`; money in the unit of the prices. Raises UserError as `Database`."""
    database = Database(folder)
    try:
        ledger = Ledger(database)
        return {**dataclasses.asdict(ledger.totals()), "outcomes": ledger.outcomes()}
    finally:
        database.close()


def estimate_llm(
    section: LLMSection, requests: Sequence[Request] | Counts, tokens_per_second: float | None = None
) -> Calls:
    """What these calls would take, before any is made. tokens_per_second: of one worker, where that is known."""
    if section.kind == "model":
        return estimate_calls(requests, None, Rate(section.slots, tokens_per_second))
    limits = section.requests_per_minute, section.tokens_per_minute
    return estimate_calls(requests, _prices(section), Rate(section.workers, tokens_per_second, *limits))


def _prices(section: LLMSection) -> Prices:
    return Prices(section.price_in or 0.0, section.price_out or 0.0)


def _no_price(section: LLMSection, name: str) -> None:
    missing = [f"{name}.{key}" for key in ("price_in", "price_out") if getattr(section, key) is None]
    raise UserError(
        f"{' and '.join(missing)} not set, so what {section.model} costs cannot be counted; give the price of a "
        "million tokens, 0 where it is free"
    )


def _near(url: str) -> bool:
    """Whether a server is on this machine, where nobody is paid."""
    try:
        return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0")
    except ValueError:  # no address; whoever calls it says so
        return True


def _variable(name: str | None, key: str) -> str:
    value = os.environ.get(name or "", "").strip()
    if not value:
        raise UserError(f"{key}: the environment has no {name}; set it, as in export {name}=...")
    return value
