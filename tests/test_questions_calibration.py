"""Planted pairs of answers, and what judges and measures say of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_llm import ScriptedClient
from scripted_world import Scripted, likelihood, world

from ntk_jax.llm.request import Reply, Request
from ntk_jax.questions.agreement import agreement
from ntk_jax.questions.calibration import (
    calibrate,
    calibrate_agreement,
    calibrate_silence,
    calibrate_verdicts,
    items_of,
)
from ntk_jax.questions.loop import search
from ntk_jax.questions.numerals import is_number, numbered
from ntk_jax.questions.planted import KINDS, Planted, contradicted, paraphrased, planted_pairs
from ntk_jax.questions.question import Slot
from ntk_jax.questions.rounds import Settings, Voices
from ntk_jax.questions.voice import Voice

ITEMS = [
    ("How long is the notice?", "p1", "The notice period is thirty (30) days. The notice must be in writing."),
    ("May the licensee assign?", "p2", "Yes, the licensee may assign the agreement, but it does not have to."),
    ("May a party assign?", "p3", "No party may assign this agreement without consent."),
    ("When does it begin?", "p4", "It commences on May 5, 2020 and terminates after 1,200 hours under Section 4.2."),
    ("Which law governs?", "p5", "The laws of Nevada"),
    ("Must the agent pay?", "p6", "No. The agent is not required to pay the fee."),
    ("Who keeps the records?", "p7", "The distributor keeps all records for as long as the law asks for them."),
    ("Who pays the shipping?", "p8", "The buyer cannot refuse the goods and is required to pay for shipping."),
    ("Is it exclusive?", "p9", "Yes"),
    ("What is the fee?", "p10", "The fee is $1,000 for each of the 12 months."),
]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_each_item_gives_one_pair_of_each_kind() -> None:
    pairs = planted_pairs(ITEMS, 0)
    assert [pair.kind for pair in pairs] == list(KINDS) * len(ITEMS)
    assert planted_pairs(ITEMS, 0) == pairs != planted_pairs(ITEMS, 1)
    for pair in pairs:
        assert pair.same == (pair.kind in ("identical", "paraphrase")) and pair.how
        assert (pair.second == pair.first) == (pair.kind == "identical")
        assert (pair.question, pair.passage, pair.first) in ITEMS
    assert {pair.second.split()[0] for pair in pairs if pair.kind == "vague"} > {"This"}, "several wordings"


def test_items_without_an_answer_and_alone() -> None:
    assert planted_pairs([], 0) == [] == planted_pairs([("q", "p", " ")], 0)
    alone = planted_pairs([("q", "p", "Nevada")], 0)
    assert [pair.kind for pair in alone] == ["identical", "paraphrase", "vague"], "nothing to turn, no other answer"


@pytest.mark.parametrize(
    ("answer", "words", "how"),
    [
        ("It does not apply.", "it doesn't apply.", "contractions"),
        ("The term commences today.", "the term starts today.", "synonyms"),
        ("Pay in 30 days.", "Pay in thirty days.", "numbers in words"),
        (
            "The fee is due now. The rent is due later.",
            "the rent is due later. The fee is due now.",
            "order of sentences",
        ),
        ("The fee is due now. It is high enough.", "the fee is due now. It's high enough.", "contractions"),
        ("Acme Co. Nevada", "Acme Co. Nevada", "a lead-in"),
        ("Yes", "yes", "a lead-in"),
        ("Within 1,030 days", "within 1,030 days", "a lead-in"),
        ("-20 percent", "-20 percent", "a lead-in"),
    ],
)
def test_paraphrases(answer: str, words: str, how: str) -> None:
    text, rules = paraphrased(answer, rng())
    assert text.endswith(words) and how in rules and "passage" in text


@pytest.mark.parametrize(
    ("answer", "other", "how"),
    [
        ("Yes.", "No.", "yes and no"),
        ("no, it may not", "yes, it may", "yes and no"),
        ("Yes, the tenant may sublet. He must ask.", "No, the tenant may not sublet. He must not ask.", "yes and no"),
        ("The tenant may sublet.", "The tenant may not sublet.", "negation"),
        ("The tenant cannot sublet.", "The tenant can sublet.", "negation"),
        ("The tenant won't pay.", "The tenant will pay.", "negation"),
        ("No tenant may sublet.", "Every tenant may sublet.", "negation"),
        ("The tenant has no duty.", "The tenant has some duty.", "negation"),
        ("Neither tenant may sublet.", "Either tenant may sublet.", "negation"),
        ("Sublet without consent", "Sublet with consent", "negation"),
        ("Section 4.2 is void.", "Section 4.2 is not void.", "negation"),
    ],
)
def test_contradictions(answer: str, other: str, how: str) -> None:
    assert contradicted(answer, rng()) == (other, how)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 99))
def test_no_number_stays_the_same(number: int, seed: int) -> None:
    found = contradicted(f"Pay {number:,} on day {number}, or ${number}.", np.random.default_rng(seed))
    assert found is not None and found[1] == "numbers"
    old, new = numbered(f"{number}")[0], {word for word in numbered(found[0]) if is_number(word)}
    assert len(new) == 1 and old not in new, "one number three times becomes one other three times"


def test_a_scale_stays() -> None:
    found = contradicted("-2 million", rng())
    assert found is not None and re.fullmatch("-[0-9]+ million", found[0]) and found[0] != "-2 million"


def test_numbers_in_words_and_digits_change_together() -> None:
    made = contradicted("Within thirty (30) days or two hundred hours, as one of the parties likes.", rng())
    first = re.match(r"Within ([\w-]+) \(([0-9]+)\) days or ([0-9]+) hours, as one of", made[0] if made else "")
    assert first is not None and numbered(first[1]) == [first[2]] and first[2] != "30" and first[3] != "200"


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=5), st.text(max_size=40)), max_size=4))
def test_any_items(items: list[tuple[str, str, str]]) -> None:
    for pair in planted_pairs(items, 3):
        assert pair.first.strip() and pair.second
    json.dumps(calibrate_agreement(items, 3))


def judge(function: Callable[[Planted], str | Reply], items: list[tuple[str, str, str]] = ITEMS) -> Voice:
    """One that knows the pairs, as tests do."""
    pairs = planted_pairs(items, 0)

    def answer(request: Request) -> str | Reply:
        text = str(request.messages)
        shown = request.messages[0]["content"] if not isinstance(request.messages, str) else text
        for pair in pairs:
            both = {f"First answer:\n{pair.first}\n\nSecond answer:\n{pair.second}\n\n"}
            both.add(f"First answer:\n{pair.second}\n\nSecond answer:\n{pair.first}\n\n")
            if f"Question: {pair.question}\n" in shown and any(part in shown for part in both):
                return function(pair)
        raise AssertionError(shown)

    return Voice("judge", ScriptedClient(answer))


def score(points: int) -> str:
    return json.dumps({"reason": "so it seems", "score": points})


def test_a_perfect_judge() -> None:
    found = calibrate(judge(lambda pair: score(0 if pair.same else 4)), ITEMS, seed=0)
    assert (found["false_accept"], found["false_reject"], found["informedness"]) == (0, 0, 1) and not found["void"]
    assert found["kinds"]["vague"] == {"n": 10, "read": 10, "mean": 1.0, "different": 1.0}
    assert found["false_accept_interval"][1] == pytest.approx(0.2775, abs=1e-3) and found["pairs"] == 40
    json.dumps(found)


@pytest.mark.parametrize(("points", "accept", "reject"), [(0, 1.0, 0.0), (4, 0.0, 1.0)])
def test_a_judge_that_always_says_the_same_is_void(points: int, accept: float, reject: float) -> None:
    found = calibrate(judge(lambda _: score(points)), ITEMS, seed=0)
    assert (found["false_accept"], found["false_reject"]) == (accept, reject)
    assert found["informedness"] == 0 and found["void"] is True


def test_a_judge_that_takes_vague_answers_for_the_same() -> None:
    voice = judge(lambda pair: score(3 if pair.kind == "contradiction" else 1))
    found = calibrate(voice, ITEMS, seed=0)
    assert (found["false_accept"], found["false_reject"], found["informedness"]) == (0.5, 0, 0.5)
    assert found["kinds"]["vague"]["mean"] == 0.25 and found["kinds"]["vague"]["different"] == 0
    strict = calibrate(voice, ITEMS, seed=0, threshold=0.25)
    assert strict["false_reject"] == 1.0 and strict["false_accept"] == 0


def test_replies_that_cannot_be_read_are_counted_and_no_verdict() -> None:
    def model(pair: Planted) -> str | Reply:
        if pair.kind == "paraphrase":
            return "I like both."
        return Reply("", "failed", reason="status 500") if pair.kind == "identical" else score(4)

    found = calibrate(judge(model), ITEMS, seed=0)
    assert found["failures"] == {"no reply: status 500": 10, "no score": 10}
    assert found["false_reject"] is None and found["informedness"] is None and found["void"] is True
    assert found["kinds"]["paraphrase"] == {"n": 10, "read": 0, "mean": None, "different": None}
    assert found["false_reject_interval"] == [0.0, 1.0] and found["false_accept"] == 0


def test_nothing_to_calibrate_on_is_void() -> None:
    found = calibrate(judge(lambda _: score(0)), [], seed=0)
    assert found["pairs"] == 0 and found["void"] is True and found["false_accept"] is None


@pytest.mark.parametrize(("says", "accept", "reject"), [("yes", 1.0, 0.0), ("no", 0.0, 1.0), (None, 0.0, 0.0)])
def test_a_judge_of_answers_is_shown_one_of_the_two(says: str | None, accept: float, reject: float) -> None:
    """None: as is right. The passages are the questions' own, and the right answer is not given away."""
    planted = {(pair.question, pair.second): pair for pair in planted_pairs(ITEMS, 0)}
    seen = []

    def reply(request: Request) -> str:
        text = str(request.messages[0]["content"])  # type: ignore[index,call-overload]
        (question, answer) = re.findall(r"\n\nQuestion: (.*)\nAnswer: (.*)\n\nDoes the passage show", text, re.DOTALL)[
            0
        ]
        pair = planted[question, answer]
        assert pair.passage in text and (pair.first == answer or pair.first not in text.split("Question:")[1])
        seen.append(pair)
        return json.dumps({"reason": "r", "answer": says or ("yes" if pair.same else "no")})

    found = calibrate_verdicts(Voice("judge", ScriptedClient(reply), "json"), ITEMS, seed=0)
    assert len(seen) == found["pairs"] == 40
    assert (found["false_accept"], found["false_reject"]) == (accept, reject)
    assert found["void"] is (says is not None)


@pytest.mark.parametrize(("says", "accept", "reject"), [("yes", 1.0, 0.0), ("no", 0.0, 1.0), (None, 0.0, 0.0)])
def test_a_judge_of_silence_sees_every_passage_with_two_questions(
    says: str | None, accept: float, reject: float
) -> None:
    """None: as is right."""
    own = {question: passage for question, passage, _ in ITEMS}
    seen = []

    def reply(request: Request) -> str:
        text = str(request.messages[0]["content"])  # type: ignore[index,call-overload]
        (question,) = re.findall(r"\n\nQuestion: (.*)\n", text)
        assert "does not answer this question" in text
        seen.append(own[question] in text)
        return json.dumps({"reason": "r", "answer": says or ("no" if seen[-1] else "yes")})

    found = calibrate_silence(Voice("judge", ScriptedClient(reply), "json"), ITEMS, seed=0)
    assert seen == [True, False] * 10 and [kind["n"] for kind in found["kinds"].values()] == [10, 10]
    assert (found["false_accept"], found["false_reject"], found["void"]) == (accept, reject, says is not None)
    assert calibrate_silence(Voice("judge", ScriptedClient(reply), "json"), ITEMS[:1] * 3, seed=0) == {}


def test_a_passage_of_two_chunks_is_no_other_to_either() -> None:
    (first, a, _), (second, b, _) = ITEMS[:2]
    both = ("What do they share?", f"{a}\n\n{b}", "The county.")
    asked = []

    def reply(request: Request) -> str:
        asked.append(str(request.messages[0]["content"]))  # type: ignore[index,call-overload]
        return json.dumps({"reason": "r", "answer": "no"})

    found = calibrate_silence(Voice("judge", ScriptedClient(reply), "json"), [ITEMS[0], both, ITEMS[1]], seed=0)
    assert [kind["n"] for kind in found["kinds"].values()] == [2, 3]  # to the passage of both none is foreign
    assert sum(first in text for text in asked) == sum(second in text for text in asked) == 2


@pytest.mark.parametrize("says", ["yes", "no"])
def test_pairs_are_planted_on_what_the_judge_refused_as_well(says: str) -> None:
    """Else one that always says no would have none, and of one that lets the wrong ones pass all would be right."""
    made = world(0)
    voices = [Voice(name, Scripted(made, name)) for name in ("generator", "expert", "target", "reviser")]
    judge = Voice("judge", ScriptedClient(lambda _: json.dumps({"reason": "r", "answer": says})), "json")
    slots = [Slot(f"{chunk.id}/0", "answerable", (chunk,)) for chunk in made.chunks]
    found = search(slots, Voices(*voices, judge=judge), Settings(rounds=1), target=likelihood(made))
    assert all((trace.standing is not None) <= (says == "yes") for trace in found.traces)
    items = items_of(found.traces, 10, seed=0)
    places = [made.chunks.index(next(chunk for chunk in made.chunks if chunk.text in item[1])) for item in items]
    assert len(set(places)) == 10 and max(places) > 10  # from all over
    assert all(question == f"What is the {answer[4:].split(' is ')[0]}?" for question, _, answer in items)
    about = calibrate_verdicts(judge, items, seed=0)
    assert about["void"] and about["false_reject"] == (says == "no")
    every = items_of(found.traces, 99, seed=0)
    assert (
        items_of(found.traces, 0, seed=0) == [] and len(every) > 10 and [one for one in every if one in items] == items
    )


def test_agreement_tells_the_planted_pairs_apart() -> None:
    found = calibrate_agreement(ITEMS, 0)
    assert found.keys() == calibrate(judge(lambda _: score(0)), ITEMS, seed=0).keys()
    assert found["kinds"]["identical"]["mean"] == 0 and found["false_reject"] == 0
    assert found["false_accept"] <= 0.05 and not found["void"]


def test_the_pairs_do_what_their_kind_says() -> None:
    pairs = [pair for seed in range(5) for pair in planted_pairs(ITEMS, seed)]
    for pair in pairs:
        alike = agreement(pair.first, pair.second)
        assert alike >= 0.6 if pair.same else alike <= 0.5, pair
