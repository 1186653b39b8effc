"""The paper's coarse stage (arXiv 2511.07380): every domain example votes for its nearest candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.account import KEPT
from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.errors import UserError
from ntk_jax.kernels.score import mean_hidden_states
from ntk_jax.pipelines.common.arrays import load_arrays, save_arrays
from ntk_jax.pipelines.select.account import ARRAYS, Accounts, data_of, facts_of_families
from ntk_jax.pipelines.select.config import SelectConfig, resolved_votes
from ntk_jax.pipelines.select.hidden import unit_hidden
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.selection.votes import count_votes, keep_most_voted
from ntk_jax.storage.arrays import create, read
from ntk_jax.storage.atomic import write_json
from ntk_jax.training.flops import forward_flops

STORE = "hidden.zarr"
RESULT = "votes.npz"  # candidates [M] ordinals; votes, similarity [N] by place


def check(config: SelectConfig) -> None:
    """Raises UserError: fewer candidates would be kept than are selected."""
    keep, count = config.preselect.keep, config.select.count
    if config.preselect.method == "votes" and keep is not None and keep < count:
        raise UserError(f"preselect.keep = {keep} is below select.count = {count}; keep more")


def preselect(run: SelectRun, folder: Path) -> dict[str, Any] | None:
    """Writes hidden.zarr block by block, votes.npz, data.json and summary.json. None when this process has computed
    only a shard of the blocks."""
    clock, model, config = Clock(run.job.folder, "preselect"), run.warm, run.config
    ordinals, size = run.pool.ordinals, config.score.block_examples
    width = model.config.hidden_size
    facts = {"examples": facts_of_families(folder / STORE, run.pool)}
    store = create(folder / STORE, {"hidden": ((width,), np.float16), **ARRAYS}, len(ordinals), size, facts)
    accounts = Accounts(store, ordinals)

    def compute(block: int, records: list[Any], progress: Progress) -> dict[str, np.ndarray]:
        encoded = list(run.encoder.rows(records, "response"))
        return {"hidden": unit_hidden(model, encoded, run.layout, progress), **accounts.of(block, encoded)}

    fill_blocks(
        store,
        lambda blocks: run.pool.blocks(ordinals, blocks, size),
        compute,
        shard=run.job.shard,
        progress=clock.ticking(run.job.progress("preselect", len(ordinals), "examples")),
    )
    if run.job.shard is not None:  # the stage stays open, even where one shard is all of it
        return None

    own = clock.ticking(run.job.progress("preselect domain", len(run.domain.rows), "examples"))
    domain = mean_hidden_states(model, run.domain.rows, run.layout, progress=own)
    usable = read(store, "status") == KEPT
    keep, neighbours = resolved_votes(config).values()
    if config.preselect.method == "none":
        keep = int(usable.sum())
    elif config.preselect.keep is None:  # the default of 4 N may be more than there is; a given M may not
        keep = min(keep, int(usable.sum()))
    ranges = [store.block_range(block) for block in range(store.blocks)]
    blocks = (read(store, "hidden", *place)[usable[slice(*place)]] for place in ranges)
    votes = count_votes(domain, blocks, neighbours)
    candidates = ordinals[np.flatnonzero(usable)[keep_most_voted(votes, keep)]]
    by_place = np.full(len(ordinals), -1, np.int64), np.zeros(len(ordinals), np.float32)
    by_place[0][usable], by_place[1][usable] = votes.votes, votes.similarity
    save_arrays(folder / RESULT, candidates=candidates, votes=by_place[0], similarity=by_place[1])
    counts, edges = np.histogram(votes.votes, bins=20)
    data = data_of(store, run)
    write_json(folder / "data.json", data)
    summary = {
        "method": "votes",
        "cuts": config.preselect.method == "votes",
        "keep": keep,
        "neighbours": neighbours,
        "pool": len(ordinals),
        "candidates": len(candidates),
        "votes_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "tokens": data["tokens"],
        "flops": forward_flops(model.config, data["tokens"], lora_parameters=run.model.adapter_size),
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"candidates": len(candidates)}


def candidates_of(run: SelectRun) -> np.ndarray:
    """Ascending ordinals of what is scored."""
    if run.config.preselect.method == "none":
        return run.pool.ordinals
    return load_arrays(run.job.folder / "preselect" / RESULT)["candidates"]
