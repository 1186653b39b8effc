"""Votes against brute force, top-N with its tie-break, and the written selection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.selection.random import random_n
from ntk_jax.selection.records import record_line, selected_records
from ntk_jax.selection.top import top_n
from ntk_jax.selection.votes import Votes, count_votes, keep_most_voted


def brute_votes(domain, pool, neighbours):
    """Every domain row ranks the whole pool by cosine, ties to the earlier index."""
    unit = lambda rows: rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)  # noqa: E731
    cosines = unit(domain.astype(np.float64)) @ unit(pool.astype(np.float64)).T
    votes = np.zeros(len(pool), int)
    for row in np.round(cosines, 6):  # equal directions must tie in fp32 and in fp64 alike
        votes[np.argsort(-row, kind="stable")[:neighbours]] += 1
    return votes, cosines.mean(axis=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 40), st.integers(1, 45), st.integers(1, 17))
def test_streamed_votes_equal_brute_force(seed, queries, candidates, neighbours, block):
    rng = np.random.default_rng(seed)
    domain, pool = rng.normal(size=(queries, 6)).astype(np.float32), rng.normal(size=(candidates, 6)).astype(np.float32)
    blocks = (pool[start : start + block] for start in range(0, candidates, block))
    found = count_votes(domain, blocks, neighbours)
    votes, similarity = brute_votes(domain, pool, neighbours)
    assert found.votes.tolist() == votes.tolist()
    assert found.votes.sum() == queries * min(neighbours, candidates)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-5)


def test_equal_cosines_go_to_the_earlier_candidate_across_blocks():
    pool = np.ones((6, 3), np.float32)
    found = count_votes(np.ones((2, 3), np.float32), (pool[i : i + 2] for i in (0, 2, 4)), neighbours=3)
    assert found.votes.tolist() == [2, 2, 2, 0, 0, 0]


def test_ties_at_the_cut_go_to_similarity_then_to_pool_order():
    votes = Votes(np.array([3, 1, 1, 1, 0]), np.array([0.1, 0.2, 0.9, 0.2, 1.0], np.float32))
    assert keep_most_voted(votes, 2).tolist() == [0, 2]
    assert keep_most_voted(votes, 3).tolist() == [0, 1, 2]
    assert keep_most_voted(votes, 5).tolist() == [0, 1, 2, 3, 4]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.data())
def test_top_n_is_best_first_and_ties_are_in_pool_order(values, data):
    scores = np.array(values, np.float32)
    count = data.draw(st.integers(1, len(scores)))
    chosen = top_n(scores, count)
    expected = sorted(range(len(scores)), key=lambda i: (-values[i], i))[:count]
    assert chosen.tolist() == expected


def test_the_random_control_is_seeded_and_without_repeats():
    first, again, other = random_n(50, 20, 1), random_n(50, 20, 1), random_n(50, 20, 2)
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(set(first.tolist())) == 20 and first.max() < 50


def test_selected_records_keep_every_key_and_are_in_rank_order():
    pool = [{"id": f"é{i}", "source": "s", "prompt": "p", "response": "r", "extra": {"deep": [i]}} for i in range(4)]
    scores = np.array([0.1, 1 / 3, -2.0, 5e8], np.float32)
    out = list(selected_records(enumerate(pool), np.array([3, 1]), scores, "ntk:sum_logits"))
    assert [r["id"] for r in out] == ["é3", "é1"] and [r["rank"] for r in out] == [1, 2]
    assert out[1]["extra"] == {"deep": [1]} and out[0]["method"] == "ntk:sum_logits"
    assert np.float32(out[1]["score"]) == scores[1], "the written score is the fp32 score"
    assert "é3" in record_line(out[0])


class TestMistakes:
    def test_count_larger_than_the_pool(self):
        with pytest.raises(UserError, match=r"^count = 5 is larger than the pool \(3 usable examples\)"):
            top_n(np.zeros(3), 5)
        with pytest.raises(UserError, match="larger than the pool"):
            random_n(3, 5, 0)

    def test_count_zero(self):
        with pytest.raises(UserError, match="select at least one example"):
            top_n(np.zeros(3), 0)

    def test_score_that_is_not_a_number(self):
        with pytest.raises(UserError, match="score number 1 is not a number; score again"):
            top_n(np.array([0.0, np.nan]), 1)

    def test_votes_without_pool_or_domain(self):
        with pytest.raises(UserError, match="the pool is empty"):
            count_votes(np.ones((1, 2)), [], 1)
        with pytest.raises(UserError, match="votes need a domain"):
            count_votes(np.ones((0, 2)), [np.ones((1, 2))], 1)

    def test_keep_larger_than_the_pool(self):
        with pytest.raises(UserError, match="^keep = 9 is larger than the pool"):
            keep_most_voted(Votes(np.ones(2), np.ones(2)), 9)

    def test_a_record_that_vanished(self):
        with pytest.raises(UserError, match="pool example 7 was scored but is no longer in the pool"):
            list(selected_records([], np.array([7]), np.zeros(8), "m"))
