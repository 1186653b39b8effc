"""The diagnosis on the page and in the terminal: does fine-tuning stay in the NTK regime, which score ranks right?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.pipelines.diagnose.figures import figures
from ntk_jax.pipelines.diagnose.figures_stability import trajectories
from ntk_jax.pipelines.diagnose.figures_worth import worth_lines, worth_table
from ntk_jax.pipelines.diagnose.shown import DIAGNOSES, Parts, there
from ntk_jax.report.amounts import count, duration, general, metric, minus, percent
from ntk_jax.report.layout import Fact, Figure, Part, Section, Table, render
from ntk_jax.report.reading import RunDirectory, records
from ntk_jax.report.text import plain
from ntk_jax.storage.atomic import read_json

NAME = "diagnose"
_TEMPLATES = Path(__file__).with_name("templates")
# What a damaged file raises when its numbers are not where they belong.
_DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration, ArithmeticError)


def part(run: RunDirectory) -> Part:
    """What a diagnosis puts on the page, finished or not."""
    plan = run.pipelines[NAME]
    found = {name: run.json(f"diagnose/{name}.json") for name in DIAGNOSES}
    parts = {name: value for name, value in found.items() if value}
    missing = None if parts else run.missing(NAME, "diagnosis")
    try:
        html = _html(parts, missing)
    except _DAMAGED as error:
        run.problems.append(f"diagnose/ holds numbers that cannot be shown ({type(error).__name__}: {error})")
        html = _html({}, "The files of the diagnosis are there, but cannot be shown.")
    return Part(
        kicker=plan.title,
        title="Does fine-tuning stay near its linearisation?",
        facts=[Fact("Seed", plan.config.get("seed", ""))] if "seed" in plan.config else [],
        sections=[Section("diagnosis", "Diagnosis", html)],
    )


def terminal(folder: str | Path) -> str:
    """What `diagnose` found, a sentence for each figure, and where the figures are."""
    place = Path(folder) / "diagnose"
    parts = {path.stem: read_json(path) for path in sorted(place.glob("*.json")) if path.stem in DIAGNOSES}
    lines = [plain(f"{item.title} {item.found}") for item in figures(parts)]
    return "\n".join(
        [*lines, *worth_lines(parts), f"Figures: {place / 'figures'}; `ntk-jax report` puts them on the page"]
    )


def _html(parts: Parts, missing: str | None) -> Any:
    shown = [Figure(item.title, item.drawing, item.how, item.found) for item in figures(parts)]
    skipped = [
        f"{name.replace('_', ' ').capitalize()}: not computed, {part['skipped']}."
        for name, part in parts.items()
        if "skipped" in part
    ]
    return render(
        "diagnosis.html",
        _TEMPLATES,
        missing=missing,
        lead=_lead(parts) if parts else "",
        figures=shown,
        audit=_audit_table(parts),
        prediction=_prediction_table(parts),
        worth=worth_table(parts),
        regression=_regression_table(parts),
        skipped=skipped,
    )


def _lead(parts: Parts) -> str:
    part = there(parts, "stability")
    if part is None:
        return "Made by `ntk-jax diagnose`."
    paths = trajectories(part)
    last = max(point["step"] for point in part["points"])
    text = f"{count(len(paths))} fine-tuning(s) on the domain up to step {count(last)}"
    if part.get("given"):
        text = "Adapters that were given"
    text += (
        f", {count(len(part['points']))} checkpoints: kernels of {count(part['examples'])} domain examples, scores of "
    )
    return text + f"{count(part['candidates'])} pool examples."


def _audit_table(parts: Parts) -> Table | None:
    part = there(parts, "audit")
    if part is None:
        return None
    rows = []
    for item in part["lines"]:
        reference = "" if item["reference"] == "exact" else f" (against {item['reference']})"
        own = item.get("own_error")
        rows.append(
            [
                item["name"] + ("" if "against" in item["name"] else reference),
                general(item["error"]),
                general(item["scaled_error"]),
                _three(item["spearman_pairs"]),
                _three(item["spearman_scores"]),
                "" if own is None else f"{general(item['own_scaled_error'])} / {_three(item['own_spearman_scores'])}",
                metric(item["flops"], "FLOP"),
                duration(item["seconds"]),
            ]
        )
    header = [
        "Kernel",
        "Error",
        "Rescaled",
        "Spearman, pairs",
        "Spearman, scores",
        "Against its own original",
        "Cost",
        "Time",
    ]
    return Table(
        header,
        rows,
        f"Approximations between {count(part['domain'])} domain and {count(part['pool'])} pool examples",
    )


def _three(value: float | None) -> str:
    """Three decimals: 0.999 and 1.000 are different answers."""
    return "–" if value is None else minus(f"{value:.3f}")


def _prediction_table(parts: Parts) -> Table | None:
    part = there(parts, "prediction")
    if part is None:
        return None
    names = [name for name in part["spearman"] if name != "response length"]
    groups = sorted(records(part["groups"]), key=lambda group: -group["drop"])
    rows = [
        [
            group["family"],
            general(group["drop"]),
            *(general(group[name]) for name in names),
            count(group["response length"]),
        ]
        for group in groups
    ]
    header = ["Family", "Loss drop", *names, "Response tokens"]
    return Table(header, rows, "Groups, largest loss drop first")


def _regression_table(parts: Parts) -> tuple[Table, str] | None:
    part = there(parts, "regression")
    if part is None:
        return None
    tuned, kernels = part["fine_tuned"], part["kernels"]
    answers = [("Base model, by likelihood", part["base"])]
    answers += [(f"Fine-tuned, {found['trajectory']}, step {found['step']}", found) for found in tuned]
    rows = [[name, percent(f["accuracy"]), percent(f["normalized"]), "", _predicted(f)] for name, f in answers]
    for found in kernels:
        name = f"Kernel ridge, {found['objective']} at the {found['at']}, λ = {general(found['ridge'])}"
        rows.append([name, percent(found["accuracy"]), "", general(found["leave_one_out_error"]), _predicted(found)])
    caption = (
        f"Accuracy on {count(part['test'])} questions after {count(part['train'])} examples; chance "
        f"{percent(part['chance'])}, the commonest training answer {percent(part['majority'])}"
    )
    # Chosen by what the training set says, not by the questions.
    chosen = min(kernels, key=lambda found: found["leave_one_out_error"])
    mean = float(np.mean([found["accuracy"] for found in tuned]))
    text = (
        f"Found: the kernel with the least leave-one-out error ({chosen['objective']} at the {chosen['at']}) reaches "
        f"{percent(chosen['accuracy'])}, fine-tuning on the same examples {percent(mean)} (mean of "
        f"{count(len(tuned))})."
    )
    header = ["Model", "Accuracy", "Length-normalised", "Leave-one-out error", "Answers given most"]
    return Table(header, rows, caption), text


def _predicted(found: dict[str, Any]) -> str:
    total = max(sum(found["predicted"].values()), 1)
    return ", ".join(f"{name} {percent(n / total, 0)}" for name, n in list(found["predicted"].items())[:3])
