"""Sketches of the pool and of the domain, each in a store of its own, and the ranking by them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.config import Config
from ntk_jax.data.account import KEPT
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import head_coherence
from ntk_jax.kernels.parameters import refuse_fresh_lora, split_parameters
from ntk_jax.kernels.projections import Projection, check_width, projection_flops
from ntk_jax.kernels.rows import layout_for
from ntk_jax.models.head import head_matrix
from ntk_jax.parallel import hosts
from ntk_jax.selection.ranker import Ranking
from ntk_jax.selection.sketch import rank_sketches
from ntk_jax.selection.sketch_store import (
    create_sketches,
    longest_id,
    open_sketches,
    sketch_facts,
    write_sketches,
)
from ntk_jax.stages.context import Record, Run, shifted
from ntk_jax.stages.pool import candidates_of, data_of
from ntk_jax.stages.share import Work, work_of
from ntk_jax.storage.arrays import Store, read
from ntk_jax.storage.atomic import read_json, write_json
from ntk_jax.training.flops import gradient_flops

Blocks = Iterator[tuple[int, list[Record]]]


def check_sketch(config: Config) -> None:
    """Raises UserError for settings of the projection that cannot work together."""
    section = config.sketch
    Projection(section.projection, section.dim, config.seed, section.sparsity)


def check_sketch_width(run: Run) -> None:
    """Raises UserError when K is larger than the number of parameters differentiated."""
    check_width(run.projection, split_parameters(run.base, run.config.score.parameters)[0])


def sketch(run: Run, folder: Path) -> dict[str, Any] | None:
    """The gradients of the candidates, and of the domain, projected. Writes pool.zarr and domain.zarr block by block
    (their arrays: `selection/sketch_store.py`), data.json and summary.json. None when this process has only a share of
    the blocks."""
    section, size = run.config.score, run.config.sketch.block_examples
    if not section.allow_fresh_lora:
        refuse_fresh_lora(run.warm, section.parameters)
    begun = time.monotonic()
    records = [record for record, _ in run.domain]
    ordinals = candidates_of(run)
    facts = sketch_facts(
        run.warm, run.objective, run.projection, span=section.span, parameters=section.parameters, examples=None
    )
    targets = _store(run, folder, "domain", len(records), longest_id(record["id"] for record in records), facts)
    pool = _store(run, folder, "pool", len(ordinals), run.longest_pool_id, facts)
    of_domain, of_pool = (work_of(store, run.share) for store in (targets, pool))
    blocks = ((number, records[slice(*targets.block_range(number))]) for number in sorted(of_domain.todo))
    _fill(run, targets, of_domain, "sketch domain", np.arange(len(records)), blocks)
    _fill(run, pool, of_pool, "sketch", ordinals, run.pool_blocks(ordinals, of_pool.todo, size))
    hosts.barrier("all blocks are written")
    if run.share is not None:  # the stage stays open, even where one share is all of it
        return None
    resumed = of_domain.resumed or of_pool.resumed
    return _summarise(run, folder, pool, targets, None if resumed else time.monotonic() - begun)


def rank_candidates(run: Run) -> tuple[Ranking, Store]:
    """The select.count best candidates by select.by, from the stores of the sketch stage: the ranking by place among
    the candidates (scores are NaN for what was dropped), and the pool's store."""
    folder, section = run.folder / "sketch", run.config.select
    pool, targets = open_sketches(folder / "pool.zarr"), open_sketches(folder / "domain.zarr")
    return rank_sketches(pool, targets, section.by, section.count), pool


def _store(run: Run, folder: Path, kind: str, rows: int, longest: int, facts: Mapping[str, Any]) -> Store:
    section = run.config.sketch
    examples = _examples(read_json(folder / "fingerprint.json")["fingerprint"], kind)
    return create_sketches(
        folder / f"{kind}.zarr",
        rows,
        section.block_examples,
        dim=section.dim,
        dtype=section.dtype,
        longest_id=longest,
        facts={**facts, "examples": examples},
    )


def _examples(fingerprint: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What the stage's fingerprint says of the examples and of how they became tokens."""
    tokens = tuple(f"model.{key}" for key in ("max_length", "overflow", "template", "add_eos"))
    kept = (f"input.{kind}.", f"data.{kind}_limit", *tokens, *(("preselect.",) if kind == "pool" else ()))
    return {key: value for key, value in fingerprint.items() if key.startswith(kept)}


def _fill(run: Run, store: Store, work: Work, title: str, ordinals: np.ndarray, blocks: Blocks) -> None:
    """Computes and writes the blocks."""
    section = run.config.score
    layout = layout_for(run.config.model.max_length, section.batch_tokens, run.mesh, packed=False)
    finished, total = work.finished, work.total
    progress = run.make_progress(title, total, "examples")
    progress(finished, total)
    for number, records in blocks:
        encoded = [(record["id"], row) for record, row in run.rows(records, section.span)]
        write_sketches(
            store,
            number,
            encoded,
            ordinals[slice(*store.block_range(number))],
            run.warm,
            run.objective,
            layout,
            run.projection,
            parameters=section.parameters,
            progress=shifted(progress, finished, total),
        )
        finished += len(records)
        progress(finished, total)


def _summarise(run: Run, folder: Path, pool: Store, targets: Store, seconds: float | None) -> dict[str, Any]:
    """seconds: of the whole stage, None when a part of it ran in an earlier process."""
    data = data_of(pool)
    write_json(folder / "data.json", data)
    usable = [read(store, "status") == KEPT for store in (pool, targets)]
    if not read(targets, "sketch_norm").any():
        raise UserError(
            "the gradients of all domain examples are zero; take another score.objective, or warm the adapter up first"
        )
    tokens = data["tokens"] + int(read(targets, "length").sum())
    labels = 0 if run.objective.is_linear else data["span_tokens"] + int(read(targets, "span").sum())
    examples, channels = int(usable[0].sum() + usable[1].sum()), run.objective.channels
    theta = split_parameters(run.warm, run.config.score.parameters)[0]
    gradients = gradient_flops(run.base.config, tokens, labels, directions=channels, **run.differentiated)
    summary = {
        "rows": pool.rows,
        "scored": int(usable[0].sum()),
        "targets": int(usable[1].sum()),
        "projection": run.projection.kind,
        "dim": run.projection.dim,
        "tokens": tokens,
        "flops": gradients + examples * channels * projection_flops(run.projection, theta),
        "bytes": _bytes(pool) + _bytes(targets),
        "seconds": seconds,
        "rho": head_coherence(head_matrix(run.base.base)),
    }
    write_json(folder / "summary.json", summary)
    return {"scored": summary["scored"], "targets": summary["targets"]}


def _bytes(store: Store) -> int:
    """Of all arrays; the last block of each is as long as the others on disk."""
    rows = store.blocks * store.block_rows
    return sum(
        rows * int(np.prod(array.shape[1:])) * array.dtype.numpy_dtype.itemsize for array in store.arrays.values()
    )
