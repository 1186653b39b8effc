"""What a run writes, by stage, in bytes: how large each array and file becomes, and what lies there only for a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ntk_jax.data.account import ACCOUNT
from ntk_jax.estimate.costs import Workload, candidates
from ntk_jax.kernels.parameters import split_parameters
from ntk_jax.stages.context import Run
from ntk_jax.training.checkpoints import KEPT
from ntk_jax.training.order import count_steps

_ACCOUNT = sum(np.dtype(dtype).itemsize for _, dtype in ACCOUNT.values())  # bytes of what became of an example
_SMALL = 4096  # the JSON files of a stage: fingerprint, manifest, checksums, summary
_ARRAY = 1500  # zarr's description of an array, with some others beside those of the account
_STEP = 170  # a line of history.jsonl
_SELECTED = 90  # what a selection adds to a record: score, rank, method
_PREDICTED = 160  # a prediction, beside the text of its choices and 24 bytes a choice
_PAGE = 150_000  # the report: style, figures, tables


@dataclass(frozen=True)
class Disk:
    """Bytes. kept: when the stage is done. passing: at most beside them while it works."""

    kept: float
    passing: float = 0.0


def disk_of(run: Run, stage: str, load: Workload) -> Disk:
    """The files of one stage."""
    config, count = run.config, candidates(run, load)
    theta = split_parameters(run.base, config.score.parameters)[0]
    low, differentiated = 4.0 * run.adapter_size, 4.0 * sum(leaf.size for leaf in jax.tree.leaves(theta))
    # Orbax keeps two checkpoints of the trained parameters and Adam's two moments, and writes a third beside them.
    checkpoints = (KEPT + 1) * 3 * low
    if stage == "warmup":
        steps = count_steps(round(load.domain.count), run.train_config(config.warmup))
        if steps == 0:
            return Disk(low + _SMALL)
        return Disk(2 * low + _STEP * steps + _SMALL, checkpoints)
    if stage == "gradient":
        return Disk(run.objective.channels * differentiated + _SMALL)
    if stage == "preselect":
        if config.preselect.method == "none":
            return Disk(_SMALL)
        row = 2.0 * run.base.config.hidden_size + _ACCOUNT
        return Disk(_blocks(load.pool.records, config.score.block_examples, row) + 8 * count + _SMALL)
    if stage == "score":
        return Disk(_blocks(count, config.score.block_examples, 4.0 + _ACCOUNT) + _SMALL)
    if stage == "sketch":
        section = config.sketch
        row = section.dim * np.dtype(section.dtype).itemsize + 4.0 + 4.0 + 8.0 + _ACCOUNT
        size = section.block_examples
        pool = _blocks(count, min(size, round(count)), row + load.pool.id_bytes)
        domain = _blocks(load.domain.count, min(size, round(load.domain.count)), row + load.domain.id_bytes)
        return Disk(pool + domain + _SMALL)
    if stage == "select":
        records = 2 * config.select.count * (load.pool.bytes + _SELECTED)
        shown = min(config.report.examples, config.select.count) * (load.pool.bytes + load.domain.bytes + 200)
        return Disk(records + shown + 40 * min(1500, load.pool.count) + 2 * _SMALL)
    if stage == "finetune":
        arms = sum(arm != "base" for arm in config.evaluate.arms)
        steps = count_steps(round(load.domain.count) + config.select.count, run.train_config(config.finetune))
        return Disk(arms * (low + _STEP * steps + _SMALL), checkpoints)
    if stage == "evaluate":
        lines = len(config.evaluate.arms) * load.questions.count * (_PREDICTED + 2 * load.questions.bytes)
        return Disk(lines + _SMALL * (1 + load.questions.files))
    return Disk(_PAGE)


def _blocks(rows: float, block: int, row: float) -> float:
    """Bytes of a store: the last block is as long as the others on disk."""
    return -(-round(rows) // max(block, 1)) * block * row + _ARRAY * len(ACCOUNT)


def facts_of_disk(totals: dict[str, Disk]) -> dict[str, Any]:
    """{"kept": of all stages, "peak": with the largest passing part beside them}."""
    kept = sum(disk.kept for disk in totals.values())
    return {"kept": kept, "peak": kept + max((disk.passing for disk in totals.values()), default=0.0)}
