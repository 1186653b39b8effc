"""The gap: what is measured, what the length predicts, and gaps that are all the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.questions.gaps import LEAST, Asked, Measure, band, fit_measure, likelihood_gaps, spread

ASKED = [Asked(f"q{n}?", "the passage", "an answer " + "more " * n) for n in range(4)]


def model(seen: float, unseen: float, tokens: int = 4):
    """Likelihoods of so many nats a token, with the passage and without."""

    def of(records):
        return [
            ((seen if "the passage" in record["messages"][0]["content"] else unseen) * tokens, tokens)
            for record in records
        ]

    return of


def test_against_the_target_with_the_passage_in_view() -> None:
    found = likelihood_gaps(ASKED, model(0.5, 2.0))
    assert all(one == {"nll": 1.5, "tokens": 4, "target_nll": 2.0, "reference_nll": 0.5} for one in found)


def test_against_the_expert_in_tokens_of_the_target() -> None:
    """The expert counts other tokens: its sum is divided by the target's."""
    blind = likelihood_gaps(ASKED, model(0.5, 2.0), model(0.1, 9.0, tokens=8))
    assert [one["nll"] for one in blind] == pytest.approx([2.0 - 0.2] * 4)
    seeing = likelihood_gaps(ASKED, model(0.5, 2.0), model(0.1, 9.0, tokens=8), sees_document=True)
    assert [one["nll"] for one in seeing] == pytest.approx([0.5 - 0.2] * 4)


def test_what_does_not_fit_has_no_gap() -> None:
    def some(records):
        return [None if n == 1 else (math.nan, 3) if n == 2 else (1.0, 0) if n == 3 else (1.0, 2) for n in range(4)]

    assert [one is None for one in likelihood_gaps(ASKED, some)] == [False, True, True, True]


@given(st.floats(-3, 3), st.integers(0, 10_000))
def test_the_length_has_no_say(slope: float, seed: int) -> None:
    """A part of the gap that is linear in log tokens is taken off, whatever its slope."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 200, 40)
    rest = rng.normal(size=40)
    centred = np.log(tokens) - np.log(tokens).mean()
    rest -= centred * (centred @ rest) / (centred @ centred + 1e-12)  # what is left knows nothing of the length
    signals = [{"nll": r + slope * c, "tokens": int(t)} for r, c, t in zip(rest, centred, tokens, strict=True)]
    if np.ptp(tokens) == 0 or np.ptp(rest) < 1e-3:
        return
    measure = fit_measure(signals, "nll")
    assert measure.slope == pytest.approx(slope, abs=1e-6)
    assert [measure.gap(one) for one in signals] == pytest.approx(rest.tolist(), abs=1e-5)


def test_few_gaps_have_no_slope() -> None:
    signals = [{"nll": float(n), "tokens": n + 1} for n in range(LEAST - 1)]
    assert fit_measure(signals, "nll").slope == 0


def test_equal_gaps_are_refused_and_their_spread_is_given() -> None:
    with pytest.raises(UserError, match=r"the gap nll is 1.5 for all 8 questions \(standard deviation 0\)"):
        fit_measure([{"nll": 1.5, "tokens": 4}] * LEAST, "nll")
    with pytest.raises(UserError, match="the judge gives one score to all"):
        fit_measure([{"judge": 0.0}] * LEAST, "judge")
    assert fit_measure([{"judge": 0.0}] * (LEAST - 1), "judge").gap({"judge": 0.0}) == 0.0  # few may be so


def test_both_weighs_each_by_its_own_spread() -> None:
    signals = [{"nll": float(n), "tokens": 4, "judge": n / 10} for n in range(LEAST)]
    measure = fit_measure(signals, "both")
    found = [measure.gap(one) for one in signals]
    assert np.mean(found) == pytest.approx(0)
    assert np.std(found) == pytest.approx(1)
    assert measure.gap({"nll": 1.0, "tokens": 4}) is None


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_band_is_largest_where_half_are_right(share: float, sure: float) -> None:
    assert 0 <= band(share, sure) <= band(0.5, sure) == sure
    assert band(0.0, sure) == band(1.0, sure) == 0


def test_spread_of_nothing() -> None:
    assert spread([]) == {"n": 0}
    assert Measure("judge").gap({}) is None
