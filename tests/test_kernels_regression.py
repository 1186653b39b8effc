"""Kernel ridge regression: closed forms against explicit refits, symmetries, and mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.kernels.regression import accuracy, choose_ridge, kernel_ridge, one_hot, predict


@st.composite
def problems(draw):
    """(gram [n, n] positive definite, labels [n] of at least two classes, random generator)."""
    n, classes = draw(st.integers(3, 12)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    features = rng.standard_normal((n, n + draw(st.integers(0, 5)))) * 10.0 ** draw(st.integers(-3, 3))
    labels = np.concatenate([np.arange(min(classes, n)), rng.integers(0, classes, max(0, n - classes))])
    gram = features @ features.T
    return gram + 1e-3 * np.trace(gram) / n * np.eye(n), rng.permutation(labels), rng


@settings(deadline=None, max_examples=40)
@given(problems(), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_leave_one_out_is_that_of_n_refits(problem, ridge):
    gram, labels, _ = problem
    targets, _ = one_hot(labels)
    n = len(gram)
    residuals = []
    for i in range(n):
        rest = np.arange(n) != i
        # The units of the ridge are those of the whole set, so it is rescaled for the smaller one.
        scaled = ridge * np.trace(gram) / np.trace(gram[np.ix_(rest, rest)])
        alpha = kernel_ridge(gram[np.ix_(rest, rest)], targets[rest], scaled)
        residuals.append(targets[i] - predict(gram[i : i + 1, rest], alpha)[0])
    chosen, errors = choose_ridge(gram, targets, [ridge])
    assert chosen == ridge
    np.testing.assert_allclose(errors, [np.square(residuals).mean()], rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(problems())
def test_a_small_ridge_interpolates_and_a_large_one_gives_the_class_means(problem):
    gram, labels, _ = problem
    targets, mean = one_hot(labels)
    for ridge in (0.0, 1e-12):
        fitted = predict(gram, kernel_ridge(gram, targets, ridge))
        np.testing.assert_allclose(fitted, targets, atol=1e-6)
        assert accuracy(fitted + mean, labels) == 1.0
    flat = predict(gram, kernel_ridge(gram, targets, 1e12)) + mean
    np.testing.assert_allclose(flat, np.broadcast_to(mean, flat.shape), atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(problems(), st.floats(1e-5, 10))
def test_order_and_units_do_not_matter(problem, ridge):
    gram, labels, rng = problem
    targets, _ = one_hot(labels)
    alpha, order = kernel_ridge(gram, targets, ridge), rng.permutation(len(gram))
    permuted = kernel_ridge(gram[np.ix_(order, order)], targets[order], ridge)
    np.testing.assert_allclose(permuted, alpha[order], rtol=1e-6, atol=1e-9 * np.abs(alpha).max())
    np.testing.assert_allclose(kernel_ridge(1e6 * gram, targets, ridge) * 1e6, alpha, rtol=1e-6)
    ridges = [0.01, ridge, 20.0]
    chosen, errors = choose_ridge(gram, targets, ridges)
    again, same = choose_ridge(1e6 * gram[np.ix_(order, order)], targets[order], ridges)
    np.testing.assert_allclose(same, errors, rtol=1e-6)
    np.testing.assert_allclose(errors[ridges.index(again)], errors.min(), rtol=1e-6)
    assert chosen == ridges[int(errors.argmin())]


def test_the_ridge_that_leave_one_out_chooses_denoises():
    """Noisy labels of a function that the kernel can express: neither no ridge nor a huge one."""
    rng = np.random.default_rng(0)
    x, x_new = rng.standard_normal((60, 4)), rng.standard_normal((400, 4))
    labels, truth = (x[:, 0] > 0).astype(int), (x_new[:, 0] > 0).astype(int)
    noisy = np.where(rng.random(60) < 0.2, 1 - labels, labels)
    gram, cross = np.exp(-((x[:, None] - x) ** 2).sum(-1) / 8), np.exp(-((x_new[:, None] - x) ** 2).sum(-1) / 8)
    targets, mean = one_hot(noisy)
    ridges = [1e-9, 1e-3, 1e-2, 1e-1, 1e3]
    chosen, _ = choose_ridge(gram, targets, ridges)
    assert chosen in (1e-3, 1e-2, 1e-1)
    found = {r: accuracy(predict(cross, kernel_ridge(gram, targets, r)) + mean, truth) for r in (chosen, 1e-9)}
    assert found[chosen] > 0.8 > found[1e-9]


def test_a_ridge_below_the_rounding_of_the_kernel_is_not_chosen():
    features = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)
    gram = features @ features.T - 1e-7 * np.eye(8, dtype=np.float32)  # rank 3, as rounding leaves it
    targets, _ = one_hot([0, 1] * 4)
    chosen, errors = choose_ridge(gram, targets, [0.0, 1e-12, 1e-2])
    assert chosen == 1e-2 and np.isinf(errors[:2]).all() and np.isfinite(errors[2])


def test_targets():
    targets, mean = one_hot([0, 2, 2, 0], classes=4)
    np.testing.assert_allclose(mean, [0.5, 0, 0.5, 0])
    np.testing.assert_allclose(targets.sum(axis=0), 0)
    np.testing.assert_allclose(targets + mean, np.eye(4)[[0, 2, 2, 0]])
    single = kernel_ridge(np.eye(3), np.array([1.0, 0, -1]), 1.0)  # one column may be a vector
    np.testing.assert_allclose(single, [0.25, 0, -0.25])


GRAM, TARGETS = np.eye(3), np.eye(3)


def with_nan(array):
    array = array.copy()
    array[1, 0] = np.nan
    return array


class TestMistakes:
    @pytest.mark.parametrize(
        "gram, targets, ridge, message",
        [
            (np.zeros((0, 0)), TARGETS, 1, "gram: a square matrix of at least one example"),
            (np.ones((2, 3)), TARGETS, 1, r"gram: a square matrix .* got shape \(2, 3\)"),
            (GRAM, TARGETS[:2], 1, r"targets: shape \(2, 3\) does not fit 3 examples"),
            (GRAM, np.zeros((3, 0)), 1, "targets: shape"),
            (with_nan(GRAM), TARGETS, 1, r"gram: NaN or Inf at \(1, 0\)"),
            (GRAM, with_nan(TARGETS), 1, r"targets: NaN or Inf at \(1, 0\)"),
            (np.triu(np.ones((3, 3))), TARGETS, 1, "gram: not symmetric"),
            (0 * GRAM, TARGETS, 1, "gram: its trace is 0"),
            (np.diag([1.0, 1.0, -0.5]), TARGETS, 0.1, "gram: not positive definite with ridge = 0.1"),
            (GRAM, TARGETS, -1, "ridge = -1 must be"),
            (GRAM, TARGETS, np.nan, "ridge = nan must be"),
        ],
    )
    def test_unusable_problems(self, gram, targets, ridge, message):
        with pytest.raises(UserError, match=message):
            kernel_ridge(gram, targets, ridge)
        with pytest.raises(UserError, match=message):
            choose_ridge(gram, targets, [ridge])

    def test_nothing_to_choose(self):
        with pytest.raises(UserError, match="ridges: there are none"):
            choose_ridge(GRAM, TARGETS, [])
        with pytest.raises(UserError, match="leaving one out of 1 example"):
            choose_ridge(GRAM[:1, :1], TARGETS[:1], [1.0])

    @pytest.mark.parametrize(
        "labels, message",
        [
            ([], "labels: a list of at least one class"),
            ([1, 1, 1], "labels: all 3 examples are of class 1"),
            ([0.5, 1.0], "labels: classes are whole numbers"),
            ([-1, 1], "labels: classes are whole numbers"),
            ([0, 7], "labels: class 7 is not one of 4 classes"),
        ],
    )
    def test_labels(self, labels, message):
        with pytest.raises(UserError, match=message):
            one_hot(labels, classes=4)

    def test_predictions(self):
        with pytest.raises(UserError, match=r"cross: shape \(2, 2\) does not fit alpha of shape \(3, 3\)"):
            predict(np.ones((2, 2)), GRAM)
        with pytest.raises(UserError, match="cross: NaN"):
            predict(with_nan(GRAM), GRAM)
        with pytest.raises(UserError, match="values: shape .* do not fit"):
            accuracy(GRAM, [0, 1])
        with pytest.raises(UserError, match="values: NaN"):
            accuracy(with_nan(GRAM), [0, 1, 2])
