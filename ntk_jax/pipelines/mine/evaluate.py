"""Accuracy and held-out loss of every arm on evaluation files, and the comparison of the arms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import evaluate_records, task_files
from ntk_jax.evaluation.loss import held_out_losses
from ntk_jax.evaluation.tasks import METRICS, Task, check_metrics, comparison, read_tasks
from ntk_jax.models.model import Model
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.common.examples import rendering_of
from ntk_jax.pipelines.common.reading import reading_of, say_formats
from ntk_jax.pipelines.mine.pretrain import BASE, PretrainRun, model_of
from ntk_jax.selection.records import record_line
from ntk_jax.storage.atomic import make_folder, read_json, write_json, write_lines
from ntk_jax.storage.reading import read_json_lines

FOLDERS = {"accuracy": "predictions", "loss": "losses"}  # metric → where its lines are kept, a folder an arm
UNITS = {"accuracy": "questions", "loss": "examples"}


def check(config: Any) -> None:
    """Raises UserError: no such metric, arms that were not trained."""
    try:
        check_metrics(config.evaluate.metrics)
    except UserError as error:
        raise UserError(f"evaluate.{error}") from None
    if config.evaluate.arms is not None and not config.evaluate.arms:
        raise UserError("evaluate.arms is empty; give base or arms of pretrain.arms, or null for all")


def check_inputs(run: PretrainRun, closing: bool) -> None:
    """Raises UserError for an evaluation file that is absent or holds records that its metrics cannot be taken of."""
    section = run.config.evaluate
    files = tuple(task_files(section.files).values()) if section.files else ()
    say_formats(run.job.progress, "evaluate.files", files, reading_of(run.config, "evaluate"))
    tasks_of(run.config)


def tasks_of(config: Any) -> list[Task]:
    """The tasks of evaluate.files. Raises UserError as `check_inputs`."""
    section, reading = config.evaluate, reading_of(config, "evaluate")
    return read_tasks(section.files, section.metrics, limit=section.limit, seed=config.seed, reading=reading)


def evaluate(run: PretrainRun, folder: Path) -> Facts:
    """Writes predictions/<arm>/ and losses/<arm>/, as the tasks ask for them, and results.json; a task on which an arm
    was evaluated before is not evaluated again."""
    config, clock, tasks = run.config, Clock(run.job.folder, folder.name), tasks_of(run.config)
    trained = run.job.folder / "pretrain"
    facts = {arm["name"]: arm for arm in read_json(trained / "summary.json", dict)["arms"]}
    lines: dict[str, dict[str, Any]] = {metric: {} for metric in METRICS}
    names = _names(config, list(facts))
    for name in names:
        model: Model | None = None
        for metric in METRICS:
            asked = [task for task in tasks if metric in task.metrics]
            place = folder / FOLDERS[metric] / name
            done = _done(place)
            missing = [task for task in asked if task.name not in done]
            if missing:
                model = model or model_of(run, trained, name)
                _measure(run, model, name, metric, missing, place, done, clock)
            hosts.barrier(f"evaluated {metric} of {name}")
            remedy = f"delete the folder {place} and run again"
            lines[metric][name] = {task.name: read_json_lines(place / f"{task.name}.jsonl", remedy) for task in asked}
    section = config.evaluate
    results = comparison(
        *(lines[metric] for metric in METRICS),
        bootstrap=section.bootstrap,
        confidence=section.confidence,
        seed=config.seed,
    )
    shown = ("title", "share", "steps", "tokens", "label_tokens", "flops")
    results["arms"] = [{"name": name, **{key: facts[name].get(key, 0) for key in shown}} for name in names]
    write_json(folder / "results.json", results)
    write_json(folder / "summary.json", {"seconds": clock.seconds()})
    return {"tasks": [task.name for task in tasks]}


def _names(config: Any, trained: list[str]) -> list[str]:
    """The arms of evaluate.arms, by default all. Raises UserError: one that was not trained."""
    names = list(config.evaluate.arms) if config.evaluate.arms is not None else trained
    for name in names:
        if name not in trained:
            raise UserError(f"evaluate.arms: there is no arm {name}; choose from {', '.join([BASE, *trained[1:]])}")
    return names


def _done(place: Path) -> dict[str, Any]:
    """The tasks of a folder whose lines are whole."""
    found: dict[str, Any] = hosts.broadcast(
        lambda: read_json(place / "tasks.json", dict) if (place / "tasks.json").exists() else {}
    )
    return found


def _measure(
    run: PretrainRun,
    model: Model,
    arm: str,
    metric: str,
    tasks: list[Task],
    place: Path,
    done: dict[str, Any],
    clock: Clock,
) -> None:
    """Evaluates an arm on tasks, and adds each to tasks.json of its folder when its lines are whole."""
    config = run.config
    for task in tasks:
        unit = f"{UNITS[metric]} of {task.name}"
        options: dict[str, Any] = {
            "max_length": config.model.max_length,
            "rendering": rendering_of(config.model),
            "overflow": config.model.overflow,
            "batch_tokens": config.pretrain.tokens_per_microbatch,
            "mesh": run.model.mesh,
            "where": task.where,
            "progress": clock.ticking(run.job.progress(f"evaluate {arm}", None, unit)),
        }
        found = (evaluate_records if metric == "accuracy" else held_out_losses)(model, task.records, **options)
        make_folder(place)
        write_lines(place / f"{task.name}.jsonl", (record_line(line) for line in found[FOLDERS[metric]]))
        done[task.name] = {key: found[key] for key in ("tokens", "flops")}
        write_json(place / "tasks.json", done)
