"""The numerics self-test of `ntk-jax doctor`: does this machine compute the kernel right?

A small random model goes the package's way (packed rows, reverse mode for the mean gradient, forward mode for scores)
and the slow way of `reference.py`. The package's way runs in fp32 with full matrix products, so that the two agree to
rounding on any device. Compiling is what takes the time, so one direction serves every score: the mean gradient of the
sum of logits. What cross-entropy's own gradient has beside it, the head's backward pass, is checked alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.packing import pack
from ntk_jax.kernels import reference
from ntk_jax.kernels.direction import mean_gradient
from ntk_jax.kernels.objectives import Objective, example_values
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.score import directional_scores
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.head import head_matrix
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model, random_model

LAYOUT = Layout(row_length=64, rows_per_batch=2)
VOCABULARY = 97
LENGTHS = (13, 27, 8, 21)


def small_model(seed: int = 0) -> Model:
    """Two layers with every feature of the three families on (biases, q/k norms), and an adapter that is not fresh."""
    config = ModelConfig(
        model_type="qwen3", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=16, qkv_bias=True, qk_norm=True, max_positions=64,
    )  # fmt: skip
    return random_model(config, lora=LoRAConfig(rank=4, alpha=8.0), seed=seed)


def small_rows(count: int, seed: int = 0) -> list[TokenRow]:
    """Random tokens whose span is a random ending, as that of a response is."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = LENGTHS[number % len(LENGTHS)]
        position, start = np.arange(length), int(rng.integers(0, length - 2))
        span = (position >= start) & (position < length - 1)
        rows.append(TokenRow(rng.integers(0, VOCABULARY, length).astype(np.int32), span, f"row-{number}"))
    return rows


def direction(model: Model, domain: list[TokenRow], **changes: Any) -> Any:
    """The mean gradient of the sum of logits, the package's way; changes: fields of the layout."""
    with jax.default_matmul_precision("highest"):
        return mean_gradient(model, domain, Objective("sum_logits"), dataclasses.replace(LAYOUT, **changes))


def score(model: Model, along: Any, pool: list[TokenRow], objective: str, **changes: Any) -> np.ndarray:
    """[N] derivative of each pool row's objective along a direction, the package's way; changes: as of `direction`."""
    with jax.default_matmul_precision("highest"):
        return directional_scores(
            model, pool, along, Objective(objective), dataclasses.replace(LAYOUT, **changes)
        ).values


def score_alone(model: Model, along: Any, pool: list[TokenRow], objective: str) -> np.ndarray:
    """[N] the same, but each row by itself in a batch: no neighbours."""
    return np.concatenate([score(model, along, [row], objective) for row in pool])


def reference_score(model: Model, along: Any, pool: list[TokenRow], objective: str) -> np.ndarray:
    """[N] the same, the slow way."""
    return reference.derivatives(model, along, pool, objective)


def projections(model: Model, gradient: Any, domain: list[TokenRow], count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """[count] inner products of a mean gradient with random directions, and the same from the mean of the slow way's
    derivatives along them."""
    rng, leaves = np.random.default_rng(1), jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), gradient)
    own, slow = [], []
    for _ in range(count):
        random = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), leaves)
        own.append(sum(map(np.vdot, jax.tree.leaves(leaves), jax.tree.leaves(random))))
        slow.append(reference.derivatives(model, random, domain, "sum_logits").mean())
    return np.array(own), np.array(slow)


def head_gradients(model: Model, rows: list[TokenRow]) -> tuple[np.ndarray, np.ndarray]:
    """[B, T, D] gradient of cross-entropy over random hidden states of packed rows: the package's way, by hand."""
    packed = next(
        iter(
            pack(
                rows,
                row_length=LAYOUT.row_length,
                rows_per_batch=LAYOUT.rows_per_batch,
                max_segments=LAYOUT.max_segments,
            )
        )
    ).batch
    head = head_matrix(model.base)
    hidden = np.random.default_rng(2).standard_normal((*packed.tokens.shape, head.shape[1])).astype(np.float32)

    def total(hidden: jax.Array) -> jax.Array:
        return example_values(Objective("cross_entropy"), hidden, packed, head, LAYOUT.max_segments).sum()

    with jax.default_matmul_precision("highest"):
        own = np.asarray(jax.jit(jax.grad(total))(hidden))
    labels = (packed.label_position, packed.label_target, packed.label_segment)
    return own, reference.head_gradient(hidden, np.asarray(head), *map(np.asarray, labels))


def centred(model: Model) -> Model:
    """The same predictions from a head whose rows sum to zero."""
    head = model.base["head"]
    return dataclasses.replace(model, base={**model.base, "head": head - head.mean(axis=0)})


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest absolute difference, relative to the largest value of `b`."""
    return float(np.abs(a - b).max() / np.abs(b).max())
