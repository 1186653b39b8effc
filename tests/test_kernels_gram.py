"""The Gram matrix of gradients: against one example at a time, the exact kernel, and itself in other memory."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_reference import random_rows, reference_gradients, tiny_model

import ntk_jax as nj
from ntk_jax.errors import UserError
from ntk_jax.kernels import gram
from ntk_jax.kernels.gram import gradient_features_gram
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import split_parameters
from ntk_jax.kernels.rows import Layout
from ntk_jax.parallel.mesh import make_mesh

LAYOUT = Layout(row_length=64, rows_per_batch=2, packed=False)


def squared_norm(hidden, targets, head):
    """An objective of a user's own."""
    return (hidden**2).sum(axis=-1)


def explicit(model, rows_a, rows_b, objective, parameters="lora"):
    a, b = (np.array(reference_gradients(model, rows, objective, parameters)) for rows in (rows_a, rows_b))
    return np.einsum("acp,bcp->ab", a, b) / objective.channels


def assert_close(actual, expected, rtol=1e-5):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= rtol * np.abs(expected).max()


LESS_TELLING = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("sum_logits", "target_logit")]


@pytest.mark.parametrize("kind", ["probe", "cross_entropy", squared_norm, *LESS_TELLING])
def test_it_is_that_of_explicit_gradients(kind):
    model, objective = tiny_model("qwen3"), Objective(kind, probes=3)
    a, b = random_rows(5, seed=31), random_rows(3, seed=32)
    assert_close(gradient_features_gram(model, a, b, objective, LAYOUT), explicit(model, a, b, objective))
    own = gradient_features_gram(model, a, None, objective, LAYOUT)
    assert_close(own, explicit(model, a, a, objective))
    np.testing.assert_array_equal(own, own.T)


@pytest.mark.parametrize("parameters", ["lora/layers/(q|up)_proj/a", "base/layers/o_proj|base/norm"])
def test_other_parameters_and_sums(parameters):
    model, rows, objective = tiny_model(), random_rows(3, seed=33), Objective("cross_entropy", "sum")
    found = gradient_features_gram(model, rows, rows[:2], objective, LAYOUT, parameters=parameters)
    assert_close(found, explicit(model, rows, rows[:2], objective, parameters))


def test_that_of_summed_logits_is_the_pseudo_kernel():
    model, rows = tiny_model("llama"), random_rows(4, seed=34)
    as_tokens = [{"input_ids": row.ids.tolist(), "span": row.span.astype(int).tolist()} for row in rows]
    exact = nj.ntk(model, as_tokens, kind="pseudo") * model.config.vocab_size
    assert_close(gradient_features_gram(model, rows, None, Objective(), LAYOUT), exact)


@pytest.mark.parametrize("sizes", [(9, None), (9, 5), (3, 8)])
def test_memory_changes_how_often_gradients_are_computed_and_nothing_else(monkeypatch, sizes):
    model, objective = tiny_model(), Objective("cross_entropy")
    a, b = random_rows(sizes[0], seed=35), sizes[1] and random_rows(sizes[1], seed=36)
    batch = 4 * 2 * sum(leaf.size for leaf in jax.tree.leaves(split_parameters(model, "lora")[0]))
    calls, real = 0, gram.example_gradient_step

    def counting(*arguments):
        nonlocal calls
        calls += 1
        return real(*arguments)

    monkeypatch.setattr(gram, "example_gradient_step", counting)
    computed, found = [], []
    for memory in (0, 3 * batch, 100 * batch):  # 1, 2 and all batches held
        calls = 0
        found.append(gradient_features_gram(model, a, b, objective, LAYOUT, memory=memory))
        computed.append(calls)
    na, nb = -(-sizes[0] // 2), -(-sizes[1] // 2) if sizes[1] else None
    if nb is None:
        assert computed == [na * (na + 1) // 2, 5 + 3 + 1, na]
    else:
        fewest = [min(x + -(-x // h) * y for x, y in ((na, nb), (nb, na))) for h in (1, 2, 99)]
        assert computed == fewest and computed[-1] == na + nb
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[2])


def test_on_a_mesh():
    model, rows, objective = tiny_model(), random_rows(11, seed=37), Objective()
    layout = dataclasses.replace(LAYOUT, rows_per_batch=8, mesh=make_mesh())
    one = gradient_features_gram(model, rows, None, objective, LAYOUT)
    assert_close(gradient_features_gram(model, rows, None, objective, layout), one)


class TestMistakes:
    def test_empty_and_packed(self):
        rows = random_rows(2)
        with pytest.raises(UserError, match="no examples in rows_a"):
            gradient_features_gram(tiny_model(), [], None, Objective(), LAYOUT)
        with pytest.raises(UserError, match="no examples in rows_b"):
            gradient_features_gram(tiny_model(), rows, [], Objective(), LAYOUT)
        with pytest.raises(ValueError, match="one example a row"):
            gradient_features_gram(tiny_model(), rows, None, Objective(), Layout(64, 2))

    def test_nonfinite(self):
        model = tiny_model()
        broken = dataclasses.replace(model, base={**model.base, "norm": model.base["norm"].at[0].set(jnp.nan)})
        with pytest.raises(UserError, match="the kernel of examples row-0 and row-0 is not finite"):
            gradient_features_gram(broken, random_rows(2), None, Objective(), LAYOUT)
