"""results.json, results.md and figures of an experiment, from the run directories that are finished."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiment_alike import alike_lines, transfer_rows, variant_rows
from experiment_figures import forest, pareto
from experiment_pairs import FILE as LOSSES_FILE
from experiment_pairs import write_losses
from experiment_plan import BASE, Experiment, Run
from experiment_results import (
    CONFIDENCE,
    LOSSES,
    MEASURES,
    RESAMPLES,
    done_runs,
    estimates,
    parts_of,
    rows_of,
    selected_runs,
    worth_of,
)
from experiment_tables import Rows, mean_cell, over_runs, pipes

from ntk_jax.errors import UserError
from ntk_jax.report.amounts import metric, percent
from ntk_jax.report.figures_matrix import standalone
from ntk_jax.storage.atomic import make_folder, read_json, write_json, write_text

NAMED = 6  # runs that are named in a line
RUN_KEYS = ("model", "domain", "seed", "variant")


def write_results(experiment: Experiment, folder: Path, *, transfer: bool = False, against: Sequence[str] = ()) -> str:
    """Writes the report; what was written, in a line. Raises UserError: nothing is finished, a damaged result, an
    `against` that no run has as an arm."""
    runs, selected = done_runs(experiment), selected_runs(experiment)
    compared = transfer_rows(experiment, selected) if transfer else []
    if not runs and not selected:
        raise UserError(
            "--report: no run with these settings and data files has selected yet, so there is nothing to report; see "
            "OUT/logs for why, and give the settings behind -- that the runs were made with"
        )
    rows = [row for run in runs for row in rows_of(run)]
    known = dict.fromkeys(row["arm"] for row in rows)
    if strange := [arm for arm in against if arm not in known]:
        raise UserError(f"--against: no finished run has the arm {', '.join(strange)}; there are {', '.join(known)}")
    measures = [measure for measure in MEASURES if any(row[measure] for row in rows)]
    found: dict[str, Any] = {
        "runs": [run.name for run in runs],
        "missing": [run.name for run in experiment.runs if run not in runs],
        "seeds_of": experiment.seeds_of,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "matched": sorted({run.config.select.length_matched.to for run in runs}),
        "rows": rows,
        "estimates": [one for measure in measures for one in estimates(experiment, runs, measure, against)],
        "picks": [row for run in selected for row in pick_rows(run)],
        "worth": worth_rows(experiment, selected),
        "transfer": compared,
        "variants": variant_rows(experiment, selected),
    }
    make_folder(folder)
    write_json(folder / "results.json", found)
    if "loss" in measures:
        write_losses(folder / LOSSES_FILE, parts_of(runs, "loss_by_token"))
    drawn = figures(found)
    for name, drawing in drawn.items():
        write_text(folder / f"{name}.svg", standalone(drawing))
    write_text(folder / "results.md", markdown(found, list(drawn)))
    return f"{folder / 'results.md'}: {len(runs)} of {len(experiment.runs)} runs, {len(drawn)} figures"


# ---------------------------------------------------------------------------------------------------------------
# What is picked, and what scores are worth


def pick_rows(run: Run) -> list[dict[str, Any]]:
    """A row a method: of what it selected, the share that is useful where that is known, and how far its scores follow
    the length of responses."""
    by_method = read_json(run.folder / "select" / "summary.json", dict)["by_method"]
    about = {key: getattr(run, key) for key in RUN_KEYS}
    keys = ("count", "useful_share", "median_span", "spearman_span_length")
    return [{**about, "method": name, **{key: one.get(key) for key in keys}} for name, one in by_method.items()]


def worth_rows(experiment: Experiment, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row a diagnosed run and score: its correlations with the metagradient and with trainings on subsets."""
    found = []
    for run in runs:
        if run.variant != BASE:
            continue
        for name, one in worth_of(experiment, run).get("scores", {}).items():
            row = {"model": run.model, "domain": run.domain, "seed": run.seed, "score": name}
            precision = one["precision"]
            found.append(
                row
                | {"spearman": one["spearman"]["value"], "lds": (one["lds"] or {}).get("value")}
                | {"precision": precision["value"], "chance": precision["chance"], "top": precision["top"]}
            )
    return found


# ---------------------------------------------------------------------------------------------------------------
# Figures


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """{name: drawing}."""
    drawn: dict[str, Any] = {}
    for model, variant in groups(found):
        head = "-".join([model, *([] if variant == BASE else [variant])])
        for measure, control in itertools.product(MEASURES, ("random", "length_matched")):
            rows = [
                one for one in of_group(found, model, variant, measure, control) if one["domain"] == whole(found, model)
            ]
            if rows and measure in ("accuracy", "loss"):
                about = f"{MEASURES[measure]}, minus {control}"
                drawn[f"{head}-{measure}-minus-{control}"] = forest(
                    rows, about, in_percent=measure not in LOSSES, lowest_first=measure in LOSSES
                )
            if rows and measure in ("accuracy", "loss") and control == "random":
                points = _points(found, model, variant, rows, -1.0 if measure in LOSSES else 1.0)
                if points:
                    about = "gain over random" + (", points" if measure == "accuracy" else ", nats a token")
                    drawn[f"{head}-{measure}-by-flops"] = pareto(points, about)
        matched = {row["matched"] for row in found["rows"] if (row["model"], row["variant"]) == (model, variant)}
        for measure, arm in itertools.product(("accuracy", "loss"), sorted(matched)):
            drawn |= _by_domain(found, model, variant, measure, arm, head)
    for key, about in (("spearman", "Spearman with the metagradient"), ("lds", "linear datamodeling score")):
        for model in dict.fromkeys(row["model"] for row in found["worth"]):
            means = over_runs([row for row in found["worth"] if row["model"] == model], "score", key)
            if means:
                shown = [{"arm": name} | one for name, one in means.items()]
                drawn[f"{model}-worth-{key}"] = forest(shown, f"{about}, mean over runs", zero="no correlation")
    return drawn


def _by_domain(found: Mapping[str, Any], model: str, variant: str, measure: str, arm: str, head: str) -> dict[str, Any]:
    """Where there are several domains: in each of them, an arm less the random draw of its own lengths."""
    rows = [one for one in of_group(found, model, variant, measure, "length_matched") if one["arm"] == arm]
    if len(rows) < 2:
        return {}
    shown = [{**one, "arm": one["domain"] or "mean"} for one in rows]
    about = f"{MEASURES[measure]}, {arm} minus length_matched"
    falls = measure in LOSSES
    return {f"{head}-{measure}-{arm}-by-domain": forest(shown, about, in_percent=not falls, lowest_first=falls)}


def _points(
    found: Mapping[str, Any], model: str, variant: str, rows: Rows, sign: float
) -> list[tuple[str, float, float]]:
    """(arm, selection FLOPs, gain) of what was selected."""
    scale = 100.0 if rows[0]["measure"] not in LOSSES else 1.0
    costs = _by_arm(found, model, variant, "selection_flops")
    chosen = _by_arm(found, model, variant, "selected")
    gains = {row["arm"]: sign * scale * row["value"] for row in rows} | {"random": 0.0}
    return [(arm, costs[arm], gain) for arm, gain in gains.items() if arm in chosen and arm in costs]


# ---------------------------------------------------------------------------------------------------------------
# Text


def markdown(found: Mapping[str, Any], drawn: Sequence[str]) -> str:
    """The tables."""
    lines = [
        _standing(found),
        "",
        f"In brackets {100 * found['confidence']:.0f}% intervals over seeds × examples ({found['resamples']:,} "
        "resamples; ntk_jax/evaluation/hierarchical.py); they say nothing of domains that are not here, and "
        "are not corrected for the number of arms; behind them the number of seeds: of one seed they are over examples "
        "alone, and another seed may say otherwise. Differences are paired over "
        "seeds and examples. Lower losses are better.",
    ]
    if found["seeds_of"] == "repeats":
        lines += [
            "",
            "Seeds are of random selections, fresh adapters and orders alone: the warm-up, the pool and the scores of "
            "a domain are the first seed's in all, so that the intervals say nothing of another warm-up or pool.",
        ]
    if any(row["arm"] == "length_matched" for row in found["rows"]):
        lines += [
            "",
            f"length_matched has the response lengths of what {', '.join(found['matched'])} selected: for other arms "
            "it is one more random draw, and no control of their lengths.",
        ]
    for model, variant in groups(found):
        lines += ["", f"## {model}" + ("" if variant == BASE else f", {variant}")]
        shown_already: dict[Any, str] = {}  # by their estimates: choices of one token have two measures that are one
        for measure in MEASURES:
            every = of_group(found, model, variant, measure)
            key = tuple(tuple(value for name, value in one.items() if name != "measure") for one in every)
            twin = shown_already.setdefault(key, measure)
            if every and twin != measure:
                lines += ["", f"{MEASURES[measure].capitalize()}: the same numbers as {MEASURES[twin]}."]
                continue
            for against in dict.fromkeys(one["against"] for one in every):
                rows = of_group(found, model, variant, measure, against)
                title = MEASURES[measure] + (f", minus {against} (paired)" if against else "")
                lines += ["", f"### {title[0].upper()}{title[1:]}", "", *_table(found, model, rows, measure)]
        lines += ["", "### Budgets, means over runs", "", *_budgets(found, model, variant)]
    lines += _pick_lines(found) + _worth_lines(found) + alike_lines(found)
    if drawn:
        lines += ["", "## Figures", "", *(f"![{name}]({name}.svg)" for name in drawn)]
    return "\n".join(lines) + "\n"


def _standing(found: Mapping[str, Any]) -> str:
    """How far the experiment is: what has been evaluated, what has selected at least, and what is missing."""
    missing, selected = found["missing"], len({tuple(row[key] for key in RUN_KEYS) for row in found["picks"]})
    line = f"{len(found['runs'])} finished runs"
    if selected > len(found["runs"]):
        line += f"; {selected} have selected"
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        line += f"; {len(missing)} are not finished: {', '.join(missing[:NAMED])}{more}"
    return line


def groups(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The models and variants that have results, in order."""
    return list(dict.fromkeys((row["model"], row["variant"]) for row in found["rows"]))


def of_group(
    found: Mapping[str, Any], model: str, variant: str, measure: str, against: str | None = "any"
) -> list[Mapping[str, Any]]:
    """The estimates of a model's variant by a measure; against: "any" for all."""
    key = (model, variant, measure)
    rows = [one for one in found["estimates"] if (one["model"], one["variant"], one["measure"]) == key]
    return [one for one in rows if against == "any" or one["against"] == against]


def whole(found: Mapping[str, Any], model: str) -> str | None:
    """Where a model's results are summed up: over all domains (None), or in the only one that there is."""
    domains = list(dict.fromkeys(row["domain"] for row in found["rows"] if row["model"] == model))
    return None if len(domains) > 1 else domains[0]


def _table(found: Mapping[str, Any], model: str, rows: Rows, measure: str) -> list[str]:
    """A row an arm, a column a domain, their mean first."""
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    domains = [d for d in domains if d is None] + [d for d in domains if d is not None]
    cells: dict[str, dict[str | None, str]] = {}
    for row in rows:
        cells.setdefault(row["arm"], {})[row["domain"]] = shown(row, measure)
    body = [[arm, *(of.get(domain, "–") for domain in domains)] for arm, of in cells.items()]
    return pipes(["arm", *("mean" if domain is None else domain for domain in domains)], body)


def shown(row: Mapping[str, Any], measure: str) -> str:
    """A value with its interval: accuracies in %, differences with their sign; of how many seeds."""
    scale, digits = (1.0, 3) if measure in LOSSES else (100.0, 1)
    sign = "+" if row["against"] else ""
    value, low, high = (f"{scale * row[key]:{sign}.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}] ({row['runs']})"


def _budgets(found: Mapping[str, Any], model: str, variant: str) -> list[str]:
    def column(key: str, words: Callable[[float], str]) -> dict[str, str]:
        return {arm: words(value) for arm, value in _by_arm(found, model, variant, key).items()}

    whole_number = lambda value: f"{value:,.0f}"  # noqa: E731
    columns = {
        "examples": column("examples", whole_number),
        "steps": column("steps", whole_number),
        "tokens": column("tokens", whole_number),
        "label tokens": column("label_tokens", whole_number),
        "domain's share of these": column("domain_share", lambda value: percent(value, 0)),
        "useful share": column("useful_share", lambda value: percent(value)),
        "selection FLOPs": column("selection_flops", lambda value: metric(value, "FLOP")),
        "training FLOPs": column("training_flops", lambda value: metric(value, "FLOP")),
    }
    columns = {name: cells for name, cells in columns.items() if cells}
    arms = dict.fromkeys(row["arm"] for row in found["rows"] if (row["model"], row["variant"]) == (model, variant))
    return pipes(["arm", *columns], [[arm, *(cells.get(arm, "–") for cells in columns.values())] for arm in arms])


def _by_arm(found: Mapping[str, Any], model: str, variant: str, key: str) -> dict[str, float]:
    """Means over domains and seeds of what is known."""
    values: dict[str, list[float]] = {}
    for row in found["rows"]:
        if (row["model"], row["variant"]) == (model, variant) and row[key] is not None:
            values.setdefault(row["arm"], []).append(row[key])
    return {arm: float(np.mean(each)) for arm, each in values.items()}


def _pick_lines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    known = [row for row in found["picks"] if row["useful_share"] is not None]
    for model, variant in dict.fromkeys((row["model"], row["variant"]) for row in known):
        rows = [
            {**row, "percent": 100 * row["useful_share"]}
            for row in known
            if (row["model"], row["variant"]) == (model, variant)
        ]
        domains = list(dict.fromkeys(row["domain"] for row in rows))
        columns = [over_runs([r for r in rows if r["domain"] == d], "method", "percent") for d in domains]
        every = over_runs(rows, "method", "percent")
        length = over_runs(rows, "method", "spearman_span_length")
        about = model if variant == BASE else f"{model}, {variant}"
        lines += ["", f"## Useful among the selected, %, {about}", "", "Means over seeds, with t intervals.", ""]
        body = [
            [
                m,
                *(mean_cell(column.get(m), digits=1) for column in columns),
                f"{every[m]['value']:.1f}",
                mean_cell(length.get(m), False),
            ]
            for m in every
        ]
        lines += pipes(["method", *domains, "all", "rank correlation with response length"], body)
    return lines


def _worth_lines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for model in dict.fromkeys(row["model"] for row in found["worth"]):
        rows = [row for row in found["worth"] if row["model"] == model]
        keys = ("spearman", "lds", "precision")
        columns = {key: over_runs(rows, "score", key) for key in keys}
        chance = over_runs(rows, "score", "chance")
        lines += ["", f"## What scores are worth, {model}", ""]
        lines += ["Means over runs (domains and seeds), with t intervals over these.", ""]
        names = dict.fromkeys([*columns["spearman"], *(row["score"] for row in rows)])
        body = [
            [name, *(mean_cell(columns[key].get(name)) for key in keys), mean_cell(chance.get(name), False)]
            for name in names
        ]
        lines += pipes(["score", "Spearman with the metagradient", "LDS", "precision of the top", "chance"], body)
    return lines
