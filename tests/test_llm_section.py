"""The section of a config that names who writes, and what calls would cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from faulty_server import FaultyServer, completion, error
from scripted_llm import ScriptedClient

from ntk_jax.errors import Note, UserError
from ntk_jax.llm.estimate import Counts, Rate, estimate_calls
from ntk_jax.llm.ledger import Prices
from ntk_jax.llm.request import Request
from ntk_jax.pipelines.common.llm import LLMSection, account, check_llm, estimate_llm, open_client

TALK = ({"role": "user", "content": "hello"},)
SERVER = LLMSection(kind="server", model="m", base_url="http://localhost:1/v1")
AWAY = dataclasses.replace(SERVER, base_url="https://api.example.com/v1", price_in=1.0, price_out=2.0)

FIELDS = dataclasses.replace(AWAY, body={"reasoning_effort": "low", "max_completion_tokens": 900})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (LLMSection(), "llm.model is not set"),
        (dataclasses.replace(SERVER, base_url=None), "llm.base_url or llm.base_url_env; neither is set"),
        (dataclasses.replace(SERVER, base_url_env="X"), "both are set"),
        (dataclasses.replace(AWAY, cap=0), "llm.cap is 0, so no call could be made; give more, or null for no cap"),
        (dataclasses.replace(AWAY, price_in=None, price_out=None), "llm.price_in and llm.price_out not set"),
        (dataclasses.replace(AWAY, price_out=None), "llm.price_out not set"),
        (dataclasses.replace(SERVER, cap=3.0), "llm.price_in and llm.price_out not set, so what m costs"),
        (dataclasses.replace(SERVER, key_env="X"), "llm.price_in and llm.price_out not set"),
        (dataclasses.replace(AWAY, base_url="https://me:secret@x/v1"), "holds a password"),
        (dataclasses.replace(AWAY, body={"stream": True}), "llm.body: stream is decided by the run itself"),
        (dataclasses.replace(AWAY, body={"max_tokens": None}), "llm.body: max_tokens must be a whole number"),
    ],
)
def test_what_cannot_be(section, message):
    with pytest.raises(UserError, match=message) as caught:
        check_llm(section)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("section", [LLMSection(model="builtin:model"), SERVER, AWAY, FIELDS])
def test_what_can_be(section):
    check_llm(section)


def test_a_model_in_this_process(tmp_path):
    section = LLMSection(model="builtin:model")
    client = open_client(section, tmp_path, lambda: ScriptedClient(lambda request: "x"), identity="abc")
    assert [reply.text for _, reply in client.ask([Request(TALK)])] == ["x"]
    assert client.name == "abc"
    with pytest.raises(UserError, match="needs a server"):
        open_client(section, tmp_path)


def test_variables_that_are_not_set(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="llm.key_env: the environment has no NO_SUCH_KEY; set it"):
        open_client(dataclasses.replace(AWAY, key_env="NO_SUCH_KEY"), tmp_path)
    with pytest.raises(UserError, match="llm.base_url_env: the environment has no NO_SUCH_KEY"):
        open_client(dataclasses.replace(SERVER, base_url=None, base_url_env="NO_SUCH_KEY"), tmp_path)


def test_an_address_from_the_environment_needs_a_price_too(tmp_path, monkeypatch):
    monkeypatch.setenv("AN_ADDRESS", "https://api.example.com/v1")
    with pytest.raises(UserError, match="price_in and llm.price_out not set"):
        open_client(dataclasses.replace(SERVER, base_url=None, base_url_env="AN_ADDRESS"), tmp_path)


def test_a_server_by_the_environment(tmp_path, monkeypatch):
    with FaultyServer(lambda body, before: completion("always this")).running() as server:
        monkeypatch.setenv("AN_ADDRESS", server.url)
        monkeypatch.setenv("A_KEY", "a-key-of-some-length\n")
        section = dataclasses.replace(SERVER, base_url=None, base_url_env="AN_ADDRESS", key_env="A_KEY")
        section = dataclasses.replace(section, price_in=1.0, price_out=1.0, cap=1.0)
        client = open_client(section, tmp_path)
        assert not server.bodies, "nobody is asked before a reply is missing"
        steps = []
        with pytest.warns(Note, match="^m: the server does not honour .*two seeds give one text"):
            replies = list(client.ask([Request(TALK)], lambda *step: steps.append(step)))
        assert replies[0][1].text == "always this"
        assert steps[-1][:2] == (1, 1) and steps[-1][2].endswith("of 1 spent")
        found = account(tmp_path)
        assert found["attempts"] == len(server.bodies) and found["outcomes"] == {"reply": len(server.bodies)}
        assert set(server.keys) == {"Bearer a-key-of-some-length"}
    again = open_client(section, tmp_path)
    assert next(again.ask([Request(TALK)]))[1].cached, "and needs no server"
    files = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    for secret in (b"a-key-of-some-length", server.url.encode()):
        assert files and all(secret not in path.read_bytes() for path in files)


def test_a_refused_key_is_one_line(tmp_path):
    with FaultyServer(lambda body, before: error(401, "Incorrect API key")).running() as server:
        client = open_client(dataclasses.replace(SERVER, base_url=server.url), tmp_path)
        with pytest.raises(UserError, match="the server of m: it does not accept the key .HTTP 401: Incorrect API key"):
            list(client.ask([Request(TALK)]))


def test_an_estimate_of_counts():
    prices, rate = Prices(1.0, 4.0), Rate(8, 50.0, 100)
    found = estimate_calls(Counts(200, 500, 1000), prices, rate)
    assert (found.calls, found.prompt_tokens, found.completion_tokens) == (200, 100_000, 200_000)
    assert found.money == pytest.approx(0.9)
    assert found.seconds == pytest.approx(max(200_000 / 400, 120))
    assert str(found) == ("200 calls, about 100,000 tokens in and at most 200,000 out, at most about 0.9, 8 min")
    assert estimate_calls(Counts(200, 500, 1000)).seconds is None
    assert estimate_calls(Counts(10, 50, 50), None, Rate(tokens_per_minute=100)).seconds == pytest.approx(600)
    assert estimate_calls([]).calls == 0


def test_an_estimate_of_requests_bounds_what_is_paid(tmp_path):
    asked = [Request(TALK, max_tokens=10)] * 3
    found = estimate_llm(AWAY, asked, 20.0)
    assert found.calls == 3 and found.completion_tokens == 30 and found.money > 0
    assert found.seconds == pytest.approx(30 / (20 * 3))
    assert estimate_llm(LLMSection(model="builtin:model"), asked, 20.0).money == 0
