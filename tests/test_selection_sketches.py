"""Ranking by sketches: as the definitions say, one pass over blocks, and the same for any blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.selection.sketch import KINDS, best_per_target, rank_blocks, take_turns

# Small whole numbers: sums are exact in any order, and ties are many.
matrices = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float32)


def in_blocks(size: int, *arrays: np.ndarray):
    for start in range(0, len(arrays[0]), size):
        part = tuple(array[start : start + size] for array in arrays)
        yield part if len(part) > 1 else part[0]


@settings(deadline=None)
@given(
    rng=matrices, rows=st.integers(1, 40), targets=st.integers(1, 5), count=st.integers(1, 50), size=st.integers(1, 45)
)
def test_the_best_in_one_pass_are_those_of_a_full_sort(rng, rows, targets, count, size):
    values = numbers(rng, rows, targets)
    found, where = best_per_target(in_blocks(size, values), count)
    order = np.argsort(-values, axis=0, kind="stable")[:count].T
    np.testing.assert_array_equal(where, order)
    np.testing.assert_array_equal(found, np.take_along_axis(values.T, order, axis=1))


def by_definition(by: str, units, norms, targets, target_norms, count):
    """The slow way, one example and one target at a time."""
    cosines = np.array([[float(u @ t) for t, n in zip(targets, target_norms, strict=True) if n > 0] for u in units])
    if by == "mean":
        products = [[n * m * float(u @ t) for t, m in zip(targets, target_norms, strict=True)]
                    for u, n in zip(units, norms, strict=True)]  # fmt: skip
        scores = np.mean(products, axis=1)
    else:
        scores = cosines.mean(axis=1) if by == "cosine" else cosines.max(axis=1)
    if by != "round_robin":
        return scores, sorted(range(len(units)), key=lambda i: (-scores[i], i))[:count]
    order: list[int] = []
    while len(order) < count:
        column = cosines[:, len(order) % cosines.shape[1]]
        best = min(set(range(len(units))) - set(order), key=lambda i: (-column[i], i))
        scores[best] = column[best]
        order.append(best)
    return scores, order


@settings(deadline=None)
@pytest.mark.parametrize("by", KINDS)
@given(rng=matrices, rows=st.integers(1, 25), targets=st.integers(1, 4), size=st.integers(1, 30), data=st.data())
def test_every_score_is_what_its_name_says(by, rng, rows, targets, size, data):
    count = data.draw(st.integers(1, rows))
    # Four targets, or two, or one with a norm: their mean is exact too.
    units, norms = numbers(rng, rows, 6), np.abs(numbers(rng, rows))
    wanted, target_norms = numbers(rng, targets, 6), np.abs(numbers(rng, targets))
    target_norms[0] = 2
    if np.count_nonzero(target_norms) == 3 or targets == 3:
        wanted, target_norms = wanted[:1], target_norms[:1]
    scores, order = by_definition(by, units, norms, wanted, target_norms, count)
    found = rank_blocks(by, (wanted, target_norms), in_blocks(size, units, norms), count)
    np.testing.assert_array_equal(found.order, order)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    assert found.scores.dtype == np.float32


def test_turns_go_around():
    values = np.array([[9.0, 8, 7], [6, 5, 4]], np.float32)
    where = np.array([[0, 1, 2], [0, 2, 1]])
    order, picked = take_turns(values, where, 3)
    assert order.tolist() == [0, 2, 1] and picked.tolist() == [9, 5, 8]


def test_half_precision_rows_move_a_product_by_less_than_a_thousandth():
    rng = np.random.default_rng(0)
    for width in (64, 8192):
        rows = rng.standard_normal((20, width)) * rng.gamma(0.3, size=(20, width))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        half = rows.astype(np.float16).astype(float)
        assert np.abs(half @ half.T - rows @ rows.T).max() < 1e-3


class TestMistakes:
    def test_sets_that_are_empty_or_zero(self):
        one, norm = np.ones((1, 4)), np.ones(1)
        for by in KINDS:
            with pytest.raises(UserError, match="there are no targets"):
                rank_blocks(by, (one[:0], norm[:0]), [(one, norm)], 1)
            with pytest.raises(UserError, match="sketches of all targets are zero"):
                rank_blocks(by, (one, 0 * norm), [(one, norm)], 1)
            with pytest.raises(UserError, match="the pool is empty"):
                rank_blocks(by, (one, norm), [], 1)
            with pytest.raises(UserError, match=r"count = 2 is larger than the pool \(1 usable examples\)"):
                rank_blocks(by, (one, norm), [(one, norm)], 2)
        with pytest.raises(UserError, match="'best' is not one of mean, cosine"):
            rank_blocks("best", (one, norm), [(one, norm)], 1)
