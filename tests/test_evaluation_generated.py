"""Generated answers: what a reply says, by each rule, and the comparison of arms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ntk_jax as nj
from ntk_jax.errors import UserError
from ntk_jax.evaluation.generated import (
    INSTRUCTION,
    Grading,
    compare_generated,
    expected_answer,
    question,
    read_answer,
    rule_of,
)
from ntk_jax.evaluation.tasks import metrics_of

PLAIN = {"id": "p", "source": "s", "prompt": "Why?", "response": "Because."}
CHOICE = {**PLAIN, "id": "c", "choices": ["a red fox", "a blue whale", "neither"], "answer": 1}
CHOICE["response"] = "a blue whale"


def with_response(text: str) -> dict[str, Any]:
    return {**PLAIN, "response": text}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B. a blue whale", "B"),
        (" (b) no, (C)", "C"),
        ("**C**", "C"),
        ("The answer is B.", "B"),
        ("I think A red fox is wrong. Answer: (B)", "B"),
        ("A blue whale.", "B"),  # spelled out; A is a word here
        ("It must be a red fox", "A"),
        ("A red fox or a blue whale", None),
        ("Because of B and C", None),
        ("I know not", None),
        ("", None),
    ],
)
def test_letters(reply: str, letter: str | None) -> None:
    assert read_answer(reply, CHOICE, "letter") == letter


@pytest.mark.parametrize(
    ("reply", "choices", "letter"),
    [
        ("I do not know.", ["yes", "no"], None),
        ("No, it does not.", ["yes", "no"], "B"),
        ("It is 10.", ["1", "20"], None),
        ("It is 1.5", ["1", "20"], None),
        ("It is 1.", ["1", "20"], "A"),
        ("C++ is older.", ["c++", "c#"], "A"),
        ("\u7b54\u6848\u662f\u732b\u5427", ["\u732b", "\u72d7"], "A"),
        ("\u0434\u0430, \u044d\u0442\u043e \u0442\u0430\u043a", ["\u0434\u0430", "\u043d\u0435\u0442"], "A"),
    ],
)
def test_a_choice_is_spelled_by_whole_words(reply: str, choices: list[str], letter: str | None) -> None:
    assert read_answer(reply, {**CHOICE, "choices": choices}, "letter") == letter


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("So 3 + 4 = 7.", "7"),
        ("It costs $1,234.50", "1234.5"),
        ("\u22123", "-3"),
        ("3-5", "5"),
        ("about 0.0", "0"),
        ("10,5 and 12,345", "12345"),
        ("a share of .5", "0.5"),
        ("<think>It is 3, not 4.</think>three", None),
        ("<think>Is it 3?", None),
        ("version 1.2.3", "3"),
        ("none", None),
    ],
)
def test_numbers(reply: str, number: str | None) -> None:
    assert read_answer(reply, PLAIN, "number") == number


@given(st.integers(-(10**9), 10**9), st.integers(0, 3))
def test_a_number_is_the_same_however_it_is_written(value: int, zeros: int) -> None:
    written = f"it is {value:,}" + ("." + "0" * zeros if zeros else "")
    assert read_answer(written, PLAIN, "number") == read_answer(f"#### {value}", PLAIN, "number") == str(value)


def test_exact_and_regex() -> None:
    assert read_answer("  BECAUSE ", PLAIN, "exact") == expected_answer(PLAIN, "exact", Grading()) == "because"
    grading = Grading("regex", r"So: (\w+)")
    assert read_answer("So: no. So: Yes", PLAIN, "regex", grading.pattern) == "yes"
    assert expected_answer(with_response("... So: yes"), "regex", grading) == "yes"
    assert expected_answer(with_response("Yes."), "regex", grading) == "yes"
    assert read_answer("no idea", PLAIN, "regex", grading.pattern) is None
    assert read_answer("So: none", PLAIN, "regex", r"So: (\d+)|So: none") is None


def test_auto_goes_by_the_record() -> None:
    found = [
        rule_of(record, "auto", "f") for record in (CHOICE, with_response("1,200"), with_response("x #### 4"), PLAIN)
    ]
    assert found == ["letter", "number", "number", "exact"]
    for rule, words in (("letter", "f: record 'p' has no choices"), ("number", "f: the response of record 'p'")):
        with pytest.raises(UserError, match=words):
            rule_of(PLAIN, rule, "f")


def test_choices_are_listed_behind_the_question() -> None:
    (asked,) = question(CHOICE, "letter")
    assert asked["content"] == f"Why?\n\nA. a red fox\nB. a blue whale\nC. neither\n\n{INSTRUCTION}"
    talk = {
        "id": "t",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"},
        ],
    }
    assert [message["content"] for message in question(talk, "exact")] == ["s", "u"]


def test_gradings_that_cannot_be() -> None:
    for options, words in (
        ({"rule": "best"}, "rule 'best' is not one of"),
        ({"rule": "regex"}, "that rule needs one"),
        ({"pattern": "a"}, "pattern goes with the rule regex"),
        ({"rule": "regex", "pattern": "("}, "no regular expression"),
    ):
        with pytest.raises(UserError, match=words):
            Grading(**options)


def test_a_file_is_asked_for_generated_answers() -> None:
    assert metrics_of([CHOICE], "f", ["generated", "accuracy"]) == ("accuracy", "generated")
    assert metrics_of([PLAIN], "f", ["generated"]) == ("generated",)
    assert metrics_of([PLAIN], "f", ["accuracy", "generated"]) == ("generated",)
    assert metrics_of([PLAIN], "f") == ("loss",) and metrics_of([CHOICE], "f") == ("accuracy",)


def line(name: str, correct: bool, **more: Any) -> dict[str, Any]:
    return {"id": name, "reply": "", "found": None, "expected": "x", "correct": correct, "finish": "stop", **more}


def test_arms_are_compared_on_the_questions_that_all_answered() -> None:
    base = [line("a", False), line("b", True), {"id": "c", "dropped": "too long"}, line("d", False, finish="length")]
    tuned = [line("a", True), line("b", True), line("c", True), line("d", False)]
    found = compare_generated({"base": {"t": base}, "tuned": {"t": tuned}}, bootstrap=200)
    (task,) = found["tasks"]
    assert (task["questions"], task["dropped"], task["results"]["base"]["cut"]) == (3, 1, 1)
    assert np.isclose(task["results"]["base"]["accuracy"], 1 / 3)
    (pair,) = found["paired"]
    assert np.isclose(pair["difference"], 1 / 3) and 0 <= pair["low"] <= 1 / 3 <= pair["high"] <= 1
    with pytest.raises(UserError, match="answered other questions of t"):
        compare_generated({"base": {"t": base}, "tuned": {"t": tuned[:2]}})
    with pytest.raises(UserError, match="no question of t has a reply"):
        compare_generated({"base": {"t": base[2:3]}})


def test_evaluate_asks_a_model() -> None:
    model = nj.load_model("builtin:model")
    records = [{"prompt": "How is the dish?", "response": text} for text in ("x", "y")]
    wanted = nj.sample(model, ["How is the dish?"], max_tokens=6, temperature=0.0, slots=2)[0].text
    records[0]["response"] = f" {wanted.upper()} "
    grading = nj.Grading("exact", max_tokens=6, slots=2)
    found = nj.evaluate(model, records, metrics=["generated"], grading=grading, bootstrap=20)
    assert [answer["correct"] for answer in found["answers"]["model"]["questions"]] == [True, False]
    assert found["generated"]["average"]["model"]["accuracy"] == 0.5 and "loss" not in found
