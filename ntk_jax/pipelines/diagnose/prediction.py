"""Which score predicts what training does: groups of pool examples, their scores, and the loss drop they cause.

Groups are drawn family by family, for families are what selection tells apart. Each group is trained on for a few steps
from the warm adapter, and the loss on held-out questions of the domain is measured before and after.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import family_of
from ntk_jax.data.sources import read, sample_indices
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import task_files
from ntk_jax.kernels.agreement import spearman
from ntk_jax.kernels.direction import mean_gradient
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.score import directional_scores
from ntk_jax.models.model import Model
from ntk_jax.pipelines.common.arrays import load_arrays, save_arrays
from ntk_jax.pipelines.common.reading import reading_of
from ntk_jax.pipelines.diagnose.state import DiagnoseRun
from ntk_jax.storage.atomic import make_folder
from ntk_jax.training.influence import loss_drops

TOGETHER = 8  # groups measured between two commits
SPARE = 3  # times as many examples are looked at as a group needs: some are too long
RESAMPLES = 2000
LEAST_FAMILIES = 6  # for an interval


def prediction(run: DiagnoseRun, folder: Path, warm: Model) -> dict[str, Any]:
    """{groups: [{family, drop, <objective>: mean score, length}], spearman: {predictor: {value, low, high}}, ...}."""
    section = run.config.diagnose
    names, groups, scored = _groups(run)
    if len(groups) < 3:
        return {"skipped": f"only {len(groups)} group(s) of {section.group_size} usable examples of one family"}
    held_out, source = held_out_of(run)
    drops, before = _drops(run, folder, warm, groups, held_out)

    domain = run.scored_domain
    columns = {"response length": np.array([float(row.span.sum()) for group in groups for row in group])}
    members = [row for group in scored for row in group]
    for objective in objectives_of(run):
        progress = run.job.progress(f"{objective.kind}", len(domain) + len(members), "examples")
        after = functools.partial(shifted, progress, len(domain), len(domain) + len(members))
        before_that = functools.partial(shifted, progress, 0, len(domain) + len(members))
        direction = mean_gradient(warm, domain, objective, run.layout, progress=before_that)
        scores = directional_scores(warm, members, direction, objective, run.layout, progress=after).values
        columns[str(objective.kind)] = scores.astype(np.float64)
    means = {name: values.reshape(len(groups), -1).mean(axis=1) for name, values in columns.items()}
    return {
        "groups": [
            {"family": names[g], "drop": drops[g], **{name: float(values[g]) for name, values in means.items()}}
            for g in range(len(groups))
        ],
        "spearman": {name: _interval(values, drops, names, run.config.seed) for name, values in means.items()},
        "families": len(set(names)),
        "loss_before": before,
        "held_out": {"source": source, "examples": len(held_out)},
        "group_size": section.group_size,
        "steps": section.group_steps,
        "learning_rate": _rate(run),
        "improved": float(np.mean(drops > 0)),
    }


def objectives_of(run: DiagnoseRun) -> list[Objective]:
    """The objectives that `diagnose` compares, with the options of `score`."""
    score = run.config.score
    return [Objective(o, score.normalize, score.probes, run.config.seed) for o in run.config.diagnose.objectives]


def _rate(run: DiagnoseRun) -> float:
    return run.config.diagnose.group_learning_rate or run.config.warmup.learning_rate


def _drops(
    run: DiagnoseRun, folder: Path, warm: Model, groups: list[list[TokenRow]], held_out: list[TokenRow]
) -> tuple[np.ndarray, float]:
    """The measured drops, a few groups a file, so that a killed run loses only the last few."""
    progress = run.job.progress("train on groups", len(groups), "groups")
    parts, before = [], 0.0
    home = make_folder(folder / "groups")
    for start in range(0, len(groups), TOGETHER):
        path = home / f"{start:06d}.npz"
        if not path.exists():
            found, before = loss_drops(
                warm,
                groups[start : start + TOGETHER],
                held_out,
                steps=run.config.diagnose.group_steps,
                learning_rate=_rate(run),
                row_length=run.row_length,
                progress=functools.partial(shifted, progress, start, len(groups)),
            )
            save_arrays(path, drops=found, before=before)
        stored = load_arrays(path)
        parts.append(stored["drops"])
        before = float(stored["before"])
    progress(len(groups), len(groups))
    return np.concatenate(parts), before


def shifted(progress: Callable[..., None], start: int, total: int, done: int, _: int) -> None:
    """Progress within a part, reported as progress of the whole."""
    progress(start + done, total)


def _groups(run: DiagnoseRun) -> tuple[list[str], list[list[TokenRow]], list[list[TokenRow]]]:
    """(families, rows of each group to train on, the same with the span of `score`): as many groups of every family as
    come out even, examples by the seed."""
    section, ordinals = run.config.diagnose, run.pool.ordinals
    places: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(run.pool.records(ordinals)):
        places[family_of(record, run.config.report.group_by)].append(place)
    families = sorted(name for name, members in places.items() if len(members) >= section.group_size)
    if not families:
        return [], [], []
    rng = np.random.default_rng([run.config.seed, 0x6A0])
    taken = {name: rng.permutation(places[name]).tolist() for name in families}
    # Where families are more than groups, a seeded part of them; else some get one group more.
    order = [families[i] for i in rng.permutation(len(families))]
    wanted = [order[g % len(order)] for g in range(section.groups)]
    number = {name: wanted.count(name) for name in families}
    chosen = {n: sorted(taken[n][: number[n] * section.group_size * SPARE]) for n in families if number[n]}
    every = np.array(sorted(place for members in chosen.values() for place in members))
    records = dict(zip(every.tolist(), run.pool.records(ordinals[every]), strict=True))
    names, groups, scored = [], [], []
    for name, members in chosen.items():
        kept = run.encoder.encode([records[place] for place in members])  # training looks at responses
        mixed = rng.permutation(len(kept.rows))
        again = run.encoder.encode([kept.records[i] for i in mixed], run.config.score.span)
        for start in range(0, number[name] * section.group_size, section.group_size):
            group = slice(start, start + section.group_size)
            if len(mixed[group]) == section.group_size:
                names.append(name)
                groups.append([kept.rows[i] for i in mixed[group]])
                scored.append(again.rows[group])
    return names, groups, scored


def held_out_of(run: DiagnoseRun) -> tuple[list[TokenRow], str]:
    """Rows whose loss is measured: questions with their right answers if there are any, else the domain itself."""
    section, config = run.config.diagnose, run.config
    if not config.evaluate.files:
        rows = run.domain.rows
        chosen = sample_indices(len(rows), section.held_out, config.seed)
        return (rows if chosen is None else [rows[i] for i in chosen]), "the domain"
    reading = reading_of(config, "evaluate")
    records = [record for file in task_files(config.evaluate.files).values() for record in read(file, reading)]
    chosen = sample_indices(len(records), section.held_out, config.seed)
    kept = run.encoder.encode(records if chosen is None else [records[i] for i in chosen])
    if not kept.rows:
        raise UserError("evaluate.files: no question is short enough to measure a loss on; raise model.max_length")
    return kept.rows, "evaluate.files"


def _interval(values: np.ndarray, drops: np.ndarray, families: list[str], seed: int) -> dict[str, float | None]:
    """Spearman's rank correlation with its 95% bootstrap interval. Families are drawn, not groups, for groups of one
    family are alike; no interval where they are too few."""
    members = [np.flatnonzero(np.array(families) == name) for name in sorted(set(families))]
    value = spearman(values, drops)
    if len(members) < LEAST_FAMILIES or np.isnan(value):
        return {"value": None if np.isnan(value) else value, "low": None, "high": None}
    rng = np.random.default_rng([seed, 0xB00])
    found = []
    for _ in range(RESAMPLES):
        picked = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        found.append(spearman(values[picked], drops[picked]))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high)}
