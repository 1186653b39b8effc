"""Mean hidden states as stores keep them: what votes and embeddings are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.engine.blocks import Progress
from ntk_jax.errors import UserError
from ntk_jax.kernels.names import Over, Pooling
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.score import pooled_hidden_states
from ntk_jax.models.model import Model
from ntk_jax.selection.votes import unit_rows


def unit_hidden(
    model: Model,
    encoded: Sequence[tuple[Any, Any]],
    layout: Layout,
    progress: Progress,
    *,
    pooling: Pooling = "mean",
    over: Over = "all",
) -> np.ndarray:
    """[n, D] float16 of a block's examples, each (record, token row or why there is none): the pooled hidden state
    scaled to norm 1, zeros where there is no row. Of unit rows u, v float16 moves ⟨u, v⟩ by 0.98e-3 at most.

    Raises UserError: a state that is zero or not finite (naming the example).
    """
    hidden = np.zeros((len(encoded), model.config.hidden_size), np.float16)
    kept = [place for place, (_, row) in enumerate(encoded) if isinstance(row, TokenRow)]
    if not kept:
        return hidden
    rows = [encoded[place][1] for place in kept]
    pooled = pooled_hidden_states(model, rows, layout, pooling=pooling, over=over, progress=progress)
    empty = np.flatnonzero(~pooled.any(axis=1))
    if len(empty):
        raise UserError(
            f"example {rows[empty[0]].id}: its hidden states are zero on average, so it is near to nothing; check the "
            "weights with `ntk-jax doctor`"
        )
    hidden[kept] = unit_rows(pooled)
    return hidden
