"""Multiple choice by likelihood for every arm on every file, and the comparison of the arms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import compare, read_questions, task_files
from ntk_jax.evaluation.accuracy import evaluate as evaluate_files
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.select.arms import Arm, arms
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.selection.records import record_line
from ntk_jax.storage.atomic import make_folder, read_json, write_json, write_lines
from ntk_jax.storage.reading import read_json_lines

FACTS = ("title", "examples", "steps", "tokens", "label_tokens", "domain_label_tokens", "flops")


def check(config: SelectConfig) -> None:
    """Raises UserError: there is nothing to evaluate on."""
    if not config.evaluate.files:
        raise UserError(
            "evaluate.files is empty; give at least one multiple-choice file, or stop with --until finetune"
        )


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError for an evaluation file that is absent or holds anything but multiple-choice questions."""
    check_questions(run.config.evaluate.files)


def check_questions(files: tuple[str, ...]) -> None:
    """Raises UserError as `check_inputs`."""
    for file in task_files(files).values():
        read_questions(file)


def evaluate(run: SelectRun, folder: Path) -> Facts:
    """Writes predictions/<arm>/ and results.json; an arm that was evaluated before is not evaluated again."""
    config, clock = run.config, Clock(run.job.folder, "evaluate")
    predictions = {}
    for arm in arms(config):
        place = folder / "predictions" / arm.name
        if not hosts.broadcast((place / "tasks.json").exists):  # written last
            _predict(run, arm, place, clock)
        hosts.barrier(f"evaluated {arm.name}")
        remedy = f"delete the folder {place} and run again"
        tasks = read_json(place / "tasks.json", dict)
        predictions[arm.name] = {name: read_json_lines(place / f"{name}.jsonl", remedy) for name in tasks}
    section = config.evaluate
    results = compare(predictions, bootstrap=section.bootstrap, confidence=section.confidence, seed=config.seed)
    results["arms"] = [_arm_facts(run, arm) for arm in arms(config)]
    write_json(folder / "results.json", results)
    write_json(folder / "summary.json", {"seconds": clock.seconds()})
    return {"tasks": [task["name"] for task in results["tasks"]]}


def _predict(run: SelectRun, arm: Arm, place: Path, clock: Clock) -> None:
    config = run.config
    trained = run.job.folder / "finetune" / arm.name / "adapter"
    tasks = evaluate_files(
        run.model.adapted(trained) if arm.trained else run.model.base,
        config.evaluate.files,
        max_length=config.model.max_length,
        template=config.model.template,
        overflow=config.model.overflow,
        batch_tokens=config.score.batch_tokens,
        limit=config.evaluate.limit,
        seed=config.seed,
        mesh=run.model.mesh,
        progress=functools.partial(_progress, run, arm, clock),
    )
    make_folder(place)
    for name, task in tasks.items():
        write_lines(place / f"{name}.jsonl", (record_line(line) for line in task["predictions"]))
    write_json(place / "tasks.json", {n: {k: t[k] for k in ("tokens", "flops")} for n, t in tasks.items()})


def _progress(run: SelectRun, arm: Arm, clock: Clock, task: str) -> Callable[..., None]:
    return clock.ticking(run.job.progress(f"evaluate {arm.name}", None, f"questions of {task}"))


def _arm_facts(run: SelectRun, arm: Arm) -> dict[str, Any]:
    if not arm.trained:
        return {"name": arm.name, "title": arm.title, **dict.fromkeys(FACTS[1:], 0)}
    facts = read_json(run.job.folder / "finetune" / arm.name / "summary.json", dict)
    return {"name": arm.name, **{key: facts[key] for key in FACTS}}
