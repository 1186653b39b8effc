"""What became of each example that was read: kept, or why not, and its length; one array each, as stores keep them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.templates import REWRITTEN, SPACE_MOVED, SPELLS_CONTROL
from ntk_jax.data.tokens import CONTROL_IN_TEXT, NO_RESPONSE, TOO_LONG, Dropped

KEPT = 0  # status codes, beside the reasons for dropping an example
DROP_REASONS = (TOO_LONG, NO_RESPONSE, CONTROL_IN_TEXT)
NOTES = (SPACE_MOVED, SPELLS_CONTROL, REWRITTEN)  # bit k of `notes` is the k-th
ACCOUNT: dict[str, Any] = {  # name -> (shape of one row, dtype)
    "status": ((), np.uint8),
    "length": ((), np.int32),
    "span": ((), np.int32),
    "truncated": ((), np.uint8),
    "notes": ((), np.uint8),
}


def account_of(rows: Sequence[TokenRow | Dropped]) -> dict[str, np.ndarray]:
    """The arrays of `ACCOUNT` for the examples of a block."""
    kept = [row if isinstance(row, TokenRow) else None for row in rows]
    status = [KEPT if isinstance(row, TokenRow) else 1 + DROP_REASONS.index(row.reason) for row in rows]
    return {
        "status": np.array(status, np.uint8),
        "length": np.array([len(row.ids) if row else 0 for row in kept], np.int32),
        "span": np.array([row.span.sum() if row else 0 for row in kept], np.int32),
        "truncated": np.array([row is not None and row.truncated for row in kept], np.uint8),
        "notes": np.array([sum(1 << NOTES.index(note) for note in row.notes) if row else 0 for row in kept], np.uint8),
    }


def count_notes(notes: np.ndarray) -> dict[str, int]:
    """{note: examples} of an array `notes` [N]; those that no example has are left out."""
    counts = {note: int(((notes >> bit) & 1).sum()) for bit, note in enumerate(NOTES)}
    return {note: number for note, number in counts.items() if number}
