"""Bootstrap intervals: their mathematics, on numbers whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.evaluation import bootstrap
from ntk_jax.evaluation.bootstrap import interval, resampled_means

booleans = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@settings(max_examples=50, deadline=None)
@given(booleans, st.integers(0, 1000), st.floats(0.5, 0.99))
def test_interval_holds_what_it_must(answers: list[tuple[bool, bool]], seed: int, confidence: float) -> None:
    values = np.asarray(answers, float)
    means = resampled_means(values, resamples=200, seed=(seed,))
    assert means.shape == (200, 2)
    np.testing.assert_array_equal(means, resampled_means(values, resamples=200, seed=(seed,)))  # seeded
    low, high = interval(means[:, 0], confidence)
    assert 0.0 <= low <= high <= 1.0
    wide_low, wide_high = interval(means[:, 0], 1.0 - (1.0 - confidence) / 2)
    assert wide_low <= low and high <= wide_high
    if values[:, 0].min() == values[:, 0].max():  # nothing varies
        assert low == high == values[0, 0]
    # Paired: an arm against itself differs by nothing, and the difference has the opposite sign the other way round.
    assert interval(means[:, 0] - means[:, 0], confidence) == (0.0, 0.0)
    there, back = interval(means[:, 0] - means[:, 1], confidence), interval(means[:, 1] - means[:, 0], confidence)
    np.testing.assert_allclose(there, (-back[1], -back[0]), atol=1e-12)


def test_interval_has_the_width_of_the_normal_law() -> None:
    """400 questions, 70% right: the standard error is sqrt(.7 .3 / 400), and the bootstrap finds it."""
    values = (np.arange(400) < 280).astype(float)[:, None]
    means = resampled_means(values, resamples=4000, seed=(0,))[:, 0]
    error = np.sqrt(0.7 * 0.3 / 400)
    assert means.mean() == pytest.approx(0.7, abs=4 * error / np.sqrt(4000))
    low, high = interval(means, 0.95)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_coverage() -> None:
    """Of 200 samples from a coin of known bias, about 95% of the intervals hold the bias."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = interval(resampled_means(rng.random((150, 1)) < 0.6, resamples=300, seed=(trial,))[:, 0], 0.95)
        hits += low <= 0.6 <= high
    assert 180 <= hits <= 199  # 95% ± 3.3 standard errors


def test_pairing_makes_differences_sharper() -> None:
    """Two arms that differ on 10 of 400 questions: paired draws know that, independent ones do not."""
    rng = np.random.default_rng(1)
    first = rng.random(400) < 0.6
    second = first.copy()
    second[np.flatnonzero(~first)[:10]] = True
    means = resampled_means(np.stack([first, second], axis=1), resamples=2000, seed=(0,))
    apart = resampled_means(first[:, None], resamples=2000, seed=(5,))[:, 0]
    low, high = interval(means[:, 1] - means[:, 0], 0.95)
    assert low > 0.0
    assert high - low < 0.4 * np.subtract(*interval(means[:, 1] - apart, 0.95)[::-1])


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((50, 2))
    whole = resampled_means(values, resamples=100, seed=(3, 1))
    monkeypatch.setattr(bootstrap, "BLOCK", 333)
    np.testing.assert_array_equal(resampled_means(values, resamples=100, seed=(3, 1)), whole)
    assert not np.array_equal(resampled_means(values, resamples=100, seed=(3, 2)), whole)


def test_no_questions() -> None:
    with pytest.raises(UserError, match="at least one question"):
        resampled_means(np.zeros((0, 2)), resamples=10, seed=(0,))
