"""The main directions of the domain's gradients, along which the stage `low_rank` scores the pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.errors import UserError
from ntk_jax.kernels.low_rank import (
    DIRECTIONS_AT_ONCE,
    Spectrum,
    gram_block,
    gram_gradients,
    mirrored,
    principal_directions,
    spectrum,
)
from ntk_jax.kernels.objectives import head_coherence
from ntk_jax.kernels.parameters import refuse_fresh_lora
from ntk_jax.kernels.rows import Layout, layout_for
from ntk_jax.kernels.sketch import within_budget
from ntk_jax.models.head import head_matrix
from ntk_jax.pipelines.common.arrays import save_arrays, save_tree
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.score import check_objective
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.storage.arrays import Store, create, read
from ntk_jax.storage.atomic import write_json
from ntk_jax.training.flops import gradient_flops

STORE = "gram.zarr"
RESULT = "spectrum.npz"  # energies [m], σ_k² in falling order; mean [r], the mean gradient's coordinates
DIRECTIONS = "directions.safetensors"  # leaves [r, ...]
GRADIENT_BYTES = 2**32  # of the domain's gradients held at once: with fewer, each is taken more often


def check(config: SelectConfig) -> None:
    """Raises UserError for settings that cannot work together."""
    direction = config.score.direction
    if direction != "mean_gradient":
        raise UserError(
            f"score.direction = {direction} has no say in low_rank, whose directions are the domain's own; leave it "
            "out, or leave low_rank out of select.methods"
        )
    check_objective(config)


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError: more directions than the domain has usable examples."""
    components, examples = run.config.select.low_rank.components, len(run.domain.rows)
    if components > examples:
        raise UserError(
            f"select.low_rank.components = {components} is more than the {examples} usable examples of data.domain; "
            "lower it"
        )


def subspace(run: SelectRun, folder: Path) -> dict[str, Any] | None:
    """Writes gram.zarr block by block, then spectrum.npz, directions.safetensors and summary.json. Where the domain's
    gradients span fewer directions than asked for, there are as many as they span. None when this process has computed
    only a shard of the blocks."""
    clock, section = Clock(run.job.folder, "subspace"), run.config.score
    if not section.allow_fresh_lora:
        refuse_fresh_lora(run.warm, section.parameters)
    rows = run.encoder.encode(run.domain.records, section.span).rows
    size = block_rows(run, len(rows))
    store = create(folder / STORE, {"gram": ((len(rows),), np.float32)}, len(rows), size, {})
    _fill(run, store, rows, clock)
    if run.job.shard is not None:  # the stage stays open, even where one shard is all of it
        return None
    found = spectrum(mirrored(read(store, "gram")))
    count = min(run.config.select.low_rank.components, found.rank)
    progress = clock.ticking(run.job.progress("main directions", len(rows), "examples"))
    directions = principal_directions(
        run.warm, rows, found, count, run.objective, run.layout, parameters=section.parameters, progress=progress
    )
    save_arrays(folder / RESULT, energies=found.energies, mean=found.of_mean(count))
    save_tree(folder / DIRECTIONS, directions)
    summary = _summary(run, rows, found, count) | {"seconds": clock.seconds()}
    write_json(folder / "summary.json", summary)
    return {"components": count}


def block_rows(run: SelectRun, examples: int) -> int:
    """Rows of the Gram matrix whose gradients are held while all others pass by: half of what may be held."""
    one = 4 * run.objective.channels * sum(leaf.size for leaf in jax.tree.leaves(run.theta))
    return max(1, min(examples, GRADIENT_BYTES // (2 * one)))


def gram_layout(run: SelectRun) -> Layout:
    """One example a row, and a quarter of what may be held in a batch; batches of shorter rows have no more of them, so
    that as many batches of any length are held."""
    single = layout_for(run.config.model.max_length, run.config.score.batch_tokens, run.model.mesh, packed=False)
    return replace(within_budget(single, run.theta, run.objective.channels, GRADIENT_BYTES // 4), most_rows=0)


def flops(run: SelectRun, examples: float, tokens: float, labels: float, count: int) -> float:
    """FLOPs for a domain of so many examples and tokens: the gradients of the Gram matrix, and the passes that make
    the directions."""
    size = max(1, round(examples))
    passes = gram_gradients(size, block_rows(run, size)) / size
    config, channels = run.model.base.config, run.objective.channels
    seen = 0.0 if run.objective.is_linear else labels
    gram = gradient_flops(
        config, round(passes * tokens), round(passes * seen), directions=channels, **run.differentiated
    )
    made = 0.0
    for start in range(0, count, DIRECTIONS_AT_ONCE):
        together = min(DIRECTIONS_AT_ONCE, count - start) * channels
        made += gradient_flops(config, round(tokens), round(seen), directions=together, **run.differentiated)
    return gram + made


def _fill(run: SelectRun, store: Store, rows: list[TokenRow], clock: Clock) -> None:
    layout = gram_layout(run)

    def compute(block: int, _: Any, progress: Progress) -> Mapping[str, np.ndarray]:
        found = gram_block(
            run.warm,
            rows,
            *store.block_range(block),
            run.objective,
            layout,
            parameters=run.config.score.parameters,
            memory=GRADIENT_BYTES,
        )
        return {"gram": found}

    fill_blocks(
        store,
        lambda blocks: ((block, None) for block in sorted(blocks)),
        compute,
        shard=run.job.shard,
        progress=clock.ticking(run.job.progress("domain gradients", store.rows, "examples")),
    )


def _summary(run: SelectRun, rows: list[TokenRow], found: Spectrum, count: int) -> dict[str, Any]:
    energies = found.energies
    tokens, labels = sum(len(row.ids) for row in rows), sum(int(row.span.sum()) for row in rows)
    mean = found.of_mean(found.rank)
    return {
        "objective": run.config.score.objective,
        "examples": len(rows),
        "asked": run.config.select.low_rank.components,
        "components": count,
        "rank": found.rank,
        "energy_share": float(energies[:count].sum() / energies.sum()),
        "mean_share": float((mean[:count] ** 2).sum() / max((mean**2).sum(), 1e-300)),
        "energies": energies[:100].tolist(),
        "tokens": tokens,
        "flops": flops(run, len(rows), tokens, labels, count),
        "rho": head_coherence(head_matrix(run.model.base.base)),
    }
