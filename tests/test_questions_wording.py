"""What is read of replies: questions, answers with quotes, verdicts; whatever a model writes, nothing is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_llm import ScriptedClient

from ntk_jax.llm.request import Reply, Request
from ntk_jax.llm.usable import Unusable
from ntk_jax.questions.question import Answer, Chunk, Slot
from ntk_jax.questions.voice import PROBE, Voice
from ntk_jax.questions.wording import (
    NOT_STATED,
    answer_wish,
    question_wish,
    read_answer,
    read_question,
    support_wish,
    target_wish,
)

CHUNK = Chunk("d#0", "d", "The lease", "test", "The rent is 40 pence. It is due in May.")
SLOT = Slot("d#0/0", "answerable", (CHUNK,))
HOW = {"seed": 1, "sample": 0, "temperature": 1.0, "top_p": 0.9, "max_tokens": 50}


def said(text: str, finish: str = "stop") -> Reply:
    return Reply(text, finish)


@pytest.mark.parametrize(
    ("text", "is_json", "expected"),
    [
        ('{"question": "When is the rent of the lease due?"}', True, "When is the rent of the lease due?"),
        ('```json\n{"Question": "When is the rent due?"}\n```', True, "When is the rent due?"),
        ('<think>hm</think>{"question": "When is the rent due?"}', True, "When is the rent due?"),
        ('{"question": ["When is the rent due?"]}', True, "When is the rent due?"),
        ("When is the rent due?", False, "When is the rent due?"),
        ("**Question:** When is the rent due?\nAnswer: May", False, "When is the rent due?"),
        ('Sure! Here is one:\n1. "When is the rent due?"', False, '1. "When is the rent due?'[4:]),
        ("The lease is short. When is the rent due? In May.", False, "When is the rent due?"),
        ("What does Acme Inc. owe under Section 2.1? Much.", False, "What does Acme Inc. owe under Section 2.1?"),
        ("In law, which fee does Acme Inc. pay? Much.", False, "In law, which fee does Acme Inc. pay?"),
        ("Acme has 30 days. What happens to the fee then? It ends.", False, "What happens to the fee then?"),
        ('{"question": "\u7532\u65b9\u5e94\u5728\u591a\u5c11\u5929\u5185\u4ed8\u6b3e\uff1f"}', True, "\uff1f"),
        (
            "\u597d\u3002\u7532\u65b9\u5e94\u4f55\u65f6\u4ed8\u6b3e\uff1f\u8c22",
            False,
            "\u7532\u65b9\u5e94\u4f55\u65f6\u4ed8\u6b3e\uff1f",
        ),
        ("\u0645\u0627 \u0647\u064a \u0645\u062f\u0629 \u0627\u0644\u0639\u0642\u062f\u061f", False, "\u061f"),
    ],
)
def test_questions(text: str, is_json: bool, expected: str) -> None:
    found = read_question(said(text), is_json=is_json)
    assert isinstance(found, str)
    assert found.endswith(expected)


@pytest.mark.parametrize(
    ("reply", "is_json", "reason", "again"),
    [
        (said(""), True, "an empty reply", False),
        (said("<think>and so on"), False, "nothing but thoughts", False),
        (said("I'm sorry, I cannot help with that."), False, "the model declined", False),
        (said("no JSON here"), True, "no JSON object", True),
        (said('{"query": "When?"}'), True, "no question in the JSON", True),
        (said("The rent is due in May."), False, "no question", False),
        (said("When is the rent", "length"), False, "no question; cut at max_tokens", False),
        (said("When due?"), False, "a question of too few words", False),
        (said("Is it " + "very " * 90 + "long?"), False, "a question of too many words", False),
        (Reply("", "failed", reason="HTTP 500"), False, "no reply: HTTP 500", False),
    ],
)
def test_what_is_no_question(reply: Reply, is_json: bool, reason: str, again: bool) -> None:
    assert read_question(reply, is_json=is_json) == Unusable(reason, again)


@pytest.mark.parametrize(
    ("text", "is_json", "expected"),
    [
        (
            '{"stated": true, "answer": "40 pence.", "quotes": ["The rent is 40 pence."]}',
            True,
            Answer("40 pence.", ("The rent is 40 pence.",)),
        ),
        ('{"answer": "40 pence", "quote": "The rent is 40"}', True, Answer("40 pence", ("The rent is 40",))),
        ('{"stated": false, "answer": "", "quotes": []}', True, Answer(NOT_STATED, (), False)),
        ('{"answer": "The document does not state it.", "quotes": []}', True,
         Answer("The document does not state it.", (), False)),
        ('ANSWER: It is 40 pence.\nQUOTE: "The rent is 40 pence."', False,
         Answer("It is 40 pence.", ("The rent is 40 pence.",))),
        ("ANSWER: NOT STATED.", False, Answer(NOT_STATED, (), False)),
        ("It is 40 pence.", False, Answer("It is 40 pence.")),
        (
            "ANSWER: The agreement does not provide for renewal.\nQUOTE: It ends in May and is not renewed.",
            False,
            Answer("The agreement does not provide for renewal.", ("It ends in May and is not renewed.",)),
        ),
        ("ANSWER: The agreement does not state it.", False, Answer("The agreement does not state it.", (), False)),
        ("ANSWER: The text does not say.\nQUOTE: It ends.", False, Answer("The text does not say.", (), False)),
        ("It is 40 pence.\nQuotes:\nThe rent is 40.", False, Answer("It is 40 pence.", ("The rent is 40.",))),
    ],
)  # fmt: skip
def test_answers(text: str, is_json: bool, expected: Answer) -> None:
    assert read_answer(said(text), is_json=is_json) == expected


def test_an_answer_that_was_cut_says_so() -> None:
    found = read_answer(said("ANSWER: It is 40 pence. It is due", "length"), is_json=False)
    assert found == Answer("It is 40 pence.", (), True, True)


@given(st.text(), st.booleans(), st.sampled_from(["stop", "length"]))
def test_any_text_is_an_answer_or_a_reason(text: str, is_json: bool, finish: str) -> None:
    for read in (read_question, read_answer):
        found = read(said(text, finish), is_json=is_json)
        assert isinstance(found, (str, Answer)) or found.reason
        if isinstance(found, str):
            assert found.endswith("?")
            assert "\n" not in found


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text()))))
def test_any_json_is_an_answer_or_a_reason(value: dict) -> None:
    text = json.dumps(value)
    for read in (read_question, read_answer):
        found = read(said(text), is_json=True)
        assert isinstance(found, (str, Answer)) or found.reason


def test_what_is_asked_shows_the_passage_the_part_and_earlier_questions() -> None:
    wish = question_wish(SLOT, ["What is the rent of the lease?"], "It is due in May.", **HOW)
    for request, _ in (wish.text, wish.json):
        text = request.messages[0]["content"]
        assert CHUNK.text in text
        assert "[The lease]" in text
        assert 'this part: "It is due in May."' in text
    assert "- What is the rent of the lease?" in wish.json[0].messages[0]["content"]
    assert "rent of the lease?" not in wish.text[0].messages[0]["content"]  # small models would copy it
    assert wish.json[0].schema is not None
    assert wish.text[0].schema is None


def test_a_target_reads_the_passage_or_the_question_alone() -> None:
    alone, seen = target_wish("When is it due?", None), target_wish("When is it due?", SLOT.passage)
    assert alone.text[0].messages == ({"role": "user", "content": "When is it due?"},)
    assert CHUNK.text in seen.text[0].messages[0]["content"]


class TestVoice:
    def test_a_model_that_writes_no_json_is_asked_in_plain_text(self) -> None:
        client = ScriptedClient(lambda request: "When is the rent of the lease due?", last_first=True)
        voice = Voice("generator", client)
        wishes = [question_wish(SLOT, [], None, **{**HOW, "seed": n}) for n in range(PROBE + 5)]
        found = voice.ask(wishes)
        assert [one.value for one in found] == ["When is the rent of the lease due?"] * len(wishes)
        assert voice.form == "text"
        assert voice.calls == PROBE + len(wishes)
        assert not voice.failures  # the probe is no failure: all were asked again

    def test_what_cannot_be_read_is_asked_for_once_more(self) -> None:
        def reply(request: Request) -> str:
            if len(request.messages) > 1:
                return '{"question": "When is the rent due?"}'
            return '{"question": "When is the rent due?"}' if request.seed % 3 else "It is due in"

        voice = Voice("generator", ScriptedClient(reply))
        found = voice.ask([question_wish(SLOT, [], None, **{**HOW, "seed": n}) for n in range(9)])
        assert all(one.usable for one in found)
        assert voice.account()["repaired"] == 3
        assert [one.calls for one in found] == [2, 1, 1] * 3

    def test_failures_are_counted_by_reason_and_lose_no_others(self) -> None:
        replies = {0: "", 1: "I'm sorry, no.", 2: "When is the rent due?", 3: Reply("", "failed", reason="HTTP 429")}
        voice = Voice("generator", ScriptedClient(lambda request: replies[request.seed]), "text")
        found = voice.ask([question_wish(SLOT, [], None, **{**HOW, "seed": n}) for n in range(4)])
        assert [one.usable for one in found] == [False, False, True, False]
        reasons = {"an empty reply": 1, "the model declined": 1, "no reply: HTTP 429": 1}
        assert voice.account()["failures"] == reasons
        assert voice.account()["calls"] == 4

    def test_verdicts(self) -> None:
        voice = Voice("judge", ScriptedClient(lambda request: '{"reason": "it says so", "answer": "no"}'))
        assert [one.value for one in voice.ask([support_wish(SLOT, "When?", "May.", max_tokens=9)])] == [False]

    def test_who_is_asked_in_plain_text_is_never_asked_for_json(self) -> None:
        asked = []

        def reply(request: Request) -> str:
            asked.append(request)
            return "Maybe." if len(request.messages) == 1 else "Yes."

        voice = Voice("judge", ScriptedClient(reply), "text")
        assert [one.value for one in voice.ask([support_wish(SLOT, "When?", "May.", max_tokens=9)])] == [True]
        assert len(asked) == 2 and asked[1].messages[-1]["content"].startswith("This cannot be used: ")
        assert not any("JSON" in str(message["content"]).split("used: ")[0] for message in asked[1].messages)
        assert asked[1].messages[-1]["content"].endswith("in the form that was asked for and nothing else.")

    def test_the_account_has_tokens_and_prompts(self) -> None:
        voice = Voice("expert", ScriptedClient(lambda request: "ANSWER: May.\nQUOTE: It is due in May."), "text")
        one = voice.ask([answer_wish(SLOT, "When is it due?")])[0]
        assert one.prompt in voice.prompts
        assert voice.account()["completion_tokens"] == 8
        assert one.tokens == (voice.account()["prompt_tokens"], 8)


@pytest.mark.parametrize(
    ("text", "is_json", "stated", "quotes"),
    [
        ('{"stated": "false", "answer": "It is left open.", "quotes": []}', True, False, ()),
        ('{"stated": "True", "answer": "In May.", "quotes": [{"text": "due in May"}]}', True, True, ("due in May",)),
        ("ANSWER: No, the lease does not provide for it, as the contract does not say so.", False, False, ()),
        ("ANSWER: No, the contract does not provide for it.\nQUOTE: It is due in May.", False, True,
         ("It is due in May.",)),
    ],
)  # fmt: skip
def test_what_is_stated(text: str, is_json: bool, stated: bool, quotes: tuple[str, ...]) -> None:
    found = read_answer(said(text), is_json=is_json)
    assert isinstance(found, Answer) and (found.stated, found.quotes) == (stated, quotes)


def test_a_negative_question_is_answered_with_yes_or_no() -> None:
    """Else `The tenant may not sublet.` would be no `no`."""
    for kind, asked in (("negative", True), ("answerable", False)):
        wish = answer_wish(Slot("d#0/0", kind, (CHUNK,)), "May the tenant sublet?")
        assert wish.json is not None
        assert [("Yes or with No" in str(request.messages)) for request, _ in (wish.text, wish.json)] == [asked] * 2


def test_replies_that_failed_do_not_decide_the_form() -> None:
    """A server that was down has not shown that its model writes no JSON."""
    voice = Voice("expert", ScriptedClient(lambda request: Reply("", "failed", reason="a timeout")))
    voice.ask([answer_wish(SLOT, f"When is the rent of year {n} due?") for n in range(PROBE)])
    assert voice.form == "json"
    assert voice.failures == {"no reply: a timeout": PROBE}


def test_failures_of_one_kind_are_counted_together() -> None:
    number = iter(range(100))

    def answer(request: Request) -> Reply:
        at = next(number)
        return Reply("", "failed", reason=f"request {at}: the chat template refuses the messages" if at % 2 else
                     f"the prompt has {1000 + at:,} tokens; the context has 512")  # fmt: skip

    voice = Voice("target", ScriptedClient(answer), "text")
    voice.ask([target_wish(f"Question {n}?", None) for n in range(6)])
    assert set(voice.failures.values()) == {3}


def test_a_verdict_is_not_read_in_thoughts() -> None:
    wish = support_wish(SLOT, "When is the rent due?", "In May.", max_tokens=20)
    _, read = wish.text
    assert isinstance(read(said("<think>there is no such", "length")), Unusable)
    assert read(said("<think>no?</think> Yes, it shows that.")) is True
