"""The judge of how far two answers are apart."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_llm import ScriptedClient

from ntk_jax.llm.request import Reply, Request
from ntk_jax.llm.usable import Unusable
from ntk_jax.questions.judge import Divergence, divergence_wish, read_divergence
from ntk_jax.questions.voice import Voice


def read(text: str, finish: str = "stop", reason: str | None = None) -> Divergence | Unusable:
    return read_divergence(Reply(text, finish, reason=reason))


@pytest.mark.parametrize(
    "text",
    [
        '{"reason": "They differ.", "score": 3}',
        '{"score": "3"}',
        '{"score": "3/4"}',
        '{"score": "three"}',
        '{"score": 3.0}',
        '{"score": "SCORE: 3"}',
        '```json\n{"reason": "x", "score": 3}\n```',
        "SCORE: 3",
        "REASON: One is vague.\nSCORE: 3",
        "Score - 3",
        "**Score:** 3",
        "score 3/4",
        "The score is three.",
        "Score: 3 out of 4",
        "I give a score of 3.",
        "3",
        "three",
        "3/4",
        "3.",
        "REASON: 2 of the answers are long.\n3",
        "<think>Score: 1?</think>\nSCORE: 3",
        "SCORE: 3\nSCORE: 3",
        "SCORE: [3]",
        "SCORE: 3 points",
    ],
)
def test_three_points(text: str) -> None:
    found = read(text)
    assert isinstance(found, Divergence) and found.value == 0.75


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "an empty reply"),
        ("<think>so much", "nothing but thoughts"),
        ("They are quite alike.", "no score"),
        ("SCORE: 5", "a score outside 0 to 4"),
        ("SCORE: -1", "no score"),
        ('{"score": -1}', "a score outside 0 to 4"),
        ("SCORE: 75%", "no score"),
        ("SCORE: 3/5", "a score that is not of 4"),
        ("SCORE: 2.5", "a score that is no whole number"),
        ('{"score": 0.5}', "a score that is no whole number"),
        ('{"score": true}', "no score"),
        ('{"reason": "x", "score": null}', "no score"),
        ("SCORE: 0\nSCORE: 4", "several different scores"),
        ("2 answers, 2 opinions", "no score"),
    ],
)
def test_what_cannot_be_read_says_why_and_is_asked_again(text: str, why: str) -> None:
    assert read(text) == Unusable(why, again=True)


def test_failed_and_cut_replies() -> None:
    assert read("", "failed", "status 429") == Unusable("no reply: status 429", again=False)
    assert read('{"reason": "They are', "length") == Unusable("no score; cut at max_tokens", again=True)
    assert read("SCORE: 4\nREASON: they are", "length") == Divergence(1.0, "they are")


def test_the_reason_is_kept() -> None:
    assert read('{"reason": "One denies it.", "score": 4}') == Divergence(1.0, "One denies it.")
    assert read("REASON: One denies it.\nSCORE: 4") == Divergence(1.0, "One denies it.")


@settings(deadline=None)
@given(st.text(), st.sampled_from(["stop", "length"]))
def test_any_reply_is_read_or_refused(text: str, finish: str) -> None:
    for whole in (text, f"SCORE: {text}", json.dumps({"score": text})):
        found = read(whole, finish)
        assert isinstance(found, Unusable) or found.value in (0, 0.25, 0.5, 0.75, 1)


@settings(deadline=None)
@given(st.integers(0, 4), st.text(st.characters(codec="utf-8"), max_size=40))
def test_json_with_a_score_is_always_read(points: int, reason: str) -> None:
    found = read(json.dumps({"reason": reason, "score": points}))
    assert isinstance(found, Divergence) and found.value == points / 4


def wish(seed: int, question: str = "How long is the notice?", target: str = "60 days") -> tuple[Request, Request]:
    found = divergence_wish(question, "Notice is 30 days.", "30 days", target, seed=seed, max_tokens=50)
    assert found.json is not None
    return found.text[0], found.json[0]


def shown(request: Request) -> str:
    assert not isinstance(request.messages, str)
    return str(request.messages[0]["content"])


def test_both_forms_are_greedy_and_show_the_same() -> None:
    text, as_json = wish(0)
    assert text.temperature == as_json.temperature == 0.0 and text.max_tokens == 50
    assert text.schema is None and as_json.schema is not None
    assert shown(text).split("Reply with")[0] == shown(as_json).split("Reply with")[0]
    for words in ("Notice is 30 days.", "How long is the notice?", "First answer:\n", "Second answer:\n"):
        assert words in shown(text)
    for telling in ("expert", "target", "student", "teacher"):
        assert telling not in str(text.messages).lower()


def test_the_order_is_drawn_and_the_same_again() -> None:
    orders = ["First answer:\n30" in shown(wish(seed)[0]) for seed in range(200)]
    assert 70 < sum(orders) < 130, "a fair draw"
    assert wish(3) == wish(3)
    by_question = {"First answer:\n60" in shown(wish(0, f"Question {n}?")[0]) for n in range(20)}
    assert by_question == {True, False}, "within one run too"


def test_a_judge_that_likes_one_place_favours_nobody() -> None:
    """One that finds fault with the first answer alone gives the expert as many points as the target."""
    wishes = [divergence_wish(f"{n}?", "p", "right", "wrong", seed=1) for n in range(200)]
    voice = Voice("judge", ScriptedClient(lambda r: "SCORE: 4" if "First answer:\nwrong" in shown(r) else "SCORE: 0"))
    values = [one.value.value for one in voice.ask(wishes)]
    assert 0.35 < sum(values) / len(values) < 0.65
    assert [one.value.swapped for one in voice.ask(wishes)] == [value == 1 for value in values]


def test_a_missing_answer_is_shown_as_missing() -> None:
    assert "(no answer)" in shown(wish(0, target=" \n")[0])


def test_a_judge_without_json_is_asked_for_lines() -> None:
    def model(request: Request) -> str:
        return "SCORE: 2" if "two lines" in shown(request) else "I would rather not"

    voice = Voice("judge", ScriptedClient(model))
    said = voice.ask([divergence_wish(f"{n}?", "p", "a", "b", seed=0) for n in range(20)])
    assert voice.form == "text" and {one.value.value for one in said} == {0.5}


def test_no_message_is_the_systems() -> None:
    """There are chat templates that refuse such."""
    wish = divergence_wish("Q?", "P.", "a", "b", seed=0)
    assert wish.json is not None
    for request, _ in (wish.text, wish.json):
        assert [message["role"] for message in request.messages] == ["user"]  # type: ignore[index,call-overload]
