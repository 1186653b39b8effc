"""The methods that questions are compared with: what each asks for and gives, its budget, and what bad replies cost."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_methods import as_text, asked_for, chunks_of_documents, count_words, good, run, value_of, words

from ntk_jax.errors import UserError
from ntk_jax.llm.request import Reply, Request
from ntk_jax.questions.methods.asked import FIRST, Asked, NothingWritten, summary, turns, waves
from ntk_jax.questions.methods.calibration import comprehension_loss
from ntk_jax.questions.methods.entities import subset
from ntk_jax.questions.methods.naming import parts_of
from ntk_jax.questions.methods.paraphrase import STYLES
from ntk_jax.questions.methods.table import METHODS
from ntk_jax.questions.question import Chunk

ASKING = [name for name in METHODS if name != "documents"]
WITH_JSON = [name for name in ASKING if name != "paraphrase"]


def tokens(records: list[dict]) -> int:
    return sum(count_words(record["prompt"]) + count_words(record["response"]) for record in records)


# -- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_records_that_can_be_trained_on(name: str, form: str) -> None:
    records, voice, asked, client = run(name, form=form)
    assert len({record["id"] for record in records}) == len(records) > 5
    for record in records:
        assert {"id", "source", "prompt", "response", "document_id", "method", "chunk"} <= set(record)
        assert record["method"] == name and record["response"].strip() and record["source"] == "legal"
        assert bool(record["prompt"]) == (METHODS[name].kind == "qa")
        assert json.loads(json.dumps(record)) == record
        if name != "documents":
            assert record["writer"] == "scripted" and record["prompt_id"] in voice.prompts
    assert {record["document_id"] for record in records} == {"d0", "d1", "d2"}
    assert not voice.failures and voice.calls == len(client.asked) and (voice.calls == 0) == (name == "documents")
    assert all((request.schema is None) or form == "json" for request in client.asked)
    shown = summary(records, asked)
    assert shown["records"] == len(records) and shown["tokens"] == tokens(records) and shown["documents"] == 3
    assert shown["missing_tokens"] == 10**6 - tokens(records), "what is missing is said"
    assert json.loads(json.dumps(shown)) == shown


@pytest.mark.parametrize("name", ASKING)
def test_the_records_end_with_the_first_that_reaches_the_tokens(name: str) -> None:
    everything = run(name)[0]
    for budget in (1, 100, tokens(everything[:4]), tokens(everything[:4]) + 1):
        records, _, asked, _ = run(name, tokens=budget)
        assert tokens(records[:-1]) < budget <= tokens(records)
        assert summary(records, asked)["missing_tokens"] == 0
    if name != "calibration":  # it gathers fewer facts for fewer tokens
        assert run(name, tokens=100)[0] == everything[: len(run(name, tokens=100)[0])]


@pytest.mark.parametrize("name", ASKING)
def test_no_more_is_asked_than_the_tokens_take(name: str) -> None:
    chunks = chunks_of_documents(10, 4)
    few = run(name, chunks=chunks, tokens=60, wave=4, form="text")[3].asked
    many = run(name, chunks=chunks, form="text")[3].asked
    assert len(few) < len(many) / 2
    assert len(run("paraphrase", tokens=60, wave=4)[3].asked) == 4, "two texts of 30 words, and the rest of their wave"


@pytest.mark.parametrize("name", ASKING)
def test_few_tokens_take_few_calls_whatever_a_wave_may_hold(name: str) -> None:
    """Documents and facts are read first; then a method asks for a small wave, and not at once for all it may."""
    chunks = chunks_of_documents(20, 4)
    calls = Counter(
        asked_for(request) for request in run(name, chunks=chunks, tokens=20, wave=64, form="text")[3].asked
    )
    read = {"naming", "ways"}
    assert max(count for kind, count in calls.items() if kind not in read) <= FIRST
    assert [len(wave) for wave in waves(range(200), 64)] == [8, 16, 32, 64, 64, 16]
    assert [len(wave) for wave in waves(range(7), 3)] == [3, 3, 1]


@pytest.mark.parametrize("name", ASKING)
def test_the_order_of_replies_and_a_repetition_change_nothing(name: str) -> None:
    once = run(name, wave=5)[0]
    assert once == run(name, wave=5, last_first=True)[0] == run(name, wave=5)[0]
    assert [r["response"] for r in once] != [r["response"] for r in run(name, seed=1)[0]]


@pytest.mark.parametrize("name", WITH_JSON)
def test_malformed_json_is_asked_for_once_more(name: str) -> None:
    def broken_first(request: Request) -> str:
        fresh = len(request.messages) == 1 and request.schema is not None
        return "{broken" if fresh and request.seed % 3 == 0 else good(request)

    records, voice, _, client = run(name, broken_first, form="json")
    repairs = sum(len(request.messages) == 3 for request in client.asked)
    assert voice.repaired == repairs > 0 and not voice.failures
    assert len(records) == len(run(name, form="json")[0])


@pytest.mark.parametrize("bad", ["refusal", "empty", "failed", "rubbish", "thoughts"])
@pytest.mark.parametrize("name", ASKING)
def test_bad_replies_cost_only_themselves(name: str, bad: str) -> None:
    replies = {
        "refusal": "I'm sorry, but I can't help with that.",
        "empty": Reply("", "stop"),
        "failed": Reply("", "failed", reason="time-out"),
        "rubbish": "\x00{[" * 9,
        "thoughts": "<think>hm",
    }
    reasons = {"refusal": "the model declined", "failed": "no reply: time-out", "thoughts": "nothing but thoughts"}

    def write(request: Request) -> str | Reply:
        return replies[bad] if request.seed % 4 == 0 else good(request)

    records, voice, _, _ = run(name, write, chunks=chunks_of_documents(8, 2))
    every = run(name, chunks=chunks_of_documents(8, 2))[0]
    assert 0 < len(records) < len(every) and voice.failures
    if bad in reasons:
        assert set(voice.failures) == {reasons[bad]}
    if bad == "empty":
        assert set(voice.failures) == {"an empty reply"}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("I'm sorry, I cannot do that.", "the model declined"),
        (Reply("", "failed", reason="HTTP 500"), "no reply: HTTP 500"),
        ("", "an empty reply"),
    ],
)
@pytest.mark.parametrize("form", ["json", "text", "auto"])
@pytest.mark.parametrize("name", ASKING)
def test_nothing_usable_at_all_is_refused_with_the_reasons(
    name: str, form: str, reply: str | Reply, reason: str
) -> None:
    with pytest.raises(UserError, match=rf"no record of {name} came of \d+ calls: \d+ × {reason}"):
        run(name, lambda request: reply, form=form)


@pytest.mark.parametrize("name", METHODS)
def test_documents_without_words_are_left_out_and_refused_where_all_are(name: str) -> None:
    empty = [Chunk(f"e{n}", "e", "", "legal", text) for n, text in enumerate(["", "  \n", "\t"])]
    records, _, asked, client = run(name, chunks=[*empty, *chunks_of_documents()])
    assert records == run(name)[0] and asked.dropped["a chunk without a word"] == 3
    for nothing in (empty, []):
        with pytest.raises(UserError, match=f"none of {len(nothing)} chunks of documents holds a word"):
            run(name, chunks=nothing)


@pytest.mark.parametrize("name", METHODS)
def test_one_short_line_is_enough(name: str) -> None:
    line = Chunk("a-0", "a", "", "mail", "Acme1 pays Bolt2 on Friday.")
    records, *_ = run(name, chunks=[line])
    assert records and {record["document_id"] for record in records} == {"a"}


@pytest.mark.parametrize("name", ASKING)
def test_a_model_that_cannot_write_json_is_asked_for_text(name: str) -> None:
    def write(request: Request) -> str:
        return "Once upon a time" if request.schema is not None else good(request)

    records, voice, _, _ = run(name, write)
    assert [r["response"] for r in records] == [r["response"] for r in run(name, form="text")[0]]
    assert voice.form in ("text", None)


@pytest.mark.parametrize("name", WITH_JSON)
def test_values_of_json_that_are_no_texts_cost_only_themselves(name: str) -> None:
    def write(request: Request) -> str:
        value = value_of(request)
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, list):
                    value[key] = [None, 7, {}, [], True, *item, {"x": None}, -1.5]
        return json.dumps(value) if request.schema is not None else as_text(value)

    clean, dirty = run(name, form="json")[0], run(name, write, form="json")[0]
    if name != "entities":  # 7 is a name as good as another
        assert [r["response"] for r in clean if name != "facts"] == [r["response"] for r in dirty if name != "facts"]
    assert len(dirty) >= len(clean)


def test_what_is_out_of_range_is_refused() -> None:
    for name in ("tokens", "max_tokens", "part_words", "wave"):
        with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
            Asked(**{"tokens": 5, "count_tokens": count_words, name: 0})


def test_progress_counts_replies_on_from_wave_to_wave() -> None:
    seen: list[tuple[int, int, str]] = []
    _, voice, _, _ = run("entities", wave=5, progress=lambda *now: seen.append(now))
    done = [now[0] for now in seen]
    assert done == sorted(done) and done[-1] == voice.calls and all(now[0] <= now[1] for now in seen)


def test_turns_take_one_of_each_row() -> None:
    assert list(turns([[1, 2, 3], [], [4], (5, 6)])) == [1, 4, 5, 2, 6, 3]


@pytest.mark.parametrize("name", ["static", "facts", "calibration", "paraphrase"])
def test_questions_that_leaked_are_left_out_and_made_up_for(name: str) -> None:
    whole = run(name)[0]
    bad = {f"{record['prompt']}\n{record['response']}" for record in whole[::2]}
    records, _, asked, _ = run(name, leaked=lambda *pair: "\n".join(pair) in bad)
    if METHODS[name].kind == "text":
        assert records == whole, "texts are not looked at"
        return
    assert records == whole[1::2] and asked.dropped["it shares a run of words with an evaluation item"] == len(bad)
    budget = tokens(whole[:3])
    assert (
        tokens(run(name, leaked=lambda *pair: "\n".join(pair) in bad, tokens=budget)[0]) >= budget
        or name == "calibration"
    )
    with pytest.raises(NothingWritten, match="evaluation item"):
        run(name, leaked=lambda question, answer: True)


# -- texts -----------------------------------------------------------------------------------------------------------


def test_documents_are_given_as_they_are_in_a_drawn_order() -> None:
    chunks = chunks_of_documents(6, 3)
    records, *_ = run("documents", chunks=chunks)
    assert {record["chunk"]: record["response"] for record in records} == {chunk.id: chunk.text for chunk in chunks}
    assert len({record["document_id"] for record in records[:6]}) > 2, "the first ones are not of one document"
    few, _, asked, _ = run("documents", chunks=chunks, tokens=1)
    assert few == records, "they cost nothing, so that no budget keeps a part of the documents from the arm"
    assert summary(few, asked)["missing_tokens"] == 0


def test_paraphrases_take_every_chunk_once_before_any_a_second_time() -> None:
    records, *_ = run("paraphrase")
    assert len(records) == 6 * len(STYLES)
    for round in range(len(STYLES)):
        assert len({record["chunk"] for record in records[6 * round : 6 * round + 6]}) == 6
    assert len({record["style"] for record in records[:6]}) > 2, "styles are drawn for each chunk"
    assert len({(record["chunk"], record["style"]) for record in records}) == len(records)


def test_a_copy_of_the_passage_is_no_paraphrase() -> None:
    def write(request: Request) -> str:
        text = request.messages[0]["content"]  # type: ignore[index]
        return text.partition("]\n")[2].partition("\n\n")[0] if request.seed % 2 else good(request)

    records, voice, _, _ = run("paraphrase", write)
    assert voice.failures == {"a copy of the passage": 48 - len(records)} and 0 < len(records) < 48


@pytest.mark.parametrize("name", ["paraphrase", "entities", "strategies"])
def test_a_text_that_was_cut_ends_with_its_last_whole_sentence(name: str) -> None:
    def write(request: Request) -> str | Reply:
        if asked_for(request) != "text":
            return good(request)
        return Reply(good(request) + " And then it", "length")

    records, voice, _, _ = run(name, write)
    assert records and all(record["cut"] and record["response"].endswith(".") for record in records)
    assert not any("And then" in record["response"] for record in records) and voice.cut == len(records)
    assert not any("cut" in record for record in run(name)[0])


def test_pairs_of_entities_come_before_triples_and_every_one_once() -> None:
    records, _, asked, _ = run("entities")
    # of each document: Acme, and Bolt and Corex of both chunks
    assert asked.found["entities"] == 15
    sizes = [len(record["entities"]) for record in records]
    assert sizes == [2] * 30 + [3] * 30
    assert len({(record["document_id"], frozenset(record["entities"])) for record in records}) == 60
    assert {record["document_id"] for record in records[:3]} == {"d0", "d1", "d2"}, "documents take turns"
    assert {record["document_id"] for record in records[30:33]} == {"d0", "d1", "d2"}


def test_the_chunks_that_name_the_entities_are_in_view() -> None:
    _, _, _, client = run("entities")
    for request in client.asked:
        if asked_for(request) == "text":
            text = request.messages[0]["content"]  # type: ignore[index]
            passages, _, instruction = text.rpartition("\n\n")
            names = instruction.split('"')[1::2]
            assert len(names) in (2, 3) and all(f"{name} " in passages or f"{name}." in passages for name in names)
            assert "The document these passages are from: " in text


def test_a_document_of_one_entity_gives_no_relation() -> None:
    def write(request: Request) -> str:
        return json.dumps({"entities": ["Acme0"]}) if asked_for(request) == "naming" else good(request)

    with pytest.raises(UserError, match="no record of entities .*: 3 × a document with a single entity"):
        run("entities", write, form="json")


def test_entities_beyond_the_most_are_counted() -> None:
    def write(request: Request) -> str:
        many = {"entities": [f"Name{n}" for n in range(75)]}
        return json.dumps(many) if asked_for(request) == "naming" else good(request)

    asked = run("entities", write, form="json", tokens=50)[2]
    assert asked.found["entities"] == 180 and asked.dropped == {"an entity beyond 60 of its document": 45}


@given(st.integers(0, 9), st.integers(0, 4))
def test_ranks_and_subsets_are_the_same(count: int, size: int) -> None:
    found = [subset(rank, count, size) for rank in range(math.comb(count, size))]
    assert found == list(combinations(range(count), size))


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(1, 40))
def test_parts_hold_every_chunk_once_and_no_more_words_than_they_may(sizes: list[int], most: int) -> None:
    chunks = [Chunk(str(n), "d", "", "s", words(size, n)) for n, size in enumerate(sizes)]
    parts = parts_of(chunks, most)
    assert [chunk for part in parts for chunk in part] == chunks
    for part in parts:
        assert len(part) == 1 or sum(count_words(chunk.text) for chunk in part) <= most


def test_a_long_document_is_read_in_parts() -> None:
    def naming(**how: int) -> int:
        return sum(asked_for(request) == "naming" for request in run("entities", form="json", **how)[3].asked)

    assert (naming(part_words=1000), naming(part_words=50)) == (3, 6)


def test_every_strategy_is_applied_to_every_chunk_of_its_document() -> None:
    records, _, asked, client = run("strategies")
    assert asked.found["strategies"] == 12 and len(records) == 6 * 4
    ways: dict[str, set[str]] = {}
    for record in records:
        ways.setdefault(record["document_id"], set()).add(record["strategy"])
    assert all(len(found) == 4 for found in ways.values()) and len(set.union(*ways.values())) == 12
    assert len({record["chunk"] for record in records[:6]}) == 6, "every chunk once before any a second time"
    text = client.asked[-1].messages[0]["content"]  # type: ignore[index]
    assert any(way in text for way in set.union(*ways.values()))


def test_documents_whose_strategies_failed_are_counted() -> None:
    def write(request: Request) -> str:
        text = request.messages[0]["content"]  # type: ignore[index]
        return "" if asked_for(request) == "ways" and "Treaty 1" in text else good(request)

    records, _, asked, _ = run("strategies", write)
    assert {record["document_id"] for record in records} == {"d0", "d2"}
    assert asked.dropped == {"a chunk of a document without strategies": 2}


# -- facts -----------------------------------------------------------------------------------------------------------


def test_a_fact_is_asked_for_as_it_stands_and_in_other_words() -> None:
    records, _, asked, _ = run("facts")
    assert asked.found["facts"] == 15 * 3 and len(records) == 15 * 3 * 4 and not asked.dropped
    by_fact: dict[str, list[dict]] = {}
    for record in records:
        by_fact.setdefault(record["fact"], []).append(record)
    for fact, own in by_fact.items():
        assert [record["response"] == fact for record in own] == [True, False, False, False]
        assert len({record["prompt"] for record in own}) == 4 and all(r["prompt"].endswith("?") for r in own)


def test_facts_that_say_nearly_the_same_are_dropped() -> None:
    def write(request: Request) -> str:
        same = "In Treaty 0 the firm Acme0 has to deliver all bolts before the end of every single month."
        if asked_for(request) == "sentence":
            return same + (" Yes." if request.seed % 2 else "")
        return good(request)

    for wave in (64, 4):
        records, _, asked, _ = run("facts", write, wave=wave)
        assert len(records) == 4 and asked.dropped == {"a near-duplicate of another fact": 44}


def test_only_facts_that_do_not_stand_by_themselves_are_asked_about_again() -> None:
    def write(request: Request) -> str:
        if asked_for(request) != "about":
            return good(request)
        name = request.messages[0]["content"].split('say about "')[1].split('"')[0]  # type: ignore[index]
        title = request.messages[0]["content"].split("[")[1].split("]")[0]  # type: ignore[index]
        own = [f"In {title}, {name} has {words(8, name, title)}.", f"It has {words(8, name, title, 1)}."]
        return json.dumps({"facts": own}) if request.schema else "\n".join(own)

    records, _, _, client = run("facts", write)
    again = [r.messages[0]["content"] for r in client.asked if asked_for(r) == "sentence"]  # type: ignore[index]
    assert len(again) == 15 and all("It has" in text and "Treaty" in text for text in again)
    assert sum(record["fact"].startswith("In Treaty") for record in records) == 15 * 4
    assert not any(record["fact"].startswith("It") for record in records)


@pytest.mark.parametrize("form", ["json", "text"])
def test_lists_that_were_cut_lose_their_last_item_alone(form: str) -> None:
    def write(request: Request) -> str | Reply:
        text = good(request)
        return Reply(text[:-12], "length") if asked_for(request) in ("about", "questions") else text

    records, *_ = run("facts", write, form=form)
    assert len(records) == 15 * 2 * 3


# -- calibration -----------------------------------------------------------------------------------------------------


def test_the_facts_with_the_highest_loss_come_first() -> None:
    records, _, asked, _ = run("calibration")
    losses = [record["loss"] for record in records]
    assert losses == sorted(losses, reverse=True) and len(records) == 18
    assert asked.found["loss"]["most"] == losses[0] and asked.found["loss"]["least"] == losses[-1]
    assert asked.found["loss"]["facts"] == 18


def test_the_loss_is_that_of_a_planted_gap() -> None:
    """The target knows all but the facts of one document: of these it denies what is true and believes the rest."""

    def knows(records: list[dict]) -> list[tuple[float, int] | None]:
        found: list[tuple[float, int] | None] = []
        for record in records:
            _, chunk, _, kind, answer = record["id"].split(":")
            right = (kind == "same") == (answer == "Yes")
            found.append((0.01 if right != chunk.startswith("d1") else 4.0, 1))
        return found

    records, *_ = run("calibration", likelihood=knows)
    assert [record["document_id"] for record in records[:6]] == ["d1"] * 6
    assert min(record["loss"] for record in records[:6]) > 3 and max(record["loss"] for record in records[6:]) < 0.1
    few, *_ = run("calibration", likelihood=knows, tokens=40)
    assert {record["document_id"] for record in few} == {"d1"}


def test_losses_that_are_all_the_same_are_refused_with_their_spread() -> None:
    with pytest.raises(UserError, match=r"losses on 18 facts are all the same, 0\.6931472 to 0\.6931472 nats \(spread"):
        run("calibration", likelihood=lambda records: [(1.5, 1)] * len(records))


def test_a_target_that_is_not_here_is_refused_before_any_call() -> None:
    with pytest.raises(UserError, match="calibration measures the target in this process"):
        run("calibration", lambda request: pytest.fail("asked"), likelihood=None)


def test_facts_that_cannot_be_measured_are_counted() -> None:
    def some(records: list[dict]) -> list[tuple[float, int] | None]:
        return [None if n % 12 == 0 else (float("nan") if n % 12 == 7 else n % 5, 1) for n, _ in enumerate(records)]

    records, _, asked, _ = run("calibration", likelihood=some)
    reason = "a fact that the target could not be measured on"
    assert asked.dropped == {reason: 12} and len(records) == 6
    with pytest.raises(UserError, match=f"no record of calibration .* 18 × {reason}"):
        run("calibration", likelihood=lambda records: [None] * len(records))


def test_a_negation_that_is_none_is_left_out() -> None:
    def write(request: Request) -> str:
        value = value_of(request)
        if asked_for(request) == "variants" and request.seed % 2:
            value["opposite"] = value["same"].upper()
        return json.dumps(value) if request.schema else as_text(value)

    records, _, asked, _ = run("calibration", write)
    assert asked.dropped == {"a negation that says the same as its fact": 18 - len(records)} and 0 < len(records) < 18


def test_facts_are_gathered_until_they_are_enough() -> None:
    chunks = chunks_of_documents(10, 4)
    asked = run("calibration", chunks=chunks, tokens=60, wave=4)[3].asked
    kinds = Counter(asked_for(request) for request in asked)
    # 14 facts of 9 words have 120 tokens; 3 a chunk, so two waves of chunks
    assert kinds["statements"] == 8 and kinds["variants"] == 14 and kinds["question"] == 4


@given(st.lists(st.tuples(*[st.floats(0, 50)] * 4), min_size=1, max_size=5), st.floats(-20, 20))
def test_comprehension_loss_is_a_mean_cross_entropy(rows: list[tuple[float, ...]], shift: float) -> None:
    nats = np.array(rows)
    found = comprehension_loss(nats)
    p = np.exp(-nats)
    with np.errstate(divide="ignore"):
        want = -(np.log(p[:, 0] / (p[:, 0] + p[:, 1])) + np.log(p[:, 3] / (p[:, 2] + p[:, 3]))) / 2
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(comprehension_loss(nats + shift), found, atol=1e-9)
    np.testing.assert_allclose(comprehension_loss(np.full((1, 4), nats[0, 0])), np.log(2))


def test_the_table_says_what_records_are() -> None:
    assert set(METHODS) == {"static", "documents", "paraphrase", "entities", "facts", "calibration", "strategies"}
    assert {name for name, method in METHODS.items() if method.measures} == {"calibration"}
    assert METHODS["facts"].trained_on == "the response" and METHODS["documents"].trained_on == "the whole text"
    assert all(dataclasses.asdict(method)["title"] for method in METHODS.values())
