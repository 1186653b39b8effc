"""Which training something was kept of: everything that decides its numbers, and nothing that does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_reference import random_rows, tiny_model

from ntk_jax.models.lora import LoRAConfig
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.training.digest import _sum_of_bits, digest, parts_of
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.unrolled import course

CONFIG = TrainConfig(max_steps=2, learning_rate=1e-2, batch_size=2, tokens_per_microbatch=64)
ROWS = [row for row in random_rows(12, seed=5) if row.span[:-1].any()]


def of(model: Any = None, rows: Any = ROWS[:6], config: TrainConfig = CONFIG, seed: int = 3, **options: Any) -> str:
    model = model or tiny_model(rank=2)
    held_out = options.pop("held_out", ROWS[6:8])
    run = course(model, rows, config, seed=seed, row_length=32, **options)
    return digest([*parts_of(model, run, held_out), options.get("weights")])


def changed(tree: Any, path: str, place: Any) -> Any:
    """The tree with one number of one leaf a little larger."""
    *heads, last = path.split(".")
    found = dict(tree)
    here = found
    for name in heads:
        here[name] = dict(here[name])
        here = here[name]
    here[last] = here[last].at[place].add(1e-3)
    return found


def test_what_decides_the_numbers_is_in_it() -> None:
    model = tiny_model(rank=2)
    head = next(name for name in model.base if "embed" in name)
    leaf = next(iter(model.base[head])) if isinstance(model.base[head], dict) else None
    embedding = head if leaf is None else f"{head}.{leaf}"
    other = tiny_model(rank=2, rope_theta=123.0)
    variants = [
        {},
        {"model": dataclasses.replace(model, lora_config=LoRAConfig(rank=2, alpha=16.0))},
        {"model": dataclasses.replace(other, base=model.base, lora=model.lora)},  # the same weights
        {"model": dataclasses.replace(model, base=changed(model.base, embedding, (96, -1)))},
        {"model": dataclasses.replace(model, base=jax.tree.map(lambda leaf: upper(leaf), model.base))},
        {"model": dataclasses.replace(model, lora=jax.tree.map(lambda leaf: upper(leaf), model.lora))},
        {"model": dataclasses.replace(model, base=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.base))},
        {"rows": ROWS[5::-1]},
        {"rows": ROWS[:5]},
        {"held_out": ROWS[7:5:-1]},
        {"rows": ROWS[:7], "held_out": ROWS[7:8]},
        {"seed": 4},
        {"config": dataclasses.replace(CONFIG, learning_rate=2e-2)},
        {"config": dataclasses.replace(CONFIG, loss="example_mean")},
    ]
    found = [of(**one) for one in variants]
    assert len(set(found)) == len(variants)


def upper(leaf: jax.Array) -> jax.Array:
    """The last layer's first number a little larger, where layers are stacked."""
    return leaf.at[-1, 0].add(1e-3) if leaf.ndim > 2 else leaf


def test_what_only_decides_how_it_is_computed_is_not() -> None:
    smaller = dataclasses.replace(CONFIG, tokens_per_microbatch=32, checkpoint_every=7)
    assert of() == of() == of(config=smaller) == of(mesh=make_mesh(data=2, fsdp=4))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float8_e4m3fn", "bool", "int32"])
def test_one_number_and_two_that_change_places(dtype: str) -> None:
    values = jnp.arange(24).reshape(2, 3, 4) % 2 if dtype == "bool" else jnp.arange(24).reshape(2, 3, 4)
    values = values.astype(dtype)
    swapped = values.at[0, 0, 0].set(values[1, 2, 3]).at[1, 2, 3].set(values[0, 0, 0])
    same = {
        np.asarray(_sum_of_bits(one)).tobytes() for one in (values, swapped, values.reshape(2, 4, 3), values[:, :, :3])
    }
    assert len(same) == 4


@given(st.integers(0, 2**31), st.integers(0, 59), st.floats(-4, 4, width=32))
def test_any_other_number_is_seen(seed: int, place: int, value: float) -> None:
    values = np.random.default_rng(seed).normal(size=60).astype(np.float32)
    other = values.copy()
    other[place] = value
    same = np.array_equal(values.view(np.uint32), other.view(np.uint32))
    assert (np.asarray(_sum_of_bits(values)) == np.asarray(_sum_of_bits(other))).all() == same
