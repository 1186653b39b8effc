"""The pool's account alone, for a run whose methods look at texts and lengths only: nothing is computed with the
model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.pipelines.select.account import ARRAYS, Accounts, data_of, facts_of_families
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.storage.arrays import create
from ntk_jax.storage.atomic import write_json

STORE = "account.zarr"


def tokenize(run: SelectRun, folder: Path) -> dict[str, Any] | None:
    """Writes account.zarr block by block, data.json and summary.json. None when this process has done only a shard."""
    clock, ordinals, size = Clock(run.job.folder, "pool"), run.pool.ordinals, run.config.score.block_examples
    facts = {"examples": facts_of_families(folder / STORE, run.pool)}
    store = create(folder / STORE, ARRAYS, len(ordinals), size, facts)
    accounts = Accounts(store, ordinals)

    def compute(block: int, records: list[Any], _: Progress) -> dict[str, Any]:
        return accounts.of(block, list(run.encoder.rows(records, run.config.score.span)))

    fill_blocks(
        store,
        lambda blocks: run.pool.blocks(ordinals, blocks, size),
        compute,
        shard=run.job.shard,
        progress=clock.ticking(run.job.progress("pool", len(ordinals), "examples")),
    )
    if run.job.shard is not None:
        return None
    data = data_of(store, run)
    write_json(folder / "data.json", data)
    write_json(folder / "summary.json", {"tokens": data["tokens"], "seconds": clock.seconds()})
    return {"usable": data["kept"]}
