"""Sums of log probabilities over packed batches: one number for each choice of a question, or for each response.

The vocabulary meets only the label positions, a chunk of it at a time (`models/head.py`); no logits are kept.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ntk_jax.data.batch import Batch, PackedBatch
from ntk_jax.models.head import all_logits, head_matrix
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import on_host
from ntk_jax.parallel.rules import shard_batch
from ntk_jax.training.loss import label_log_probs, label_log_probs_and_greedy, label_states


def log_prob_sums(
    model: Model,
    batches: Iterable[PackedBatch],
    count: int,
    *,
    mesh: Mesh | None = None,
    finished: Callable[[int], None] | None = None,
) -> np.ndarray:
    """[count] float32, in nats: for each ordinal of the batches' `index` the sum of log p over its labels; NaN for one
    that no batch has. finished: called with how many are on the host."""
    return _collected(_slot_sums, 1, model, batches, count, mesh, finished)[:, 0]


def log_prob_sums_and_misses(
    model: Model,
    batches: Iterable[PackedBatch],
    count: int,
    *,
    mesh: Mesh | None = None,
    finished: Callable[[int], None] | None = None,
) -> np.ndarray:
    """[count, 2] float32: `log_prob_sums`, and how many labels are not what greedy decoding would write."""
    return _collected(_slot_sums_and_misses, 2, model, batches, count, mesh, finished)


def log_odds(
    model: Model,
    batches: Iterable[PackedBatch],
    count: int,
    answers: tuple[int, int],
    *,
    mesh: Mesh | None = None,
    finished: Callable[[int], None] | None = None,
) -> np.ndarray:
    """[count] float32, in nats: how much likelier the first of two tokens is than the second at the only label of each
    ordinal; of the vocabulary's matrix only their two rows are used."""
    step = functools.partial(_slot_log_odds, np.asarray(answers, np.int32))
    return _collected(step, 1, model, batches, count, mesh, finished)[:, 0]


def _collected(
    step: Callable[..., jax.Array],
    width: int,
    model: Model,
    batches: Iterable[PackedBatch],
    count: int,
    mesh: Mesh | None,
    finished: Callable[[int], None] | None,
) -> np.ndarray:
    """[count, width] float32 of a compiled step that gives [B, S, width], S slots."""
    sums = np.full((count, width), np.nan, np.float32)
    done = 0

    def collect(index: np.ndarray, values: jax.Array) -> None:
        nonlocal done
        used = index >= 0
        sums[index[used]] = on_host(values)[used]
        done += int(used.sum())
        if finished is not None:
            finished(done)

    pending: tuple[np.ndarray, jax.Array] | None = None
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        for packed in batches:
            batch = packed.batch if mesh is None else shard_batch(packed.batch, mesh)
            values = step(
                model.graphdef, jnp.dtype(model.dtype), packed.index.shape[1], model.lora or {}, model.base, batch
            )
            if pending is not None:  # one batch behind: the host packs while the device computes
                collect(*pending)
            pending = packed.index, values
    if pending is not None:
        collect(*pending)
    return sums


def batch_shape(row_length: int, batch_tokens: int, mesh: Mesh | None) -> dict[str, int]:
    """The shape that `pack` takes, for compiled steps of at most about `batch_tokens`: row_length, and rows_per_batch
    and least_rows, both multiples of the devices that share the rows."""
    multiple = mesh.shape["data"] * mesh.shape["fsdp"] if mesh is not None else 1
    most = max(1, batch_tokens // (row_length * multiple)) * multiple
    return {"row_length": row_length, "rows_per_batch": most, "least_rows": multiple}


def row_length_of(longest: int) -> int:
    """Rounded up in steps of an eighth to a quarter, so that files of like lengths share a compilation."""
    step = max(64, 1 << max((longest - 1).bit_length() - 3, 0))
    return -(-longest // step) * step


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _slot_sums(graphdef: Any, dtype: Any, slots: int, lora: Any, base: Any, batch: Batch) -> jax.Array:
    """[B, S, 1] float32: the labels' log probabilities summed by slot (one slot a choice, or a response)."""
    return _by_slot(batch, slots, label_log_probs(graphdef, lora, base, batch, dtype=dtype))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _slot_sums_and_misses(graphdef: Any, dtype: Any, slots: int, lora: Any, base: Any, batch: Batch) -> jax.Array:
    """[B, S, 2] float32: these sums, and how many labels are not what greedy decoding would write."""
    log_probs, greedy = label_log_probs_and_greedy(graphdef, lora, base, batch, dtype=dtype)
    return _by_slot(batch, slots, log_probs, (~greedy).astype(jnp.float32))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _slot_log_odds(
    answers: jax.Array, graphdef: Any, dtype: Any, slots: int, lora: Any, base: Any, batch: Batch
) -> jax.Array:
    """[B, S, 1] float32: the difference of two tokens' logits by slot, which has one label."""
    logits = all_logits(label_states(graphdef, lora, base, batch, dtype), head_matrix(base)[answers])
    return _by_slot(batch, slots, logits[..., 0] - logits[..., 1])


def _by_slot(batch: Batch, slots: int, *values: jax.Array) -> jax.Array:
    """[B, S, K]: K arrays [B, G] of label values, summed by slot."""
    # Slot numbers start at 1 and 0 is unused. A one-hot contraction, because a scatter would serialise; HIGHEST,
    # because the sums are compared with each other and TF32 or bf16 products would round them.
    members = batch.label_segment[:, :, None] == jnp.arange(1, slots + 1)
    stacked = jnp.stack(values, axis=-1)
    return jnp.einsum("bgk,bgs->bsk", stacked, members.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
