"""What a server honours, found out by a few short calls at the start: most servers ignore silently what they do not
know."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from ntk_jax.errors import TryAgain, UserError
from ntk_jax.llm import wire
from ntk_jax.llm.request import Request
from ntk_jax.llm.server import ServerClient
from ntk_jax.llm.wire import Capabilities, Outcome

TOKENS = 16  # of each reply: enough for two draws to differ
_SENTENCE = ({"role": "user", "content": "Write one random sentence about anything."},)
_HELLO = ({"role": "user", "content": "Say hello, as JSON."},)
_SCHEMA = {
    "type": "object",
    "properties": {"greeting": {"type": "string"}},
    "required": ["greeting"],
    "additionalProperties": False,
}


def probe(client: ServerClient) -> Capabilities:
    """Sets `client.able` to what its server honours, and returns it. Kept in the client's database: a server is asked
    once. All calls are in the ledger.

    Raises UserError and TryAgain as `ServerClient.ask`; UserError too if the server refuses the plainest request.
    """
    name = f"capabilities {_address(client)}"
    found = _fact(client, name)
    if found is None:
        found = dataclasses.asdict(_find(client))
        with client.ledger.database.transaction() as connection:
            _set_fact(connection, name, found)
    client.able = _read(found)
    return client.able


def line(able: Capabilities) -> str | None:
    """What the server does not honour, for people; None: it honours all."""
    found = list(able.unheard)
    if able.seeds == "ignored":
        found.append("seed: two seeds give one text, so several samples of a request are equal")
    if able.schema != "json_schema":
        only = " (JSON alone can be asked for)" if able.schema == "json_object" else ""
        found.append(f"JSON schemas{only}: replies are parsed and repaired as they come")
    return "the server does not honour " + "; ".join(found) if found else None


def _find(client: ServerClient) -> Capabilities:
    able, first = _plain(client)

    def call(request: Request, **more: Any) -> Outcome:
        return _call(client, request, able, more)

    def drawn(seed: int, time: int = 1, **more: Any) -> str:
        return _call(client, Request(_SENTENCE, TOKENS, temperature=1.0, seed=seed), able, more, time).text

    if not first.text:
        why = "replies of a few tokens have no text, so what else it honours is not known"
        return dataclasses.replace(able, unheard=(why,))
    unheard = [f"{field}: it refuses that field" for field in able.refused]
    if first.text == drawn(2) == drawn(3):
        drawing = json.dumps({"do_sample": True, "temperature": 1.0})
        differ = len({drawn(seed, generation_config=drawing) for seed in (1, 2, 3)}) > 1
        able = dataclasses.replace(able, seeds="generation_config" if differ else "ignored")
    elif "seed" not in able.refused and first.text != drawn(1, time=2):
        unheard.append("seed: one seed gives several texts, so a reply can be had again from what is kept alone")
    if first.tokens is not None and first.tokens[1] > TOKENS:
        unheard.append(f"{able.max_tokens}: it writes more than is asked for, so no cap holds to the last call")
    if first.tokens is None:
        unheard.append("usage: it does not say how many tokens a call took, so the most possible is counted")
    able = dataclasses.replace(able, schema=_schema(call))
    narrow = call(Request(_SENTENCE, TOKENS, top_k=5, min_p=0.01))
    if narrow.kind != "reply":
        able = dataclasses.replace(able, refused=(*able.refused, "top_k", "min_p"))
        if able.seeds != "generation_config":  # which carries them
            unheard.append("top_k and min_p")
    two = call(Request(_SENTENCE, TOKENS), n=2)
    if two.kind != "reply" or two.choices != 2:
        unheard.append("n: each sample is a call of its own")
    scored = call(Request(_SENTENCE, TOKENS), logprobs=True)
    if scored.kind != "reply" or not scored.logprobs:
        unheard.append("logprobs: likelihoods are computed by models in this process alone")
    return dataclasses.replace(able, unheard=tuple(unheard))


def _plain(client: ServerClient) -> tuple[Capabilities, Outcome]:
    """The plainest request, without what the server refuses of it. Newer models of OpenAI refuse `max_tokens` and any
    temperature but 1."""
    request = Request(_SENTENCE, TOKENS, temperature=1.0, seed=1)
    able = Capabilities()
    outcome = _call(client, request, able, {})
    if outcome.kind == "refused" and "max_completion_tokens" in outcome.reason:
        able = dataclasses.replace(able, max_tokens="max_completion_tokens")
        outcome = _call(client, request, able, {})
    for field in ("seed", "temperature"):
        if outcome.kind == "refused":
            able = dataclasses.replace(able, refused=(*able.refused, field))
            outcome = _call(client, request, able, {})
    if outcome.kind == "refused":
        raise UserError(f"the server of {client.name} refuses the plainest request: {outcome.reason}")
    if outcome.kind == "failed" and not outcome.choices:  # it may be loading its model: nothing is known of it yet
        raise TryAgain(f"the server of {client.name} does not reply ({outcome.reason}); start it, or try again later")
    if outcome.kind == "reply":
        cold = _call(client, dataclasses.replace(request, temperature=0.5), able, {})
        if cold.kind == "refused":
            able = dataclasses.replace(able, refused=(*able.refused, "temperature"))
    return able, outcome


def _schema(call: Callable[..., Outcome]) -> Any:
    """The strictest form of structured output that the server takes."""
    held = call(Request(_HELLO, 2 * TOKENS, schema=_SCHEMA))
    if held.kind == "reply":
        try:
            value = json.loads(held.text)
        except ValueError:
            value = None
        if (isinstance(value, dict) and "greeting" in value) or held.text.lstrip().startswith('{"greeting"'):
            return "json_schema"
    loose = call(Request(_HELLO, 2 * TOKENS), response_format={"type": "json_object"})
    if loose.kind == "reply" and loose.text.lstrip().startswith("{"):
        return "json_object"
    return "none"


def _call(
    client: ServerClient, request: Request, able: Capabilities, more: Mapping[str, Any], time: int = 1
) -> Outcome:
    """One of the short calls, made for the first or second time. Its answer is kept as well: a process that is killed
    meanwhile repeats only the last, and what had no answer. Whatever makes a server fail, rather than refuse, is as
    good as refused."""
    body = wire.body_of(client.name, request, able, {**client.server.more, **more})
    name = f"call {hashlib.sha256(f'{_address(client)} {time} {json.dumps(body)}'.encode()).hexdigest()}"
    found = _fact(client, name)
    if found is not None:
        return Outcome(**{**found, "tokens": tuple(found["tokens"]) if found["tokens"] else None})

    def keep(connection: Any, outcome: Outcome) -> None:
        if outcome.choices:
            _set_fact(connection, name, dataclasses.asdict(outcome))

    outcome = client.exchange(request, body, "probe", keep=keep, attempts=2)
    assert outcome is not None  # nobody stops it
    return outcome


def _address(client: ServerClient) -> str:
    """Of model and server, which may be a secret: not to be read back."""
    return hashlib.sha256(f"{client.name}\n{client.server.base_url}".encode()).hexdigest()[:16]


def _fact(client: ServerClient, name: str) -> Any:
    with client.ledger.database.reading() as connection:
        row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return None if row is None else json.loads(row[0])


def _set_fact(connection: Any, name: str, value: Any) -> None:
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))


def _read(found: dict[str, Any]) -> Capabilities:
    lists = {name: tuple(found[name]) for name in ("refused", "unheard")}
    return Capabilities(**{**found, **lists})
