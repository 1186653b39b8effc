"""Embeddings of the pool and of the domain, each in a store of its own: the model's hidden states, averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.account import ACCOUNT, KEPT, account_of
from ntk_jax.engine.blocks import Progress, Read, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.errors import UserError
from ntk_jax.pipelines.select.account import ARRAYS, Accounts, data_of, facts_of_families
from ntk_jax.pipelines.select.hidden import unit_hidden
from ntk_jax.pipelines.select.preselect import candidates_of
from ntk_jax.pipelines.select.score import check_pool
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.selection.ranker import Embeddings
from ntk_jax.storage.arrays import Store, create, open_store, read
from ntk_jax.storage.atomic import write_json
from ntk_jax.training.flops import forward_flops

POOL, DOMAIN = "pool.zarr", "domain.zarr"


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError: a bad record of the pool, too few of them, or a domain that cannot be read."""
    check_pool(run)
    _ = run.domain


def embed(run: SelectRun, folder: Path) -> dict[str, Any] | None:
    """Writes pool.zarr and domain.zarr block by block (their arrays: embedding, unit rows [D] float16, and the
    account), data.json and summary.json. None when this process has computed only a shard of the blocks."""
    clock, records, ordinals = Clock(run.job.folder, "embed"), run.domain.records, candidates_of(run)
    size = run.config.score.block_examples
    row: dict[str, Any] = {"embedding": ((run.model.base.config.hidden_size,), np.float16)}
    shapes = {**row, "ordinal": ((), np.int64), **ACCOUNT}
    targets = create(folder / DOMAIN, shapes, len(records), min(size, len(records)))
    families = {"examples": facts_of_families(folder / POOL, run.pool)}
    pool = create(folder / POOL, {**row, **ARRAYS}, len(ordinals), size, families)
    accounts = Accounts(pool, ordinals)

    def domain_blocks(blocks: frozenset[int]) -> Any:
        return ((block, records[slice(*targets.block_range(block))]) for block in sorted(blocks))

    def domain_account(block: int, encoded: Sequence[Any]) -> dict[str, np.ndarray]:
        return {"ordinal": np.arange(*targets.block_range(block)), **account_of([row for _, row in encoded])}

    fill_embeddings(run, targets, "embed domain", domain_blocks, domain_account, clock)
    fill_embeddings(run, pool, "embed", lambda blocks: run.pool.blocks(ordinals, blocks, size), accounts.of, clock)
    if run.job.shard is not None:  # the stage stays open, even where one shard is all of it
        return None
    return _summarize(run, folder, pool, targets, clock)


def fill_embeddings(
    run: SelectRun,
    store: Store,
    title: str,
    read_blocks: Read,
    account: Callable[[int, Sequence[Any]], dict[str, np.ndarray]],
    clock: Clock,
) -> None:
    """Fills the blocks of a store as the section `embedding` says. title: for progress. account(block, rows): the
    arrays beside the embeddings. Raises UserError as `unit_hidden`."""
    section = run.config.embedding
    model = run.warm if section.model == "warm" else run.model.base

    def compute(block: int, records: list[Any], progress: Progress) -> dict[str, np.ndarray]:
        encoded = list(run.encoder.rows(records, "response"))
        hidden = unit_hidden(model, encoded, run.layout, progress, pooling=section.pooling, over=section.span)
        return {"embedding": hidden, **account(block, encoded)}

    fill_blocks(
        store,
        read_blocks,
        compute,
        shard=run.job.shard,
        progress=clock.ticking(run.job.progress(title, store.rows, "examples")),
    )


def _summarize(run: SelectRun, folder: Path, pool: Store, targets: Store, clock: Clock) -> dict[str, Any]:
    data, section = data_of(pool, run), run.config.embedding
    write_json(folder / "data.json", data)
    tokens = data["tokens"] + int(read(targets, "length").sum())
    summary = {
        "rows": pool.rows,
        "embedded": data["kept"],
        "targets": int((read(targets, "status") == KEPT).sum()),
        "model": section.model,
        "pooling": section.pooling,
        "span": section.span,
        "tokens": tokens,
        "flops": forward_flops(run.model.base.config, tokens, lora_parameters=run.model.adapter_size),
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"embedded": summary["embedded"], "targets": summary["targets"]}


def open_embeddings(folder: Path, places: np.ndarray) -> tuple[Store, Embeddings]:
    """(the pool's store, the embeddings of pool and domain) that the stage left. places: of the store's rows in what
    the run looks at. Raises UserError: a store that is not there or is damaged, or no embedding of the domain."""
    pool, targets = (open_store(folder / name) for name in (POOL, DOMAIN))
    kept = read(targets, "status") == KEPT
    if not kept.any():
        raise UserError("no domain example has an embedding; check model.max_length and the responses")
    ranges = [pool.block_range(block) for block in range(pool.blocks)]
    return pool, Embeddings(
        lambda: (read(pool, "embedding", *place) for place in ranges), places, read(targets, "embedding")[kept]
    )
