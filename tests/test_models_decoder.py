"""The decoder by itself: packing, branches, padding, both modes of differentiation, blocks, precision."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_calls import run

from ntk_jax.models import attention
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model, random_model
from ntk_jax.models.rope_scaling import Llama3Scaling

CONFIGS = {
    "llama": ModelConfig(
        "llama", 61, 48, 64, 2, 4, 2, 16, rope_theta=5000.0, rope_scaling=Llama3Scaling(4.0, 1.0, 4.0, 64)
    ),
    "qwen2": ModelConfig("qwen2", 61, 48, 64, 2, 4, 1, 12, qkv_bias=True, tied=True),
    "qwen3": ModelConfig("qwen3", 61, 48, 64, 2, 2, 2, 32, qk_norm=True),
}
LENGTHS = (5, 17, 9)
WIDTH = 40


@functools.cache
def model_of(family: str, dtype: str = "float32") -> Model:
    return random_model(CONFIGS[family], lora=LoRAConfig(rank=3, alpha=5.0), seed=1, dtype=dtype)


def hidden(model: Model, rows: Any, branches: Any = None, **options: Any) -> np.ndarray:
    return np.asarray(run(model.graphdef, model.lora, model.base, rows, branches, **options))


def examples(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 61, length).astype(np.int32) for length in lengths]


def pack(parts: Sequence[np.ndarray], width: int = WIDTH, fill: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions, segments, each [1, width]: the parts one after the other, then padding."""
    tokens, positions, segments = (np.full((1, width), value, np.int32) for value in (fill, 0, 0))
    place = 0
    for number, part in enumerate(parts, 1):
        stop = place + len(part)
        tokens[0, place:stop], positions[0, place:stop], segments[0, place:stop] = part, np.arange(len(part)), number
        place = stop
    return tokens, positions, segments


def close(value: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> bool:
    return float(np.abs(value - expected).max()) <= tolerance * float(np.abs(expected).max())


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_padded_and_single_agree(family: str) -> None:
    model, parts = model_of(family), examples()
    packed = np.split(hidden(model, pack(parts))[0], np.cumsum(LENGTHS))
    padded = hidden(model, [np.concatenate(column) for column in zip(*(pack([part]) for part in parts), strict=True)])
    for i, part in enumerate(parts):
        single = hidden(model, pack([part], width=len(part)))[0]
        assert close(packed[i], single)
        assert close(padded[i, : len(part)], single)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, WIDTH), max_size=6, unique=True), seed=st.integers(0, 1000))
def test_any_packing_gives_what_each_part_gives_alone(cuts: list[int], seed: int) -> None:
    edges = [0, *sorted(cuts)]
    parts = examples([b - a for a, b in zip(edges, edges[1:], strict=False)], seed)
    packed = hidden(model_of("llama"), pack(parts))[0]
    for start, part in zip(edges, parts, strict=False):
        assert close(packed[start : start + len(part)], hidden(model_of("llama"), pack([part]))[0, : len(part)])


def test_neighbours_padding_and_the_future_change_nothing() -> None:
    model, parts = model_of("qwen3"), examples()
    before = hidden(model, pack(parts))[0]
    other = [parts[0], (parts[1] + 7) % 61, parts[2]]
    after = hidden(model, pack(other, fill=13))[0]
    assert np.array_equal(before[:5], after[:5]) and np.array_equal(before[22:31], after[22:31])
    assert not close(after[5:22], before[5:22], 1e-2)
    parts[1] = np.concatenate([parts[1][:-1], (parts[1][-1:] + 1) % 61])
    changed = hidden(model, pack(parts))[0]
    assert np.array_equal(before[5:21], changed[5:21]) and not np.array_equal(before[21], changed[21])


@pytest.mark.parametrize("family", CONFIGS)
def test_branches_share_a_prompt_and_do_not_see_each_other(family: str) -> None:
    model = model_of(family)
    prompt, *answers = examples((7, 4, 1, 6))
    other = examples((5,), seed=3)[0]
    row = pack([np.concatenate([prompt, *answers]), other])
    branches = np.zeros_like(row[0])
    place = len(prompt)
    for number, answer in enumerate(answers, 1):
        branches[0, place : place + len(answer)] = number
        row[1][0, place : place + len(answer)] = len(prompt) + np.arange(len(answer))
        place += len(answer)
    out = hidden(model, row, branches)[0]
    place = len(prompt)
    for answer in answers:
        alone = hidden(model, pack([np.concatenate([prompt, answer])]))[0]
        assert close(out[: len(prompt)], alone[: len(prompt)])
        assert close(out[place : place + len(answer)], alone[len(prompt) : len(prompt) + len(answer)])
        place += len(answer)
    assert close(out[place : place + 5], hidden(model, pack([other]))[0, :5])


@pytest.mark.parametrize("remat", (False, True))
def test_gradients_are_finite_and_blind_to_padding(remat: bool) -> None:
    model, parts = model_of("llama"), examples()

    @jax.jit
    def gradient(rows: Any) -> Any:
        def total(lora: Any, base: Any) -> jax.Array:
            out = hidden_states(model.graphdef, lora, base, *rows, remat=remat)
            return jnp.where(rows[2][..., None] > 0, out, 0.0).sum()

        return jax.grad(total, argnums=(0, 1))(model.lora, model.base)

    # A whole row of padding too, as the last batch has; and the parts the other way round, with other padding.
    one = gradient([np.concatenate(pair) for pair in zip(pack(parts), pack([]), strict=True)])
    two = gradient([np.concatenate(pair) for pair in zip(pack([], fill=13), pack(parts[::-1], fill=13), strict=True)])
    for leaf, other in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.isfinite(leaf).all() and close(np.asarray(leaf), np.asarray(other))


@pytest.mark.parametrize("family", ("qwen2", "qwen3"))
def test_forward_mode_is_the_transpose_of_reverse_mode(family: str) -> None:
    model, rows = model_of(family), pack(examples())
    other = random_model(CONFIGS[family], lora=model.lora_config, seed=2)
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((1, WIDTH, 48)), jnp.float32)

    def scalar(lora: Any, base: Any) -> jax.Array:
        return (hidden_states(model.graphdef, lora, base, *rows) * weights).sum()

    _, tangent = jax.jit(functools.partial(jax.jvp, scalar))((model.lora, model.base), (other.lora, other.base))
    gradient = jax.jit(jax.grad(scalar, argnums=(0, 1)))(model.lora, model.base)
    pairs = zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (gradient, (other.lora, other.base))), strict=True)
    assert float(tangent) == pytest.approx(sum(np.vdot(g, d.astype(np.float64)) for g, d in pairs), rel=1e-4)


@pytest.mark.parametrize(
    ("dtype", "steep", "tolerance"), [(jnp.float32, 0, 1e-5), (jnp.bfloat16, 0, 2e-2), (jnp.bfloat16, 20, 1e-1)]
)
def test_attention_of_forward_mode_is_plain_attention(
    dtype: Any, steep: float, tolerance: float, monkeypatch: Any
) -> None:
    """The value, and the tangents along two directions at once, over several blocks of queries and masks that leave a
    query itself only. steep: keys that grow along the row, so that changes of scores are large and mostly cancel."""
    monkeypatch.setattr(attention, "_MIN_BLOCK", 5)
    rng = np.random.default_rng(0)
    segments = jnp.asarray(rng.integers(0, 3, (2, 19)).cumsum(axis=1) // 4)
    mask = attention.attention_mask(segments, None)
    shapes = ((2, 19, 6, 8), (2, 19, 2, 8), (2, 19, 2, 8))  # three query heads a key head
    q, k, v = (rng.standard_normal(shape) for shape in shapes)
    primals = tuple(jnp.asarray(x, dtype) for x in (q, k + steep * np.arange(19)[:, None, None] * np.eye(8)[0], v))
    directions = tuple(jnp.asarray(rng.standard_normal((2, *shape)), dtype) for shape in shapes)

    @functools.partial(jax.jit, static_argnums=0)
    def along(forward_mode: bool) -> Any:
        function = lambda q, k, v: attention.attend(q, k, v, mask, forward_mode)  # noqa: E731
        return jax.vmap(lambda *tangents: jax.jvp(function, primals, tangents), out_axes=(None, 0))(*directions)

    for plain, special in zip(along(False), along(True), strict=True):
        assert plain.shape == special.shape and plain.dtype == special.dtype == dtype
        assert close(np.asarray(special, np.float32), np.asarray(plain, np.float32), tolerance)


def test_forward_mode_is_the_slope() -> None:
    model, rows = model_of("qwen3"), pack(examples())
    step = jax.tree.map(lambda leaf: 1e-3 * jnp.ones_like(leaf), model.lora)
    out, tangent = jax.jvp(lambda lora: run(model.graphdef, lora, model.base, rows), (model.lora,), (step,))
    ahead, behind = (
        hidden(Model(**{**vars(model), "lora": jax.tree.map(lambda a, d, s=sign: a + s * d, model.lora, step)}), rows)
        for sign in (1, -1)
    )
    assert close(np.asarray(tangent), (ahead - behind) / 2, 1e-2)
    assert np.array_equal(out, hidden(model, rows))


def test_it_maps_over_examples() -> None:
    """One adapter an example, under vmap and grad: what per-example gradients do."""
    model = model_of("llama")
    rows = [np.stack(column) for column in zip(*(pack([part]) for part in examples()), strict=True)]  # [3, 1, T]

    def scalar(lora: Any, *row: Any) -> jax.Array:
        return hidden_states(model.graphdef, lora, model.base, *row, remat=True)[0, 0].sum()

    mapped = jax.jit(jax.vmap(jax.grad(scalar), in_axes=(None, 0, 0, 0)))(model.lora, *rows)
    for i in range(3):
        alone = jax.jit(jax.grad(scalar))(model.lora, *(column[i] for column in rows))
        for leaf, expected in zip(jax.tree.leaves(mapped), jax.tree.leaves(alone), strict=True):
            assert close(np.asarray(leaf[i]), np.asarray(expected), 1e-4)


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = model_of("llama"), pack(examples())
    whole = hidden_states(model.graphdef, model.lora, model.base, *rows)
    for smallest, most in ((7, 100), (1, 3)):
        monkeypatch.setattr(attention, "_MIN_BLOCK", smallest)
        monkeypatch.setattr(attention, "_MAX_BLOCKS", most)
        assert close(np.asarray(hidden_states(model.graphdef, model.lora, model.base, *rows)), np.asarray(whole))


def test_remat_gives_the_same_hidden_states() -> None:
    model, rows = model_of("qwen2"), pack(examples())
    assert close(hidden(model, rows, remat=True), hidden(model, rows), 1e-6)


@pytest.mark.parametrize("family", CONFIGS)
def test_bf16_is_close_and_adapters_stay_fp32(family: str) -> None:
    exact, half, rows = model_of(family), model_of(family, "bfloat16"), pack(examples())
    out = run(half.graphdef, half.lora, half.base, rows, dtype=jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(half.base)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(half.lora)} == {jnp.dtype(jnp.float32)}
    expected, real = hidden(exact, rows), rows[2][0] > 0
    error = np.linalg.norm(np.asarray(out, np.float32) - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert np.median(error[0, real]) < 0.05


def test_bf16_gradients_of_adapters_are_fp32() -> None:
    model, rows = model_of("llama", "bfloat16"), pack(examples())
    gradient = jax.eval_shape(
        jax.grad(lambda lora: run(model.graphdef, lora, model.base, rows, dtype=jnp.bfloat16).sum()), model.lora
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}


def test_bf16_angles_do_not_drift() -> None:
    """Shifting all positions changes nothing, in bf16 as in fp32: rotation is relative, and its angles are fp32."""
    model = model_of("llama", "bfloat16")
    tokens, positions, segments = pack(examples((20,)), width=20)
    near = run(model.graphdef, model.lora, model.base, (tokens, positions, segments), dtype=jnp.bfloat16)
    far = run(model.graphdef, model.lora, model.base, (tokens, positions + 3001, segments), dtype=jnp.bfloat16)
    near, far = np.asarray(near, np.float32), np.asarray(far, np.float32)
    assert np.median(np.abs(near - far)) < 0.05 * np.abs(near).max()
