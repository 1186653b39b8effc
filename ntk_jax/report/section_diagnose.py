"""The diagnosis: does fine-tuning stay in the NTK regime, which approximations hold, and which score ranks right?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ntk_jax.report.amounts import count, duration, general, metric, minus, percent
from ntk_jax.report.blocks import figure, grid, section
from ntk_jax.report.diagnosis_figures import Parts, figures, there, trajectories
from ntk_jax.report.markup import Html, fold, table, tag
from ntk_jax.report.reading import Run, records


def diagnosis(run: Run) -> Html:
    """The section; nothing where `ntk-jax diagnose` did not run."""
    if not run.diagnose:
        return Html("")
    title = "Diagnosis"
    parts = {name: part for name, part in run.diagnose.items() if part}
    if not parts:
        return section("diagnosis", title, tag("p", "The diagnosis was started and is not finished.", class_="missing"))
    shown = [figure(item.drawing, item.title, item.how, item.found) for item in figures(parts)]
    tables = [made for made in (_audit_table(parts), _prediction_table(parts), _regression_table(parts)) if made]
    return section("diagnosis", title, _lead(parts), grid(*shown), *tables, *_skipped(parts))


def _skipped(parts: Parts) -> list[Html]:
    return [
        tag("p", f"{name.replace('_', ' ').capitalize()}: not computed, {part['skipped']}.", class_="missing")
        for name, part in parts.items()
        if "skipped" in part
    ]


def _lead(parts: Parts) -> Html:
    part = there(parts, "stability")
    if part is None:
        return tag("p", "Made by `ntk-jax diagnose`.", class_="lead")
    paths = trajectories(part)
    last = max(point["step"] for point in part["points"])
    text = f"{count(len(paths))} fine-tuning(s) on the domain up to step {count(last)}"
    if part.get("given"):
        text = "Adapters that were given"
    text += (
        f", {count(len(part['points']))} checkpoints: kernels of {count(part['examples'])} domain examples, scores of "
    )
    return tag("p", text + f"{count(part['candidates'])} pool examples.", class_="lead")


def _audit_table(parts: Parts) -> Html | None:
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
    made = table(
        header,
        rows,
        caption=f"Approximations between {count(part['domain'])} domain and {count(part['pool'])} pool examples",
    )
    text = (
        "Error is ‖K − K*‖/‖K*‖ against the exact centred trace over LoRA leaves, rescaled the same after the best "
        "factor; Spearman is over all pairs, and over the pool examples' mean kernels with the domain (what selection "
        "sorts by). Projections and bfloat16 are also held against what they approximate directly (rescaled error / "
        "Spearman)."
    )
    return fold(
        "The approximation audit", made, tag("p", tag("b", "How to read: "), text, class_="caption"), open_=True
    )


def _three(value: float | None) -> str:
    """Three decimals: 0.999 and 1.000 are different answers."""
    return "–" if value is None else minus(f"{value:.3f}")


def _prediction_table(parts: Parts) -> Html | None:
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
    return fold("Groups that were trained on", table(header, rows, caption="Groups, largest loss drop first"))


def _regression_table(parts: Parts) -> Html | None:
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
    made = table(header, rows, caption=caption)
    return fold("Kernel regression against fine-tuning", made, tag("p", text, class_="caption"), open_=True)


def _predicted(found: dict[str, Any]) -> str:
    total = max(sum(found["predicted"].values()), 1)
    return ", ".join(f"{name} {percent(n / total, 0)}" for name, n in list(found["predicted"].items())[:3])
