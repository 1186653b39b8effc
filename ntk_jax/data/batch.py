"""The arrays that one compiled step sees: token rows with segments, spans and labels.

Letters: B rows, T positions, G label slots a row, S segments a row at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class TokenRow:
    """One example as tokens, before packing.

    ids: [T] int32. span: [T] bool, the positions whose hidden state counts; under the `response` span
    these are the positions that *predict* response tokens. id: the record's id, for messages.
    truncated: tokens were cut away to fit the context, for the statistics. notes: what became of the record's words, as
    in `templates.Written`.
    """

    ids: np.ndarray
    span: np.ndarray
    id: str = ""
    truncated: bool = False
    notes: tuple[str, ...] = ()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed rows. Every array has the batch axis first, so that it shards over the mesh's data axis.

    tokens, positions: [B, T] int32; positions restart at 0 in each segment.
    segments: [B, T] int32, 1..S, 0 is padding; attention stays inside a segment.
    span: [B, T] bool.
    label_position, label_target, label_segment: [B, G] int32: at position p of its row the next token
    is `target`, and the value belongs to segment s (0: an unused slot). They list the span positions
    that have a next token in their own segment; G is rounded up so that few shapes compile.
    branches: [B, T] int32 or None: tokens of branch b > 0 see branch 0 (the shared prompt) and their
    own branch only; how all answers of a multiple-choice question share one prompt.
    label_weight: float32 like the label arrays, or None: what a label's loss is multiplied by in training.
    """

    tokens: Any
    positions: Any
    segments: Any
    span: Any
    label_position: Any
    label_target: Any
    label_segment: Any
    branches: Any = None
    label_weight: Any = None


@dataclass(frozen=True)
class PackedBatch:
    """A batch and whose segments they are: `index` [B, S] int32 (host), the row's ordinal or -1."""

    batch: Batch
    index: np.ndarray
