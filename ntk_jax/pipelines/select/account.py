"""What a stage that reads the pool keeps of every example beside its result: where it stands, its family, its lengths,
and what became of it. So whoever comes later need not parse the pool again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.account import ACCOUNT, DROP_REASONS, KEPT, account_of
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import Record, family_of
from ntk_jax.data.statistics import PERCENTILES
from ntk_jax.data.tokens import Dropped
from ntk_jax.errors import UserError
from ntk_jax.kernels import agreement
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.common.pool import Pool
from ntk_jax.storage.arrays import Store, read
from ntk_jax.storage.atomic import read_json, write_json

FAMILIES = "families.json"
ARRAYS: dict[str, Any] = {"ordinal": ((), np.int64), "family": ((), np.int32), **ACCOUNT}


class Accounts:
    """The arrays `ARRAYS` of the blocks of a stage. Which record key names a family is settled when the stage begins
    and kept in families.json, so that a store never holds codes of two kinds."""

    def __init__(self, folder: Path, pool: Pool, ordinals: np.ndarray, block_rows: int) -> None:
        path = folder / FAMILIES
        if not hosts.broadcast(path.exists):
            write_json(path, {"group_by": pool.group_by, "families": list(pool.census.families)})
        kept = hosts.broadcast(lambda: read_json(path))
        self._codes = {name: code for code, name in enumerate(kept["families"])}
        self._group_by, self._ordinals, self._size = kept["group_by"], ordinals, block_rows

    def of(self, block: int, encoded: Sequence[tuple[Record, TokenRow | Dropped]]) -> dict[str, np.ndarray]:
        """{name: [rows]} of a block's examples."""
        codes = [self._codes[family_of(record, self._group_by)] for record, _ in encoded]
        start = block * self._size
        return {
            "ordinal": self._ordinals[start : start + len(encoded)],
            "family": np.array(codes, np.int32),
            **account_of([row for _, row in encoded]),
        }


def families_of(folder: Path, store: Store, pool: Pool) -> list[str]:
    """The family of each row of a stage's store, by the pool's `group_by`: from the stored codes, or, where they are of
    another key, from the records, which are then parsed once more."""
    kept = read_json(folder / FAMILIES)
    if kept["group_by"] == pool.group_by:
        return [kept["families"][code] for code in read(store, "family").tolist()]
    return [family_of(record, pool.group_by) for record in pool.records(read(store, "ordinal"))]


def data_of(store: Store) -> dict[str, Any]:
    """data.json from the account in a store, with the keys of `DataStatistics`."""
    status, length, span = read(store, "status"), read(store, "length"), read(store, "span")
    usable = status == KEPT
    if not usable.any():
        raise UserError(
            f"data.pool: none of {len(status)} examples is usable; check model.max_length and the responses"
        )
    return {
        "records": len(status),
        "kept": int(usable.sum()),
        "truncated": int(read(store, "truncated").sum()),
        "dropped": {
            reason: int((status == code).sum()) for code, reason in enumerate(DROP_REASONS, 1) if (status == code).any()
        },
        "tokens": int(length.sum()),
        "span_tokens": int(span.sum()),
        "lengths": _percentiles(length[usable]),
        "span_lengths": _percentiles(span[usable]),
    }


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """The rank correlation; None where either is constant, or of fewer than three."""
    value = agreement.spearman(a, b) if len(a) >= 3 else np.nan
    return None if np.isnan(value) else value


def _percentiles(lengths: np.ndarray) -> dict[str, int]:
    """By nearest rank, as `DataStatistics` counts them."""
    found = {str(p): int(np.percentile(lengths, p, method="inverted_cdf")) for p in PERCENTILES}
    return found | {"max": int(lengths.max())}
