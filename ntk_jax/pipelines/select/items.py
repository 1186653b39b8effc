"""Embeddings of the evaluation items, for `select.clean.decontaminate_cosine`: made as those of the pool are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.account import ACCOUNT, KEPT, account_of
from ntk_jax.data.sources import read as read_files
from ntk_jax.engine.clock import Clock
from ntk_jax.errors import UserError
from ntk_jax.pipelines.select.embed import fill_embeddings
from ntk_jax.pipelines.select.state import SelectRun, evaluation_items_of
from ntk_jax.storage.arrays import create, open_store, read
from ntk_jax.storage.atomic import write_json
from ntk_jax.training.flops import forward_flops

STORE = "items.zarr"


def items(run: SelectRun, folder: Path) -> dict[str, Any]:
    """Writes items.zarr block by block (its arrays: embedding, unit rows [D] float16, and the account), in the order
    of the files, and summary.json. An item is embedded with its response, the right choice where it has choices."""
    clock, size = Clock(run.job.folder, "items"), run.config.score.block_examples
    records = [record for file, reading in evaluation_items_of(run.config) for record in read_files(file, reading)]
    row = {"embedding": ((run.model.base.config.hidden_size,), np.float16), "ordinal": ((), np.int64), **ACCOUNT}
    store = create(folder / STORE, row, len(records), min(size, len(records)))

    def account(block: int, encoded: Sequence[Any]) -> dict[str, np.ndarray]:
        return {"ordinal": np.arange(*store.block_range(block)), **account_of([row for _, row in encoded])}

    def blocks(wanted: frozenset[int]) -> Any:
        return ((block, records[slice(*store.block_range(block))]) for block in sorted(wanted))

    fill_embeddings(run, store, "embed evaluation items", blocks, account, clock)
    tokens, embedded = int(read(store, "length").sum()), int((read(store, "status") == KEPT).sum())
    flops = forward_flops(run.model.base.config, tokens, lora_parameters=run.model.adapter_size)
    summary = {"items": len(records), "embedded": embedded, "tokens": tokens, "flops": flops}
    write_json(folder / "summary.json", {**summary, "seconds": clock.seconds()})
    return {"embedded": embedded}


def item_embeddings(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """([n] ascending places among the items of those that have an embedding, [n, D] their unit rows).

    Raises UserError: a store that is not there or is damaged, or none has one."""
    store = open_store(folder / STORE)
    places = np.flatnonzero(read(store, "status") == KEPT)
    if not len(places):
        raise UserError(
            f"select.clean.decontaminate_cosine: none of {store.rows} evaluation items has an embedding; check "
            "model.max_length, or take null"
        )
    return places, read(store, "embedding")[places]
