"""The mesh and the sharding rules: shapes, refusals, and what the compiler makes of them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import split_parameters
from ntk_jax.kernels.rows import Layout, batches_of, frozen_readout, make_step, on_devices
from ntk_jax.kernels.step import directional_step
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix, target_log_probs
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model, quantized, random_model
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.parallel.rules import param_shardings, replicate, shard_batch, split_rows, whole

MODEL = random_model(
    ModelConfig("qwen2", 120, 64, 96, 3, 4, 2, 16, qkv_bias=True), lora=LoRAConfig(rank=2, alpha=4.0), std=0.15
)
INT8 = quantized(MODEL, "int8")
COLLECTIVES = r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def test_the_mesh_takes_what_is_left() -> None:
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(devices=jax.devices()[:3]).shape) == {"data": 3, "fsdp": 1, "tensor": 1}
    assert set(make_mesh().axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("sizes", ((3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (16, 1, 1), (4, 1, 1), (-2, 1, 1)))
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match="mesh data=.*devices|mesh data=.*positive"):
        make_mesh(*sizes)


def test_the_rules_split_what_is_large() -> None:
    shardings = param_shardings({"base": MODEL.base, "lora": MODEL.lora}["base"], make_mesh(2, 2, 2))
    layers = shardings["layers"]
    assert layers["q_proj"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert layers["down_proj"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert layers["v_proj"]["bias"].spec == PartitionSpec(None, "tensor")
    scales = param_shardings(INT8.base, make_mesh(2, 2, 2))["layers"]
    assert scales["up_proj"]["kernel_scale"].spec == PartitionSpec(None, "tensor")
    assert scales["down_proj"]["kernel_scale"].spec == PartitionSpec()
    assert shardings["embed"].spec == shardings["head"].spec == PartitionSpec(None, ("fsdp", "tensor"))
    assert layers["input_norm"].spec == shardings["norm"].spec == PartitionSpec()
    assert {s.spec for s in jax.tree.leaves(param_shardings(MODEL.lora, make_mesh(2, 2, 2)))} == {PartitionSpec()}


def test_an_axis_that_does_not_divide_is_dropped() -> None:
    odd = {"layers": {"q_proj": {"kernel": jax.ShapeDtypeStruct((1, 6, 9), jnp.float32)}}}
    spec = param_shardings(odd, make_mesh(1, 2, 4))["layers"]["q_proj"]["kernel"].spec
    assert spec == PartitionSpec(None, "fsdp", None)
    embed = {"embed": jax.ShapeDtypeStruct((7, 6), jnp.float32)}
    assert param_shardings(embed, make_mesh(1, 2, 4))["embed"].spec == PartitionSpec(None, "fsdp")


def test_a_batch_goes_over_rows() -> None:
    mesh = make_mesh(2, 4, 1)
    batch = shard_batch({"tokens": np.arange(32).reshape(16, 2), "none": None}, mesh)
    assert batch["tokens"].sharding.spec == PartitionSpec(("data", "fsdp"))
    assert batch["tokens"].addressable_shards[0].data.shape == (2, 2) and batch["none"] is None
    with pytest.raises(UserError, match="a batch of 12 rows does not divide over 8 devices"):
        shard_batch(np.zeros((12, 2)), mesh)
    copies = replicate({"a": np.ones(3)}, mesh)["a"]
    assert copies.sharding.is_fully_replicated and len(copies.addressable_shards) == 8


def test_pins_do_nothing_where_they_cannot() -> None:
    x = jnp.ones((3, 4))
    assert split_rows(x) is x and whole(x) is x
    odd = replicate(np.ones((3, 4)), make_mesh())  # three rows over eight devices
    assert split_rows(odd).sharding.is_fully_replicated
    mesh = make_mesh()
    per_device = jax.shard_map(split_rows, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    assert np.array_equal(jax.jit(per_device)(jnp.ones((8, 4))), np.ones((8, 4)))


def batch() -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    tokens = random.integers(0, 120, (8, 32)).astype(np.int32)
    segments = np.where(np.arange(32) < random.integers(8, 33, (8, 1)), 1, 0).astype(np.int32)
    return tokens, np.broadcast_to(np.arange(32, dtype=np.int32), (8, 32)), segments


def score(lora: Any, base: Any, tokens: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
    """What a scoring step does: a directional derivative of each row's log-probability, head in chunks."""

    def value(lora: Any) -> jax.Array:
        hidden = hidden_states(MODEL.graphdef, lora, base, tokens, positions, segments)
        logs = target_log_probs(hidden[:, :8], tokens[:, 1:9], head_matrix(base), vocab_chunk=50)
        return jnp.where(segments[:, 1:9] > 0, logs, 0.0).sum(-1)

    return jax.jvp(value, (lora,), (lora,))[1]


@functools.cache
def alone() -> np.ndarray:
    """The scores on one device."""
    return np.asarray(jax.jit(score)(MODEL.lora, MODEL.base, *batch()))


@pytest.mark.parametrize(
    "sizes, gathers, reduces",
    [
        ((8, 1, 1), 0, 0),
        ((1, 8, 1), 9, 0),  # seven kernels, embedding, head: each gathered once
        ((2, 4, 1), 9, 0),
        ((2, 2, 2), None, None),
    ],
)
def test_meshes_agree_and_move_weights_not_activations(
    sizes: tuple[int, int, int], gathers: int | None, reduces: int | None
) -> None:
    expected = alone()
    mesh = make_mesh(*sizes)
    base = jax.device_put(MODEL.base, param_shardings(MODEL.base, mesh))
    inputs = (replicate(MODEL.lora, mesh), base, *shard_batch(batch(), mesh))
    compiled = jax.jit(score).lower(*inputs).compile()
    assert np.abs(np.asarray(compiled(*inputs)) - expected).max() < 1e-5 * np.abs(expected).max()
    found = Counter(re.findall(COLLECTIVES, compiled.as_text() or ""))
    assert found["all-to-all"] == found["collective-permute"] == 0
    if gathers is not None:
        assert (found["all-gather"], found["all-reduce"], found["reduce-scatter"]) == (gathers, reduces, 0)


@pytest.mark.parametrize(
    ("sizes", "gathers", "directions", "held", "sent"),
    [  # fsdp: seven kernels and the embedding, each once
        ((8, 1, 1), 0, 3, MODEL, ""),
        ((1, 8, 1), 8, 1, MODEL, "f32["),
        ((2, 4, 1), 8, 3, MODEL, "f32["),
        ((2, 4, 1), 8, 1, INT8, "s8["),
    ],
)
def test_collectives_of_the_compiled_score_step(
    sizes: tuple[int, int, int], gathers: int, directions: int, held: Model, sent: str
) -> None:
    """The step itself, as `directional_scores` calls it: nothing is sent between devices that hold all weights, and
    nothing but weights where they are split, however many directions share the primal pass; quantized ones as bytes."""
    mesh = make_mesh(*sizes)
    base = jax.device_put(held.base, param_shardings(held.base, mesh))
    model = dataclasses.replace(held, base=base, lora=replicate(held.lora, mesh))
    objective, layout = Objective("sum_logits"), Layout(64, 8, mesh)
    rows = [TokenRow(np.arange(20, dtype=np.int32), np.arange(20) > 5, str(n)) for n in range(30)]
    theta, rest = split_parameters(model, "lora")
    along = jax.tree.map(lambda leaf: jnp.ones((directions, 1, *leaf.shape)), theta)
    batch = on_devices(next(iter(batches_of(rows, layout, objective))).batch, layout)
    read = frozen_readout(model, objective, "lora")
    step = make_step(model, objective, layout, "lora")
    text = directional_step.lower(step, theta, rest, read, along, batch).compile().as_text() or ""
    found = Counter(re.findall(COLLECTIVES, text))
    assert found == Counter({"all-gather": gathers} if gathers else {})
    inside = [line for line in text.splitlines() if re.search(COLLECTIVES, line) and "while/body" in line]
    assert len(inside) == (7 if gathers else 0)  # layer by layer: no device ever holds all of a split weight
    assert all(f"= {sent}" in line for line in inside)
