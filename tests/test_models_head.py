"""Log-probabilities by chunks of the vocabulary, against the plain log_softmax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_jax.models.config import ModelConfig
from ntk_jax.models.head import head_matrix, target_log_probs
from ntk_jax.models.model import random_model

VOCAB = 331
CHUNKS = (1, 7, 128, 165, 166, 330, 331, 5000)


def inputs(scale: float = 1.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    hidden = jnp.asarray(scale * random.standard_normal((4, 6, 32)), jnp.float32)
    targets = jnp.asarray(random.integers(0, VOCAB, (4, 6)).astype(np.int32)).at[0, :2].set(jnp.array([0, VOCAB - 1]))
    return hidden, targets, jnp.asarray(random.standard_normal((VOCAB, 32)), jnp.float32)


def plain(hidden: jax.Array, targets: jax.Array, head: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(hidden @ head.T), targets[..., None], -1)[..., 0]


def error(value: Any, expected: Any) -> float:
    return float(jnp.abs(value - expected).max() / jnp.abs(expected).max())


@pytest.mark.parametrize("chunk", CHUNKS)
def test_values_and_both_derivatives_are_those_of_log_softmax(chunk: int) -> None:
    hidden, targets, head = inputs()
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((4, 6)), jnp.float32)

    def ours(h: jax.Array, w: jax.Array) -> jax.Array:
        return target_log_probs(h, targets, w, vocab_chunk=chunk)

    def theirs(h: jax.Array, w: jax.Array) -> jax.Array:
        return plain(h, targets, w)

    value, tangent = jax.jit(lambda p, d: jax.jvp(ours, p, d))((hidden, head), (hidden[::-1], head[::-1]))
    expected, expected_tangent = jax.jvp(theirs, (hidden, head), (hidden[::-1], head[::-1]))
    assert value.dtype == jnp.float32
    assert error(value, expected) < 1e-6 and error(tangent, expected_tangent) < 1e-5
    gradients = [
        jax.jit(jax.grad(lambda h, w, f=f: (f(h, w) * weights).sum(), argnums=(0, 1)))(hidden, head)
        for f in (ours, theirs)
    ]
    for ours_leaf, theirs_leaf in zip(*gradients, strict=True):
        assert error(ours_leaf, theirs_leaf) < 1e-5


@pytest.mark.parametrize("chunk", (50, 1000))
def test_large_logits_do_not_overflow(chunk: int) -> None:
    hidden, targets, head = inputs(scale=100.0)
    value, gradient = jax.value_and_grad(lambda h: target_log_probs(h, targets, head, vocab_chunk=chunk).sum())(hidden)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert error(value, plain(hidden, targets, head).sum()) < 1e-5


def test_probabilities_sum_to_one() -> None:
    hidden, _, head = inputs()
    every = jnp.broadcast_to(jnp.arange(VOCAB), (4, 6, VOCAB))
    logs = target_log_probs(jnp.broadcast_to(hidden[:, :, None], (4, 6, VOCAB, 32)), every, head, vocab_chunk=64)
    assert np.allclose(jnp.exp(logs).sum(-1), 1.0, atol=1e-5)


def test_the_whole_vocabulary_is_never_laid_out() -> None:
    """No array of the traced program, forward or backward, has the vocabulary beside the positions."""
    hidden, targets, head = inputs()

    def sizes(chunk: int) -> set[int]:
        def total(h: jax.Array, w: jax.Array) -> jax.Array:
            return target_log_probs(h, targets, w, vocab_chunk=chunk).sum()

        return set(_shapes(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(hidden, head).jaxpr))

    assert 24 * VOCAB in sizes(VOCAB)  # what the test would see if it happened
    assert max(sizes(64)) == max(VOCAB * 32, 24 * 64)


def _shapes(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(variable.aval.shape))
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _shapes(inner)


def test_bf16_inputs_accumulate_in_fp32() -> None:
    hidden, targets, head = (x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x for x in inputs())
    value = target_log_probs(hidden, targets, head, vocab_chunk=100)
    exact = plain(hidden.astype(jnp.float32), targets, head.astype(jnp.float32))
    assert value.dtype == jnp.float32 and error(value, exact) < 1e-5


def test_the_head_of_a_tied_model_is_its_embedding() -> None:
    tied = random_model(ModelConfig("llama", 20, 8, 8, 1, 2, 1, 4, tied=True))
    untied = random_model(ModelConfig("llama", 20, 8, 8, 1, 2, 1, 4))
    assert "head" not in tied.base and head_matrix(tied.base) is tied.base["embed"]
    assert head_matrix(untied.base) is untied.base["head"]
