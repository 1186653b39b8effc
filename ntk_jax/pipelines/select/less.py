"""LESS (Xia et al., arXiv 2402.04333): at each checkpoint that the warm-up kept, sketches of the candidates' Adam
updates and of the domain's loss gradients, in stores of their own.

The loss is the mean cross-entropy of the response and the parameters are the adapter's, which is what the warm-up
trained, whatever `score.objective`, `score.span` and `score.parameters` say.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.account import KEPT
from ntk_jax.engine.clock import Clock
from ntk_jax.errors import UserError
from ntk_jax.kernels.adam import Moments, adam_updates
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import Tree
from ntk_jax.kernels.projections import Projection, check_width, projection_flops
from ntk_jax.models.model import Model, with_lora
from ntk_jax.parallel import hosts
from ntk_jax.parallel.rules import param_shardings
from ntk_jax.pipelines.common.arrays import load_tree, tree_facts
from ntk_jax.pipelines.select.account import data_of
from ntk_jax.pipelines.select.config import SelectConfig, checkpoints_kept
from ntk_jax.pipelines.select.preselect import candidates_of
from ntk_jax.pipelines.select.score import check_pool
from ntk_jax.pipelines.select.sketch import (
    Sketcher,
    create_domain,
    create_pool,
    fill_domain,
    fill_pool,
    stored_bytes,
)
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.pipelines.select.warmup import trajectory_file
from ntk_jax.selection.less import groups_of
from ntk_jax.selection.ranker import Checkpoint, Sketches
from ntk_jax.selection.sketch_store import open_sketches, sketch_facts
from ntk_jax.storage.arrays import Store, done_blocks, read
from ntk_jax.storage.atomic import read_json, write_json
from ntk_jax.storage.hashing import hash_tree
from ntk_jax.storage.reading import read_json_lines
from ntk_jax.training.flops import gradient_flops

OBJECTIVE, SPAN, PARAMETERS = Objective("cross_entropy"), "response", "lora"


def check(config: SelectConfig) -> None:
    """Raises UserError: a run without a warm-up has no checkpoints, or settings of the projection that cannot work."""
    section = config.sketch
    if config.warmup.max_steps == 0:
        raise UserError(
            "select.methods: less needs checkpoints of the warm-up, and warmup.max_steps = 0 makes none; warm up, or "
            "leave less out"
        )
    if config.warmup.learning_rate == 0:
        raise UserError(
            "select.methods: less weights checkpoints by the learning rate, and warmup.learning_rate is 0; raise it, "
            "or leave less out"
        )
    Projection(section.projection, section.dim, config.seed, section.sparsity)


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError: K is larger than the adapter, a bad pool or domain, or subtasks of a key that the domain
    lacks."""
    check_width(run.projection, run.model.base.lora)
    check_pool(run)
    if "less" in run.config.select.methods:
        try:
            groups_of(run.domain.records, run.config.select.less)
        except UserError as error:
            raise UserError(f"select.less.{error}") from None


def less(run: SelectRun, folder: Path) -> dict[str, Any] | None:
    """Writes <checkpoint>/domain.zarr and <checkpoint>/pool.zarr block by block (as the stage sketch), data.json and
    summary.json. None when this process has computed only a shard."""
    clock = Clock(run.job.folder, "less")
    records, ordinals = run.domain.records, candidates_of(run)
    fingerprint = read_json(folder / "fingerprint.json", dict)["fingerprint"]
    shared = sketch_facts(run.model.base, OBJECTIVE, run.projection, span=SPAN, parameters=PARAMETERS, examples=None)
    count = checkpoints_kept(run.config)
    stores: list[tuple[Store, Store]] = []
    for number in range(1, count + 1):
        model, moments = _checkpoint(run, number)
        adapter = hash_tree({"start": shared["adapter"], "leaves": model.lora})
        facts = {**shared, "adapter": adapter, "checkpoint": number}
        home, title = folder / str(number), f"{number} of {count}"
        targets = create_domain(run, home / "domain.zarr", records, fingerprint, facts)
        pool = create_pool(run, home / "pool.zarr", ordinals, fingerprint, facts)
        gradients = Sketcher(model, OBJECTIVE, PARAMETERS)
        updates = Sketcher(model, OBJECTIVE, PARAMETERS, functools.partial(adam_updates, moments=moments))
        fill_domain(run, targets, records, gradients, SPAN, clock, f"domain at checkpoint {title}")
        _refuse_zero(targets, number)
        fill_pool(run, pool, ordinals, updates, SPAN, clock, f"pool at checkpoint {title}")
        stores.append((pool, targets))
    if run.job.shard is not None:  # the stage stays open, even where one shard is all of it
        return None
    return _summarize(run, folder, stores, clock)


def checkpoints_of(run: SelectRun, places: np.ndarray) -> list[Checkpoint]:
    """What the run directory holds for the ranker; places: [n] those of the pool stores' rows."""
    home = run.job.folder / "less"
    weights = checkpoint_weights(run)
    return [
        Checkpoint(Sketches(open_sketches(place / "pool.zarr"), open_sketches(place / "domain.zarr"), places), weight)
        for place, weight in ((home / str(number), weight) for number, weight in enumerate(weights, 1))
    ]


def checkpoint_weights(run: SelectRun) -> list[float]:
    """Of each checkpoint: the mean learning rate of the steps since the one before it, as a share of the sum of these
    means. LESS weights by the mean rate of an epoch."""
    folder = run.job.folder / "warmup"
    history: list[Any] = read_json_lines(folder / "history.jsonl", "warm up again")
    rates = [float(entry["learning_rate"]) for entry in history]
    numbers = range(1, checkpoints_kept(run.config) + 1)
    steps = [int(tree_facts(trajectory_file(folder, number))["step"]) for number in numbers]
    means = [float(np.mean(rates[start:stop])) for start, stop in zip([0, *steps], steps, strict=False)]
    return [mean / sum(means) for mean in means]


def flops(run: SelectRun, examples: float, tokens: float, labels: float) -> float:
    """FLOPs at all checkpoints of a pool and a domain of so many examples and tokens together: a gradient of each and
    its projection."""
    config, size = run.model.base.config, run.model.adapter_size
    one = gradient_flops(config, round(tokens), round(labels), lora_parameters=size)
    one += examples * projection_flops(run.projection, run.model.base.lora)
    return checkpoints_kept(run.config) * one


def _checkpoint(run: SelectRun, number: int) -> tuple[Model, Moments]:
    """The model with the adapter of a checkpoint, and Adam's state there."""
    path, base = trajectory_file(run.job.folder / "warmup", number), run.model.base
    kept = load_tree(path, {"parameters": base.lora, "m": base.lora, "v": base.lora})
    placed: dict[str, Tree] = {name: _place(run, tree) for name, tree in kept.items()}
    section = run.config.warmup
    if not run.config.select.less.momentum:
        placed["m"] = jax.tree.map(jnp.zeros_like, placed["m"])
    moments = Moments(placed["m"], placed["v"], int(tree_facts(path)["step"]), section.beta1, section.beta2)
    return with_lora(base, placed["parameters"]), moments


def _place(run: SelectRun, tree: Tree) -> Tree:
    if hosts.is_distributed() and run.model.mesh is not None:
        return hosts.place(tree, param_shardings(tree, run.model.mesh))
    return tree


def _refuse_zero(targets: Store, number: int) -> None:
    """Raises UserError: all blocks of the domain are there, and no gradient that is not zero."""
    whole = hosts.broadcast(lambda: len(done_blocks(targets)) == targets.blocks)
    if whole and not read(targets, "sketch_norm").any():
        raise UserError(
            f"the gradients of all domain examples are zero at checkpoint {number} of the warm-up; warm up for fewer "
            "steps, or with a lower learning rate"
        )


def _summarize(run: SelectRun, folder: Path, stores: list[tuple[Store, Store]], clock: Clock) -> dict[str, Any]:
    pool, targets = stores[0]
    data = data_of(pool, run)
    write_json(folder / "data.json", data)
    usable = [int((read(store, "status") == KEPT).sum()) for store in (pool, targets)]
    tokens = data["tokens"] + int(read(targets, "length").sum())
    labels = data["span_tokens"] + int(read(targets, "span").sum())
    summary = {
        "rows": pool.rows,
        "scored": usable[0],
        "targets": usable[1],
        "checkpoints": len(stores),
        "weights": checkpoint_weights(run),
        "projection": run.projection.kind,
        "dim": run.projection.dim,
        "tokens": len(stores) * tokens,
        "flops": flops(run, sum(usable), tokens, labels),
        "bytes": sum(stored_bytes(store) for pair in stores for store in pair),
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"scored": summary["scored"], "checkpoints": summary["checkpoints"]}
