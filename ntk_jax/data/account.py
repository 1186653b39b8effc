"""What became of each example that was read: kept, or why not, and its length; one array each, as stores keep them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.tokens import NO_RESPONSE, TOO_LONG, Dropped

KEPT = 0  # status codes, beside the reasons for dropping an example
DROP_REASONS = (TOO_LONG, NO_RESPONSE)
ACCOUNT: dict[str, Any] = {  # name -> (shape of one row, dtype)
    "status": ((), np.uint8),
    "length": ((), np.int32),
    "span": ((), np.int32),
    "truncated": ((), np.uint8),
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
    }
