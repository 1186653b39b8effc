"""TSDS: its probabilities against the linear programme that they solve, its densities and its draw."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from test_selection_embedding import candidates_of, cosine

from ntk_jax.errors import UserError
from ntk_jax.selection.tsds import TsdsOptions, kernel_density, rank, transport


def cost_of(gamma: np.ndarray, distances: np.ndarray, density: np.ndarray, alpha: float, scale: float) -> float:
    """What is minimized, as the paper writes it."""
    m = len(distances)
    return alpha / scale * float((gamma * distances).sum()) + (1 - alpha) * m * float((gamma * density).max())


def by_linear_programme(distances: np.ndarray, density: np.ndarray, alpha: float, scale: float) -> float:
    """The least cost, over the γ of all pairs and a bound t of ρ γ."""
    m, k = distances.shape
    cost = [*(alpha / scale * distances.ravel()), (1 - alpha) * m]
    rows = np.zeros((m, m * k + 1))
    for i in range(m):
        rows[i, i * k : (i + 1) * k] = 1
    bounds = np.concatenate([np.diag(density.ravel()), -np.ones((m * k, 1))], axis=1)  # ρ γ - t ≤ 0
    found = linprog(cost, bounds, np.zeros(m * k), rows, np.full(m, 1 / m), bounds=(0, None), method="highs")
    assert found.status == 0
    return float(found.fun)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    m=st.integers(1, 4),
    k=st.integers(1, 8),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    even=st.booleans(),
)
def test_the_transport_is_the_optimum_of_the_linear_programme(seed, m, k, alpha, scale, even):
    rng = np.random.default_rng(seed)
    distances = np.sort(np.round(rng.random((m, k)), 1), axis=1)  # rounded: many are equal
    density = np.ones((m, k)) if even else 1 + rng.gamma(1.0, size=(m, k))
    gamma = transport(distances, density, alpha, scale)
    assert (gamma >= 0).all()
    np.testing.assert_allclose(gamma.sum(axis=1), 1 / m, rtol=1e-9)
    least = by_linear_programme(distances, density, alpha, scale)
    assert cost_of(gamma, distances, density, alpha, scale) == pytest.approx(least, rel=1e-7, abs=1e-9)


def test_by_hand():
    """One domain example, distances 0, 1, 3, no duplicates. To have two in turn moves half of the mass by 1 and halves
    the largest; the third must be moved by 3."""
    distances, density = np.array([[0.0, 1.0, 3.0]]), np.ones((1, 3))
    np.testing.assert_allclose(transport(distances, density, 1.0, 1.0), [[1, 0, 0]])
    np.testing.assert_allclose(transport(distances, density, 0.5, 1.0), [[1, 0, 0]])  # 0 + 1 against 1/2 + 1/2: equal
    np.testing.assert_allclose(transport(distances, density, 0.4, 1.0), [[0.5, 0.5, 0]])
    np.testing.assert_allclose(transport(distances, density, 0.0, 1.0), [[1 / 3, 1 / 3, 1 / 3]])
    twins = np.array([[1.0, 2.0, 2.0]])  # the second and the third are one twice
    np.testing.assert_allclose(transport(np.zeros((1, 3)), twins, 0.0, 1.0), [[0.5, 0.25, 0.25]])


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), sigma=st.sampled_from([0.0, 0.15, 0.75, 2.0]))
def test_densities_are_the_sum_over_all_pairs(seed, n, sigma):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, 3))
    rows[n // 2 :] = rows[: n - n // 2] + 0.05 * rng.standard_normal((n - n // 2, 3))  # duplicates, nearly
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    expected = [
        sum(max(0.0, 1 - float(((a - b) ** 2).sum()) / sigma**2) for b in rows.astype(float)) if sigma else 1.0
        for a in rows.astype(float)
    ]
    np.testing.assert_allclose(kernel_density(rows, sigma), expected, rtol=1e-4)


def test_densities_of_more_rows_than_one_product_takes(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((23, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    seen: list[tuple[int, int]] = []
    whole = kernel_density(rows, 0.9)
    monkeypatch.setattr("ntk_jax.selection.tsds._ROWS", 10)
    np.testing.assert_allclose(
        kernel_density(rows, 0.9, lambda done, total: seen.append((done, total))), whole, rtol=1e-6
    )
    assert seen == [(10, 23), (20, 23), (23, 23)]


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), m=st.integers(1, 4), k=st.integers(1, 15), data=st.data())
def test_the_probabilities_of_a_ranking(seed, n, m, k, data):
    """From embeddings to probabilities, every pair by itself, the neighbours by sorting; k may be above the pool."""
    rng = np.random.default_rng(seed)
    pool, domain = rng.standard_normal((n, 3)), rng.standard_normal((m, 3))
    count, options = data.draw(st.integers(1, n)), TsdsOptions(sigma=0.8, neighbours=k, sample=False)
    found = rank(candidates_of(pool, domain, count, cuts=[n // 2]), options)

    distance = lambda a, b: np.sqrt(max(0.0, 2 - 2 * cosine(a, b)))  # noqa: E731
    near = [sorted(range(n), key=lambda i, d=d: (-cosine(pool[i], d), i))[: min(k, n)] for d in domain]
    among = sorted({i for row in near for i in row})
    density = {i: sum(max(0.0, 1 - distance(pool[i], pool[j]) ** 2 / 0.64) for j in among) for i in among}
    distances = np.array([[distance(pool[i], d) for i in row] for row, d in zip(near, domain, strict=True)])
    gamma = transport(distances, np.array([[density[i] for i in row] for row in near]), 0.5, 1.0)
    expected = np.zeros(n)
    for row, shares in zip(near, gamma, strict=True):
        for i, share in zip(row, shares, strict=True):
            expected[i] += share
    np.testing.assert_allclose(found.scores, expected, atol=2e-3)
    assert found.scores.sum() == pytest.approx(1.0, abs=1e-5) and len(set(found.order.tolist())) == count
    assert (np.diff(found.scores[found.order]) <= 0).all(), "the most probable first"


def test_the_draw_is_distinct_seeded_and_in_proportion():
    """Two groups at equal distance: an example with a near-duplicate is drawn half as often as one alone."""
    pool = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    domain = np.array([[1, 1, 0]], np.float32)
    options = TsdsOptions(alpha=0.0, sigma=0.5)
    one = candidates_of(pool, domain, 1)
    assert rank(one, options).scores == pytest.approx([0.25, 0.25, 0.5])
    drawn = [int(rank(dataclasses.replace(one, seed=seed), options).order[0]) for seed in range(400)]
    assert abs(drawn.count(2) / 400 - 0.5) < 0.1 and abs(drawn.count(0) / 400 - 0.25) < 0.1
    again = [int(rank(dataclasses.replace(one, seed=seed), options).order[0]) for seed in range(5)]
    assert again == drawn[:5]
    assert sorted(rank(candidates_of(pool, domain, 3), options).order.tolist()) == [0, 1, 2], "each but once"


def test_where_fewer_are_probable_than_asked_for_the_nearest_follow():
    pool = np.array([[1, 2], [1, 0], [0, 1], [1, 0.2]], np.float32)
    found = rank(candidates_of(pool, np.array([[1.0, 0.0]]), 4), TsdsOptions(alpha=1.0, neighbours=1))
    assert found.scores.tolist() == [0, 1, 0, 0] and found.order.tolist() == [1, 3, 0, 2]


def test_mistakes():
    with pytest.raises(UserError, match="pool example 'p-1': its embedding is zero"):
        rank(candidates_of(np.array([[1.0, 0], [0, 0]]), np.eye(2), 1), TsdsOptions())
    with pytest.raises(UserError, match="^count = 3 is larger than the pool"):
        rank(candidates_of(np.eye(2), np.eye(2), 3), TsdsOptions())
