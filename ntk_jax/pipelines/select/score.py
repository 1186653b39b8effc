"""The kernel score of every candidate: its mean kernel with the domain, one directional derivative an example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.account import KEPT
from ntk_jax.data.batch import TokenRow
from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import LINEAR
from ntk_jax.kernels.score import directional_scores
from ntk_jax.models.attention_kernel import forward_mode_of
from ntk_jax.pipelines.common.arrays import load_tree
from ntk_jax.pipelines.select.account import ARRAYS, Accounts, data_of, facts_of_families, spearman
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.preselect import candidates_of
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.storage.arrays import Store, create, read
from ntk_jax.storage.atomic import read_json, write_json
from ntk_jax.training.flops import score_flops

STORE = "scores.zarr"


def check(config: SelectConfig) -> None:
    """Raises UserError for settings of scoring that cannot work together."""
    score = config.score
    if score.direction == "adam" and (score.parameters != "lora" or config.warmup.max_steps == 0):
        raise UserError("score.direction = adam needs a warm-up of this run and score.parameters = lora")
    check_objective(config)


def check_objective(config: SelectConfig) -> None:
    """Raises UserError: a bad pattern, or an objective that needs the next token of a last position."""
    score = config.score
    try:
        re.compile(score.parameters)
    except re.error as error:
        raise UserError(
            f"score.parameters = {score.parameters!r} is not lora, lora[-k:], all or a regular expression: {error}"
        ) from None
    if score.span == "last" and score.objective not in LINEAR:
        raise UserError(
            f"score.span = last: the last position has no next token, which objective {score.objective} needs; "
            "use span response or all, or a linear objective"
        )


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError: a bad record of the pool, too few of them, or attention that this machine cannot compute as
    asked. Where the stage is only closed, this machine needs no accelerator."""
    check_pool(run)
    if not closing:
        forward_mode_of(
            run.config.score.attention, run.model.mesh, run.model.base.config.head_dim, run.model.base.dtype
        )


def check_pool(run: SelectRun, closing: bool = False) -> None:
    """Raises UserError: a bad record of the pool, or fewer records than are to be selected."""
    count, pool = run.config.select.count, len(run.pool.ordinals)
    if count > pool:
        raise UserError(f"select.count = {count} is larger than the pool ({pool} examples); lower it or add data")


def score(run: SelectRun, folder: Path) -> dict[str, Any] | None:
    """Writes scores.zarr block by block (its arrays: score, and those of `account.ARRAYS`), data.json
    and summary.json. None when this process has computed only a shard of the blocks."""
    clock, section, model = Clock(run.job.folder, "score"), run.config.score, run.warm
    ordinals, size = candidates_of(run), section.block_examples
    direction = load_tree(run.job.folder / "gradient" / "direction.safetensors", run.theta)
    shapes: dict[str, Any] = {"score": ((), np.float32), **ARRAYS}
    facts = {"examples": facts_of_families(folder / STORE, run.pool)}
    store = create(folder / STORE, shapes, len(ordinals), size, facts)
    accounts = Accounts(store, ordinals)

    def compute(block: int, records: list[Any], progress: Progress) -> dict[str, np.ndarray]:
        encoded = list(run.encoder.rows(records, section.span))
        account = accounts.of(block, encoded)
        rows = [row for _, row in encoded if isinstance(row, TokenRow)]
        values = np.zeros(len(encoded), np.float32)
        if rows:
            values[account["status"] == KEPT] = directional_scores(
                model,
                rows,
                direction,
                run.objective,
                run.layout,
                parameters=section.parameters,
                attention=section.attention,
                progress=progress,
            ).values
        return {"score": values, **account}

    fill_blocks(
        store,
        lambda blocks: run.pool.blocks(ordinals, blocks, size),
        compute,
        shard=run.job.shard,
        progress=clock.ticking(run.job.progress("score", len(ordinals), "examples")),
    )
    if run.job.shard is not None:  # the stage stays open, even where one shard is all of it
        return None
    return _summarize(run, folder, store, clock)


def _summarize(run: SelectRun, folder: Path, store: Store, clock: Clock) -> dict[str, Any]:
    data = data_of(store, run)
    write_json(folder / "data.json", data)
    scores, length, span = (read(store, name) for name in ("score", "length", "span"))
    usable, tokens, objective = read(store, "status") == KEPT, data["tokens"], run.objective
    gradient = read_json(run.job.folder / "gradient" / "summary.json", dict)
    labels = 0 if objective.is_linear else data["span_tokens"]
    summary = {
        "scored": int(usable.sum()),
        "tokens": tokens,
        "flops": score_flops(
            run.model.base.config, tokens, labels, directions=objective.channels, **run.differentiated
        ),
        "seconds": clock.seconds(),
        "spearman_span_length": spearman(scores[usable], span[usable]),
        "spearman_total_length": spearman(scores[usable], length[usable]),
        "rho": gradient["rho"],
        "direction_norm": gradient["norm"],
    }
    write_json(folder / "summary.json", summary)
    return {"scored": summary["scored"]}
