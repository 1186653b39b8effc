"""Log probabilities of the labels of a packed batch, and the summed loss.

The LM head meets only the label positions: they are gathered first, and the [B, T, V] logits are never built.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import Batch, PackedBatch
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix, target_log_probs, target_log_probs_and_greedy


def label_log_probs(
    graphdef: Any, lora: Any, base: Any, batch: Batch, *, dtype: Any = jnp.float32, remat: bool = False
) -> jax.Array:
    """log p(label_target | the tokens before it), float32, shaped like the label arrays; unused slots are 0.

    Label arrays are [B, G] as in `Batch`, or [groups, M]: the rows in `groups` equal parts, a part's slots in one
    list, label_position counting over the part's B / groups * T positions. With a part a device, the gather stays
    inside the device.
    """
    hidden = label_states(graphdef, lora, base, batch, dtype, remat)
    log_probs = target_log_probs(hidden, jnp.asarray(batch.label_target), head_matrix(base))
    return jnp.where(jnp.asarray(batch.label_segment) > 0, log_probs, 0.0)


def label_log_probs_and_greedy(
    graphdef: Any, lora: Any, base: Any, batch: Batch, *, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """`label_log_probs`, and where a label is what greedy decoding would write: bool, True in unused slots."""
    hidden = label_states(graphdef, lora, base, batch, dtype, False)
    log_probs, greedy = target_log_probs_and_greedy(hidden, jnp.asarray(batch.label_target), head_matrix(base))
    used = jnp.asarray(batch.label_segment) > 0
    return jnp.where(used, log_probs, 0.0), greedy | ~used


def label_states(graphdef: Any, lora: Any, base: Any, batch: Batch, dtype: Any, remat: bool = False) -> jax.Array:
    """The hidden states [groups, M, D] that predict the labels."""
    hidden = hidden_states(
        graphdef, lora, base, batch.tokens, batch.positions, batch.segments, batch.branches, dtype=dtype, remat=remat
    )
    hidden = hidden.reshape(batch.label_position.shape[0], -1, hidden.shape[-1])  # rows of a part end to end
    return jnp.take_along_axis(hidden, jnp.asarray(batch.label_position)[:, :, None], axis=1)


def loss_sum(
    graphdef: Any, lora: Any, base: Any, batch: Batch, *, dtype: Any = jnp.float32, remat: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Sum of -log p over the batch's labels (scalar), each times its weight where the batch has weights, and the first
    slot whose value is not finite (-1: none).

    The slot is a flat index into the label arrays. The sum, not the mean, is differentiated: microbatches of one
    optimiser step then add up to exactly the token mean of the whole step, whatever their sizes.
    """
    log_probs = label_log_probs(graphdef, lora, base, batch, dtype=dtype, remat=remat)
    broken = ~jnp.isfinite(log_probs).reshape(-1)
    first = jnp.where(jnp.any(broken), jnp.argmax(broken), -1).astype(jnp.int32)
    if batch.label_weight is not None:
        log_probs = log_probs * batch.label_weight
    return -jnp.sum(log_probs), first


def weighing_examples(packed: PackedBatch) -> PackedBatch:
    """The batch with weights under which every example counts as much as any other: 1 / its number of labels.

    label arrays: [groups, M] or [B, G], as `label_log_probs` takes them.
    """
    batch = packed.batch
    groups, (rows, length) = batch.label_position.shape[0], batch.tokens.shape
    used = batch.label_segment > 0
    row = np.arange(groups)[:, None] * (rows // groups) + batch.label_position // length
    example = np.where(used, row * (packed.index.shape[1] + 1) + batch.label_segment, 0)
    labels = np.bincount(example.ravel(), weights=used.ravel())
    weight = np.where(used, 1.0 / np.maximum(labels[example], 1.0), 0.0).astype(np.float32)
    return replace(packed, batch=replace(batch, label_weight=weight))
