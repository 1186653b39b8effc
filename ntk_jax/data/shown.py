"""One example as the model reads it, for people: its text after the template, and where the span begins."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow

MOST = 2000  # characters of each part


def shown(row: TokenRow, tokenizer: Any) -> dict[str, Any]:
    """{"id", "before", "counted", "tokens", "counted_tokens"}: the text up to the first token that a counted position
    predicts, and the text from there. Control tokens stand as they are written."""
    labels = np.flatnonzero(row.span[:-1]) + 1
    start = int(labels[0]) if len(labels) else len(row.ids) - 1  # only the last position counts: it is what is shown
    whole, before = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (row.ids, row.ids[:start]))
    counted = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(row.ids[start:])
    return {
        "id": row.id,
        "before": _cut(before),
        "counted": _cut(counted),
        "tokens": len(row.ids),
        "counted_tokens": len(row.ids) - start,
    }


def _cut(text: str) -> str:
    """The middle of a long text left out."""
    return text if len(text) <= MOST else f"{text[: MOST // 2]}\n[...]\n{text[-MOST // 2 :]}"
