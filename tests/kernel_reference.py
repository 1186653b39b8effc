"""The slow, obvious way: one example at a time, full logits, reverse mode. The oracle of the kernel tests."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.kernels.objectives import Objective, probe_signs
from ntk_jax.kernels.parameters import join_parameters, split_parameters
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model, random_model


def tiny_config(family: str, **changes: Any) -> ModelConfig:
    """A small model of each family, with what makes the family different switched on."""
    common: dict[str, Any] = dict(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        rope_theta=10000.0, rope_scaling=None, norm_eps=1e-5, qkv_bias=False, o_bias=False, qk_norm=False, tied=False,
        max_positions=256,
    )  # fmt: skip
    family_flags = {
        "llama": dict(model_type="llama"),
        "qwen2": dict(model_type="qwen2", qkv_bias=True, tied=True),
        "qwen3": dict(model_type="qwen3", qk_norm=True, head_dim=16),
    }[family]
    return ModelConfig(**{**common, **family_flags, **changes})


@functools.cache
def tiny_model(family: str = "llama", *, seed: int = 0, rank: int = 4, **changes: Any) -> Model:
    """Random weights (std 0.2), a warmed-up adapter (B random too)."""
    lora = LoRAConfig(rank=rank, alpha=2.0 * rank)
    return random_model(tiny_config(family, **changes), lora=lora, seed=seed, std=0.2)


def random_rows(count: int, *, seed: int = 0, vocab: int = 97, lengths: Sequence[int] = (5, 24)) -> list[TokenRow]:
    """Rows whose span is a random suffix, without the last position (the `response` layout)."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(rng.choice(lengths))
        start = int(rng.integers(0, length - 1))
        span = (np.arange(length) >= start) & (np.arange(length) < length - 1)
        rows.append(TokenRow(rng.integers(0, vocab, length).astype(np.int32), span, f"row-{number}"))
    return rows


@functools.partial(jax.jit, static_argnames=("graphdef", "objective", "parameters"))
def reference_jacobian(
    graphdef: Any, theta: Any, rest: Any, ids: jax.Array, span: jax.Array, objective: Objective, parameters: str
) -> Any:
    """Jacobian over theta of s(θ; x) per channel, [C, ...], from the whole logits of one unpadded example."""

    def value(theta: Any) -> jax.Array:
        lora, base = join_parameters(theta, rest, parameters)
        positions = jnp.arange(len(ids))[None]
        hidden = hidden_states(graphdef, lora, base, ids[None], positions, jnp.ones_like(positions))[0]
        head = head_matrix(base)
        logits = hidden @ head.T  # [T, V]: just what the real path never builds
        labels = jnp.roll(ids, -1)
        if objective.kind == "sum_logits":
            values = logits.sum(axis=-1)[:, None]
        elif objective.kind == "probe":
            centred_logits = logits - logits.mean(axis=-1, keepdims=True)
            values = centred_logits @ probe_signs(objective.seed, objective.probes, head.shape[0]).T
        elif objective.kind == "target_logit":
            values = jnp.take_along_axis(logits, labels[:, None], axis=1)
        elif objective.kind == "cross_entropy":
            values = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        else:
            values = objective.kind(hidden, labels, head)[:, None]
        total = (values * span[:, None]).sum(axis=0)
        return total / span.sum() if objective.normalize == "mean" else total

    return jax.jacrev(value)(theta)


def reference_gradients(
    model: Model, rows: list[TokenRow], objective: Objective, parameters: str = "lora"
) -> list[np.ndarray]:
    """One [C, P] float64 feature a row."""
    theta, rest = split_parameters(model, parameters)
    return [
        flatten(
            reference_jacobian(model.graphdef, theta, rest, row.ids, row.span, objective, parameters),
            objective.channels,
        )
        for row in rows
    ]


@functools.partial(jax.jit, static_argnames=("graphdef", "parameters"))
def reference_logit_jacobian(
    graphdef: Any, theta: Any, rest: Any, ids: jax.Array, span: jax.Array, parameters: str = "lora"
) -> Any:
    """Jacobian over theta of the mean logits over the span, [V, ...], of one unpadded example."""

    def logits(theta: Any) -> jax.Array:
        lora, base = join_parameters(theta, rest, parameters)
        positions = jnp.arange(len(ids))[None]
        hidden = hidden_states(graphdef, lora, base, ids[None], positions, jnp.ones_like(positions))[0]
        return ((hidden @ head_matrix(base).T) * span[:, None]).sum(axis=0) / span.sum()

    return jax.jacrev(logits)(theta)


def flatten(tree: Any, channels: int) -> np.ndarray:
    """[C, P] float64 of a tree whose leaves carry a leading channel axis."""
    leaves = [np.asarray(leaf, np.float64).reshape(channels, -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=1)


def centred(model: Model) -> Model:
    """The same predictions from a head whose rows sum to zero."""
    import dataclasses

    head = model.base["head"]
    return dataclasses.replace(model, base={**model.base, "head": head - head.mean(axis=0, keepdims=True)})
