"""Thresholds from the corpus' own scores: never an absolute one."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.mining import thresholds
from ntk_jax.mining.thresholds import (
    check_threshold,
    judged_curve,
    judged_sample,
    suggest_excess,
    suggest_judged,
    suggest_share,
)


def mixed(share: float, gap: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """(scores, which belong): two bells, the domain's `gap` standard deviations above the other."""
    rng = np.random.default_rng(5)
    right = rng.random(count) < share
    return (0.1 + 0.06 * (rng.standard_normal(count) + gap * right)).astype(np.float32), right


def test_a_threshold_that_keeps_nothing_or_everything():
    scores = np.array([0.2, 0.61, 0.4], np.float32)
    with pytest.raises(UserError, match=r"0.85 of medicine keeps 0 of 3; the best is 0.61; give a lower one"):
        check_threshold(scores, 0.85, "medicine")
    with pytest.raises(UserError, match=r"keeps all 3; the lowest is 0.20; give a higher one"):
        check_threshold(scores, 0.1, "medicine")
    with pytest.raises(UserError, match="no score of medicine"):
        check_threshold(scores[:0], 0.1, "medicine")
    with pytest.raises(UserError, match="law: score number 0 is not a number"):
        check_threshold(np.array([np.nan]), 0.1, "law")
    assert check_threshold(scores, float(scores[1]), "medicine") == 1, "the best itself is kept"


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=60), st.floats(0.01, 0.99))
def test_a_share_keeps_that_share(values, share):
    scores = np.array(values, np.float32)
    if len(set(values)) == 1:
        with pytest.raises(UserError, match="no threshold parts the scores"):
            suggest_share(scores, share)
        return
    try:
        found = suggest_share(scores, share)
    except UserError:  # so many are equal to the lowest that the share reaches into them
        assert sorted(values, reverse=True)[max(1, round(share * len(values))) - 1] == min(values)
        return
    assert found.kept == (scores >= found.value).sum() >= max(1, round(share * len(values))) and found.total == len(
        values
    )
    assert (scores > found.value).sum() < max(1, round(share * len(values)))


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3])
def test_the_excess_above_the_mirrored_half(share):
    scores, right = mixed(share, gap=5.0)
    found = suggest_excess(scores, false_share=0.1)
    kept = scores >= found.value
    assert 0.8 < right[kept].mean() < 0.97, "about one of ten that it keeps does not belong"
    assert right[kept].sum() / right.sum() > 0.9 and found.kept == kept.sum() and "below the mode" in found.how


def test_where_nothing_stands_out_one_in_a_hundred_is_kept():
    found = suggest_excess(mixed(0.0, gap=0.0)[0], false_share=0.05)
    assert 150 <= found.kept <= 250 and "no part of the scores stands out" in found.how

    assert found.doubtful and found.how.startswith("keeps 1% of the corpus, ")


def test_equal_scores_at_the_border_are_said():
    """A tenth is asked for, and nine tenths are equal to the best."""
    scores = np.repeat(np.float32([0.2, 0.6]), [10, 90])
    found = suggest_share(scores, 0.1)
    assert found.kept == 90 and found.how == "keeps 90% of the corpus, not 10%, for many scores are equal"


def test_the_interval_of_a_judged_precision_holds_it():
    """Few judged chunks stand for many: without their weights the precision would be 11 of 12."""
    sample = thresholds.Sample(np.arange(13), np.array([500.0, 500, *[1.0] * 11]))
    right = np.array([0.0, 0, *[1.0] * 11])
    found = suggest_judged(np.arange(13.0), sample, right, precision=0.02)
    value, low, high = (float(x) for x in re.findall(r"\d\.\d\d", found.how)[:3])
    assert low <= value <= high and value == 0.02


def test_a_scale_changes_no_suggestion():
    scores, _ = mixed(0.1, gap=4.0, count=3000)
    assert suggest_excess(scores).kept == suggest_excess(scores * 0.5 + 0.25).kept


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 60), size=st.integers(1, 300), seed=st.integers(0, 99))
def test_a_judged_sample_stands_for_the_corpus(count, size, seed):
    scores = np.random.default_rng(seed).random(size).astype(np.float32)
    sample = judged_sample(scores, count, seed)
    assert len(sample.places) == min(count, size) == len(set(sample.places.tolist()))
    assert (sample.weights >= 1).all()
    if count >= 10:
        assert sample.weights.sum() == pytest.approx(size)


def test_a_judged_sample_suggests_the_threshold_of_the_wanted_precision():
    scores, right = mixed(0.1, gap=3.0)
    sample = judged_sample(scores, 1500, seed=0)
    found = suggest_judged(scores, sample, right[sample.places].astype(float), precision=0.8)
    kept = scores >= found.value
    assert right[kept].mean() == pytest.approx(0.8, abs=0.06) and "precision 0.8" in found.how
    assert judged_curve(scores, sample, right[sample.places]).base_rate == pytest.approx(0.1, abs=0.03)
    verdicts = np.where(np.arange(len(sample.places)) % 3 == 0, np.nan, right[sample.places])
    assert suggest_judged(scores, sample, verdicts, precision=0.8).value == pytest.approx(found.value, abs=0.03)


def test_no_threshold_has_the_precision():
    scores, right = np.arange(10, dtype=np.float32), np.arange(10) == 8
    sample = thresholds.Sample(np.arange(10), np.ones(10))
    found = suggest_judged(scores, sample, right, precision=0.9)
    assert found.value == 8 and "no threshold has precision 0.90" in found.how


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [(np.full(4, np.nan), "no usable verdict"), (np.zeros(4), "finds none of 4 sampled chunks")],
)
def test_verdicts_that_say_nothing(verdicts, message):
    sample = thresholds.Sample(np.arange(4), np.ones(4))
    with pytest.raises(UserError, match=message):
        suggest_judged(np.arange(4.0), sample, verdicts)


def test_quantiles_and_histogram():
    scores = np.linspace(0, 1, 101)
    found = thresholds.quantiles(scores)
    assert found["lowest"] == 0 and found["0.5"] == pytest.approx(0.5) and found["highest"] == 1
    edges, counts = thresholds.histogram(scores, 10)
    assert len(edges) == 11 and counts.sum() == 101
    with pytest.raises(UserError, match="nothing was searched"):
        thresholds.quantiles(scores[:0])
    with pytest.raises(UserError, match="share = 1"):
        suggest_share(scores, 1)
