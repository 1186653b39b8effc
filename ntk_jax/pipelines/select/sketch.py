"""Sketches of the pool and of the domain, each in a store of its own: the gradient of every example, projected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.account import ACCOUNT, KEPT, account_of
from ntk_jax.data.records import Record
from ntk_jax.engine.blocks import Progress, Read, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective, head_coherence
from ntk_jax.kernels.parameters import Tree, refuse_fresh_lora
from ntk_jax.kernels.projections import Projection, check_width, projection_flops
from ntk_jax.kernels.rows import layout_for
from ntk_jax.models.head import head_matrix
from ntk_jax.models.model import Model
from ntk_jax.pipelines.select.account import ARRAYS, Accounts, data_of, facts_of_families
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.preselect import candidates_of
from ntk_jax.pipelines.select.score import check_objective, check_pool
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.selection.sketch_store import create_sketches, longest_id, sketch_block, sketch_facts
from ntk_jax.storage.arrays import Store, read
from ntk_jax.storage.atomic import read_json, write_json
from ntk_jax.training.flops import gradient_flops

Account = Callable[[int, Sequence[Any]], dict[str, np.ndarray]]


def check(config: SelectConfig) -> None:
    """Raises UserError for settings of the projection that cannot work together."""
    section, direction = config.sketch, config.score.direction
    if direction != "mean_gradient":
        raise UserError(
            f"score.direction = {direction} has no say in sketches, which compare with the domain's examples one by "
            "one; leave it out, or leave sketch out of select.methods"
        )
    check_objective(config)
    Projection(section.projection, section.dim, config.seed, section.sparsity)


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError: K is larger than the number of parameters differentiated, or a bad pool or domain."""
    check_width(run.projection, run.theta)
    check_pool(run)
    _ = run.domain


def sketch(run: SelectRun, folder: Path) -> dict[str, Any] | None:
    """Writes pool.zarr and domain.zarr block by block (their arrays: `selection/sketch_store.py`, and those of
    `account.ARRAYS`), data.json and summary.json. None when this process has computed only a shard."""
    clock, section = Clock(run.job.folder, "sketch"), run.config.score
    if not section.allow_fresh_lora:
        refuse_fresh_lora(run.warm, section.parameters)
    records, ordinals = run.domain.records, candidates_of(run)
    facts = sketch_facts(
        run.warm, run.objective, run.projection, span=section.span, parameters=section.parameters, examples=None
    )
    examples = read_json(folder / "fingerprint.json", dict)["fingerprint"]
    targets = create_domain(run, folder / "domain.zarr", records, examples, facts)
    pool = create_pool(run, folder / "pool.zarr", ordinals, examples, facts)
    how = Sketcher(run.warm, run.objective, section.parameters)
    fill_domain(run, targets, records, how, section.span, clock, "sketch domain")
    fill_pool(run, pool, ordinals, how, section.span, clock, "sketch")
    if run.job.shard is not None:  # the stage stays open, even where one shard is all of it
        return None
    return _summarize(run, folder, pool, targets, clock)


@dataclass(frozen=True)
class Sketcher:
    """How an example becomes its sketch: the gradient of the objective with respect to these parameters of the model,
    or what `feature` makes of it, projected as the run projects."""

    model: Model
    objective: Objective
    parameters: str
    feature: Callable[[Tree], Tree] | None = None


def create_domain(
    run: SelectRun, place: Path, records: Sequence[Record], fingerprint: Mapping[str, Any], facts: Mapping[str, Any]
) -> Store:
    """The store of the domain's sketches at a place, to be filled or gone on with. fingerprint: of the stage."""
    examples = _examples(fingerprint, "domain")
    return _create(run, place, len(records), longest_id(r["id"] for r in records), {**facts, "examples": examples})


def create_pool(
    run: SelectRun, place: Path, ordinals: np.ndarray, fingerprint: Mapping[str, Any], facts: Mapping[str, Any]
) -> Store:
    """The store of the candidates' sketches, likewise; it keeps their account too."""
    examples = _examples(fingerprint, "pool") | facts_of_families(place, run.pool)
    longest = run.pool.census.longest_id
    return _create(run, place, len(ordinals), longest, {**facts, "examples": examples}, ARRAYS)


def _create(
    run: SelectRun, place: Path, rows: int, longest: int, facts: Mapping[str, Any], account: Mapping[str, Any] = ACCOUNT
) -> Store:
    section = run.config.sketch
    return create_sketches(
        place,
        rows,
        section.block_examples,
        dim=section.dim,
        dtype=section.dtype,
        longest_id=longest,
        facts=facts,
        account=account,
    )


def _examples(fingerprint: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What the stage's fingerprint says of the examples and of how they became tokens."""
    tokens = tuple(f"model.{key}" for key in ("max_length", "overflow", "template", "add_eos", "control_tokens"))
    kept = (f"input.{kind}.", f"data.{kind}_limit", *tokens, "proxy.", *(("preselect.",) if kind == "pool" else ()))
    return {key: value for key, value in fingerprint.items() if key.startswith(kept)}


def fill_domain(
    run: SelectRun, store: Store, records: Sequence[Record], how: Sketcher, span: str, clock: Clock, title: str
) -> None:
    """Fills the domain's store block by block. title: of the progress."""

    def blocks(wanted: frozenset[int]) -> Any:
        return ((block, records[slice(*store.block_range(block))]) for block in sorted(wanted))

    def account(block: int, encoded: Sequence[Any]) -> dict[str, np.ndarray]:
        return {"ordinal": np.arange(*store.block_range(block)), **account_of([row for _, row in encoded])}

    _fill(run, store, how, span, title, blocks, account, clock)


def fill_pool(
    run: SelectRun, store: Store, ordinals: np.ndarray, how: Sketcher, span: str, clock: Clock, title: str
) -> None:
    """Fills the candidates' store likewise."""
    size, accounts = store.block_rows, Accounts(store, ordinals)
    _fill(run, store, how, span, title, lambda wanted: run.pool.blocks(ordinals, wanted, size), accounts.of, clock)


def _fill(
    run: SelectRun,
    store: Store,
    how: Sketcher,
    span: str,
    title: str,
    read_blocks: Read,
    account: Account,
    clock: Clock,
) -> None:
    """account: the arrays of what became of a block's examples."""
    layout = layout_for(run.config.model.max_length, run.config.score.batch_tokens, run.model.mesh, packed=False)

    def compute(block: int, records: list[Any], progress: Progress) -> dict[str, np.ndarray]:
        encoded = list(run.encoder.rows(records, span))
        found = sketch_block(
            store,
            [(record["id"], row) for record, row in encoded],
            how.model,
            how.objective,
            layout,
            run.projection,
            parameters=how.parameters,
            feature=how.feature,
            progress=progress,
        )
        return {**found, **account(block, encoded)}

    fill_blocks(
        store,
        read_blocks,
        compute,
        shard=run.job.shard,
        progress=clock.ticking(run.job.progress(title, store.rows, "examples")),
    )


def _summarize(run: SelectRun, folder: Path, pool: Store, targets: Store, clock: Clock) -> dict[str, Any]:
    data = data_of(pool, run)
    write_json(folder / "data.json", data)
    usable = [read(store, "status") == KEPT for store in (pool, targets)]
    if not read(targets, "sketch_norm").any():
        raise UserError(
            "the gradients of all domain examples are zero; take another score.objective, or warm the adapter up first"
        )
    tokens = data["tokens"] + int(read(targets, "length").sum())
    labels = 0 if run.objective.is_linear else data["span_tokens"] + int(read(targets, "span").sum())
    examples, channels = int(usable[0].sum() + usable[1].sum()), run.objective.channels
    gradients = gradient_flops(run.model.base.config, tokens, labels, directions=channels, **run.differentiated)
    summary = {
        "rows": pool.rows,
        "scored": int(usable[0].sum()),
        "targets": int(usable[1].sum()),
        "projection": run.projection.kind,
        "dim": run.projection.dim,
        "tokens": tokens,
        "flops": gradients + examples * channels * projection_flops(run.projection, run.theta),
        "bytes": stored_bytes(pool) + stored_bytes(targets),
        "seconds": clock.seconds(),
        "rho": head_coherence(head_matrix(run.model.base.base)),
    }
    write_json(folder / "summary.json", summary)
    return {"scored": summary["scored"], "targets": summary["targets"]}


def stored_bytes(store: Store) -> int:
    """Of all arrays; the last block of each is as long as the others on disk."""
    rows = store.blocks * store.block_rows
    return sum(
        rows * int(np.prod(array.shape[1:])) * array.dtype.numpy_dtype.itemsize for array in store.arrays.values()
    )
