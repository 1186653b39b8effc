"""Diversity: greedy against plain greedy, its value against the best there is, quotas, and the features it looks at."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.mining.hashing import hashed_counts
from ntk_jax.selection import diversity
from ntk_jax.selection.diversity import coverage, diversify, log_volume, unit
from ntk_jax.selection.text_features import BUCKETS, text_features

GREEDY = 1 - 1 / np.e


def features(seed: int, size: int, width: int = 3) -> np.ndarray:
    """Directions of which some are the same, some opposite and some absent."""
    return np.random.default_rng(seed).integers(-2, 3, (size, width)).astype(np.float32)


def value(rows: np.ndarray, picked: list[int], count: int, method: str, quality: float, beta: float = 10.0) -> float:
    """F(S), written plainly."""
    x = unit(rows).astype(np.float64)
    size = len(x)
    gram = x[picked] @ x[picked].T
    if method == "facility_location":
        f = np.maximum(x @ x[picked].T, 0).max(axis=1).mean() if picked else 0.0
    else:
        f = np.linalg.slogdet(np.eye(len(picked)) + beta * gram)[1] / (count * np.log1p(beta))
    return float((1 - quality) * f + quality / count * sum(1 - j / size for j in picked))


def plain_greedy(rows: np.ndarray, count: int, method: str, quality: float, allowed=lambda picked, one: True):
    """(the picks of greedy, whether one of them was won by a hair), written plainly."""
    picked: list[int] = []
    close = False
    for _ in range(count):
        open = [one for one in range(len(rows)) if one not in picked and allowed(picked, one)]
        values = [value(rows, [*picked, one], count, method, quality) for one in open]
        order = np.argsort(-np.array(values), kind="stable")
        close |= len(order) > 1 and values[order[0]] - values[order[1]] < 2e-5
        picked.append(open[order[0]])
    return picked, close


CASES = (st.integers(0, 10**6), st.integers(1, 9), st.data(), st.sampled_from([0.0, 0.3, 0.8]))


@pytest.mark.parametrize("method", diversity.METHODS)
class TestGreedy:
    @settings(deadline=None, max_examples=60)
    @given(*CASES)
    def test_it_is_plain_greedy(self, method, seed, size, data, quality):
        rows = features(seed, size)
        count = data.draw(st.integers(1, size))
        found = diversify(rows, count, method=method, quality=quality).tolist()
        expected, close = plain_greedy(rows, count, method, quality)
        assert len(set(found)) == count
        if not close:  # of equal gains rounding decides
            assert found == expected
        for number, one in enumerate(found):
            before = found[:number]
            values = [value(rows, [*before, other], count, method, quality) for other in range(size)]
            assert values[one] >= max(v for other, v in enumerate(values) if other not in before) - 2e-5

    @settings(deadline=None, max_examples=60)
    @given(*CASES)
    def test_it_has_its_share_of_the_optimum(self, method, seed, size, data, quality):
        rows = features(seed, size)
        count = data.draw(st.integers(1, size))
        best = max(value(rows, list(one), count, method, quality) for one in itertools.combinations(range(size), count))
        found = diversify(rows, count, method=method, quality=quality).tolist()
        assert value(rows, found, count, method, quality) >= GREEDY * best - 1e-6

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 10**6), st.integers(2, 9), st.data())
    def test_quotas_hold(self, method, seed, size, data):
        rows, cap = features(seed, size), data.draw(st.integers(1, 3))
        groups = data.draw(st.lists(st.sampled_from("ab"), min_size=size, max_size=size))
        count = data.draw(st.integers(1, sum(min(cap, n) for n in Counter(groups).values())))
        found = diversify(rows, count, method=method, quality=0.3, groups=groups, caps={"a": cap, "b": cap}).tolist()
        assert max(Counter(groups[one] for one in found).values()) <= cap
        expected, close = plain_greedy(
            rows, count, method, 0.3, lambda picked, one: sum(groups[p] == groups[one] for p in picked) < cap
        )
        assert close or found == expected

    def test_quality_alone_is_the_ranking(self, method):
        assert diversify(features(1, 30), 12, method=method, quality=1.0).tolist() == list(range(12))

    def test_equal_candidates_are_taken_in_their_order(self, method):
        assert diversify(np.ones((9, 4)), 5, method=method, quality=0.0).tolist()[0] == 0
        assert diversify(np.ones((9, 4)), 5, method=method, quality=0.1).tolist() == [0, 1, 2, 3, 4]
        assert sorted(diversify(np.zeros((9, 4)), 9, method=method, quality=0.0).tolist()) == list(range(9))

    def test_a_prefix_is_what_fewer_give(self, method):
        rows = np.random.default_rng(3).standard_normal((60, 8)).astype(np.float32)
        assert diversify(rows, 30, method=method, quality=0)[:11].tolist() == (
            diversify(rows, 11, method=method, quality=0).tolist()
        )

    def test_every_cluster_before_a_second_of_one(self, method):
        rng = np.random.default_rng(0)
        rows = np.repeat(np.eye(5), 8, axis=0) + 0.01 * rng.standard_normal((40, 5))
        found = diversify(rows, 5, method=method, quality=0.0)
        assert sorted(found // 8) == [0, 1, 2, 3, 4]

    def test_bad_input(self, method):
        rows = np.ones((4, 2), np.float32)
        with pytest.raises(UserError, match="count = 5 is larger than the pool"):
            diversify(rows, 5, method=method)
        with pytest.raises(UserError, match="quality = 2 must be in"):
            diversify(rows, 1, method=method, quality=2)
        with pytest.raises(UserError, match="beta = 0 above 0"):
            diversify(rows, 1, method=method, beta=0)
        with pytest.raises(UserError, match=r"shape \(4,\)"):
            diversify(rows[:, 0], 1, method=method)
        rows[2, 1] = np.nan
        with pytest.raises(UserError, match="candidate 2 are not finite"):
            diversify(rows, 1, method=method)
        with pytest.raises(UserError, match="quotas leave 1 candidates for a selection of 2"):
            diversify(np.ones((4, 2)), 2, method=method, groups="aaaa", caps={"a": 1})


def test_an_unknown_method():
    with pytest.raises(UserError, match="method = 'best' is not one of facility_location, dpp"):
        diversify(np.ones((4, 2)), 2, method="best")


@pytest.mark.parametrize("batch", [1, 7, 512])
def test_kept_gains_are_those_of_all(batch, monkeypatch):
    """What picks take off the gains, in batches, against gains computed anew at every step."""
    monkeypatch.setattr(diversity, "_BATCH", batch)
    rng = np.random.default_rng(batch)
    rows = unit(rng.standard_normal((150, 6)))
    covered, expected = np.zeros(150), []
    for _ in range(40):
        gains = np.maximum(rows @ rows.T - covered[:, None], 0).sum(axis=0).round(5)
        gains[expected] = -1
        expected.append(int(np.argmax(gains)))
        covered = np.maximum(covered, rows @ rows[expected[-1]])
    assert diversify(rows, 40, quality=0.0).tolist() == expected


def test_the_dual_is_the_incremental_cholesky_of_chen_et_al():
    """Algorithm 1 of arXiv 1709.05135 on the kernel I + β X Xᵀ, with more picks than columns."""
    rows, beta = unit(np.random.default_rng(5).standard_normal((50, 6))).astype(np.float64), 10.0
    kernel = np.eye(50) + beta * rows @ rows.T
    c, d2 = np.zeros((50, 0)), np.diag(kernel).copy()
    expected = [0]  # all are as long
    while len(expected) < 20:
        j = expected[-1]
        e = (kernel[j] - c @ c[j]) / np.sqrt(d2[j])
        c, d2 = np.column_stack([c, e]), d2 - e * e
        open = np.where(np.isin(np.arange(50), expected), -np.inf, np.log(np.maximum(d2, 1e-9)).round(5))
        expected.append(int(np.argmax(open)))
    assert diversify(rows, 20, method="dpp", quality=0.0, beta=beta).tolist() == expected


@given(st.integers(0, 1000), st.integers(1, 8))
def test_values_are_those_of_the_formulas(seed, size):
    rows = features(seed, size)
    picked = np.arange(0, size, 2)
    x = unit(rows).astype(np.float64)
    nearest = [max(max(0.0, float(x[i] @ x[j])) for j in picked) for i in range(size)]
    assert coverage(rows, picked) == pytest.approx(np.mean(nearest), abs=1e-6)
    gram = np.eye(len(picked)) + 10 * x[picked] @ x[picked].T
    assert log_volume(rows, picked) == pytest.approx(np.log(np.linalg.det(gram)), abs=1e-4)


def test_text_features_are_the_formula():
    texts = ["a cat sat", "a dog sat on a dog", "a", ""]
    rows = text_features(texts, 64)
    counts = [dict(zip(*(part.tolist() for part in hashed_counts(text, BUCKETS)), strict=True)) for text in texts]
    frequency = Counter(bucket for found in counts for bucket in found)
    long = np.zeros((4, BUCKETS))
    for row, found in zip(long, counts, strict=True):
        for bucket, times in found.items():
            row[bucket] = (1 + np.log(times)) * np.log(5 / (1 + frequency[bucket]))
    wide = text_features(texts, 1 << 16)  # of so many columns no two n-grams share one
    norms = np.linalg.norm(long, axis=1, keepdims=True)
    cosines = (long / np.maximum(norms, 1e-12)) @ (long / np.maximum(norms, 1e-12)).T
    np.testing.assert_allclose(wide @ wide.T, cosines, atol=1e-6)
    assert np.array_equal(rows, text_features(iter(texts), 64)) and not rows[3].any()
    np.testing.assert_allclose(np.linalg.norm(rows[:3], axis=1), 1, rtol=1e-6)


def test_narrow_features_keep_the_cosines_in_the_mean():
    words = [f"w{number}" for number in range(60)]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 30)) for _ in range(60)]
    wide, narrow = text_features(texts, 1 << 16), text_features(texts, 256)
    errors = (wide @ wide.T - narrow @ narrow.T)[np.triu_indices(60, 1)]
    assert abs(errors.mean()) < 0.02 and errors.std() < 2 / np.sqrt(256)
