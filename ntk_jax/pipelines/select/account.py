"""What a stage that reads the pool keeps of every example beside its result: where it stands, its family, its lengths,
and what became of it. So whoever comes later need not parse the pool again."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.account import ACCOUNT, DROP_REASONS, KEPT, account_of, count_notes
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import Record, family_of
from ntk_jax.data.shown import shown
from ntk_jax.data.statistics import PERCENTILES
from ntk_jax.data.tokens import Dropped
from ntk_jax.errors import UserError
from ntk_jax.kernels import agreement
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.common.pool import Pool
from ntk_jax.pipelines.common.pool_run import PoolRun
from ntk_jax.storage.arrays import Store, is_store, open_store, read

ARRAYS: dict[str, Any] = {"ordinal": ((), np.int64), "family": ((), np.int32), **ACCOUNT}


def facts_of_families(store: Path, pool: Pool) -> dict[str, Any]:
    """{"group_by", "families"}: which record key names a family, and the families that the codes of a store stand for.
    They are settled when the store is made and kept among its facts, so that it never holds codes of two kinds."""
    if hosts.broadcast(lambda: is_store(store)):
        kept = open_store(store).facts["examples"]
        return {key: kept[key] for key in ("group_by", "families")}
    return {"group_by": pool.group_by, "families": list(pool.census.families)}


@dataclass(frozen=True)
class Accounts:
    """Makes the arrays `ARRAYS` of the blocks of a store. ordinals: of all its rows."""

    store: Store
    ordinals: np.ndarray

    @functools.cached_property
    def _codes(self) -> dict[str, int]:
        return {name: code for code, name in enumerate(self.store.facts["examples"]["families"])}

    def of(self, block: int, encoded: Sequence[tuple[Record, TokenRow | Dropped]]) -> dict[str, np.ndarray]:
        """{name: [rows]} of a block's examples."""
        group_by = self.store.facts["examples"]["group_by"]
        codes = [self._codes[family_of(record, group_by)] for record, _ in encoded]
        return {
            "ordinal": self.ordinals[slice(*self.store.block_range(block))],
            "family": np.array(codes, np.int32),
            **account_of([row for _, row in encoded]),
        }


def families_of(store: Store, pool: Pool) -> list[str]:
    """The family of each row of a store, by the pool's `group_by`: from the stored codes, or, where they are of another
    key, from the records, which are then parsed once more."""
    kept = store.facts["examples"]
    if kept["group_by"] == pool.group_by:
        return [kept["families"][code] for code in read(store, "family").tolist()]
    return [family_of(record, pool.group_by) for record in pool.records(read(store, "ordinal"))]


def data_of(store: Store, run: PoolRun) -> dict[str, Any]:
    """data.json from the account in a store, with the keys of `Examples.account`."""
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
        "notes": count_notes(read(store, "notes")),
        "tokens": int(length.sum()),
        "span_tokens": int(span.sum()),
        "lengths": _percentiles(length[usable]),
        "span_lengths": _percentiles(span[usable]),
        "example": _first(run, read(store, "ordinal")[usable][:1]),
    }


def _first(run: PoolRun, ordinals: np.ndarray) -> dict[str, Any]:
    """A usable example of the pool as the model reads it."""
    ((_, row),) = run.encoder.rows(list(run.pool.records(ordinals)), run.config.score.span)
    assert isinstance(row, TokenRow)
    return shown(row, run.model.base.tokenizer)


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """The rank correlation; None where either is constant, or of fewer than three."""
    value = agreement.spearman(a, b) if len(a) >= 3 else np.nan
    return None if np.isnan(value) else value


def _percentiles(lengths: np.ndarray) -> dict[str, int]:
    """By nearest rank, as `DataStatistics` counts them."""
    found = {str(p): int(np.percentile(lengths, p, method="inverted_cdf")) for p in PERCENTILES}
    return found | {"max": int(lengths.max())}
