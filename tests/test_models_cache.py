"""The decoder with memory: the numbers of the whole text read at once, and of each slot alone."""

from __future__ import annotations

import contextlib
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_calls import hidden_of
from test_llm_sampling import draws_of

from ntk_jax.llm import strides
from ntk_jax.llm.strides import given_back
from ntk_jax.models import cache as caches
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model, random_model
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.parallel.rules import shard_batch

QWEN3 = ModelConfig("qwen3", 97, 48, 80, 2, 4, 2, 16, qk_norm=True)
LENGTH = 40


@functools.cache
def rows_round_alike() -> bool:
    """Whether a row of a product has the same bits wherever it stands. XLA's kernels for some processors take the last
    rows of a block otherwise (seen with blocks of six on an AMD EPYC)."""
    random, product = np.random.default_rng(0), jax.jit(jnp.matmul)
    for rows, width in itertools.product((8, 32, 64, 128), (32, 48, 64, 80, 97)):
        x, w = (random.normal(size=shape).astype(np.float32) for shape in ((rows, 48), (48, width)))
        order = random.permutation(rows)
        if (np.asarray(product(x, w))[order] != np.asarray(product(x[order], w))).any():
            return False
    return True


def assert_same(found: Any, expected: Any) -> None:
    """To the bit, where products are."""
    atol = 0.0 if rows_round_alike() else 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@functools.cache
def model_of(kind: str) -> Model:
    config = QWEN3 if kind == "qwen3" else ModelConfig("qwen2", 97, 48, 80, 2, 6, 2, 8, qkv_bias=True, tied=True)
    return random_model(config, lora=LoRAConfig(rank=2) if kind == "qwen3" else None)


@functools.partial(jax.jit, static_argnums=0)
def next_hidden(graphdef: Any, lora: Any, base: Any, *rest: Any) -> Any:
    return caches.read_token(graphdef, lora, base, *rest, dtype=jnp.float32)


read = jax.jit(functools.partial(caches.read_pieces, dtype=jnp.float32), static_argnums=0)
write = jax.jit(caches.with_stride)
taken = jax.jit(caches.piece_at, static_argnums=3)


def read_all(model: Model, cache: caches.Cache, tokens: np.ndarray, slots: list[int], piece: int, rows: int) -> Any:
    """[texts, D] hidden states of the last tokens of texts, read in pieces, `rows` at a time, and the cache."""
    todo = [(n, begin) for n in range(len(slots)) for begin in range(0, tokens.shape[1], piece)]
    last: list[Any] = [None] * len(slots)
    for first in range(0, len(todo), rows):
        some = todo[first : first + rows]
        own, lengths = np.zeros((rows, piece), np.int32), np.ones(rows, np.int32)
        at, places = np.full(rows, -1, np.int32), np.zeros(rows, np.int32)
        for row, (n, begin) in enumerate(some):
            ids = tokens[n, begin : begin + piece]
            own[row, : len(ids)], lengths[row], at[row], places[row] = ids, len(ids), slots[n], begin
        hidden, cache = read(model.graphdef, model.lora, model.base, cache, own, lengths, at, places)
        for row, (n, _) in enumerate(some):
            last[n] = np.asarray(hidden)[row]
    return np.asarray(last), cache


def by_place(cache: caches.Cache) -> list[np.ndarray]:
    """Keys and values [L, slots, kv, places, H]."""
    parts = (np.asarray(cache.keys).swapaxes(4, 5), np.asarray(cache.values))
    return [x.reshape(*x.shape[:3], -1, x.shape[5]) for x in parts]


def continued(model: Model, tokens: np.ndarray, prompts: list[int], slots: list[int], count: int, length: int) -> Any:
    """[texts, LENGTH - prompt, D] hidden states of the tokens behind each prompt, one after the other."""
    parts, lengths = (model.graphdef, model.lora, model.base), np.asarray(prompts)
    cache, found = caches.empty_cache(model.config, count, length, jnp.float32), []
    for number, prompt in enumerate(prompts):
        last, cache = read_all(model, cache, tokens[number : number + 1, :prompt], [slots[number]], 32, 1)
        found.append([last[0]])
    position, token = np.zeros(count, np.int32), np.zeros(count, np.int32)
    position[slots] = lengths
    prompt, start = position.copy(), -(-position // caches.STRIDE) * caches.STRIDE
    for step in range(2 * caches.STRIDE):
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
    assert_same(continued(model, tokens, prompts, order[:3], 8, length), reference)


@pytest.mark.parametrize(("kind", "length", "piece"), [("qwen3", 300, 32), ("qwen2", 300, 256), ("qwen3", 40, 128)])
def test_a_text_read_in_pieces_is_the_text_read_at_once(kind: str, length: int, piece: int) -> None:
    model = model_of(kind)
    tokens = np.random.default_rng(2).integers(0, 97, (2, length)).astype(np.int32)
    whole = np.asarray(hidden_of(model, tokens))
    found, _ = read_all(
        model, caches.empty_cache(model.config, 3, 512, jnp.float32), tokens, [2, 0], piece, 128 // piece or 1
    )
    np.testing.assert_allclose(found, whole[:, -1], atol=1e-4 * np.abs(whole).max())


def test_pieces_have_the_same_bits_in_one_call_or_several_and_in_any_cache() -> None:
    """The slots of the texts, what else is read, what lay in the cache before, and its length."""
    model, random = model_of("qwen3"), np.random.default_rng(3)
    tokens, noise = (random.integers(0, 97, (2, 160)).astype(np.int32) for _ in range(2))
    expected, cache = read_all(model, caches.empty_cache(model.config, 4, 256, jnp.float32), tokens, [0, 1], 32, 4)
    for slots, blocks in (([3, 1], 2), ([2, 0], 3)):
        dirty = caches.empty_cache(model.config, 4, blocks * caches.BLOCK, jnp.float32)
        _, dirty = read_all(model, dirty, noise, slots, 32, 4)
        alone, found = [], dirty
        for number, slot in enumerate(slots):
            last, found = read_all(model, found, tokens[number : number + 1], [slot], 32, 4)
            alone.append(last[0])
        assert_same(alone, expected)
        for number, slot in enumerate(slots):
            for one, other in zip(by_place(found), by_place(cache), strict=True):
                assert_same(one[:, slot, :, :160], other[:, number, :, :160])


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("length", "place"), [(32, 96), (64, 128), (128, 0), (256, 256)])
def test_a_piece_that_was_taken_is_put_where_it_belongs_and_nowhere_else(devices: int, length: int, place: int) -> None:
    random, each = np.random.default_rng(0), 2
    config = ModelConfig("llama", 97, 48, 80, 2, 6, 2, 8)
    mesh = make_mesh(data=4, fsdp=2) if devices == 8 else None
    empty = caches.empty_cache(config, each * devices, 512, jnp.float32, mesh)
    cache = jax.tree.map(lambda x: jax.device_put(random.random(x.shape, np.float32), x.sharding), empty)
    source, target = devices * each - 1, 0
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():

        def at(slot: int) -> Any:
            slots, places = np.full(devices, -1, np.int32), np.zeros(devices, np.int32)
            slots[slot // each], places[slot // each] = slot % each, place
            return (slots, places) if mesh is None else shard_batch((slots, places), mesh)

        piece = taken(cache, *at(source), length)
        assert all(leaf.sharding.is_fully_replicated and leaf.shape[1] == 1 for leaf in jax.tree.leaves(piece))
        found = given_back(jax.tree.map(jnp.copy, cache), piece, *at(target))
    assert [leaf.sharding for leaf in jax.tree.leaves(found)] == [leaf.sharding for leaf in jax.tree.leaves(cache)]
    for before, after in zip(by_place(cache), by_place(found), strict=True):
        expected = before.copy()
        expected[:, target, :, place : place + length] = before[:, source, :, place : place + length]
        np.testing.assert_array_equal(after, expected)


def test_pieces_are_written_into_the_cache_that_is_given_away() -> None:
    """Nothing as large as the cache is made beside it, whatever is read, kept or copied."""
    model, rows = model_of("qwen3"), np.zeros(4, np.int32)
    cache = caches.empty_cache(model.config, 64, 2048, jnp.float32)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    pieces = strides.Pieces(np.zeros((4, 32), np.int32), rows + 1, rows, rows, rows > 0)
    fixed = (model.graphdef, np.dtype(np.float32), model.lora, model.base)
    one = (np.zeros(1, np.int32), np.zeros(1, np.int32))
    piece = jax.eval_shape(functools.partial(caches.piece_at, length=32), cache, *one)
    for program in (
        strides.read.lower(*fixed, cache, pieces, draws_of(4)),
        strides.taken.lower(cache, *one, 32),
        strides.given_back.lower(cache, piece, *one),
    ):
        memory = program.compile().memory_analysis()
        assert memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes < size / 20


def test_a_longer_cache_holds_the_same_and_a_shorter_one_its_start() -> None:
    shapes = [(1, 2, 1, 2, 4, caches.BLOCK), (1, 2, 1, 2, caches.BLOCK, 4)]
    cache = caches.Cache(*(jnp.asarray(np.random.default_rng(0).random(shape)) for shape in shapes))
    longer = caches.resized(cache, 3 * caches.BLOCK)
    assert longer.length == 3 * caches.BLOCK
    for one, other in zip(jax.tree.leaves(cache), jax.tree.leaves(longer), strict=True):
        np.testing.assert_array_equal(one, other[:, :, :, :2])
        assert not np.asarray(other[:, :, :, 2]).any()
    np.testing.assert_array_equal(caches.resized(longer, caches.BLOCK).keys, cache.keys[:, :, :, :1])
