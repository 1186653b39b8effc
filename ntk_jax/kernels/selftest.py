"""The numerics self-test of `ntk-jax doctor`: does this machine compute the kernel right?

A small random model is scored in the package's way (forward mode, packed) and the slow way (one example at a time,
whole logits, reverse mode). Both run in fp32 with full matrix products, so they agree to rounding on any device.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.kernels.direction import mean_gradient
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.score import directional_scores
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model, random_model

LAYOUT = Layout(row_length=64, rows_per_batch=2)
VOCABULARY = 97
LENGTHS = (13, 27)  # few, because the slow way compiles once for each


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


def score(model: Model, domain: list[TokenRow], pool: list[TokenRow], objective: str, **changes: Any) -> np.ndarray:
    """[N] mean kernel of each pool row with the domain, the package's way; changes: fields of the layout."""
    goal, layout = Objective(objective), dataclasses.replace(LAYOUT, **changes)
    with jax.default_matmul_precision("highest"):
        return directional_scores(model, pool, mean_gradient(model, domain, goal, layout), goal, layout).values


def explicit_score(model: Model, domain: list[TokenRow], pool: list[TokenRow], objective: str) -> np.ndarray:
    """[N] the same by inner products of explicit per-example gradients."""
    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(partial(_scalar, model, objective)))

        def feature(row: TokenRow) -> np.ndarray:
            leaves = jax.tree.leaves(gradient(model.lora, row.ids, row.span))
            return np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)

        mean = np.mean([feature(row) for row in domain], axis=0)
        return np.array([mean @ feature(row) for row in pool])


def _scalar(model: Model, objective: str, lora: Any, ids: jax.Array, span: jax.Array) -> jax.Array:
    """s(θ; x) from the whole logits of one example [T]."""
    places = jnp.arange(len(ids))[None]
    hidden = hidden_states(model.graphdef, lora, model.base, ids[None], places, jnp.ones_like(places))[0]
    logits = hidden @ head_matrix(model.base).T
    if objective == "sum_logits":
        values = logits.sum(axis=-1)
    else:
        values = -jax.nn.log_softmax(logits)[jnp.arange(len(ids)), jnp.roll(ids, -1)]
    return (values * span).sum() / span.sum()


def centred(model: Model) -> Model:
    """The same predictions from a head whose rows sum to zero."""
    head = model.base["head"]
    return dataclasses.replace(model, base={**model.base, "head": head - head.mean(axis=0)})


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest absolute difference, relative to the largest value of `b`."""
    return float(np.abs(a - b).max() / np.abs(b).max())
