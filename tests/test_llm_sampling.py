"""What is drawn: the tokens that the cuts leave, as often as they are likely, whatever stands beside."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.llm.sampling import Draws, _kept, draw

draw_jit = jax.jit(draw)
kept_jit = jax.jit(_kept)


def draws_of(rows: int, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0) -> Draws:
    return Draws(
        np.full(rows, temperature, np.float32),
        np.full(rows, top_p, np.float32),
        np.full(rows, top_k, np.int32),
        np.full(rows, min_p, np.float32),
        np.stack([np.arange(rows), np.arange(rows) + 7], axis=1).astype(np.uint32),
        np.zeros(rows, np.uint32),
    )


def reference(x: np.ndarray, top_p: float, top_k: int, min_p: float) -> set[int]:
    """The tokens that stay, by sorting; no two logits are equal."""
    order = np.argsort(-x)
    order = order[:top_k] if top_k else order
    mass = np.exp(x[order].astype(np.float64))
    before = np.cumsum(mass) - mass
    order = order[before < top_p * mass.sum()] if top_p < 1 else order
    return {int(token) for token in order if min_p == 0 or x[token] >= np.log(min_p)}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1.0, 0.97, 0.8, 0.5, 0.03]),
    st.sampled_from([0, 1, 2, 7, 50, 200]),
    st.sampled_from([0.0, 0.01, 0.2, 1.0]),
)
def test_the_cuts_leave_what_sorting_leaves(seed: int, top_p: float, top_k: int, min_p: float) -> None:
    x = 3 * np.random.default_rng(seed).standard_normal((2, 50)).astype(np.float32)
    x -= x.max(axis=1, keepdims=True)
    kept = np.isfinite(kept_jit(x, draws_of(2, top_p=top_p, top_k=top_k, min_p=min_p), np.array([True, True])))
    for row in range(2):
        expected = reference(x[row], top_p, top_k, min_p)
        # a share that falls within rounding of a token's edge may take it or not
        assert len(expected ^ set(np.flatnonzero(kept[row]).tolist())) <= (1 if top_p < 1 else 0)
        assert kept[row, np.argmax(x[row])]


def test_draws_have_the_frequencies_of_the_softmax() -> None:
    logits, rows = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32)), 20_000
    found = np.asarray(draw_jit(np.tile(logits, (rows, 1)), draws_of(rows), np.zeros(rows, np.int32)))
    counts = np.bincount(found, minlength=4)
    expected = rows * np.exp(logits)
    assert np.sum((counts - expected) ** 2 / expected) < 16.3  # chi squared, 3 degrees of freedom: 1 in 1,000
    cold = np.asarray(draw_jit(np.tile(logits, (rows, 1)), draws_of(rows, temperature=0.5), np.zeros(rows, np.int32)))
    sharper = rows * np.exp(2 * logits) / np.exp(2 * logits).sum()
    assert np.sum((np.bincount(cold, minlength=4) - sharper) ** 2 / sharper) < 16.3


def test_a_draw_does_not_depend_on_the_rows_beside_it_and_each_token_has_its_own_noise() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)
    draws, number = draws_of(4), np.arange(4, dtype=np.int32)
    found = np.asarray(draw_jit(logits, draws, number))
    order = np.array([2, 0, 3, 1])
    moved = np.asarray(draw_jit(logits[order], jax.tree.map(lambda x: x[order], draws), number[order]))
    np.testing.assert_array_equal(moved, found[order])
    flat, same = np.zeros((64, 1000), np.float32), jax.tree.map(lambda x: np.repeat(x[:1], 64, axis=0), draws_of(1))
    assert len(set(np.asarray(draw_jit(flat, same, np.arange(64, dtype=np.int32))).tolist())) > 50


def test_greedy_rows_beside_warm_ones_and_rows_that_are_not_finite() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 20)).astype(np.float32)
    logits[2, 4] = np.nan
    draws = draws_of(3)
    draws.temperature[0] = 0.0
    found = np.asarray(draw_jit(jnp.asarray(logits), draws, np.zeros(3, np.int32)))
    assert found[0] == np.argmax(logits[0]) and found[2] == -1


def test_tokens_of_equal_logits_stay_or_go_together() -> None:
    x = np.log(np.array([[0.2, 0.3, 0.2, 0.1, 0.2]], np.float32) / 0.3)
    for cut, left in (({"top_k": 1}, {1}), ({"top_k": 2}, {0, 1, 2, 4}), ({"top_p": 0.29}, {1})):
        assert set(np.flatnonzero(np.isfinite(kept_jit(x, draws_of(1, **cut), np.array([True]))))) == left  # type: ignore[arg-type]
    for cut in ({"top_p": 0.35}, {"min_p": 0.66}, {"top_p": 0.4, "top_k": 3}):
        kept = kept_jit(x, draws_of(1, **cut), np.array([True]))  # type: ignore[arg-type]
        assert set(np.flatnonzero(np.isfinite(kept))) == {0, 1, 2, 4}


def test_the_smallest_settings_leave_the_likeliest_tokens() -> None:
    """Smaller than fp32 holds, as an ordinary number or at all."""
    logits = np.array([[0, 1, 5, 2, 5, -3]], np.float32)
    for cut in ({"top_p": 1e-50}, {"temperature": 1e-38}, {"temperature": 1e-41}, {"temperature": 1e-50}):
        for number in range(4):
            assert int(draw_jit(logits, draws_of(1, **cut), np.array([number]))[0]) in (2, 4), cut
