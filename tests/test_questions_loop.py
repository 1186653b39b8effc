"""The loop: what takes the place of what, when it stops, and that batches change nothing."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_llm import ScriptedClient
from scripted_world import GAPS, Scripted, World, likelihood, world

from ntk_jax.data.words import text_hash
from ntk_jax.errors import TryAgain, UserError
from ntk_jax.llm.request import Reply, Request
from ntk_jax.questions.gaps import spread
from ntk_jax.questions.loop import search
from ntk_jax.questions.question import NO_GAIN, Answer, Chunk, Slot, Trace, Version
from ntk_jax.questions.records import reason_of
from ntk_jax.questions.rounds import Settings, Voices
from ntk_jax.questions.slots import part_of, plan_slots
from ntk_jax.questions.verify import any_sentence, consistency_of, fault_of_answer, found_quotes, second_opinion
from ntk_jax.questions.voice import Voice


def voices_of(made: World, judged: bool = True, **others: Any) -> Voices:
    def voice(name: str) -> Voice:
        return Voice(name, others.get(name) or Scripted(made, name))

    return Voices(*map(voice, ("generator", "expert", "target", "reviser")), judge=voice("judge") if judged else None)


def slots_of(made: World, each: int = 2) -> list[Slot]:
    return [Slot(f"{c.id}/{n}", "answerable", (c,), n) for c in made.chunks for n in range(each)]


def calls_of(voices: Voices) -> int:
    return sum(voice.calls for voice in vars(voices).values() if voice is not None)


@given(st.integers(0, 1000), st.integers(0, 4), st.integers(1, 3), st.floats(0, 0.5), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_version_takes_a_place_only_with_a_larger_gap(
    seed: int, rounds: int, patience: int, gain: float, feedback: bool
) -> None:
    made = world(seed, 4)
    how = Settings(rounds=rounds, patience=patience, min_gain=gain, feedback=feedback, seed=seed)
    found = search(slots_of(made), voices_of(made), how, target=likelihood(made))
    for trace in found.traces:
        taken = [version for version in trace.versions if version.accepted]
        assert all(version.fault is None and version.gap is not None for version in taken)
        assert all(b.gap > a.gap + gain for a, b in zip(taken, taken[1:], strict=False))
        assert trace.standing is (taken[-1] if taken else None)
        assert len(trace.versions) <= rounds + 1
        stale = 0
        for version in trace.versions:
            assert stale < patience  # nothing is tried behind the last chance
            stale = 0 if version.accepted else stale + any(one.accepted for one in trace.versions[: version.round])
        questions = [version.question for version in trace.versions if version.fault != "question: asked before"]
        assert len(set(questions)) == len(questions)


def test_all_chunks_together_or_one_at_a_time_find_the_same() -> None:
    """A chunk's questions depend on its own alone, once the measure of the run is given by chunks of like answers."""
    made = world(3, 5)
    how = Settings(rounds=2, seed=3)
    together = search(slots_of(made), voices_of(made), how, target=likelihood(made)).traces
    alone = [
        trace
        for chunk in made.chunks
        for trace in search(
            [slot for slot in slots_of(made) if slot.chunks == (chunk,)], voices_of(made), how, target=likelihood(made)
        ).traces
    ]
    shown = [[(v.question, v.accepted, v.fault) for v in trace.versions] for trace in together]
    assert shown == [[(v.question, v.accepted, v.fault) for v in trace.versions] for trace in alone]


def test_enough_patience_rounds_and_budget_stop() -> None:
    made = world(0, 4)

    def stopped(**how: Any) -> set[str | None]:
        found = search(slots_of(made), voices_of(made), Settings(**how), target=likelihood(made))
        return {trace.stopped for trace in found.traces}

    assert "enough" in stopped(rounds=6, patience=6, enough=2.0)
    assert stopped(rounds=0) == {"rounds"}
    assert "patience" in stopped(rounds=8, patience=1)
    assert "budget" in stopped(rounds=6, calls=60)


@pytest.mark.parametrize("calls", [10, 40, 100, 400])
def test_the_budget_of_calls_holds(calls: int) -> None:
    made = world(1, 6)
    voices = voices_of(made)
    search(slots_of(made), voices, Settings(rounds=4, calls=calls), target=likelihood(made))
    assert calls_of(voices) <= calls


def test_no_feedback_is_asked_for_where_it_is_not_wanted() -> None:
    made = world(0, 3)
    found = search(slots_of(made), voices_of(made), Settings(rounds=2, feedback=False), target=likelihood(made))
    assert all(version.feedback is None for trace in found.traces for version in trace.versions)
    found = search(slots_of(made), voices_of(made), Settings(rounds=2), target=likelihood(made))
    revised = [version for trace in found.traces for version in trace.versions if "feedback" in version.prompts]
    assert revised
    assert all(version.feedback for version in revised)


@pytest.mark.parametrize("sees", [True, False])
def test_the_target_sees_the_document_or_does_not(sees: bool) -> None:
    made = world(0, 3)
    seen: list[str] = []

    def target(request: Request) -> str:
        seen.append(request.messages[0]["content"])
        return "I do not know."

    voices = voices_of(made, target=ScriptedClient(target))
    search(slots_of(made), voices, Settings(rounds=0, sees_document=sees), target=likelihood(made))
    assert seen
    assert all(("Here is a passage" in text) is sees for text in seen)


def test_the_judge_and_the_likelihood_can_rank_together() -> None:
    made = world(0, 6)

    def judge(request: Request) -> str:
        text = request.messages[-1]["content"]
        if "Judge by the passage alone" in text:
            return '{"reason": "so", "answer": "yes"}'
        return json.dumps({"reason": "so", "score": text_hash(text) % 5})

    voices = voices_of(made, judge=ScriptedClient(judge))
    for signal in ("judge", "both"):
        found = search(slots_of(made), voices, Settings(rounds=1, signal=signal), target=likelihood(made))
        gaps = [trace.standing.gap for trace in found.traces if trace.standing]
        assert len(set(gaps)) > 2
        assert all("judge" in trace.standing.signals for trace in found.traces if trace.standing)


def test_the_band_prefers_what_the_target_sometimes_knows() -> None:
    made = world(0, 6)

    def target(request: Request) -> str:
        """Knows a third of the facts, never knows another third, and of the last knows half of the time."""
        text = request.messages[0]["content"]
        kind = sum(map(ord, text)) % 3
        right = kind == 0 or (kind == 2 and random.Random(request.seed + request.sample).random() < 0.5)
        return Scripted(made)._target(text, random.Random(0)) if right else "Nobody can say."

    how = Settings(rounds=1, signal="band", samples=8, draw_temperature=1.0)
    found = search(slots_of(made), voices_of(made, judged=False, target=ScriptedClient(target)), how)
    versions = [v for trace in found.traces for v in trace.versions if "band" in v.signals]
    for version in versions:
        share, sure = version.signals["target_right"], version.signals["consistency"]
        assert version.gap == version.signals["band"] == pytest.approx(4 * share * (1 - share) * sure)
    assert any(0 < v.signals["target_right"] < 1 for v in versions)


@pytest.mark.parametrize("signal", ["judge", "both", "band"])
def test_a_target_that_gives_no_reply_has_not_answered_wrongly(signal: str) -> None:
    """Or what cannot be asked, such as a passage beyond its context, would have the largest gap of all."""
    made = world(0, 6)
    silent = made.chunks[0].title

    def target(request: Request) -> str | Reply:
        text = str(request.messages[0]["content"])
        if silent in text:
            return Reply("", "failed", reason="time-out")
        right = random.Random(text + str(request.sample)).random() < 0.5
        return Scripted(made)._target(text, random.Random(0)) if right else "Nobody can say."

    def judge(request: Request) -> str:
        text = str(request.messages[0]["content"])
        if "how far apart" in text:
            return json.dumps({"reason": "so", "score": 4 if "(no answer)" in text else text_hash(text) % 4})
        return '{"reason": "so", "answer": "yes"}'

    voices = voices_of(made, target=ScriptedClient(target), judge=ScriptedClient(judge))
    found = search(slots_of(made), voices, Settings(rounds=1, signal=signal), target=likelihood(made))
    of_silent = [trace for trace in found.traces if trace.slot.chunks[0].title == silent]
    assert of_silent and not any(trace.standing for trace in of_silent)
    assert "target: no reply: time-out" in map(reason_of, of_silent)
    assert any(trace.standing for trace in found.traces)


def test_an_expert_that_gives_no_further_reply_is_not_said_to_answer_otherwise() -> None:
    made = world(0, 6)

    def expert(request: Request) -> str | Reply:
        gone = Reply("", "failed", reason="time-out")
        return gone if request.temperature > 0 else Scripted(made).answer(request)

    voices = voices_of(made, expert=ScriptedClient(expert))
    found = search(slots_of(made), voices, Settings(rounds=0), target=likelihood(made))
    reasons = set(map(reason_of, found.traces))
    assert "expert, asked again: no reply: time-out" in reasons
    assert not any("otherwise" in reason for reason in reasons)


@pytest.mark.parametrize("error", [UserError, TryAgain])
def test_where_a_client_stops_is_said(error: type[Exception]) -> None:
    made, asked = world(0, 6), [0]

    def generator(request: Request) -> str:
        asked[0] += 1
        if asked[0] > 5:
            raise error("it is gone")
        return Scripted(made).answer(request)

    voices = voices_of(made, generator=ScriptedClient(generator))
    voices.generator.form = "json"
    with pytest.raises(error, match="^round 0: questions: 5 of 12 replies are there; it is gone$"):
        search(slots_of(made), voices, Settings(rounds=1), target=likelihood(made))


def test_a_spread_has_no_negative_zero() -> None:
    assert str(spread([-1e-12, -1e-12])["mean"]) == "0.0"


def test_equal_gaps_end_the_loop() -> None:
    made = world(0, 6)
    with pytest.raises(UserError, match="is 0.5 for all"):
        search(slots_of(made), voices_of(made), Settings(rounds=1), target=lambda records: [
            (4.0 - 2.0 * ("Here is a passage" in record["messages"][0]["content"]), 4) for record in records
        ])  # fmt: skip


CHUNK = Chunk("d#0", "d", "Lease", "test", "The rent is 40 pence. The tenant may not sublet the meadow; nor sell it.")
OTHER = Chunk("e#0", "e", "Deed", "test", "The toll is 9 pence.")


@pytest.mark.parametrize(
    ("kind", "answer", "fault"),
    [
        ("answerable", Answer("It is 40 pence.", ("The rent is 40 pence.",)), None),
        ("answerable", Answer("It is 40 pence.", ("the rent  is 40 PENCE",)), None),
        ("answerable", Answer("It is 40 pence."), "no quote"),
        ("answerable", Answer("It is 40 pence.", ("The rent is 50 pence.",)), "does not stand"),
        ("answerable", Answer("It says nothing.", (), False), "does not answer"),
        ("answerable", Answer("It is", ("The rent is 40 pence.",), True, True), "cut"),
        ("unanswerable", Answer("It says nothing.", (), False), None),
        ("unanswerable", Answer("It is 40 pence.", ("The rent is 40 pence.",)), "should not"),
        ("negative", Answer("No, it may not be sublet.", ("The tenant may not sublet the meadow",)), None),
        ("negative", Answer("It may not be sublet.", ("The tenant may not sublet the meadow",)), "not no"),
        ("cross", Answer("The rent is more.", ("The rent is 40 pence.", "The toll is 9 pence.")), None),
        ("cross", Answer("The rent is 40.", ("The rent is 40 pence.",)), "one passage alone"),
    ],
)
def test_what_an_answer_must_be(kind: str, answer: Answer, fault: str | None) -> None:
    chunks = (CHUNK, OTHER) if kind == "cross" else (CHUNK,)
    found = fault_of_answer(Slot("d#0/0", kind, chunks), answer)
    assert (found is None) if fault is None else fault in str(found)


def test_quotes_can_be_found() -> None:
    slot = Slot("d#0/0", "answerable", (CHUNK,))
    made_up = found_quotes(slot, Answer("The rent is 40 pence.", ("rent forty",)))
    assert made_up.quotes == ("The rent is 40 pence.",)
    assert fault_of_answer(slot, made_up) is None
    assert found_quotes(slot, Answer("It rains in May.", ("rain",))).quotes == ()
    right = Answer("It is 40 pence.", ("The rent is 40 pence.",))
    assert found_quotes(slot, right) is right


def test_an_expert_that_is_not_sure() -> None:
    slot = Slot("d#0/0", "answerable", (CHUNK,))
    answer = Answer("The rent is 40 pence.")
    assert consistency_of(slot, answer, [answer, answer]) == pytest.approx(1)
    assert consistency_of(slot, answer, [Answer("The rent is 50 pence."), Answer("", (), False)]) == pytest.approx(0)
    silent = dataclasses.replace(slot, kind="unanswerable")
    assert consistency_of(silent, Answer("x", (), False), [Answer("y", (), False), answer]) == 0.5


def test_a_second_judge_sends_a_question_back_to_an_earlier_version() -> None:
    slot = Slot("d#0/0", "answerable", (CHUNK,))

    def trace() -> Trace:
        versions = [
            Version(n, f"Question number {n} on the lease?", Answer("40.", ("40",)), gap=float(n), accepted=n != 1)
            for n in range(3)
        ]
        return Trace(slot, versions=versions, best=2)

    def judge(*refused: int) -> Voice:
        def verdict(request: Request) -> str:
            no = any(f"number {n}" in request.messages[0]["content"] for n in refused)
            return json.dumps({"reason": "so", "answer": "no" if no else "yes"})

        return Voice("second", ScriptedClient(verdict))

    one = trace()
    assert second_opinion([one], judge(2)) == [one.versions[0]]
    assert one.versions[2].fault == "the second judge finds that the passage does not give this answer"
    said = [json.loads(one.versions[n].verdicts["second verdict"])["answer"] for n in (0, 2)]
    assert said == ["yes", "no"] and [one.versions[n].calls for n in range(3)] == [1, 0, 1]  # what it took is there
    assert one.versions[1].verdicts == {} and len(one.versions[0].prompts["second verdict"]) == 12
    assert second_opinion([trace()], judge(0, 2)) == [None]
    one = trace()
    assert second_opinion([one], None) == [one.versions[2]]


class TestSlots:
    CHUNKS = [Chunk(f"{d}#{n}", d, d, "s", f"A{n} b. C{n} d. E f.") for d in ("x", "y") for n in range(5)]  # noqa: RUF012

    def test_texts_without_spaces_have_sentences_to_ask_about(self) -> None:
        assert any_sentence("甲方应在三十日内付款。好。", 1) == "甲方应在三十日内付款。"

    def test_shares_are_exact_and_seeded(self) -> None:
        found, _ = plan_slots(self.CHUNKS, 4, {"negative": 0.25, "cross": 0.1, "unanswerable": 0.05}, 7)
        kinds = [slot.kind for slot in found]
        assert {kind: kinds.count(kind) for kind in set(kinds)} == {
            "answerable": 24, "negative": 10, "cross": 4, "unanswerable": 2
        }  # fmt: skip
        assert [slot.kind for slot in plan_slots(self.CHUNKS, 4, {"negative": 0.25}, 7)[0]] != kinds
        assert len({slot.id for slot in found}) == 40
        for slot in found:
            if slot.kind == "cross":
                assert slot.chunks[0].document != slot.chunks[1].document

    def test_a_cross_question_needs_a_second_chunk(self) -> None:
        assert {slot.kind for slot in plan_slots(self.CHUNKS[:1], 3, {"cross": 1.0}, 0)[0]} == {"answerable"}
        assert {slot.kind for slot in plan_slots(self.CHUNKS[:2], 3, {"cross": 1.0}, 0)[0]} == {"cross"}

    @given(st.lists(st.sampled_from("abc"), min_size=2, max_size=8), st.integers(0, 99))
    def test_the_second_chunk_is_drawn_evenly_from_other_documents(self, names: list[str], seed: int) -> None:
        chunks = [Chunk(str(n), name, name, "s", "A b.") for n, name in enumerate(names)]
        draws = np.random.default_rng([seed, 0x51])
        draws.permutation(len(chunks))
        for slot in plan_slots(chunks, 1, {"cross": 1.0}, seed)[0]:
            own, other = slot.chunks
            choice = [one for one in chunks if one.document != own.document] or [one for one in chunks if one != own]
            assert other == choice[int(draws.integers(2**31)) % len(choice)]

    @given(st.integers(1, 6))
    def test_the_parts_of_a_chunk_are_all_of_it(self, parts: int) -> None:
        text = "One is here. Two is there; three as well. Four.\nFive ends it."
        found = [part_of(text, n, parts) for n in range(parts)]
        if parts == 1:
            assert found == [None]
        else:
            assert set(" ".join(part or "" for part in found).split()) == set(text.split())


def test_planted_gaps_are_more_than_chance() -> None:
    """The world of these tests has something to find, or the others would show nothing."""
    made = world(0)
    assert len(made.gaps) == GAPS * len(made.chunks)
    assert made.is_trap("What is the colour of Nowhere?")


def test_a_budget_leaves_no_part_of_the_documents_out() -> None:
    """What it pays for is the first question of chunks from all over, not all of the first chunks."""
    made = world(1, 12)
    slots = [Slot(f"{chunk.id}/{n}", "answerable", (chunk,), n) for chunk in made.chunks for n in range(4)]
    found = search(slots, voices_of(made), Settings(rounds=0, calls=110), target=likelihood(made))
    asked = [trace.slot for trace in found.traces if trace.versions]
    assert len(asked) > 12
    assert {slot.chunks[0].id for slot in asked} == {chunk.id for chunk in made.chunks}
    few = search(slots, voices_of(made), Settings(rounds=0, calls=40), target=likelihood(made))
    places = [n // 4 for n, trace in enumerate(few.traces) if trace.versions]
    assert len(places) == len(set(places)) and places != list(range(len(places)))


def test_why_nothing_stands_is_the_fault_of_what_stood() -> None:
    slot = slots_of(world(0, 1))[0]
    tried = [
        Version(0, "Q?", gap=1.0, fault="the second judge finds it wrong"),
        Version(1, "R?", gap=0.5, fault=NO_GAIN),
    ]
    assert reason_of(Trace(slot, versions=tried)) == "the second judge finds it wrong"
    assert reason_of(Trace(slot, versions=[Version(0, "", fault="question: an empty reply")])).startswith("question")
