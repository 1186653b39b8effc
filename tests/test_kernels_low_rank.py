"""Main directions of gradients: against the singular vectors of explicit gradients, one example at a time."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_reference import flatten, random_rows, reference_gradients, tiny_model

from ntk_jax.errors import UserError
from ntk_jax.kernels.low_rank import (
    gram_block,
    gram_gradients,
    mirrored,
    principal_directions,
    spectrum,
    weighted_gradients,
)
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.score import directional_scores
from ntk_jax.parallel.mesh import make_mesh

ALONE, PACKED = Layout(64, 2, packed=False), Layout(64, 2)
MEMORY = 2**30


def gradient_spectrum(model, rows, objective, block=2):
    """The spectrum from a Gram matrix made block by block."""
    starts = range(0, len(rows), block)
    parts = [gram_block(model, rows, s, min(s + block, len(rows)), objective, ALONE, memory=MEMORY) for s in starts]
    return spectrum(mirrored(np.concatenate(parts)))


def features(model, rows, objective):
    """[N, C P] float64, whose inner products are the kernel: channels by √C."""
    return np.array([g.ravel() for g in reference_gradients(model, rows, objective)]) / np.sqrt(objective.channels)


def coordinates(model, domain, pool, objective, count, layout=PACKED):
    """([N, k] scores along the directions, the spectrum)."""
    found = gradient_spectrum(model, domain, objective)
    directions = principal_directions(model, domain, found, count, objective, layout)
    return directional_scores(model, pool, directions, objective, layout).values, found


@pytest.mark.parametrize("kind", ["cross_entropy", "probe", "sum_logits"])
def test_directions_are_the_singular_vectors_of_explicit_gradients(kind):
    model, objective = tiny_model(), Objective(kind, probes=2)
    domain, pool = random_rows(5, seed=1), random_rows(6, seed=2)
    g, h = features(model, domain, objective), features(model, pool, objective)
    _, sigma, u = np.linalg.svd(g, full_matrices=False)
    count = 3
    values, found = coordinates(model, domain, pool, objective, count)
    np.testing.assert_allclose(found.energies, sigma**2, rtol=1e-4, atol=1e-5 * sigma[0] ** 2)
    assert (np.diff(found.energies) <= 0).all(), "in falling order"
    expected = h @ u[:count].T
    expected *= np.sign((expected * values).sum(axis=0))  # a singular vector's sign is free
    np.testing.assert_allclose(values, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())
    toward = u[:count] @ g.mean(axis=0)
    np.testing.assert_allclose(found.of_mean(count), np.abs(toward), rtol=2e-3, atol=1e-3 * np.abs(toward).max())


def test_all_directions_give_the_mean_kernel_and_the_mean_squared_kernel():
    model, objective = tiny_model(), Objective("cross_entropy")
    domain, pool = random_rows(4, seed=3), random_rows(7, seed=4)
    kernel = features(model, pool, objective) @ features(model, domain, objective).T  # [N, m]
    values, found = coordinates(model, domain, pool, objective, 4)
    mean = values @ found.of_mean(4)
    np.testing.assert_allclose(mean, kernel.mean(axis=1), rtol=1e-4, atol=1e-5 * np.abs(kernel).max())
    energy = values.astype(np.float64) ** 2 @ found.energies / 4
    np.testing.assert_allclose(energy, (kernel**2).mean(axis=1), rtol=1e-4)


def test_one_example_is_its_own_direction():
    model, objective = tiny_model(), Objective("cross_entropy")
    domain, pool = random_rows(1, seed=5), random_rows(3, seed=6)
    g, h = features(model, domain, objective), features(model, pool, objective)
    values, found = coordinates(model, domain, pool, objective, 1)
    np.testing.assert_allclose(values[:, 0], h @ g[0] / np.linalg.norm(g[0]), rtol=1e-4)
    np.testing.assert_allclose(found.of_mean(1), [np.linalg.norm(g[0])], rtol=1e-4)


def test_weighted_sums_whatever_the_layout():
    model, objective = tiny_model(), Objective("probe", probes=3)
    rows, weights = random_rows(9, seed=7), np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32)
    g = np.array(reference_gradients(model, rows, objective))  # [N, C, P]
    for layout in (PACKED, ALONE, Layout(64, 8, make_mesh())):
        found = weighted_gradients(model, rows, weights, objective, layout)
        for k in range(2):
            one = flatten(jax.tree.map(lambda leaf, k=k: leaf[k], found), 3)
            expected = np.einsum("n,ncp->cp", weights[:, k], g)
            np.testing.assert_allclose(one, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_more_than_the_examples_span():
    model, objective = tiny_model(), Objective("cross_entropy")
    row = random_rows(1, seed=8)[0]
    twice = [row, dataclasses.replace(row, id="again")]
    found = gradient_spectrum(model, twice, objective)
    assert found.rank == 1
    with pytest.raises(UserError, match="2 directions of 2 examples whose gradients span 1: ask for 1 at most"):
        principal_directions(model, twice, found, 2, objective, PACKED)


def test_gradients_that_are_all_zero():
    with pytest.raises(UserError, match="the gradients of all domain examples are zero"):
        spectrum(np.zeros((3, 3), np.float32))


def test_gradients_of_a_gram_matrix_in_blocks_are_counted():
    """Of 5 rows in blocks of 2: 2 and all 5, 2 and 3, the last one and itself."""
    assert gram_gradients(5, 2) == (2 + 5) + (2 + 3) + (1 + 1)
    assert gram_gradients(5, 5) == gram_gradients(5, 9) == 5


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), m=st.integers(1, 6), rank=st.integers(1, 6))
def test_the_spectrum_takes_a_gram_matrix_apart(seed, m, rank):
    g = np.random.default_rng(seed).standard_normal((m, rank)) @ np.random.default_rng(seed + 1).standard_normal(
        (rank, 9)
    )
    found = spectrum((g @ g.T).astype(np.float32))
    assert found.rank <= min(m, rank) and (found.vectors.sum(axis=0) >= 0).all()
    kept = found.energies[: found.rank]
    rebuilt = (found.vectors * kept) @ found.vectors.T
    np.testing.assert_allclose(rebuilt, g @ g.T, atol=1e-4 * found.energies[0])
    # What the directions hold of the mean is at most the mean.
    assert (found.of_mean(found.rank) ** 2).sum() <= (g.mean(axis=0) ** 2).sum() * (1 + 1e-3) + 1e-9
