"""What is found out about a server before it is used."""

from __future__ import annotations

import json

import pytest
from faulty_server import Answer, FastTime, FaultyServer, completion, error

from ntk_jax.errors import TryAgain, UserError
from ntk_jax.llm.database import Database
from ntk_jax.llm.ledger import Ledger
from ntk_jax.llm.limits import Pace
from ntk_jax.llm.probe import line, probe
from ntk_jax.llm.request import Request
from ntk_jax.llm.server import Server, ServerClient
from ntk_jax.llm.wire import Capabilities

TALK = ({"role": "user", "content": "hello"},)


def make(folder, url: str, **more) -> ServerClient:
    fast = FastTime()
    return ServerClient(Server("m", url, **more), Ledger(Database(folder)), Pace(clock=fast.clock, sleep=fast.sleep))


def good(body, before) -> Answer:
    """Honours everything."""
    text = '{"greeting": "hello"}' if "response_format" in body else f"seed {body['seed']} {body['temperature']}"
    choice = {
        "message": {"content": text},
        "finish_reason": "stop",
        "logprobs": {} if not body.get("logprobs") else [1],
    }
    return completion("", choices=[choice] * body.get("n", 1))


def as_transformers_serve(body, before) -> Answer:
    """Greedy without generation_config; unknown fields are an error; schemas, n and logprobs do nothing."""
    if {"top_k", "min_p"} & set(body):
        return error(422, "Unexpected fields in the request: {'top_k', 'min_p'}")
    draws = "generation_config" in body and json.loads(body["generation_config"])["do_sample"]
    return completion(f"seed {body['seed']}" if draws else "the one greedy text")


def as_new_models(body, before) -> Answer:
    """As OpenAI's reasoning models."""
    if "max_tokens" in body:
        return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    if body.get("temperature", 1) != 1:
        return error(400, "Unsupported value: 'temperature' does not support 0.5")
    return good(body | {"temperature": 1}, before)


def as_llama_cpp(body, before) -> Answer:
    """A JSON schema is an error of the server; JSON alone works."""
    if body.get("response_format", {}).get("type") == "json_schema":
        return error(500)
    return good(body, before)


def deaf(body, before) -> Answer:
    return completion("always this", usage=None)


def talkative(body, before) -> Answer:
    return good(body, before) if "response_format" in body else completion(f"seed {body['seed']}", completion_tokens=99)


def random_seeds(body, before) -> Answer:
    return good(body | {"seed": f"{body['seed']}, time {before}"}, before)


def silent(body, before) -> Answer:
    return completion(None, finish="length")


@pytest.mark.parametrize(
    ("answer", "able", "words"),
    [
        (good, Capabilities(), None),
        (
            as_transformers_serve,
            Capabilities(seeds="generation_config", schema="none", refused=("top_k", "min_p")),
            ["n:", "logprobs:", "JSON schemas:"],
        ),
        (
            as_new_models,
            Capabilities(max_tokens="max_completion_tokens", refused=("temperature",)),
            ["temperature: it refuses"],
        ),
        (as_llama_cpp, Capabilities(schema="json_object"), ["JSON alone can be asked for"]),
        (deaf, Capabilities(seeds="ignored", schema="none"), ["two seeds give one text", "usage:", "n:", "logprobs:"]),
        (talkative, Capabilities(), ["max_tokens: it writes more than is asked for"]),
        (random_seeds, Capabilities(), ["one seed gives several texts"]),
        (silent, Capabilities(), ["replies of a few tokens have no text"]),
    ],
)
def test_what_is_found(answer, able, words, tmp_path):
    with FaultyServer(answer).running() as server:
        client = make(tmp_path, server.url)
        found = probe(client)
        assert (found.seeds, found.schema, found.refused) == (able.seeds, able.schema, able.refused)
        assert found.max_tokens == able.max_tokens
        assert client.able == found
        said = line(found)
        assert said is None if words is None else all(word in said for word in words), said
        calls = len(server.bodies)
        assert client.ledger.totals().attempts == calls <= 16
        client.ledger.database.close()
        assert probe(make(tmp_path, server.url)) == found, "a server is asked once"
        assert len(server.bodies) == calls


def test_what_was_found_is_used(tmp_path):
    with FaultyServer(as_transformers_serve).running() as server:
        client = make(tmp_path, server.url)
        probe(client)
        asked = [
            Request(TALK, temperature=0.7, top_k=5, min_p=0.1, seed=seed, schema={"type": "object"}) for seed in (1, 2)
        ]
        assert {reply.text for _, reply in client.ask(asked)} == {"seed 1", "seed 2"}
        drawing = json.loads(server.bodies[-1]["generation_config"])
        assert drawing == {"do_sample": True, "temperature": 0.7, "top_k": 5, "min_p": 0.1}
        assert "response_format" not in server.bodies[-1]
        list(client.ask([Request(TALK, temperature=0.0)]))
        assert "generation_config" not in server.bodies[-1]


def test_other_samples_have_other_seeds(tmp_path):
    with FaultyServer(good).running() as server:
        client = make(tmp_path, server.url, more={"reasoning_effort": "low"})
        list(client.ask([Request(TALK, sample=n, seed=2**31 - 1) for n in range(5)]))
        seeds = {body["seed"] for body in server.bodies}
        assert len(seeds) == 5 and all(0 <= seed < 2**31 for seed in seeds)
        assert all(body["reasoning_effort"] == "low" for body in server.bodies)


def test_a_text_is_continued(tmp_path):
    def answer(body, before):
        return Answer(json.dumps({"choices": [{"text": body["prompt"] + "!", "finish_reason": "length"}]}).encode())

    with FaultyServer(answer).running() as server:
        [(_, reply)] = make(tmp_path, server.url).ask([Request("once")])
        assert (reply.text, reply.finish) == ("once!", "length")


def test_a_server_that_refuses_the_plainest_request(tmp_path):
    refusing = FaultyServer(lambda body, before: error(400, "no"))
    with refusing.running() as server, pytest.raises(UserError, match="refuses the plainest request: HTTP 400: no"):
        probe(make(tmp_path, server.url))


@pytest.mark.parametrize("loading", [Answer(b"<html>one moment</html>"), Answer(b"{}"), error(504)])
def test_a_server_that_is_still_loading_is_asked_again_later(loading, tmp_path):
    with FaultyServer(lambda body, before: loading).running() as server:
        with pytest.raises(TryAgain, match="does not reply"):
            probe(make(tmp_path, server.url))
        server.answer = good
        assert probe(make(tmp_path, server.url)) == Capabilities(), "what was found while it loaded is not kept"


def test_a_key_that_the_server_repeats_stands_in_no_file(tmp_path):
    key = "sk-a-secret-that-nobody-may-read"

    def answer(body, before):
        return completion(f"{key} {body['seed']}", system_fingerprint=f"Bearer {key}", choices_of=[key])

    with FaultyServer(answer).running() as server:
        client = make(tmp_path, server.url, key=key)
        assert "n:" in str(line(probe(client)))
        client.ledger.database.close()
    assert not any(key.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_a_server_that_is_down(tmp_path):
    with pytest.raises(TryAgain, match=r"does not reply \(no connection\); start it"):
        probe(make(tmp_path, "http://127.0.0.1:9/v1"))
