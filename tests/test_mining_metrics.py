"""Precision, recall and average precision: against their definition, against scikit-learn where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.evaluation.wilson import wilson
from ntk_jax.mining.metrics import average_precision, precision_recall

cases = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=30)


@settings(deadline=None)
@given(cases)
def test_the_curve_is_the_definition(case):
    right, scores, weights = (np.array(column) for column in zip(*case, strict=True))
    if not right.any():
        with pytest.raises(UserError, match="no recall to measure"):
            precision_recall(right, scores)
        return
    curve = precision_recall(right, scores, weights)
    assert curve.threshold.tolist() == sorted(set(scores.tolist()), reverse=True)
    area, before = 0.0, 0.0
    for place, threshold in enumerate(curve.threshold):
        kept = scores >= threshold
        precision = (weights * right)[kept].sum() / weights[kept].sum()
        recall = (weights * right)[kept].sum() / (weights * right).sum()
        assert curve.precision[place] == pytest.approx(precision) and curve.recall[place] == pytest.approx(recall)
        assert curve.at(threshold) == pytest.approx((precision, recall))
        assert curve.at(threshold - 0.5) == pytest.approx((precision, recall))
        area, before = area + (recall - before) * precision, recall
    assert curve.average_precision == pytest.approx(area)
    assert np.isnan(curve.at(7)[0]) and curve.at(7)[1] == 0
    assert curve.f1[curve.threshold == curve.best_f1()] == pytest.approx(curve.f1.max())


@settings(deadline=None)
@given(cases)
def test_as_scikit_learn_has_it(case):
    sklearn = pytest.importorskip("sklearn.metrics")
    right, scores, weights = (np.array(column) for column in zip(*case, strict=True))
    if right.any():
        for own in (None, weights.astype(float)):
            expected = sklearn.average_precision_score(right, scores, sample_weight=own)
            assert average_precision(right, scores, own) == pytest.approx(expected)


def test_a_weight_is_that_many_copies():
    rng = np.random.default_rng(0)
    right, scores, weights = rng.random(40) < 0.4, rng.integers(0, 9, 40), rng.integers(1, 5, 40)
    copies = np.repeat(np.arange(40), weights)
    a, b = precision_recall(right, scores, weights), precision_recall(right[copies], scores[copies])
    np.testing.assert_allclose([a.precision, a.recall, a.kept], [b.precision, b.recall, b.kept])


def test_by_hand():
    curve = precision_recall(np.array([1, 0, 1, 0]), np.array([4, 3, 2, 1]))
    assert curve.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3) and curve.base_rate == 0.5
    assert curve.for_precision(0.6) == 2 and curve.for_precision(1.0) == 4 and curve.best_f1() == 2
    assert curve.at_kept(3) == pytest.approx((2 / 3, 1.0)) and curve.at_kept(1) == pytest.approx((1.0, 0.5))
    assert precision_recall(np.array([0, 1]), np.array([2, 1])).for_precision(0.9) is None


def test_scores_at_random_reach_the_base_rate():
    rng = np.random.default_rng(1)
    assert average_precision(rng.random(20_000) < 0.1, rng.random(20_000)) == pytest.approx(0.1, abs=0.02)


def test_a_score_that_is_no_number():
    with pytest.raises(UserError, match="score number 1 is not a number"):
        average_precision(np.array([1, 0]), np.array([0.5, np.nan]))


def test_the_interval_of_a_share():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(8, 10)  # by hand from the formula with z = 1.959964
    assert (low, high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(10, 10)[1] == pytest.approx(1.0) and wilson(0, 10)[0] == pytest.approx(0.0)
