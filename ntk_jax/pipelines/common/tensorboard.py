"""The metrics of a run for TensorBoard, in RUN/tensorboard beside the stages: one TensorBoard run for each training and
for each evaluated arm. They are made from history.jsonl and results.json, so they can be made anew at any time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ntk_jax.errors import UserError
from ntk_jax.evaluation.loss import KINDS as LOSSES
from ntk_jax.parallel import hosts
from ntk_jax.report.tensorboard import Row, refuse_missing, write_scalars
from ntk_jax.storage.atomic import read_json
from ntk_jax.storage.reading import read_json_lines

FOLDER = "tensorboard"  # of a run directory
SECONDS = 2.0  # between two looks at a training's history
ACCURACIES = ("raw", "normalized")  # of an arm, see `evaluation.accuracy.compare`


def check_tensorboard(config: Any) -> None:
    """Raises UserError: it is asked for and not installed."""
    if config.report.tensorboard:
        refuse_missing("report.tensorboard")


def followed(config: Any, run: Path, name: str, progress: Callable[..., None]) -> Callable[..., None]:
    """The progress of the training in the folder RUN/name, which also brings its events to what its history holds.

    The history grows with every checkpoint; the events follow at the next step.
    """
    if not config.report.tensorboard or not hosts.is_primary():
        return progress
    history, looked, seen = run / name / "history.jsonl", float("-inf"), -1

    def tick(*arguments: Any) -> None:
        nonlocal looked, seen
        progress(*arguments)
        if time.monotonic() - looked < SECONDS or not history.exists():
            return
        looked = time.monotonic()
        changed = history.stat().st_mtime_ns
        if changed != seen:
            seen = changed
            _write_training(run, name)

    return tick


def write_events(config: Any, run: Path) -> None:
    """Brings the events of a run directory to what its stages hold: every training, and every arm's accuracies and
    losses."""
    if not config.report.tensorboard:
        return
    for history in sorted(run.rglob("history.jsonl")):
        _write_training(run, str(history.parent.relative_to(run)))
    results = run / "evaluate" / "results.json"
    if results.exists():
        _write_evaluation(run, read_json(results, dict))


def _write_training(run: Path, name: str) -> None:
    """A tag for each number of a step, but for the step itself."""
    history = run / name / "history.jsonl"
    remedy = f"delete the folder {history.parent} and run again"
    lines = read_json_lines(history, remedy)
    try:
        rows: list[Row] = [
            (line["step"], {tag: float(value) for tag, value in line.items() if tag != "step"}) for line in lines
        ]
        write_scalars(run / FOLDER / name, rows)
    except (TypeError, OverflowError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{history} is damaged, it holds something other than numbers; {remedy}") from None


def _write_evaluation(run: Path, results: Any) -> None:
    """Of each arm its accuracies and held-out losses on every task and on average, with the ends of their intervals;
    the step is how many optimiser steps the arm was trained."""
    for arm in results["arms"]:
        values = _tags(results, ACCURACIES, "accuracy", arm["name"])
        if "loss" in results:
            values |= _tags(results["loss"], LOSSES, "loss", arm["name"])
        write_scalars(run / FOLDER / "evaluate" / arm["name"], [(int(arm["steps"]), values)])


def _tags(compared: Any, kinds: Sequence[str], key: str, arm: str) -> dict[str, float]:
    """TASK/KIND/KEY and its interval, of an arm. compared: tasks and average, both empty where nothing is compared."""
    tasks = [(task["name"], task["results"]) for task in compared["tasks"]]
    return {
        f"{task}/{kind}/{name}": float(found[arm][kind][name])
        for task, found in [*tasks, *([("average", compared["average"])] if tasks else [])]
        for kind in kinds
        for name in (key, "low", "high")
    }
