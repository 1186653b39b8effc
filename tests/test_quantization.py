"""Quantized weights: how far they are from the weights, and that they are computed with as plain ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_reference import random_rows, tiny_config

from ntk_jax.engine.config import build
from ntk_jax.errors import UserError
from ntk_jax.kernels.direction import mean_gradient
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import split_parameters
from ntk_jax.kernels.rows import Layout, batches_of, frozen_readout, make_step
from ntk_jax.kernels.score import directional_scores, mean_hidden_states
from ntk_jax.kernels.step import directional_step, gradient_step
from ntk_jax.models.hub import save_weights
from ntk_jax.models.lora import LoRAConfig, fold
from ntk_jax.models.model import Model, computing_in, dequantized, load_model, quantized, random_model
from ntk_jax.models.quantization import LARGEST, SCALE, kind_of, quantize
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.pipelines.diagnose.config import DiagnoseConfig
from ntk_jax.pipelines.diagnose.diagnose import check
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.train import train

KINDS = tuple(LARGEST)
LAYOUT = Layout(row_length=64, rows_per_batch=4)
DOMAIN, POOL = random_rows(4, seed=1), random_rows(8, seed=2)


def strong_model(family: str = "llama", adapted: bool = True) -> Model:
    """Random weights of deviation 0.3, biases and norms too, and an adapter that is not fresh."""
    return random_model(tiny_config(family), lora=LoRAConfig(rank=4, alpha=8.0) if adapted else None, std=0.3)


def relative(a: Any, b: Any) -> float:
    """Largest difference of two trees, relative to the largest number of each leaf of the second."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max() / np.abs(np.asarray(y)).max()) for x, y in pairs)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.lists(st.floats(-30, 30), min_size=1, max_size=6),
)
def test_every_channel_is_within_half_a_step(kind: str, seed: int, d_in: int, magnitudes: list[float]) -> None:
    """Channels of sizes 1e-30 to 1e30 beside each other, one of zeros: none touches another."""
    size = 10.0 ** np.array([*magnitudes, 0.0])
    kernel = (np.random.default_rng(seed).standard_normal((d_in, len(size))) * size).astype(np.float32)
    kernel[:, -1] = 0
    values, scale = quantize(kernel, kind)
    assert str(values.dtype) == kind and scale.dtype == np.float32 and scale.shape == size.shape
    assert np.isfinite(scale).all() and (scale > 0).all() and not values[:, -1].astype(np.float32).any()
    off = np.abs(values.astype(np.float64) * scale - kernel)
    if kind == "int8":
        assert (off <= 0.5001 * scale).all() and values.min() >= -127
    else:  # three bits behind the point: half of 2^-3 of a number; below 2^-6, half of 2^-9
        assert (off <= np.maximum(np.abs(kernel) * 2.0**-4, scale * 2.0**-10) * 1.0001).all()


@pytest.mark.parametrize(
    ("kind", "family", "objective"), [("int8", "qwen2", "sum_logits"), ("float8_e4m3fn", "qwen3", "cross_entropy")]
)
def test_scores_and_gradients_are_those_of_the_same_weights_held_plainly(
    kind: str, family: str, objective: str
) -> None:
    model, goal = quantized(strong_model(family), kind), Objective(objective)
    plain = dequantized(model)
    assert model.quantization == kind and plain.quantization is None
    direction = mean_gradient(model, DOMAIN, goal, LAYOUT)
    if kind == "int8":
        assert relative(direction, mean_gradient(plain, DOMAIN, goal, LAYOUT)) < 1e-4
    scores, expected = (directional_scores(m, POOL, direction, goal, LAYOUT).values for m in (model, plain))
    assert relative(scores, expected) < 1e-4
    assert relative(expected, directional_scores(strong_model(family), POOL, direction, goal, LAYOUT).values) > 1e-4


def test_hidden_states_without_an_adapter_and_in_bfloat16() -> None:
    model = quantized(strong_model(adapted=False), "int8")
    hidden = mean_hidden_states(model, POOL, LAYOUT)
    assert relative(hidden, mean_hidden_states(dequantized(model), POOL, LAYOUT)) < 1e-4
    half = computing_in(model, "bfloat16")
    linear = half.base["layers"]["q_proj"]
    assert (linear["kernel"].dtype, linear[SCALE].dtype, half.base["embed"].dtype) == ("int8", "float32", "bfloat16")
    assert 1e-4 < relative(mean_hidden_states(half, POOL, LAYOUT), hidden) < 0.1


def test_an_adapter_trains_on_quantized_weights(tmp_path: Path) -> None:
    model = quantized(strong_model(), "int8")
    config = TrainConfig(max_steps=2, batch_size=4, learning_rate=1e-2, tokens_per_microbatch=64)
    one, other = (
        train(m, DOMAIN, config, folder=tmp_path / name, seed=1, row_length=32)
        for name, m in (("8", model), ("32", dequantized(model)))
    )
    assert relative(one.lora, other.lora) < 1e-3 < relative(one.lora, model.lora)
    assert one.base["layers"]["up_proj"]["kernel"] is model.base["layers"]["up_proj"]["kernel"]


def compiled_step(model: Model, which: Any, parameters: str = "lora") -> Any:
    goal = Objective("sum_logits")
    theta, rest = split_parameters(model, parameters)
    batch = next(iter(batches_of(DOMAIN, LAYOUT, goal))).batch
    step, read = make_step(model, goal, LAYOUT, parameters), frozen_readout(model, goal, parameters)
    along = [jax.tree.map(lambda leaf: jnp.ones((1, 1, *leaf.shape)), theta)] if which is directional_step else []
    return which.lower(step, theta, rest, read, *along, batch)


def test_a_backward_pass_makes_no_gradient_of_a_matrix() -> None:
    def made(lowered: Any) -> list[str]:  # gate and up are the only matrices from 32 to 48
        products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
        return [line for line in products if line.endswith(("-> tensor<32x48xf32>", "-> tensor<48x32xf32>"))]

    assert made(compiled_step(strong_model(), gradient_step, "base/layers/up_proj/kernel"))
    assert not made(compiled_step(quantized(strong_model(), "int8"), gradient_step))


@pytest.mark.parametrize("kind", KINDS)
def test_the_compiled_score_holds_bytes(kind: str) -> None:
    """Arguments shrink by three of four bytes a weight, and no widened copy of all layers takes their place."""
    config = tiny_config("llama", num_layers=8, hidden_size=64, intermediate_size=256)
    plain = random_model(config, lora=LoRAConfig(rank=2))
    model = quantized(plain, kind)
    before, after = (compiled_step(m, directional_step).compile().memory_analysis() for m in (plain, model))
    layers = jax.tree.leaves(plain.base["layers"])
    matrices = sum(leaf.size for leaf in layers if leaf.ndim == 3)
    scales = sum(leaf.nbytes for path, leaf in jax.tree_util.tree_leaves_with_path(model.base) if path[-1].key == SCALE)
    assert after.argument_size_in_bytes == before.argument_size_in_bytes - 3 * matrices + scales
    assert after.temp_size_in_bytes < before.temp_size_in_bytes + 4 * matrices / 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return cases.write_checkpoint("qwen2", tmp_path / "model")


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_quantized_as_it_is_read(folder: Path, kind: str) -> None:
    loaded = load_model(str(folder), quantization=kind, tokenizer=False)
    here = quantized(load_model(str(folder), tokenizer=False), kind)
    assert jax.tree.structure(loaded.base) == jax.tree.structure(here.base) and loaded.graphdef == here.graphdef
    for x, y in zip(jax.tree.leaves(loaded.base), jax.tree.leaves(here.base), strict=True):
        assert x.dtype == y.dtype and relative(np.asarray(x, np.float32), np.asarray(y, np.float32)) <= 2**-4
    kernel, exact = loaded.base["layers"]["up_proj"]["kernel"], here.base["layers"]["up_proj"]["kernel"]
    assert np.mean(np.asarray(kernel) == np.asarray(exact)) > 0.999  # but for ties
    for mesh in (make_mesh(1, 8, 1), make_mesh(2, 2, 2)):
        split = load_model(str(folder), quantization=kind, tokenizer=False, mesh=mesh)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, split.base, loaded.base)))
        part = split.base["layers"]["up_proj"]["kernel"].addressable_shards[0].data
        assert part.nbytes == kernel.size // (mesh.shape["fsdp"] * mesh.shape["tensor"])
    # Compute dtype or not, the numbers are those of the file.
    half = load_model(str(folder), quantization=kind, tokenizer=False, dtype="bfloat16")
    assert np.array_equal(half.base["layers"]["up_proj"]["kernel"], kernel) and half.base["embed"].dtype == "bfloat16"


def test_a_damaged_tensor_is_found_before_it_is_rounded(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or Inf"):
        load_model(str(folder), quantization="int8", tokenizer=False)


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    model = quantized(strong_model(), "int8")
    for parameters in ("all", "base/layers/up_proj/", "q_proj"):
        with pytest.raises(UserError, match="would differentiate base/layers/.*held in int8; take parameters = 'lora'"):
            split_parameters(model, parameters)
    split_parameters(model, "^base/(norm|embed|head)$|^lora/")
    with pytest.raises(UserError, match="weights cannot be written from a model whose layers are held in int8"):
        save_weights(tmp_path / "out", model)
    with pytest.raises(UserError, match="an adapter cannot be folded into a model whose layers are held in int8"):
        fold(model.lora, model.base, model.scales)
    with pytest.raises(UserError, match="quantization 'int4' is not supported; use int8 or float8_e4m3fn"):
        quantized(model, "int4")
    with pytest.raises(UserError, match="cannot quantize a model whose layers are held in int8"):
        quantized(model, "int8")
    settings = {"model": {"quantization": "int8"}}
    with pytest.raises(UserError, match=r"diagnose\.audit differentiates the frozen weights too"):
        check(build(DiagnoseConfig, settings, ""))
    check(build(DiagnoseConfig, {**settings, "diagnose": {"audit": False}}, ""))
    assert kind_of(dequantized(model).base) is None
