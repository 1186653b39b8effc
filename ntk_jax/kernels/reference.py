"""The slow way, for the self-test: the decoder in plain numpy and float64, one example at a time, whole logits.

No XLA computes any of it, and a derivative along a direction is a difference of values: what the compiled kernel is
held against shares nothing with it but the parameters, and needs no compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.models.model import Model
from ntk_jax.models.rope import inverse_frequencies

STEP = 1e-3  # along a direction of norm 1; the error of the differences is of its fourth power


def derivatives(model: Model, direction: Any, rows: Sequence[TokenRow], objective: str) -> np.ndarray:
    """[N] d/dε s(θ + ε direction; x) at ε = 0 of each row, over the span's mean. objective: sum_logits or
    cross_entropy."""
    base, lora, along = (_wide(tree) for tree in (model.base, model.lora, direction))
    norm = np.sqrt(sum(float(np.vdot(leaf, leaf)) for leaf in jax.tree.leaves(along)))

    def at(step: float) -> np.ndarray:
        moved = jax.tree.map(lambda leaf, d: leaf + step / norm * d, lora, along)
        return np.array([_value(model, base, moved, row, objective) for row in rows])

    near, far = at(STEP) - at(-STEP), at(2 * STEP) - at(-2 * STEP)
    return norm * (8 * near - far) / (12 * STEP)


def head_gradient(
    hidden: np.ndarray, head: np.ndarray, positions: np.ndarray, targets: np.ndarray, segments: np.ndarray
) -> np.ndarray:
    """[B, T, D] gradient over the hidden states [B, T, D] of Σ over examples of their mean cross-entropy. positions,
    targets, segments: [B, G] labels as in `data.batch.Batch`."""
    wide, rows, found = hidden.astype(np.float64), head.astype(np.float64), np.zeros(hidden.shape)
    for b, g in np.argwhere(segments > 0):
        logits = rows @ wide[b, positions[b, g]]
        error = np.exp(logits - _log_sum(logits))
        error[targets[b, g]] -= 1
        found[b, positions[b, g]] += error @ rows / (segments[b] == segments[b, g]).sum()
    return found


def _value(model: Model, base: Any, lora: Any, row: TokenRow, objective: str) -> float:
    logits = _hidden(model, base, lora, row.ids) @ base["head"].T
    if objective == "sum_logits":
        values = logits.sum(axis=-1)
    else:
        values = _log_sum(logits) - logits[np.arange(len(row.ids)), np.roll(row.ids, -1)]
    return float(values[row.span].mean())


def _hidden(model: Model, base: Any, lora: Any, ids: np.ndarray) -> np.ndarray:
    """[T, D] after the final norm."""
    c, length = model.config, len(ids)
    assert model.lora_config is not None
    scales = model.lora_config.scales
    angles = np.arange(length)[:, None] * inverse_frequencies(c).astype(np.float64)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        found: np.ndarray = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + c.norm_eps) * weight
        return found

    def rotated(x: np.ndarray) -> np.ndarray:
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    x = base["embed"][ids]
    for number in range(c.num_layers):
        frozen, adapter = (_layer(tree["layers"], number) for tree in (base, lora))
        linear = _linear(frozen, adapter, scales)
        h = norm(x, frozen["input_norm"])
        q, k, v = (linear(name, h).reshape(length, -1, c.head_dim) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = rotated(norm(q, frozen["q_norm"])) * c.head_dim**-0.5, rotated(norm(k, frozen["k_norm"]))
        k, v = (np.repeat(each, c.num_heads // c.num_kv_heads, axis=1) for each in (k, v))
        scores = np.einsum("thd,shd->hts", q, k)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - _log_sum(scores)[..., None])
        x = x + linear("o_proj", np.einsum("hts,shd->thd", weights, v).reshape(length, -1))
        h = norm(x, frozen["post_attention_norm"])
        gate = linear("gate_proj", h)
        x = x + linear("down_proj", gate / (1 + np.exp(-gate)) * linear("up_proj", h))
    return norm(x, base["norm"])


def _layer(stacked: Any, number: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[number], stacked)


def _linear(frozen: Any, adapter: Any, scales: Mapping[str, float]) -> Callable[[str, np.ndarray], np.ndarray]:
    """A layer's linear maps by name: weights, bias where there is one, adapter."""

    def apply(name: str, x: np.ndarray) -> np.ndarray:
        own, low = frozen[name], adapter[name]
        y: np.ndarray = x @ own["kernel"] + own.get("bias", 0.0) + scales[name] * (x @ low["a"] @ low["b"])
        return y

    return apply


def _log_sum(x: np.ndarray) -> np.ndarray:
    top = x.max(axis=-1, keepdims=True)
    found: np.ndarray = (top + np.log(np.exp(x - top).sum(axis=-1, keepdims=True)))[..., 0]
    return found


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
