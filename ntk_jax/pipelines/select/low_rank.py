"""The scores of every candidate along the main directions of the domain's gradients: k directional derivatives that
share one primal pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_jax.data.account import KEPT
from ntk_jax.data.batch import TokenRow
from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.kernels.rows import Layout, layout_for
from ntk_jax.kernels.score import directional_scores
from ntk_jax.pipelines.common.arrays import load_arrays, load_tree
from ntk_jax.pipelines.select import subspace
from ntk_jax.pipelines.select.account import ARRAYS, Accounts, data_of, facts_of_families
from ntk_jax.pipelines.select.preselect import candidates_of
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.selection.ranker import Components
from ntk_jax.storage.arrays import create, open_store, read
from ntk_jax.storage.atomic import write_json
from ntk_jax.training.flops import score_flops

STORE = "scores.zarr"


def low_rank(run: SelectRun, folder: Path) -> dict[str, Any] | None:
    """Writes scores.zarr block by block (its arrays: along [k], and those of `account.ARRAYS`), data.json and
    summary.json. None when this process has computed only a shard of the blocks."""
    clock, section, model = Clock(run.job.folder, "low_rank"), run.config.score, run.warm
    ordinals, size = candidates_of(run), section.block_examples
    directions = load_tree(run.job.folder / "subspace" / subspace.DIRECTIONS, run.theta)
    count = jax.tree.leaves(directions)[0].shape[0]
    facts = {"examples": facts_of_families(folder / STORE, run.pool)}
    store = create(folder / STORE, {"along": ((count,), np.float32), **ARRAYS}, len(ordinals), size, facts)
    accounts, layout = Accounts(store, ordinals), scoring_layout(run, count)

    def compute(block: int, records: list[Any], progress: Progress) -> dict[str, np.ndarray]:
        encoded = list(run.encoder.rows(records, section.span))
        account = accounts.of(block, encoded)
        rows = [row for _, row in encoded if isinstance(row, TokenRow)]
        values = np.zeros((len(encoded), count), np.float32)
        if rows:
            values[account["status"] == KEPT] = directional_scores(
                model,
                rows,
                directions,
                run.objective,
                layout,
                parameters=section.parameters,
                attention=section.attention,
                progress=progress,
            ).values
        return {"along": values, **account}

    fill_blocks(
        store,
        lambda blocks: run.pool.blocks(ordinals, blocks, size),
        compute,
        shard=run.job.shard,
        progress=clock.ticking(run.job.progress("low_rank", len(ordinals), "examples")),
    )
    if run.job.shard is not None:  # the stage stays open, even where one shard is all of it
        return None
    data = data_of(store, run)
    write_json(folder / "data.json", data)
    labels = 0 if run.objective.is_linear else data["span_tokens"]
    summary = {
        "scored": data["kept"],
        "components": count,
        "tokens": data["tokens"],
        "flops": score_flops(
            run.model.base.config,
            data["tokens"],
            labels,
            directions=count * run.objective.channels,
            **run.differentiated,
        ),
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"scored": summary["scored"], "components": count}


def scoring_layout(run: SelectRun, count: int) -> Layout:
    """The shapes of a scoring step with so many tangents: fewer rows, so that it needs about the memory of the score's
    step (but for one row at least)."""
    return layout_for(run.config.model.max_length, run.config.score.batch_tokens // count, run.model.mesh)


def components_of(folder: Path, size: int, places: np.ndarray) -> Components:
    """What the run directory holds for the ranker, by place in a pool of `size`; places: [n] those of the store."""
    store = open_store(folder / "low_rank" / STORE)
    kept = read(store, "status") == KEPT
    along = read(store, "along")[kept]
    values = np.full((size, along.shape[1]), np.nan, np.float32)
    values[places[kept]] = along
    found = load_arrays(folder / "subspace" / subspace.RESULT)
    energies = found["energies"]
    return Components(values, energies[: along.shape[1]] / len(energies), found["mean"])
