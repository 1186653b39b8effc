"""The direction in parameter space that the pool is scored along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_jax.engine.clock import Clock
from ntk_jax.errors import UserError
from ntk_jax.kernels.direction import adam_preconditioned, direction_norm, mean_gradient
from ntk_jax.kernels.objectives import Objective, head_coherence
from ntk_jax.kernels.parameters import refuse_fresh_lora
from ntk_jax.models.head import head_matrix
from ntk_jax.pipelines.common.arrays import load_tree, save_tree, tree_facts
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.storage.atomic import write_json
from ntk_jax.training.flops import gradient_flops


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError: a pattern matches none of the model's parameters, or the domain cannot be read."""
    _ = run.theta, run.domain


def gradient(run: SelectRun, folder: Path) -> dict[str, Any]:
    """The direction in parameter space: the domain's mean gradient, that divided by Adam's root second moments, or
    one from a file. Writes direction.safetensors and summary.json."""
    clock, score = Clock(run.job.folder, "gradient"), run.config.score
    given = score.direction not in ("mean_gradient", "adam")
    progress = None if given else clock.ticking(run.job.progress("gradient", None, "examples"))
    model = run.warm
    if not score.allow_fresh_lora:
        refuse_fresh_lora(model, score.parameters)
    rows = run.encoder.encode(run.domain.records, score.span).rows
    tokens = 0 if given else sum(len(row.ids) for row in rows)
    labels = 0 if run.objective.is_linear else sum(int(row.span.sum()) for row in rows)
    if not given:
        direction = mean_gradient(
            model,
            rows,
            run.objective,
            run.layout,
            parameters=score.parameters,
            progress=progress,
        )
    else:
        direction = _given_direction(run, Path(score.direction))
    if score.direction == "adam":
        moments = run.job.folder / "warmup" / "second_moment.safetensors"
        direction = adam_preconditioned(direction, load_tree(moments, model.lora))
    save_tree(folder / "direction.safetensors", direction, _direction_facts(run.objective))
    norms = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(np.linalg.norm(leaf))
        for path, leaf in jax.tree_util.tree_flatten_with_path(direction)[0]
    }
    summary = {
        "objective": score.objective,
        "direction": score.direction,
        "rho": head_coherence(head_matrix(model.base)),
        "norm": direction_norm(direction),
        "leaf_norms": norms,
        "examples": len(rows),
        "tokens": tokens,
        "flops": 0.0
        if given
        else gradient_flops(model.config, tokens, labels, directions=run.objective.channels, **run.differentiated),
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"norm": summary["norm"]}


def _direction_facts(objective: Objective) -> dict[str, str]:
    """What must agree between the making of a direction and its use: each probe's tangent meets its own probe."""
    facts = {"objective": str(objective.kind)}
    return facts | ({"probes": str(objective.probes), "seed": str(objective.seed)} if objective.kind == "probe" else {})


def _given_direction(run: SelectRun, path: Path) -> Any:
    """A direction from a file: made by a gradient stage or by hand, in the leaves of what is differentiated."""
    direction = load_tree(path, run.theta)
    for leaf, like in zip(jax.tree.leaves(direction), jax.tree.leaves(run.theta), strict=True):
        channels = [run.objective.probes] if run.objective.kind == "probe" else []
        if [*leaf.shape] != [*channels, *like.shape]:
            raise UserError(
                f"score.direction = {path}: a leaf has shape {list(leaf.shape)}, objective {run.objective.kind} needs "
                f"{[*channels, *like.shape]}; a run takes one direction, made with the same objective and probes"
            )
    made, wanted = tree_facts(path), _direction_facts(run.objective)
    differing = [key for key in ("probes", "seed") if key in made and key in wanted and made[key] != wanted[key]]
    if differing:
        key = differing[0]
        raise UserError(
            f"score.direction = {path} was made with other probes ({key} {made[key]}, now {wanted[key]}); use the same"
        )
    return direction
