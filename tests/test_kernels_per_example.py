"""Per-example gradients against one example at a time, and sketches made of them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crossed import crossed
from kernel_reference import flatten, random_rows, reference_gradients, tiny_model

from ntk_jax.errors import UserError
from ntk_jax.kernels.direction import mean_gradient
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.per_example import example_gradients
from ntk_jax.kernels.projections import Projection
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.sketch import sketches
from ntk_jax.parallel.mesh import make_mesh

PADDED = Layout(row_length=64, rows_per_batch=4, packed=False)


def gradients_of(model, rows, objective, layout=PADDED, parameters="lora"):
    """[N, C, P] float64, by ordinal."""
    found = {}
    for ordinals, tree in example_gradients(model, rows, objective, layout, parameters=parameters):
        for place, ordinal in enumerate(ordinals):
            one = jax.tree.map(lambda leaf, place=place: np.asarray(leaf)[place], tree)
            if ordinal >= 0:
                found[int(ordinal)] = flatten(one, objective.channels)
            else:
                assert not flatten(one, objective.channels).any(), "an empty row has no gradient"
    return np.array([found[i] for i in range(len(rows))])


@pytest.mark.parametrize(
    ("kind", "parameters"),
    crossed(
        ["sum_logits", "probe", "cross_entropy"],
        ["lora", "lora/layers/(q|up)_proj/a", "lora/layers/(v|down)_proj/b", "base/layers/o_proj|base/norm"],
    ),
)
def test_each_example_has_its_own_gradient(kind, parameters):
    model, rows = tiny_model("qwen3"), random_rows(5, seed=21)
    objective = Objective(kind, probes=2)
    expected = np.array(reference_gradients(model, rows, objective, parameters))
    actual = gradients_of(model, rows, objective, parameters=parameters)
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()


def test_their_mean_is_the_mean_gradient():
    model, rows = tiny_model(), random_rows(7, seed=22)
    objective = Objective("cross_entropy")
    mean = flatten(jax.tree.map(lambda leaf: leaf[None], mean_gradient(model, rows, objective, Layout(64, 4))), 1)
    actual = gradients_of(model, rows, objective).mean(axis=0)
    assert np.abs(actual - mean).max() < 1e-5 * np.abs(mean).max()


def test_of_the_last_layers_alone():
    model, rows, objective = tiny_model(), random_rows(4, seed=5), Objective("sum_logits")
    layout = Layout(24, 4, packed=False)
    ((_, whole),) = example_gradients(model, rows, objective, layout)
    ((_, last),) = example_gradients(model, rows, objective, layout, parameters="lora[-1:]")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:, :, 1:], rtol=1e-4, atol=1e-6), last, whole)


def test_padding_and_neighbours_do_not_matter():
    model, rows = tiny_model(), random_rows(6, seed=23)
    objective = Objective("sum_logits")
    together = gradients_of(model, rows, objective)
    backwards = gradients_of(model, rows[::-1], objective, dataclasses.replace(PADDED, row_length=128))[::-1]
    assert np.abs(together - backwards).max() < 1e-5 * np.abs(together).max()


def test_a_mesh_sums_nothing_over_its_devices():
    """`grad` of replicated parameters inside shard_map sums over devices silently (jax-ml/jax#36886); here each row
    keeps its own, and stays where it was computed."""
    model, rows = tiny_model(), random_rows(16, seed=24)
    objective = Objective("sum_logits")
    one = gradients_of(model, rows, objective)
    layout = dataclasses.replace(PADDED, rows_per_batch=8, mesh=make_mesh())
    spread = gradients_of(model, rows, objective, layout)
    assert np.abs(one - spread).max() < 1e-5 * np.abs(one).max()
    _, tree = next(example_gradients(model, rows, objective, layout))
    for leaf in jax.tree.leaves(tree):
        assert len({shard.index[0].start for shard in leaf.addressable_shards}) == 8


@pytest.mark.parametrize(("name", "kind"), crossed(["sum_logits", "probe"], ["countsketch", "kronecker", "rademacher"]))
def test_sketches_estimate_the_kernel(name, kind):
    model, rows, layout = tiny_model(rank=2), random_rows(4, seed=25), Layout(24, 4, packed=False)
    objective = Objective(name, probes=3)
    features = np.array(reference_gradients(model, rows, objective))  # [N, C, P]
    gram = np.einsum("acp,bcp->ab", features, features) / objective.channels
    estimates = []
    for seed in range(12):
        z = sketches(model, rows, objective, layout, Projection(kind, 512, seed)).astype(float)
        assert z.shape == (4, 512)
        estimates.append(z @ z.T)
    scale = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    error = np.abs(np.mean(estimates, axis=0) - gram) / scale
    assert error.max() < (0.35 if kind == "kronecker" else 0.085), error.max()


class TestMistakes:
    def test_packed_rows(self):
        with pytest.raises(ValueError, match="one example a row"):
            next(example_gradients(tiny_model(), random_rows(2), Objective(), Layout(64, 4)))

    def test_empty_and_too_wide(self):
        with pytest.raises(UserError, match="no examples to sketch"):
            sketches(tiny_model(), [], Objective(), PADDED, Projection())
        with pytest.raises(UserError, match="dim = 1048576 is larger than the"):
            sketches(tiny_model(), random_rows(2), Objective(), PADDED, Projection(dim=2**20))

    def test_nonfinite(self):
        model = tiny_model()
        broken = dataclasses.replace(model, base={**model.base, "norm": model.base["norm"].at[0].set(jnp.nan)})
        with pytest.raises(UserError, match=r"example row-\d: its gradient is not finite"):
            sketches(broken, random_rows(3), Objective(), PADDED, Projection(dim=64))
