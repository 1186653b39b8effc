"""What is kept of verified questions: a share of every chunk, no two alike, exact counts or a stated shortfall."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ntk_jax.questions import keep as module
from ntk_jax.questions.keep import Candidate, Limits, keep, without_leaks
from ntk_jax.questions.leaks import leaks_of
from ntk_jax.questions.question import KINDS, Answer, Chunk, Slot, Trace, Version

CHUNKS = [Chunk(f"d{n}#0", f"d{n}", f"Title {n}", "test", "text") for n in range(5)]
WORDS = [f"word{n}" for n in range(400)]


def candidate(ordinal: int, chunk: int, gap: float, kind: str = "answerable", question: str | None = None) -> Candidate:
    rng = np.random.default_rng(ordinal)
    text = question or " ".join(rng.choice(WORDS, 12)) + "?"
    version = Version(0, text, Answer("an answer", ("q",)), gap=gap, accepted=True)
    return Candidate(ordinal, Slot(f"{chunk}/{ordinal}", kind, (CHUNKS[chunk],), ordinal), version)


def test_every_chunk_has_its_share_before_any_has_more() -> None:
    """A chunk with large gaps does not push the others out."""
    found = keep([candidate(n, n // 4, 10.0 - n) for n in range(20)], Limits(count=10, quota=1))
    assert {one.slot.chunks[0].id for one in found.candidates} == {chunk.id for chunk in CHUNKS}
    assert [one.ordinal for one in found.candidates][:5] == [0, 4, 8, 12, 16]
    assert [one.ordinal for one in found.candidates][5:] == [1, 2, 3, 5, 6]
    assert found.shortfall == 0
    assert set(found.dropped.values()) == {module.NOT_NEEDED}


def test_a_shortfall_is_stated() -> None:
    found = keep([candidate(n, 0, 1.0) for n in range(3)], Limits(count=10))
    assert (len(found.candidates), found.shortfall) == (3, 7)


def test_at_most_so_many_of_a_chunk_and_none_below_the_least_gap() -> None:
    found = keep([candidate(n, 0, float(n)) for n in range(6)], Limits(most=2, least_gap=1.0))
    assert [one.ordinal for one in found.candidates] == [5, 4]
    assert Counter(found.dropped.values()) == {module.ENOUGH_OF_CHUNK: 3, module.TOO_SMALL: 1}


def test_of_two_alike_that_with_the_larger_gap_stays() -> None:
    text = "How many pence is the rent of the lower meadow in a dry year?"
    found = keep([candidate(0, 0, 1.0, question=text), candidate(1, 1, 2.0, question=text.upper())], Limits())
    assert [one.ordinal for one in found.candidates] == [1]
    assert found.dropped == {0: module.SAME_WORDS}


def test_embeddings_find_what_words_do_not() -> None:
    vectors = {0: [1.0, 0.0], 1: [0.0, 1.0], 2: [1.0, 0.01]}
    candidates = [candidate(n, 0, 3.0 - n) for n in range(3)]
    by_text = {one.version.question: vectors[one.ordinal] for one in candidates}
    found = keep(candidates, Limits(), vectors=lambda texts: np.array([by_text[text] for text in texts]))
    assert found.dropped == {2: module.SAME_SENSE}


def test_what_was_kept_before_is_not_kept_again() -> None:
    one = candidate(0, 0, 1.0)
    assert keep([one], Limits(), before=[one.version.question]).dropped == {0: module.SAME_WORDS}


def test_evaluation_items_do_not_leak() -> None:
    item = "Does the tenant of the lower meadow pay in May or in June?"
    items = leaks_of([(item, "")], 8)
    leaking = candidate(0, 0, 5.0, question="So: does the tenant of the lower meadow pay in May, then?")
    found = keep([leaking, candidate(1, 1, 1.0)], Limits(), leaks=items)
    assert found.dropped == {0: module.LEAKED}
    assert [one.ordinal for one in found.candidates] == [1]


def test_a_short_evaluation_item_is_not_trained_on() -> None:
    """It has no run of so many words, and yet is asked word for word."""
    prompts = ["Who pays the toll?", "A clause. It is long.\nQuestion: Is there an audit?\nAnswer:"]
    items = leaks_of([(prompt, "No") for prompt in prompts], 8)
    asked = ["who pays the toll", "Is there an audit?", "Is there an audit clause?"]
    found = keep([candidate(n, n, 1.0, question=one) for n, one in enumerate(asked)], Limits(), leaks=items)
    assert found.dropped == dict.fromkeys((0, 1), module.LEAKED)
    assert not leaks_of([("", "A text.")], 8).holds("Is it so?", "Yes.")


def test_kinds_have_their_shares_and_plain_questions_stand_in() -> None:
    many = [candidate(n, n % 5, float(n), "answerable" if n % 2 else "negative") for n in range(40)]
    found = keep(many, Limits(count=20, shares={"negative": 0.25, "cross": 0.1}))
    kinds = Counter(one.slot.kind for one in found.candidates)
    assert kinds == {"negative": 5, "answerable": 15}
    assert found.kinds == {"cross": 2}
    assert found.shortfall == 0


@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5), st.sampled_from(KINDS)), max_size=30),
    st.one_of(st.none(), st.integers(1, 12)),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 4)),
)
def test_every_candidate_is_kept_or_has_a_reason(rows, count, quota, most) -> None:
    candidates = [candidate(n, chunk, gap, kind) for n, (chunk, gap, kind) in enumerate(rows)]
    limits = Limits(count=count, quota=quota, most=most, shares={"negative": 0.2})
    found = keep(candidates, limits)
    kept = [one.ordinal for one in found.candidates]
    assert len(set(kept)) == len(kept)
    assert set(kept) | set(found.dropped) == set(range(len(rows)))
    assert not set(kept) & set(found.dropped)
    if count is not None:
        assert len(kept) + found.shortfall == count
    if most is not None:
        assert max(Counter(one.slot.chunks[0].id for one in found.candidates).values(), default=0) <= most


def test_a_chunk_whose_best_is_said_elsewhere_has_its_next() -> None:
    """Before any other chunk has a second one."""
    same = "Which of the two parties pays for the carriage of the goods in May?"
    found = keep(
        [
            candidate(0, 0, 9.0, question=same), candidate(1, 0, 8.0),
            candidate(2, 1, 7.0, question=same.upper()), candidate(3, 1, 1.0),
        ],
        Limits(count=2),
    )  # fmt: skip
    assert [one.ordinal for one in found.candidates] == [0, 3]
    assert found.dropped == {2: module.SAME_WORDS, 1: module.NOT_NEEDED}


def test_more_of_a_kind_than_its_share_is_named_so() -> None:
    """They do not stand in for plain ones, and are not left out for want of room."""
    found = keep([candidate(n, n, 1.0, "negative") for n in range(4)], Limits(count=4, shares={"negative": 0.25}))
    assert found.shortfall == 3
    assert Counter(found.dropped.values()) == {module.ENOUGH_OF_KIND: 3}


def test_versions_before_a_kept_one_are_compared_with_evaluation_items_too() -> None:
    """An arm by round trains on them."""
    asked = "what is the notice period that either party must give under this agreement"
    runs = leaks_of([(asked, "")], 8)
    versions = [
        Version(n, text, Answer("an answer", ("q",)), gap=float(n), accepted=n != 1)
        for n, text in enumerate(["Who pays?", asked, f"So {asked}?", "Who may end the contract before its term?"])
    ]
    trace = Trace(Slot("0/0", "answerable", (CHUNKS[0],)), versions=list(versions), best=3)
    without_leaks(trace, runs)
    assert [one.accepted for one in trace.versions] == [True, False, False, True]
    assert [one.fault for one in trace.versions] == [None, None, module.LEAKED, None]
    trace.versions = list(versions)
    without_leaks(trace, None)
    assert trace.versions == versions
