"""The decoder with memory: the numbers of the whole text read at once, and of each slot alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_calls import hidden_of

from ntk_jax.models import cache as caches
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model, random_model

QWEN3 = ModelConfig("qwen3", 97, 48, 80, 2, 4, 2, 16, qk_norm=True)
LENGTH = 40


@functools.cache
def model_of(kind: str) -> Model:
    config = QWEN3 if kind == "qwen3" else ModelConfig("qwen2", 97, 48, 80, 2, 6, 2, 8, qkv_bias=True, tied=True)
    return random_model(config, lora=LoRAConfig(rank=2) if kind == "qwen3" else None)


@functools.partial(jax.jit, static_argnums=0)
def next_hidden(graphdef: Any, lora: Any, base: Any, *rest: Any) -> Any:
    return caches.read_token(graphdef, lora, base, *rest, dtype=jnp.float32)


read = jax.jit(functools.partial(caches.read_prompts, dtype=jnp.float32), static_argnums=0)
put = jax.jit(caches.with_prompts)
write = jax.jit(caches.with_stride)


def continued(model: Model, tokens: np.ndarray, prompts: list[int], slots: list[int], count: int, length: int) -> Any:
    """[texts, LENGTH - prompt, D] hidden states of the tokens behind each prompt, one after the other."""
    parts = (model.graphdef, model.lora, model.base)
    rows, lengths = np.zeros((len(prompts), 32), np.int32), np.asarray(prompts)
    for number, prompt in enumerate(prompts):
        rows[number, :prompt] = tokens[number, :prompt]
    last, kept = read(*parts, rows, lengths)
    cache = put(caches.empty_cache(model.config, count, length, jnp.float32), kept, np.asarray(slots, np.int32))
    position, token = np.zeros(count, np.int32), np.zeros(count, np.int32)
    position[slots] = lengths
    prompt, start = position.copy(), -(-position // caches.STRIDE) * caches.STRIDE
    found, steps = [[row] for row in np.asarray(last)], 2 * caches.STRIDE
    for step in range(steps):
        if step % caches.STRIDE == 0:
            new, place = caches.empty_stride(cache), np.arange(length)
            seen = (place < prompt[:, None]) | ((place >= start[:, None]) & (place < start[:, None] + step))
        for number, slot in enumerate(slots):
            token[slot] = tokens[number, lengths[number] + step]
        hidden, new = next_hidden(*parts, cache, new, step % caches.STRIDE, token, position, seen)
        position = position + 1
        for number, slot in enumerate(slots):
            found[number].append(np.asarray(hidden)[slot])
        if step % caches.STRIDE == caches.STRIDE - 1:
            cache = write(cache, new, start + step - caches.STRIDE + 1)
    return np.asarray(found)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_one_token_at_a_time_is_the_whole_text_at_once(kind: str) -> None:
    model, prompts = model_of(kind), [5, 9, 16]
    tokens = np.random.default_rng(0).integers(0, 97, (3, LENGTH)).astype(np.int32)
    whole = np.asarray(hidden_of(model, tokens))
    found = continued(model, tokens, prompts, [6, 1, 3], 8, 128)
    for number, prompt in enumerate(prompts):
        expected = whole[number, prompt - 1 : prompt + 2 * caches.STRIDE]
        np.testing.assert_allclose(found[number], expected, atol=1e-4 * np.abs(whole).max())


@settings(max_examples=4, deadline=None)
@given(st.permutations(range(8)), st.sampled_from([128, 256]))
def test_numbers_do_not_depend_on_slot_neighbours_or_length_of_the_cache(order: list[int], length: int) -> None:
    model, prompts = model_of("qwen3"), [5, 9, 16]
    tokens = np.random.default_rng(1).integers(0, 97, (3, LENGTH)).astype(np.int32)
    reference = continued(model, tokens, prompts, [0, 1, 2], 8, 128)
    np.testing.assert_array_equal(continued(model, tokens, prompts, order[:3], 8, length), reference)


def test_a_longer_cache_holds_the_same_and_a_shorter_one_its_start() -> None:
    shapes = [(1, 2, 1, 2, 4, caches.BLOCK), (1, 2, 1, 2, caches.BLOCK, 4)]
    cache = caches.Cache(*(jnp.asarray(np.random.default_rng(0).random(shape)) for shape in shapes))
    longer = caches.resized(cache, 3 * caches.BLOCK)
    assert longer.length == 3 * caches.BLOCK
    for one, other in zip(jax.tree.leaves(cache), jax.tree.leaves(longer), strict=True):
        np.testing.assert_array_equal(one, other[:, :, :, :2])
        assert not np.asarray(other[:, :, :, 2]).any()
    np.testing.assert_array_equal(caches.resized(longer, caches.BLOCK).keys, cache.keys[:, :, :, :1])
