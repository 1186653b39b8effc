"""Logits at the positions of the span, for small sets: the whole vocabulary at every position is held."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ntk_jax.data.batch import Batch, TokenRow
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.rows import Layout, batches_of, on_devices
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import all_logits, head_matrix
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import on_host


def span_logits(model: Model, rows: Sequence[TokenRow], layout: Layout) -> list[np.ndarray]:
    """[n_span, V] fp32 of each row, in order. Beside the result, memory is one batch's hidden states and the logits of
    one packed row."""
    found: list[Any] = [None] * len(rows)
    for packed in batches_of(rows, layout, Objective()):
        hidden = _hidden(model.graphdef, model.dtype, model.lora, model.base, on_devices(packed.batch, layout))
        segments, span = np.asarray(packed.batch.segments), np.asarray(packed.batch.span) > 0
        for number, members in enumerate(packed.index):
            if (members < 0).all():
                continue
            logits = on_host(_row_logits(hidden[number], head_matrix(model.base)))
            for segment, ordinal in enumerate(members, 1):
                if ordinal >= 0:
                    found[ordinal] = logits[span[number] & (segments[number] == segment)]
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hidden(graphdef: Any, dtype: Any, lora: Any, base: Any, batch: Batch) -> jax.Array:
    """[B, T, D]."""
    return hidden_states(graphdef, lora or {}, base, batch.tokens, batch.positions, batch.segments, dtype=dtype)


@jax.jit
def _row_logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """[T, V]; one row at a time, because those of a whole batch would not fit a device."""
    return all_logits(hidden, head)
