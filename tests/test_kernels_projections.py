"""Projections: unbiased for inner products, with the variance they state, and alike for any batch and devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from kernel_reference import random_rows, tiny_model

from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.projections import BLOCK, Projection, check_width, dense_columns, project, project_with_key, sides
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.sketch import sketches
from ntk_jax.parallel.mesh import make_mesh

SEEDS = 1000
DIM = 32  # the narrowest
CASES = [("rademacher", 1), ("countsketch", 1), ("countsketch", 4), ("kronecker", 1)]


def gradients(rows=2, seed=0):
    """Leaves [B, 1, ...]: stacked matrices, a vector a layer, and one plain vector."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (2, 6, 4), "b": (2, 3), "c": (5,)}
    tree = {name: rng.standard_normal((rows, 1, *shape)).astype(np.float32) for name, shape in shapes.items()}
    tree["a"] *= rng.gamma(0.5, size=tree["a"].shape).astype(np.float32)  # uneven, so that the Σ g_i² g'_i² term counts
    return tree


def flat(tree):
    return np.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], axis=1).astype(float)


@functools.cache
def estimates(kind, sparsity, dim=DIM):
    """⟨z, z'⟩ for many seeds."""
    tree = gradients()
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(jnp.arange(SEEDS))
    z = jax.lax.map(lambda key: project_with_key(kind, dim, sparsity, key, tree)[:, 0], keys)
    return np.asarray((z[:, 0] * z[:, 1]).sum(axis=1), float)


@pytest.mark.parametrize("kind, sparsity", CASES)
def test_inner_products_are_unbiased(kind, sparsity):
    g, h = flat(gradients())
    found = estimates(kind, sparsity)
    assert abs(found.mean() - g @ h) < 4 * found.std() / np.sqrt(SEEDS)


def quadratic_variance(m):
    """Of lᵀMl for random signs l."""
    return (m**2).sum() + (m * m.T).sum() - 2 * (np.diag(m) ** 2).sum()


@pytest.mark.parametrize("kind, sparsity", CASES)
def test_the_variance_is_the_one_stated(kind, sparsity):
    dim, tree = DIM, gradients()
    g, h = flat(tree)
    found = estimates(kind, sparsity).var()
    if kind != "kronecker":
        stated = ((g @ g) * (h @ h) + (g @ h) ** 2 - 2 * (g**2 * h**2).sum()) / dim
        assert 0.8 < found / stated < 1.25
        return
    matrices = [leaf.reshape(2, -1, *(1, *leaf.shape[2:])[-2:]).astype(float) for leaf in jax.tree.leaves(tree)]
    pairs = [(x, y) for first, second in matrices for x, y in zip(first, second, strict=True)]
    left, right = sides(dim)
    bound = sum(
        quadratic_variance(x @ y.T) / left + quadratic_variance(x.T @ y) / right + 9 * (x**2).sum() * (y**2).sum() / dim
        for x, y in pairs
    )
    bound += sum(
        (x**2).sum() * (w**2).sum() + (x * y).sum() * (v * w).sum()
        for i, (x, y) in enumerate(pairs)
        for j, (v, w) in enumerate(pairs)
        if i != j
    ) / dim  # fmt: skip
    assert bound / 20 < found < 1.25 * bound


def test_a_dense_projection_is_the_matrix_of_its_signs():
    """Forward mode: column by column, z(x) = Π g(x) with one Π for all examples, and Π is ±1/√K."""
    tree = {"w": gradients()["a"]}
    size = tree["w"][0, 0].size
    unit = {"w": np.eye(size, dtype=np.float32).reshape(size, 1, *tree["w"].shape[2:])}
    projection = Projection("rademacher", 32, seed=3)
    matrix = np.asarray(project(projection, unit))[:, 0]  # [P, K]
    np.testing.assert_allclose(np.abs(matrix), 32**-0.5, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(project(projection, tree))[:, 0], flat(tree) @ matrix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind, sparsity", CASES)
def test_any_batch_and_any_devices_give_the_same_sketches(kind, sparsity):
    projection, tree = Projection(kind, 64, 1, sparsity), gradients(rows=16)
    together = np.asarray(project(projection, tree))
    one = jax.tree.map(lambda leaf: leaf[5:6], tree)
    np.testing.assert_allclose(np.asarray(project(projection, one))[0], together[5], rtol=1e-5, atol=1e-5)
    rows = NamedSharding(make_mesh(), PartitionSpec("data"))
    spread = project(projection, jax.tree.map(lambda leaf: jax.device_put(leaf, rows), tree))
    np.testing.assert_allclose(np.asarray(spread), together, rtol=1e-5, atol=1e-5)
    assert not np.allclose(np.asarray(project(Projection(kind, 64, 2, sparsity), tree)), together, atol=0.1)


@pytest.mark.parametrize("kind, sparsity", CASES)
def test_the_map_is_the_same_to_the_bit(kind, sparsity):
    """Of gradients that are small whole numbers every sum is exact in fp32, in whatever order a batch size or a mesh
    makes XLA add: so any difference would be one of signs or places."""
    projection = Projection(kind, 64, 5, sparsity)  # √64 and √4 divide exactly too
    rng = np.random.default_rng(4)
    shapes = {"a": (2, 70, 33), "b": (3,), "c": (5,)}  # `a` spans two blocks of signs
    tree = {name: rng.integers(-8, 9, (16, 2, *shape)).astype(np.float32) for name, shape in shapes.items()}
    together = np.asarray(project(projection, tree))
    assert together.shape == (16, 2, 64)
    for size in (3,):
        parts = [jax.tree.map(lambda leaf, part=slice(i, i + size): leaf[part], tree) for i in range(0, 16, size)]
        np.testing.assert_array_equal(np.concatenate([project(projection, part) for part in parts]), together)
    for devices in (1, 8):
        rows = NamedSharding(make_mesh(devices=jax.devices()[:devices]), PartitionSpec("data"))
        spread = project(projection, jax.tree.map(lambda leaf, rows=rows: jax.device_put(leaf, rows), tree))
        assert len(spread.sharding.device_set) == devices
        np.testing.assert_array_equal(np.asarray(spread), together)


@pytest.mark.parametrize(
    "kind, sparsity",  # forward mode; reverse mode, whose gradients and whose map are tested each alone
    [("rademacher", 1), pytest.param("countsketch", 4, marks=pytest.mark.slow)],
)
def test_sketches_of_a_model_depend_neither_on_batch_nor_on_devices(kind, sparsity):
    model, rows, objective = tiny_model(), random_rows(11, seed=51), Objective()
    projection = Projection(kind, 64, 1, sparsity)
    layouts = [Layout(64, 3, packed=False), Layout(64, 8, make_mesh(), packed=False)]
    first, other = (sketches(model, rows, objective, layout, projection) for layout in layouts)
    assert np.abs(other - first).max() < 1e-5 * np.abs(first).max()


def test_dense_columns_are_those_of_the_matrix():
    """What forward mode goes along, in two blocks of signs of which the second is not full."""
    size, key = BLOCK + 7, jax.random.key(9, impl="threefry2x32")
    at = np.array([0, 1, BLOCK - 1, BLOCK, size - 1])
    unit = np.zeros((len(at), 1, size), np.float32)
    unit[np.arange(len(at)), 0, at] = 1
    whole = project_with_key("rademacher", 64, 1, key, {"w": unit})[:, 0]
    columns = dense_columns(jax.random.fold_in(key, 0), size, 64, jnp.int32(24), 16)
    assert columns.shape == (size, 16)
    np.testing.assert_array_equal(columns[at], whole[:, 24:40])


class TestMistakes:
    def test_widths(self):
        with pytest.raises(UserError, match="use a multiple of 32"):
            Projection("rademacher", 100)
        with pytest.raises(UserError, match="not a multiple of sparsity"):
            Projection("countsketch", 64, sparsity=5)
        with pytest.raises(UserError, match="'gauss' is not one of rademacher"):
            Projection("gauss")  # type: ignore[arg-type]
        with pytest.raises(UserError, match="dim = 8192 is larger than the 59 parameters"):
            check_width(Projection(), jax.tree.map(lambda leaf: leaf[0, 0], gradients()))
