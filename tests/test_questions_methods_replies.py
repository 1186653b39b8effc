"""Readers of what models write for the methods: whatever a reply holds, they return what was asked for or a reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_methods import words

from ntk_jax.llm.request import Reply
from ntk_jax.llm.usable import Unusable
from ntk_jax.questions.methods import naming
from ntk_jax.questions.methods.replies import (
    array_reader,
    fitting,
    labelled,
    lines_of,
    lines_reader,
    pairs_reader,
    parts_reader,
    text_reader,
)

READERS = {
    "text": text_reader("Say it once more.", words(40, "passage")),
    "lines": lines_reader("facts", 2, 20),
    "array": array_reader("facts", 2, 20, ("fact",)),
    "pairs": pairs_reader(as_json=False),
    "JSON pairs": pairs_reader(as_json=True),
    "parts": parts_reader(("same", "opposite"), as_json=False),
    "JSON parts": parts_reader(("same", "opposite"), as_json=True),
    "naming": naming.read_lines,
    "JSON naming": naming.read_json,
}
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
KEYS = st.sampled_from(["facts", "fact", "pairs", "question", "answer", "same", "opposite", "entities", "summary", "x"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
LINES = st.lists(
    st.tuples(
        st.sampled_from(["", "- ", "1. ", "Question: ", "A: ", "**Same:** ", "Opposite: ", "Summary:", "```\n"])
    ).flatmap(lambda mark: st.text(max_size=40).map(lambda text: mark[0] + text)),
    max_size=6,
).map("\n".join)


@given(VALUES.map(json.dumps) | LINES | st.text(), st.sampled_from(["stop", "length", "failed"]))
def test_no_reply_is_too_much_for_any_reader(text: str, finish: str) -> None:
    for name, read in READERS.items():
        found = read(Reply(text, finish, reason="time-out"))
        assert found or isinstance(found, Unusable), name
        if isinstance(found, Unusable):
            assert found.reason and (not found.again or "JSON" in name or name == "array")
        if finish == "failed":
            assert found == Unusable("no reply: time-out")
        if isinstance(found, list):
            assert all(isinstance(item, str) and item or len(item) == 2 and all(item) for item in found)


TEXTS = st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=3, max_size=9).map(" ".join)


@given(
    st.lists(TEXTS, min_size=1, max_size=6, unique=True),
    st.sampled_from(["- {}", "{}", "{n}. {}", "* **{}**", '"{}",']),
)
def test_a_list_comes_back_in_whatever_way_it_is_written(texts: list[str], form: str) -> None:
    lines = "\n".join(form.format(text, n=n) for n, text in enumerate(texts, 1))
    assert lines_of(lines) == texts
    assert READERS["lines"](Reply(lines, "stop")) == texts
    for value in ({"Facts": texts}, texts, {"facts": [{"fact": text, "why": 1} for text in texts]}):
        assert READERS["array"](Reply(json.dumps(value), "stop")) == texts
        assert READERS["array"](Reply(f"Sure, here it is:\n```json\n{json.dumps(value)}\n```", "stop")) == texts


@given(st.lists(st.tuples(TEXTS, TEXTS).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=5, unique=True))
def test_pairs_come_back_in_whatever_way_they_are_written(pairs: list[tuple[str, str]]) -> None:
    for form in ("Question: {}\nAnswer: {}", "{n}. **Q:** {}\n**A:** {}", "Q{n}: {}\n\nA{n}: {}\n"):
        text = "\n".join(form.format(*pair, n=n) for n, pair in enumerate(pairs, 1))
        assert READERS["pairs"](Reply(text, "stop")) == pairs
        cut = READERS["pairs"](Reply(text, "length"))
        assert cut == pairs[:-1] or (len(pairs) == 1 and isinstance(cut, Unusable))
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    for value in ({"pairs": rows}, rows, rows[0]):
        assert READERS["JSON pairs"](Reply(json.dumps(value), "stop")) == (pairs[:1] if value is rows[0] else pairs)


def test_what_is_no_pair_is_left_out() -> None:
    rows = [{"question": "What is due here?"}, {"question": 7, "answer": 8}, "x", None, {"answer": "Yes."}]
    read = READERS["JSON pairs"]
    assert read(Reply(json.dumps({"pairs": rows}), "stop")) == Unusable("no question with its answer", again=True)
    rows.append({"question": "What is due here?", "answer": 30})
    assert read(Reply(json.dumps({"pairs": rows}), "stop")) == [("What is due here?", "30")]
    assert read(Reply(json.dumps({"question": "Is it so?", "answer": "is it so"}), "stop")).again


def test_of_a_cut_reply_what_stands_last_is_left_out() -> None:
    assert READERS["array"](Reply('{"facts": ["one two", "three fo', "length")) == ["one two"]
    assert READERS["lines"](Reply("one two\nthree fo", "length")) == ["one two"]
    assert READERS["array"](Reply('{"facts": ["one two"]} and so on', "length")) == ["one two"], "the JSON is whole"
    assert READERS["array"](Reply('{"facts": ["one tw', "length")) == Unusable("no facts in the JSON", again=True)
    parts = READERS["JSON parts"](Reply('{"same": "it is so", "opposite": "it is n', "length"))
    assert parts == Unusable("no opposite", again=True)
    assert READERS["parts"](Reply("Same: it is so\nOpposite: it is n", "length")) == Unusable("no opposite")
    assert READERS["JSON pairs"](Reply('{"question": "Is it so now?", "answer": "It i', "length")).again
    assert READERS["text"](Reply(words(30, 1) + ". And", "length")).text == words(30, 1) + "."


def test_prose_that_declines_is_not_asked_for_again() -> None:
    for name, read in READERS.items():
        assert read(Reply("I'm sorry, but I cannot do this.", "stop")) == Unusable("the model declined"), name


def test_a_text_that_copies_or_repeats_is_refused() -> None:
    passage = words(40, "passage")
    read = text_reader("Say all of this once more for a child of ten years.", passage)
    assert read(Reply(passage.upper(), "stop")) == Unusable("a copy of the passage")
    assert read(Reply("again and again " * 20, "stop")) == Unusable("the text repeats itself")
    echo = read(Reply("Say all of this once more for a child of ten years. " + words(12, 2), "stop"))
    assert echo == Unusable("the text repeats the question")
    assert read(Reply(words(10, 3), "stop")) == Unusable("fewer than 20 words")
    assert text_reader("", words(8, 4))(Reply(words(5, 5), "stop")).text == words(5, 5), "a short passage, a short text"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Summary: It is about a sale.\n- Acme Corp\n- 30 June 2020", ["Acme Corp", "30 June 2020"]),
        (
            "**Summary:** It is about a sale.\n\nEntities:\n1. **Acme Corp** - the seller\n2. Bolt: the buyer of it",
            None,
        ),
        ("It is about a sale between two firms that trade in bolts.\nAcme Corp\nBolt", ["Acme Corp", "Bolt"]),
        ("Acme Corp, Bolt, Corex Limited\nSummary: It is about a sale.", ["Acme Corp", "Bolt", "Corex Limited"]),
        (
            "Summary: It is about a sale.\nDates: May 1, 2020, Sept. 30, 2021; $1,000,000, Acme Corp",
            ["May 1, 2020", "Sept. 30, 2021", "$1,000,000", "Acme Corp"],
        ),
        ("Summary: It is about a sale.\nMay 1, 2020", ["May 1, 2020"]),
        (
            "Summary: It is about a sale.\n- **Parties:** Acme Corp, Bolt, Corex Limited\nDate: 30 June 2020\n"
            "Persons and organisations: Ann Lee\nPlaces: none\nAmounts: None stated.\nTerm: Closing Date",
            ["Acme Corp", "Bolt", "Corex Limited", "30 June 2020", "Ann Lee", "Closing Date"],
        ),
    ],
)
def test_names_are_read_of_plain_lines(text: str, names: list[str] | None) -> None:
    summary, found = naming.read_lines(Reply(text, "stop"))
    assert summary.startswith("It is about a sale") and found == (names or ["Acme Corp", "Bolt"])


def test_names_and_summary_of_json() -> None:
    value = {"entities": [{"name": "Acme", "type": "firm"}, "Bolt", None, words(20, 1)], "summary": ["It", "is."]}
    assert naming.read_json(Reply(json.dumps(value), "stop")) == ("It is.", ["Acme", "Bolt"])
    assert naming.read_json(Reply('["Acme", "Bolt"]', "stop")) == ("", ["Acme", "Bolt"])
    assert naming.read_json(Reply('{"summary": "It is."}', "stop")) == Unusable("no entities in the JSON", again=True)


def test_labels_hold_what_follows_them() -> None:
    text = "Well.\n**Same**: it is so\nindeed\n2) opposite : it **is** not"
    assert labelled(text, ("same", "opposite")) == [("same", "it is so indeed"), ("opposite", "it is not")]


def test_texts_are_taken_once_whatever_their_capitals() -> None:
    assert fitting(["One two", "one TWO", "three", "!! ??", "a b c d"], 2, 3) == ["One two"]
