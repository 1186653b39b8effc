"""Prompts that begin alike: their beginnings are read once, and the replies are to the bit those without that."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_tokenizer

import ntk_jax as nj
from ntk_jax.errors import UserError
from ntk_jax.llm import by_layer, strides
from ntk_jax.llm.request import Request
from ntk_jax.llm.sampler import ModelClient
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.model import Model, load_model, random_model
from ntk_jax.models.rope_scaling import YarnScaling
from ntk_jax.parallel.mesh import make_mesh

PASSAGES = np.random.default_rng(0).integers(0, 256, (3, 200)).tolist()
PASSAGES.append(PASSAGES[1][:32] + PASSAGES[0][32:])  # the same pieces behind another beginning
CONFIG = ModelConfig("qwen2", 264, 32, 48, 2, 4, 2, 8, qkv_bias=True, tied=True)
TINY = 3 * 32 * 2 * 2 * 2 * 8 * 4  # bytes of three pieces of CONFIG in fp32


@functools.cache
def model_of(kind: str) -> Model:
    yarn = replace(CONFIG, rope_scaling=YarnScaling(4.0, 64), qkv_bias=False, model_type="qwen3", qk_norm=True)
    model = random_model(
        yarn if kind == "yarn" else CONFIG,
        lora=nj.LoRAConfig(rank=2) if kind == "adapter" else None,
        dtype="bfloat16" if kind == "bfloat16" else "float32",
    )
    return replace(model, tokenizer=byte_tokenizer())


def client_of(model: Model, **options: Any) -> ModelClient:
    client = ModelClient(model, **{"slots": 4, **options})
    client.ends = []
    return client


@functools.cache
def shared_client(bytes_: int | None) -> ModelClient:
    return client_of(model_of("plain"), prefix_bytes=bytes_)


def tokens_of(client: ModelClient, prompts: Sequence[Sequence[int]], new: int = 4) -> list[list[int]]:
    """Warm draws, which show a change of the last bits sooner than greedy ones; a prompt's seed is its own."""
    requests = [
        Request("", max_tokens=1 + sum(ids) % new, temperature=(sum(ids) % 3) / 2, seed=sum(ids)) for ids in prompts
    ]
    found = {ordinal: tokens for ordinal, _, tokens in client.ask_with_tokens(requests, prompts)}
    return [found[ordinal] for ordinal in range(len(prompts))]


@functools.cache
def alone(ids: tuple[int, ...]) -> list[int]:
    return tokens_of(shared_client(0), [ids])[0]


@contextlib.contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The tokens of the pieces that are read."""
    rows: list[tuple[int, ...]] = []
    found = {steps: steps.read for steps in (by_layer, strides)}

    def read(steps: Any, *given: Any) -> Any:
        (pieces,) = (one for one in given if isinstance(one, strides.Pieces))
        for slot, length, tokens in zip(*map(np.asarray, (pieces.slots, pieces.lengths, pieces.tokens)), strict=True):
            if slot >= 0:
                rows.append(tuple(tokens[:length].tolist()))
        return found[steps](*given)

    with monkeypatch.context() as patch:
        for steps in found:
            patch.setattr(steps, "read", functools.partial(read, steps))
        yield rows


prompts_ = st.lists(
    st.tuples(
        st.sampled_from(PASSAGES), st.integers(0, 140), st.lists(st.integers(0, 255), min_size=1, max_size=40)
    ).map(lambda parts: (*parts[0][: parts[1]], *parts[2])),
    min_size=1,
    max_size=9,
)


@settings(max_examples=8, deadline=None)
@given(prompts_, st.randoms(use_true_random=False))
def test_replies_are_the_same_bits_whatever_is_kept_and_asked_beside(prompts: list[Any], random: Any) -> None:
    """Nothing kept, room for three pieces, and all that the examples before have left; in two orders."""
    expected = [alone(ids) for ids in prompts]
    for limit in (0, TINY, None):
        client = shared_client(limit)
        assert tokens_of(client, prompts) == expected
        order = random.sample(range(len(prompts)), len(prompts))
        assert tokens_of(client, [prompts[n] for n in order]) == [expected[n] for n in order]
        assert client.prefixes.bytes <= client.prefixes.limit
        assert limit == 0 or len(client.prefixes) <= (3 if limit else 10**6)


@pytest.mark.parametrize("kind", ["plain", "adapter", "bfloat16", "yarn"])
def test_pieces_are_the_same_bits_whoever_reads_them(kind: str) -> None:
    model, tails = model_of(kind), [PASSAGES[1][:n] for n in (1, 30, 45, 70)]
    prompts = [PASSAGES[0][:140] + tail for tail in tails] + [PASSAGES[2][:n] for n in (33, 100)]
    off, cold, other = (client_of(model, prefix_bytes=limit) for limit in (0, None, None))
    expected = tokens_of(off, prompts)
    assert not len(off.prefixes)
    assert tokens_of(cold, prompts) == expected == tokens_of(cold, prompts)  # the second time, warm
    assert [tokens_of(other, [ids])[0] for ids in prompts[::-1]] == expected[::-1]
    kept = [client.prefixes._kept for client in (cold, other)]
    assert kept[0].keys() == kept[1].keys() and len(kept[0]) == 4 + 2 + 3
    for name, piece in kept[0].items():
        for one, two in zip(jax.tree.leaves(piece), jax.tree.leaves(kept[1][name]), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_what_prompts_share_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    passage, tails = PASSAGES[0][:100], [[n] * (n + 1) for n in range(7)]
    prompts, client = [passage + tail for tail in tails], shared_client.__wrapped__(None)
    whole = [tuple(passage[n : n + 32]) for n in (0, 32, 64)]
    ends = sorted(tuple(passage[96:] + tail) for tail in tails)
    with counted(monkeypatch) as rows:
        first = tokens_of(client, prompts)
        assert sorted(rows) == sorted(whole + ends)
        rows.clear()
        assert tokens_of(client, prompts) == first and sorted(rows) == ends
        rows.clear()
        assert tokens_of(client_of(client.model, prefix_bytes=0), prompts) == first
        assert sorted(rows) == sorted(whole * 7 + ends)


def test_the_end_of_a_prompt_is_read_by_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of two whole pieces, four times: its reply begins with logits, which are not kept."""
    prompt, client = PASSAGES[1][:64], client_of(model_of("plain"))
    with counted(monkeypatch) as rows:
        replies = tokens_of(client, [prompt] * 4)
    assert sorted(rows) == sorted([tuple(prompt[:32])] + [tuple(prompt[32:])] * 4)
    assert replies == [replies[0]] * 4 and len(client.prefixes) == 1


def test_longer_pieces_have_ends_of_their_own_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, where a piece is longer than a block of the cache, and most ends are much shorter."""
    lengths, passage = (3, 40, 100, 150, 250), np.random.default_rng(1).integers(0, 256, 513).tolist()
    prompts = [passage[:512] + [n] * n for n in lengths] + [passage[:n] for n in (20, 256, 257, 513)]
    greedy = [Request("", max_tokens=6, temperature=0.0)] * len(prompts)
    small = client_of(model_of("plain"), prefix_bytes=0)
    expected = {ordinal: tokens for ordinal, _, tokens in small.ask_with_tokens(greedy, prompts)}
    client = client_of(model_of("plain"), prompt_tokens=512)
    client.piece = 256
    with counted(monkeypatch) as rows:
        for _ in range(2):
            assert {ordinal: tokens for ordinal, _, tokens in client.ask_with_tokens(greedy, prompts)} == expected
    assert len(client.prefixes) == 2 and sum(len(row) == 256 for row in rows) == 2 + 2 * 1
    assert len(rows) == 2 + 2 * len(prompts)


def test_the_devices_of_a_mesh_share_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, requests = make_mesh(data=4, fsdp=2), [Request("", max_tokens=5, temperature=0.0)] * 11
    prompts = [PASSAGES[n % 2][:70] + [n] * (n + 1) for n in range(11)]
    model = load_model("builtin:model", mesh=mesh)
    one = ModelClient(load_model("builtin:model"), slots=8)
    expected = {ordinal: tokens for ordinal, _, tokens in one.ask_with_tokens(requests, prompts)}
    for limit in (0, None):
        client = ModelClient(model, slots=8, mesh=mesh, prefix_bytes=limit)
        with counted(monkeypatch) as rows:
            for _ in range(2):
                assert {n: tokens for n, _, tokens in client.ask_with_tokens(requests, prompts)} == expected
        wholes = sum(len(row) == 32 for row in rows)
        assert wholes == (44 if limit == 0 else 4) and len(client.prefixes) == (0 if limit == 0 else 4)
        for piece in client.prefixes._kept.values():
            assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(piece))


def test_room_that_cannot_be() -> None:
    with pytest.raises(UserError, match="prefix_bytes = -1 must be 0"):
        ModelClient(model_of("plain"), prefix_bytes=-1)
