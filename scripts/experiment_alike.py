"""How alike two runs of an experiment rank one pool: of different models, or a variant and the run it starts from."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from experiment_plan import BASE, Experiment, Run, shared_stages
from experiment_tables import Rows, mean_cell, over_runs, pipes

from ntk_jax.errors import UserError
from ntk_jax.kernels.agreement import spearman
from ntk_jax.pipelines.common.rankings import Rankings, read_rankings
from ntk_jax.storage.atomic import read_json

LEAST = 3  # examples that a rank correlation is taken of


def transfer_rows(experiment: Experiment, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row a domain, seed, method and two models (see `agreement`). It asks for selections alone, not for evaluations.

    Raises UserError: the experiment has one model.
    """
    if len(experiment.models) < 2:
        raise UserError("--transfer compares the scores of different models; the experiment has one")
    places = {(run.model, run.domain, run.seed): read_rankings(str(run.folder)) for run in runs if run.after is None}
    found = []
    for a, b in itertools.combinations(experiment.models, 2):
        for domain, seed in itertools.product(experiment.domains, experiment.seeds):
            one, other = places.get((a, domain, seed)), places.get((b, domain, seed))
            if one and other:
                about = {"domain": domain, "seed": seed, "a": a, "b": b}
                found += [about | row for row in agreement(one, other)]
    return found


def variant_rows(experiment: Experiment, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row a method of each run of a variant that selects by itself (see `agreement`): what the variant changes.
    useful_gain: by how much the share of useful examples is higher, None where it is not known. Runs that keep no
    scores have no rows, and a line on stderr."""
    anew = [run for run in runs if run.variant != BASE and "select" not in shared_stages(experiment, run)]
    needed = {name for run in anew for name in (run.name, run.base)}
    known = {run.name: _rankings(run) for run in runs if run.name in needed}
    found = []
    for run in anew:
        one, other = known.get(run.base), known[run.name]
        if one and other:
            about = {"model": run.model, "domain": run.domain, "seed": run.seed, "variant": run.variant}
            before, after = _useful(experiment.run(run.base)), _useful(run)
            for row in agreement(one, other):
                without, share = before.get(row["method"]), after.get(row["method"])
                gain = None if without is None or share is None else share - without
                found.append(about | row | {"useful_gain": gain})
    return found


def _useful(run: Run) -> dict[str, float | None]:
    """The share of the selected that is useful, by method; None where that is not known."""
    by_method = read_json(run.folder / "select" / "summary.json", dict)["by_method"]
    return {name: one.get("useful_share") for name, one in by_method.items()}


def _rankings(run: Run) -> Rankings | None:
    try:
        return read_rankings(str(run.folder))
    except UserError as error:  # a table less, and no reason to keep the others back
        other = "its variants" if run.variant == BASE else run.base
        print(f"{run.name} is not compared with {other}: {error}", file=sys.stderr)
        return None


def agreement(first: Rankings, second: Rankings) -> list[dict[str, Any]]:
    """A row a method that has scores in both runs. examples: of the pool, that both scored. spearman: between their
    scores, None where it has none. shared: of what the second selected, the share that the first selected too."""
    ids = [name for name in first.place if name in second.place]
    mine, theirs = first.of(ids), second.of(ids)
    rows = []
    for method in (method for method in mine if method in theirs):
        both = np.isfinite(mine[method]) & np.isfinite(theirs[method])
        rho = spearman(mine[method][both], theirs[method][both]) if both.sum() >= LEAST else float("nan")
        picked = [frozenset(ranked.selected[method]) for ranked in (first, second)]
        shared = len(picked[0] & picked[1]) / len(picked[1]) if picked[1] else None
        value = float(rho) if np.isfinite(rho) else None
        rows.append({"method": method, "examples": int(both.sum()), "spearman": value, "shared": shared})
    return rows


def alike_lines(found: Mapping[str, Any]) -> list[str]:
    """The tables."""
    lines = []
    for a, b in dict.fromkeys((row["a"], row["b"]) for row in found["transfer"]):
        rows = [row for row in found["transfer"] if (row["a"], row["b"]) == (a, b)]
        lines += ["", f"## Scores by {a} and by {b}, Spearman over the pool", "", *_table(rows, "spearman")]
    for model, variant in dict.fromkeys((row["model"], row["variant"]) for row in found["variants"]):
        rows = [row for row in found["variants"] if (row["model"], row["variant"]) == (model, variant)]
        lines += ["", f"## What {variant} changes in the rankings, {model}", ""]
        lines += ["Spearman with the scores of the same run without it.", "", *_table(rows, "spearman")]
        lines += ["", "Of its selection, the share that the run without it selects too.", "", *_table(rows, "shared")]
        known = [{**row, "points": 100 * row["useful_gain"]} for row in rows if row["useful_gain"] is not None]
        if known:
            lines += ["", "More useful among the selected, points, paired over seeds.", "", *_table(known, "points", 1)]
    return lines


def _table(rows: Rows, key: str, digits: int = 2) -> list[str]:
    """A row a method, a column a domain: means over seeds."""
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    columns = [over_runs([r for r in rows if r["domain"] == d], "method", key) for d in domains]
    methods = dict.fromkeys(row["method"] for row in rows)
    return pipes(
        ["method", *domains], [[m, *(mean_cell(column.get(m), digits=digits) for column in columns)] for m in methods]
    )
