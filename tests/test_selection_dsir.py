"""Importance weights of hashed n-grams, as a function and as a ranker."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.mining.hashing import hashed_ngrams
from ntk_jax.selection import dsir
from ntk_jax.selection.ranker import Candidates
from ntk_jax.selection.rankers import RANKERS

texts = st.lists(st.sampled_from(["sun", "moon", "tide", "Sun", "-"]), max_size=8).map(" ".join)


def pool_of(texts: list[str], domain: list[str], **more) -> Candidates:
    record = lambda text: {"id": "i", "source": "s", "prompt": "", "response": text}  # noqa: E731
    ones = np.ones(len(texts), np.int32)
    fields = {"count": 1, "seed": 0, "usable": ones.astype(bool), "length": ones, "span": ones}
    return Candidates(
        **{**fields, **more}, records=lambda: map(record, texts), domain=[record(text) for text in domain]
    )


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=5), st.lists(texts, min_size=1, max_size=3), st.sampled_from([0.1, 1.0]))
def test_the_weight_is_the_formula(pool, domain, smoothing):
    grams = [hashed_ngrams(text, 50).tolist() for text in [*pool, *domain]]
    raw, target = Counter(sum(grams[: len(pool)], [])), Counter(sum(grams[len(pool) :], []))
    if not raw or not target:
        with pytest.raises(UserError, match="hold no word to compare"):
            dsir.importance(domain, pool, buckets=50, smoothing=smoothing)
        return
    for mean in (False, True):
        found = dsir.importance(domain, pool, buckets=50, smoothing=smoothing, mean=mean).scores(pool)
        for text, own, score in zip(pool, grams, found, strict=False):
            expected = sum(
                math.log((target[g] + smoothing) / (target.total() + 50 * smoothing))
                - math.log((raw[g] + smoothing) / (raw.total() + 50 * smoothing))
                for g in own
            )
            assert score == pytest.approx(expected / (max(len(own), 1) if mean else 1), abs=1e-5), text


def test_the_ranker_without_noise_takes_the_largest():
    pool = ["rain and wind", "sun sun sun", "sun and rain", "wind"]
    candidates = pool_of(pool, ["sun sun", "the sun"], count=2, usable=np.array([1, 1, 1, 0], bool))
    found = RANKERS["dsir"].rank(candidates, dsir.DsirOptions(noise=False))
    assert found.order.tolist() == [1, 2] and np.isnan(found.scores[3])
    expected = dsir.importance(["sun sun", "the sun"], pool[:3]).scores(pool[:3])
    np.testing.assert_allclose(found.scores[:3], expected, rtol=1e-6)
    mean = RANKERS["dsir"].rank(candidates, dsir.DsirOptions(noise=False, length="mean"))
    assert mean.scores[1] == pytest.approx(found.scores[1] / 5), "three words and two pairs"


def test_the_sample_is_in_proportion_to_the_weights():
    """Two examples whose weights are 3 : 1: over many seeds the first is drawn three times of four."""
    log_w = np.log([3.0, 1.0])
    first = [np.argmax(log_w + dsir.gumbel(2, seed)) == 0 for seed in range(4000)]
    assert np.mean(first) == pytest.approx(0.75, abs=0.03)
    assert dsir.gumbel(3, 1).tolist() == dsir.gumbel(3, 1).tolist() != dsir.gumbel(3, 2).tolist()


def test_progress_and_a_pool_that_changed():
    seen: list[tuple[int, int]] = []
    candidates = pool_of(["sun", "moon"], ["sun"], progress=lambda done, total: seen.append((done, total)))
    RANKERS["dsir"].rank(candidates, dsir.DsirOptions())
    assert seen == [(2, 4), (4, 4)]
    ones = np.ones(3, np.int32)
    with pytest.raises(UserError, match="the pool had 3 examples and now has 2"):
        changed = pool_of(["sun", "moon"], ["sun"], usable=ones.astype(bool), length=ones, span=ones)
        RANKERS["dsir"].rank(changed, dsir.DsirOptions())
    with pytest.raises(UserError, match="the domain's texts hold no word"):
        RANKERS["dsir"].rank(pool_of(["sun"], ["-"]), dsir.DsirOptions())
