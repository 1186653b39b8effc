"""Intervals over runs and examples: against the plain bootstrap, a plain double loop, and known effects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.evaluation.bootstrap import interval, resampled_means
from ntk_jax.evaluation.hierarchical import Runs, hierarchical_interval, resampled_runs


@pytest.mark.parametrize("shared", [True, False])
def test_one_run_is_the_plain_bootstrap(shared: bool) -> None:
    values = np.random.default_rng(0).random((40, 3))
    found = resampled_runs(Runs([values], shared=shared), resamples=300, seed=(3, 1))
    plain = resampled_means(values, resamples=300, seed=(3, 1))
    np.testing.assert_allclose(found.draws, plain, atol=1e-12)
    one = hierarchical_interval([found], 0.9, arm=2)
    assert (one["low"], one["high"]) == pytest.approx(interval(plain[:, 2], 0.9))
    assert one["value"] == pytest.approx(values[:, 2].mean()) and one["runs"] == 1
    names = [f"document {n // 4}" for n in range(40)]
    grouped = resampled_runs(Runs([values], shared=shared, groups=[names]), resamples=300, seed=(3,))
    np.testing.assert_allclose(grouped.draws, resampled_means(values, resamples=300, seed=(3,), groups=names))


@pytest.mark.parametrize("shared", [True, False])
def test_draws_have_the_moments_of_a_plain_double_loop(shared: bool) -> None:
    """Weighted means of three runs, resampled as plainly as can be: two of them, then examples."""
    random = np.random.default_rng(1)
    values = [random.normal(run, 1.0, (12, 2)) for run in range(3)]
    weights = [random.integers(1, 6, 12).astype(float) for _ in range(3)]
    found = resampled_runs(Runs(values, weights, shared), resamples=8000, seed=(0,))
    plain = []
    for _ in range(8000):
        once = random.integers(0, 12, 12)
        means = []
        for run in random.integers(0, 3, 2):
            drawn = once if shared else random.integers(0, 12, 12)
            means.append((values[run][drawn] * weights[run][drawn, None]).sum(axis=0) / weights[run][drawn].sum())
        plain.append(np.mean(means, axis=0))
    np.testing.assert_allclose(found.draws.mean(axis=0), np.mean(plain, axis=0), atol=0.03)
    np.testing.assert_allclose(found.draws.std(axis=0), np.std(plain, axis=0), rtol=0.05)
    expected = [(v * w[:, None]).sum(axis=0) / w.sum() for v, w in zip(values, weights, strict=True)]
    np.testing.assert_allclose(found.by_run, expected)


def simulated(random: np.random.Generator, runs: int, examples: int, run: float, example: float) -> np.ndarray:
    """[runs, examples, 2]: two arms, the second 0.3 better, each with effects of run, example and both."""
    arms = [
        random.normal(0, run, (runs, 1))
        + random.normal(0, example, (1, examples))
        + random.normal(0, 1.0, (runs, examples))
        + effect
        for effect in (0.0, 0.3)
    ]
    return np.stack(arms, axis=-1) + random.normal(0, 3.0, (1, examples, 1))  # what both arms share is no noise


@pytest.mark.parametrize(
    ("runs", "run", "example"), [(5, 0.5, 0.0), (3, 0.5, 0.0), (5, 0.0, 1.0), (5, 0.3, 1.0), (5, 0.0, 0.0), (2, 0.2, 1)]
)
def test_coverage_of_a_known_difference(runs: int, run: float, example: float) -> None:
    """At least 95% less 3 standard errors of 200 trials hold it, whatever it is that varies."""
    random, hits = np.random.default_rng(2), 0
    for trial in range(200):
        values = simulated(random, runs, 60, run, example)
        found = resampled_runs(Runs(list(values)), resamples=300, seed=(trial,))
        one = hierarchical_interval([found.of(1).minus(found.of(0))], 0.95)
        hits += one["low"] <= 0.3 <= one["high"]
    assert hits >= 0.90 * 200


def test_neither_runs_nor_examples_alone_cover() -> None:
    """What it is for: with effects of runs, the bootstrap over examples alone misses; with effects of examples that all
    runs share, so does drawing them for each run apart."""
    random, plain, apart = np.random.default_rng(3), 0, 0
    for trial in range(100):
        values = simulated(random, 5, 60, 0.5, 0.0)
        means = resampled_means(values.mean(axis=0), resamples=300, seed=(trial,))
        low, high = interval(means[:, 1] - means[:, 0], 0.95)
        plain += low <= 0.3 <= high
        found = resampled_runs(
            Runs(list(simulated(random, 5, 60, 0.0, 1.5)), shared=False), resamples=300, seed=(trial,)
        )
        one = hierarchical_interval([found.of(1).minus(found.of(0))], 0.95)
        apart += one["low"] <= 0.3 <= one["high"]
    assert plain <= 80 and apart <= 85


def test_parts_are_averaged() -> None:
    random = np.random.default_rng(4)
    parts = [
        resampled_runs(Runs(list(random.normal(mean, 1, (4, 50, 1)))), resamples=500, seed=(mean,)) for mean in (0, 6)
    ]
    both, one = hierarchical_interval(parts, 0.95), hierarchical_interval(parts[:1], 0.95)
    assert both["value"] == pytest.approx(np.mean([part.by_run.mean() for part in parts]))
    assert both["high"] - both["low"] < one["high"] - one["low"]  # two parts that vary apart tell more


def test_runs_that_vary_together_are_drawn_together() -> None:
    """Four parts whose k-th runs have one effect in common: taken apart, the interval of their mean misses."""
    random, together, apart = np.random.default_rng(5), 0, 0
    for trial in range(200):
        effects = random.normal(0, 0.5, (3, 1, 1))
        values = [list(0.3 + effects + random.normal(0, 0.5, (3, 40, 1))) for _ in range(4)]
        options = {"resamples": 300, "seed_of_runs": (trial,)}
        one = [resampled_runs(Runs(each), seed=(trial, n), **options) for n, each in enumerate(values)]
        two = [resampled_runs(Runs(each), resamples=300, seed=(trial, n)) for n, each in enumerate(values)]
        for found, parts in (("together", one), ("apart", two)):
            each = hierarchical_interval(parts, 0.95, together=found == "together")
            hit = each["low"] <= 0.3 <= each["high"]
            together, apart = together + (hit and found == "together"), apart + (hit and found == "apart")
    assert together >= 0.90 * 200 and apart <= 0.80 * 200
    few = resampled_runs(Runs([np.zeros((4, 1))] * 2), resamples=10, seed=(0,))
    with pytest.raises(UserError, match="as many in every part"):
        hierarchical_interval([one[0], few], 0.95, together=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.booleans(), st.integers(0, 99), st.floats(-5, 5), st.floats(0.1, 3))
def test_shifts_and_scales_go_through(
    runs: int, examples: int, shared: bool, seed: int, shift: float, scale: float
) -> None:
    values = np.random.default_rng(seed).normal(size=(runs, examples, 2))
    options = {"resamples": 60, "seed": (seed,)}
    found = resampled_runs(Runs(list(values), shared=shared), **options)
    moved = resampled_runs(Runs(list(shift + scale * values), shared=shared), **options)
    np.testing.assert_allclose(moved.draws, shift + scale * found.draws, atol=1e-9)
    a, b = hierarchical_interval([found], 0.9), hierarchical_interval([moved], 0.9)
    for key in ("value", "low", "high"):
        assert b[key] == pytest.approx(shift + scale * a[key], abs=1e-6)
    nothing = hierarchical_interval([found.of(0).minus(found.of(0))], 0.9)
    assert (nothing["value"], nothing["low"], nothing["high"]) == (0.0, 0.0, 0.0)


def test_what_cannot_be_resampled_is_refused() -> None:
    for runs, words in (
        (Runs([]), "at least one run"),
        (Runs([np.zeros((0, 1))]), "an example in each"),
        (Runs([np.zeros((3, 1)), np.zeros((4, 1))]), "as many examples"),
        (Runs([np.zeros((3, 1)), np.zeros((3, 2))], shared=False), "the same arms"),
        (Runs([np.zeros((3, 1))], [np.zeros(3)]), "weights are positive"),
    ):
        with pytest.raises(UserError, match=words):
            resampled_runs(runs, resamples=10, seed=(0,))
    with pytest.raises(UserError, match="at least one part"):
        hierarchical_interval([], 0.95)
    one, two = (resampled_runs(Runs([np.zeros((3, 1))] * n), resamples=10, seed=(0,)) for n in (1, 2))
    with pytest.raises(UserError, match="same runs"):
        one.minus(two)
