"""Arms at equal tokens, scattered samples, and keywords."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.mining.arms import at_random, by_score, resampled, spread
from ntk_jax.mining.keywords import keyword_scores


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 200),
    st.integers(0, 9),
)
def test_every_arm_is_filled_to_the_budget_and_no_further(rows, budget, seed):
    scores, tokens, usable = (np.array(column) for column in zip(*rows, strict=True))
    arms = (
        lambda: by_score(scores.astype(np.float32), tokens, budget, usable),
        lambda: at_random(tokens, budget, seed, usable),
        lambda: resampled(scores.astype(float), tokens, budget, seed, usable),
    )
    for make in arms:
        if tokens[usable].sum() < budget:
            with pytest.raises(UserError, match="cannot be filled"):
                make()
            continue
        arm = make()
        assert arm.chunks.tolist() == make().chunks.tolist() and usable[arm.chunks].all()
        assert len(set(arm.chunks.tolist())) == len(arm.chunks)
        assert arm.tokens == tokens[arm.chunks].sum() >= budget > tokens[arm.chunks[:-1]].sum()


def test_by_score_takes_the_best_and_never_what_has_none():
    arm = by_score(np.array([1, np.nan, 3, 1], np.float32), np.array([2, 2, 2, 2]), 5)
    assert arm.chunks.tolist() == [2, 0, 3] and arm.tokens == 6
    with pytest.raises(UserError, match="budget of 0"):
        by_score(np.ones(1), np.ones(1), 0)


def test_a_resampled_arm_follows_the_weights():
    first = [resampled(np.log([4.0, 1.0]), np.ones(2), 1, seed).chunks[0] == 0 for seed in range(2000)]
    assert np.mean(first) == pytest.approx(0.8, abs=0.03)


def test_a_spread_sample_takes_one_of_each_heap():
    rng = np.random.default_rng(0)
    heaps = np.repeat(np.eye(5), [50, 20, 5, 2, 1], axis=0) + 0.01 * rng.standard_normal((78, 5))
    heaps /= np.linalg.norm(heaps, axis=1, keepdims=True)
    found = spread(heaps, 5, seed=3)
    assert sorted(heaps[found].argmax(axis=1).tolist()) == [0, 1, 2, 3, 4]
    everything = spread(heaps, 78)
    assert sorted(everything.tolist()) == list(range(78))
    with pytest.raises(UserError, match="count = 79"):
        spread(heaps, 79)


def test_keywords_cover_words():
    texts = ["The Patient took two tablets", "blood  pressure and diagnosis", "impatient", ""]
    found = keyword_scores(texts, ["patient", "tablet*", "blood pressure", "diagnos*"])
    np.testing.assert_allclose(found, [2 / 5, 3 / 4, 0, 0])
    assert keyword_scores(["a.b axb"], ["a.b"])[0] == pytest.approx(1 / 3), "a dot is a dot"
    for wrong in ([], [" "], ["*"]):
        with pytest.raises(UserError, match="keyword"):
            keyword_scores(texts, wrong)
