"""What commands of pipelines end with in the terminal: the lines of the stages that are done, and of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ntk_jax.pipelines.common.shots import shot_lines
from ntk_jax.report.balanced import balanced_lines
from ntk_jax.report.text import align, plain
from ntk_jax.storage.atomic import read_json

Lines = Callable[[dict[str, Any], Path], list[str]]


def stage_lines(folder: Path, parts: Mapping[str, Lines]) -> str:
    """The lines of all stages that are there. parts: {stage: from its summary and the run's folder to lines}."""
    found = []
    for name, lines in parts.items():
        path = folder / name / ("results.json" if name == "evaluate" else "summary.json")
        if path.exists() and (folder / name / "manifest.json").exists():
            found.append("\n".join(lines(read_json(path, dict), folder)))
    return "\n\n".join(plain(part) for part in found)


def evaluation_lines(found: dict[str, Any], folder: Path, arms: Sequence[dict[str, Any]] | None = None) -> list[str]:
    """Accuracies, losses and balanced accuracies of results.json. arms: those that are shown, None for all."""
    arms = found["arms"] if arms is None else arms
    rows = [["task", "measure", *(str(arm["title"]) for arm in arms)]]
    parts = [(found, "accuracy", "normalized"), (found.get("loss", {}), "loss", "by_example")]
    for part, measure, kind in [*parts, (found.get("generated", {}), "accuracy", None)]:
        for task in part.get("tasks", []):
            cells = [task["results"][arm["name"]] for arm in arms]
            shown = [cell if kind is None else cell[kind] for cell in cells]
            what = "generated answers" if kind is None else measure
            rows.append([task["name"], what, *(interval(each | {"value": each[measure]}, 3) for each in shown)])
    balanced = balanced_lines(found, [(str(arm["name"]), str(arm["title"])) for arm in arms])
    about = ["Balanced accuracy:", *balanced] if balanced else []
    return ["Evaluation:", *align(rows, rules_before={1}), *about, *shot_lines(found)]


def interval(found: dict[str, Any] | None, digits: int = 2) -> str:
    """A value with its interval; nothing where there is none."""
    if not found or found["value"] is None:
        return ""
    value, low, high = (number(found[key], digits) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def number(value: Any, digits: int = 3) -> str:
    """Nothing where it is not known."""
    return "" if value is None or value != value else f"{value:.{digits}f}"
