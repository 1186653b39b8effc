"""The loss of every candidate under the model as it is and under the warmed-up one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.account import KEPT
from ntk_jax.data.batch import TokenRow
from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.errors import UserError
from ntk_jax.evaluation.loss import mean_losses, refuse_nonfinite
from ntk_jax.pipelines.select.account import ARRAYS, Accounts, data_of, facts_of_families
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.preselect import candidates_of
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.storage.arrays import Store, create, read
from ntk_jax.storage.atomic import write_json
from ntk_jax.training.flops import forward_flops

STORE = "losses.zarr"
MODELS = ("base", "warm")


def check(config: SelectConfig) -> None:
    """Raises UserError: the two losses would be the same."""
    if config.warmup.max_steps == 0 and "paths" in config.select.methods:
        raise UserError(
            "select.methods: paths ranks by what the warm-up takes away of a loss, and warmup.max_steps = 0 makes "
            "none; set it higher, or leave paths out"
        )


def losses(run: SelectRun, folder: Path) -> dict[str, Any] | None:
    """Writes losses.zarr block by block (its arrays: base and warm, nats a response token, 0 where dropped, and those
    of `account.ARRAYS`), data.json and summary.json. None when this process has computed only a shard of the blocks."""
    clock, ordinals, size = Clock(run.job.folder, "losses"), candidates_of(run), run.config.score.block_examples
    models = {"base": run.model.base, "warm": run.warm}
    shapes: dict[str, Any] = {**dict.fromkeys(MODELS, ((), np.float32)), **ARRAYS}
    facts = {"examples": facts_of_families(folder / STORE, run.pool)}
    store = create(folder / STORE, shapes, len(ordinals), size, facts)
    accounts = Accounts(store, ordinals)

    def compute(block: int, records: list[Any], progress: Progress) -> dict[str, np.ndarray]:
        encoded = list(run.encoder.rows(records, "response"))
        account = accounts.of(block, encoded)
        rows = [row for _, row in encoded if isinstance(row, TokenRow)]
        found = {name: np.zeros(len(encoded), np.float32) for name in MODELS}
        for number, name in enumerate(MODELS):
            values = mean_losses(
                models[name],
                rows,
                run.config.score.batch_tokens,
                run.model.mesh,
                _of_all(progress, number),
                row_length=run.layout.row_length,
            )
            refuse_nonfinite(models[name], rows, values, f"under the {name} model")
            found[name][account["status"] == KEPT] = values
        return {**found, **account}

    fill_blocks(
        store,
        lambda blocks: run.pool.blocks(ordinals, blocks, size),
        compute,
        shard=run.job.shard,
        progress=clock.ticking(run.job.progress("losses", len(ordinals), "examples")),
    )
    if run.job.shard is not None:  # the stage stays open, even where one shard is all of it
        return None
    return _summarize(run, folder, store, clock)


def _of_all(progress: Progress, before: int) -> Progress:
    """The progress of one of the models as that of all of them, `before` of which are done."""
    return lambda done, total: progress((before * total + done) // len(MODELS), total)


def _summarize(run: SelectRun, folder: Path, store: Store, clock: Clock) -> dict[str, Any]:
    data = data_of(store, run)
    write_json(folder / "data.json", data)
    usable = read(store, "status") == KEPT
    tokens, labels = data["tokens"], data["span_tokens"]
    once = forward_flops(run.model.base.config, tokens, labels, lora_parameters=run.model.adapter_size)
    summary = {
        "rows": store.rows,
        "measured": data["kept"],
        "mean": {name: float(read(store, name)[usable].mean(dtype=np.float64)) for name in MODELS},
        "tokens": len(MODELS) * tokens,
        "flops": len(MODELS) * once,
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"measured": summary["measured"]}


def losses_at(store: Store, places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(base, warm), each [size] fp32 by place, NaN where there is none. places: of the store's rows."""
    kept = read(store, "status") == KEPT
    found = []
    for name in MODELS:
        values = np.full(size, np.nan, np.float32)
        values[places[kept]] = read(store, name)[kept]
        found.append(values)
    return found[0], found[1]
