"""JSON out of what language models write."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_llm import ScriptedClient

from ntk_jax.llm.parsing import Failure, Parsed, ask_for_json, parse_json
from ntk_jax.llm.request import Reply, Request

VALUE = {"topic": "sleep", "text": 'He said "no".\nTwice.'}
TEXT = json.dumps(VALUE)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "how"),
    [
        (TEXT, "json"),
        (f"  {TEXT}\n", "json"),
        (f"Here it is:\n```json\n{TEXT}\n```\nAnything else?", "json"),
        (f"```\n{TEXT}\n```", "json"),
        (f"```json\n{TEXT}", "json"),
        (f"Sure! {TEXT} I hope that helps.", "json"),
        (f"<think>An object {{with braces}}?</think>\n{TEXT}", "json"),
        (f'Perhaps {{"a": 1}}? No.</think>\n{TEXT}', "json"),
        (f"In the form {{topic, text}} that was asked for: {TEXT}", "json"),
        ('{"topic": "sleep", "text": "He said \\"no\\".\nTwice."}', "json"),
        (TEXT[:-1], "repaired"),
        (TEXT.replace("}", ",}"), "repaired"),
        ('{topic: \'sleep\', text: "He said \\"no\\".\\nTwice."}', "repaired"),
        (f"Sure: {TEXT[:-2]}", "repaired"),
    ],
)
def test_what_can_be_read(text, how):
    assert parse_json(text) == Parsed(VALUE, how)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "an empty reply"),
        ("  \n", "an empty reply"),
        ("I am sorry, I cannot do that.", "no JSON object"),
        ("{}", "an empty JSON object"),
        ("[1, 2]", "no JSON object"),
        ('"a text"', "no JSON object"),
        ("null", "no JSON object"),
        ("{", "an empty JSON object"),
        ("[" * 100_000, "no JSON object"),
        ("{" * 100_000, "no JSON object"),
        ("{'a':" * 30_000, "no JSON object"),
        ("<think>and so on", "nothing but thoughts"),
        ('<think>perhaps {"topic": "sleep"}', "nothing but thoughts"),
    ],
)
def test_what_cannot_be_read_keeps_its_text(text, reason):
    assert parse_json(text) == Failure(reason, text)


def test_a_list_may_be_wanted():
    assert parse_json("The list: [1, 2, 3]", kind=list) == Parsed([1, 2, 3])
    assert parse_json('{"a": 1}', kind=list) == Failure("no JSON list", '{"a": 1}')


def test_what_is_no_number_and_what_no_file_can_hold():
    assert parse_json('{"a": NaN, "b": -Infinity, "c": "\\ud800"}').value == {"a": None, "b": None, "c": "?"}


def test_a_check_has_the_last_word():
    def check(value):
        return None if "topic" in value else "no topic"

    assert parse_json(TEXT, check=check) == Parsed(VALUE)
    assert parse_json('{"a": 1}', check=check) == Failure("no topic", '{"a": 1}')


def test_one_more_try():
    asked = []

    def again(reason):
        asked.append(reason)
        return TEXT

    assert parse_json("rubbish", again) == Parsed(VALUE, "asked again") and asked == ["no JSON object"]
    assert parse_json(TEXT, again) == Parsed(VALUE) and len(asked) == 1
    assert parse_json("rubbish", lambda reason: "more rubbish") == Failure("no JSON object", "rubbish")
    assert parse_json("rubbish", lambda reason: None) == Failure("no JSON object", "rubbish")


@given(st.dictionaries(st.text(), json_values, min_size=1, max_size=4))
def test_whatever_is_json_is_read_as_it_is(value):
    assert parse_json(json.dumps(value)) == Parsed(value)


@given(st.text(alphabet="{}[]\":,\\ntruefalse0123456789 '`\ud800", max_size=120))
@settings(max_examples=200, deadline=None)
def test_no_text_raises(text):
    found = parse_json(text)
    assert isinstance(found.value, dict) and found.value if isinstance(found, Parsed) else found.raw == text


@given(st.dictionaries(st.text(max_size=5), json_values, min_size=1, max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_no_cut_raises(value, data):
    text = json.dumps(value)
    found = parse_json(text[: data.draw(st.integers(0, len(text)))])
    assert isinstance(found, Failure) or found.value


def test_one_bad_row_never_costs_the_others():
    def write(request: Request) -> str | Reply:
        last = request.messages[-1]["content"]
        if len(request.messages) > 1:  # the correction
            assert request.messages[1]["role"] == "assistant"
            assert last.startswith("This cannot be used: no JSON object.")
            return TEXT if "1" in request.messages[0]["content"] else "still nothing"
        return {"0": TEXT, "3": Reply("", "failed", reason="HTTP 400: too long"), "4": Reply('{"a": "b', "length")}.get(
            last, "no JSON at all"
        )

    client = ScriptedClient(write, last_first=True)
    requests = [Request(({"role": "user", "content": str(n)},)) for n in range(5)]
    assert dict(ask_for_json(client, requests)) == {
        0: Parsed(VALUE),
        1: Parsed(VALUE, "asked again"),
        2: Failure("no JSON object", "no JSON at all"),
        3: Failure("HTTP 400: too long", ""),
        4: Parsed({"a": "b"}, "repaired"),
    }
    assert len(client.asked) == 7
    assert len(dict(ask_for_json(ScriptedClient(write), requests, repair=False))) == 5
