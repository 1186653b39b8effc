"""The evaluation of arms: multiple choice by likelihood, held-out loss and generated answers, as each file asks for
them, and the comparison of the arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts, Job
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import evaluate_records, task_files
from ntk_jax.evaluation.generated import Grading, generated_answers, rule_of
from ntk_jax.evaluation.loss import held_out_losses
from ntk_jax.evaluation.tasks import METRICS, Task, check_metrics, comparison, read_tasks
from ntk_jax.models.model import Model
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.common.examples import rendering_of
from ntk_jax.pipelines.common.model import RunModel
from ntk_jax.pipelines.common.reading import reading_of, say_formats
from ntk_jax.selection.records import record_line
from ntk_jax.storage.atomic import make_folder, read_json, write_json, write_lines
from ntk_jax.storage.reading import read_json_lines

FOLDERS = {
    "accuracy": "predictions",
    "loss": "losses",
    "generated": "answers",
}  # metric → where its lines are kept, a folder an arm
UNITS = {"accuracy": "questions", "loss": "examples", "generated": "replies"}


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated. config: with the sections model and evaluate, and a seed. names: of the arms. model_of(name):
    the arm's model, asked only for what was not evaluated before. batch_tokens: of one compiled step. tasks: None for
    those of evaluate.files. about: what results.json says besides."""

    config: Any
    job: Job
    model: RunModel
    names: Sequence[str]
    model_of: Callable[[str], Model]
    batch_tokens: int
    tasks: Sequence[Task] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def check_evaluation(config: Any) -> None:
    """Raises UserError: no such metric, or answers that cannot be read as it is asked."""
    try:
        check_metrics(config.evaluate.metrics)
        grading_of(config)
    except UserError as error:
        raise UserError(f"evaluate.{error}") from None


def check_files(config: Any, job: Job, files: tuple[str, ...] | None = None, *, whole: bool = False) -> None:
    """Raises UserError for an evaluation file that is absent or holds records that its metrics cannot be taken of.
    files: None for those of evaluate.files. whole: as `tasks_of`, where it is not known yet which records are taken."""
    section = config.evaluate
    given = section.files if files is None else files
    found = tuple(task_files(given).values()) if given else ()
    say_formats(job.progress, "evaluate.files", found, reading_of(config, "evaluate"))
    for task in tasks_of(config, files, whole=whole):
        if "generated" in task.metrics:
            for record in task.records:
                rule_of(record, section.answer_rule, task.where)
            for record in task.shots.records:
                rule_of(record, section.answer_rule, task.shots.file)


def tasks_of(config: Any, files: tuple[str, ...] | None = None, *, whole: bool = False) -> list[Task]:
    """The tasks of files, None for those of evaluate.files. whole: with all records, whatever evaluate.limit is. Raises
    UserError as `check_files`."""
    section, reading = config.evaluate, reading_of(config, "evaluate")
    options: dict[str, Any] = {"limit": None if whole else section.limit, "seed": config.seed, "reading": reading}
    options |= {"shots": section.shots, "shot_files": section.shot_files}
    try:
        return read_tasks(section.files if files is None else files, section.metrics, **options)
    except UserError as error:
        prefix = "evaluate." if str(error).startswith("shot") else ""
        raise UserError(f"{prefix}{error}") from None


def grading_of(config: Any) -> Grading:
    """How generated answers are asked for and read. Raises UserError as `Grading`."""
    section = config.evaluate
    try:
        return Grading(section.answer_rule, section.answer_pattern, section.answer_tokens, tuple(section.answer_stop))
    except UserError as error:
        raise UserError(f"answer_{error}") from None


def evaluate_arms(asked: Evaluation, folder: Path, facts: Sequence[Mapping[str, Any]]) -> Facts:
    """Writes predictions/<arm>/, losses/<arm>/ and answers/<arm>/, as the tasks ask for them, and results.json; a
    task on which an arm was evaluated before is not evaluated again. facts: of the arms, for results.json."""
    config, clock = asked.config, Clock(asked.job.folder, folder.name)
    tasks = tasks_of(config) if asked.tasks is None else list(asked.tasks)
    lines: dict[str, dict[str, Any]] = {metric: {} for metric in METRICS}
    for name in asked.names:
        model: Model | None = None
        for metric in METRICS:
            of_metric = [task for task in tasks if metric in task.metrics]
            place = folder / FOLDERS[metric] / name
            done = _done(place)
            missing = [task for task in of_metric if task.name not in done]
            if missing:
                model = model or asked.model_of(name)
                _measure(asked, model, name, metric, missing, place, done, clock)
            hosts.barrier(f"evaluated {metric} of {name}")
            remedy = f"delete the folder {place} and run again"
            lines[metric][name] = {
                task.name: read_json_lines(place / f"{task.name}.jsonl", remedy) for task in of_metric
            }
    section = config.evaluate
    results = comparison(
        *(lines[metric] for metric in METRICS),
        bootstrap=section.bootstrap,
        confidence=section.confidence,
        seed=config.seed,
        tasks=tasks,
    )
    results |= {"arms": list(facts), **asked.about}
    write_json(folder / "results.json", results)
    write_json(folder / "summary.json", {"seconds": clock.seconds()})
    return {"tasks": [task.name for task in tasks]}


def _done(place: Path) -> dict[str, Any]:
    """The tasks of a folder whose lines are whole."""
    found: dict[str, Any] = hosts.broadcast(
        lambda: read_json(place / "tasks.json", dict) if (place / "tasks.json").exists() else {}
    )
    return found


def _measure(
    asked: Evaluation,
    model: Model,
    arm: str,
    metric: str,
    tasks: list[Task],
    place: Path,
    done: dict[str, Any],
    clock: Clock,
) -> None:
    """Evaluates an arm on tasks, and adds each to tasks.json of its folder when its lines are whole."""
    config = asked.config
    for task in tasks:
        unit = f"{UNITS[metric]} of {task.name}"
        options: dict[str, Any] = {
            "max_length": config.model.max_length,
            "rendering": rendering_of(config.model),
            "overflow": config.model.overflow,
            "batch_tokens": asked.batch_tokens,
            "mesh": asked.model.mesh,
            "where": task.where,
            "shots": task.shots.records,
            "progress": clock.ticking(asked.job.progress(f"evaluate {arm}", None, unit)),
        }
        if metric == "accuracy":
            found = evaluate_records(model, task.records, **options)
        elif metric == "generated":
            del options["overflow"], options["batch_tokens"]
            found = {"flops": 0.0} | generated_answers(model, task.records, grading=grading_of(config), **options)
        else:
            found = held_out_losses(model, task.records, **options)
        make_folder(place)
        write_lines(place / f"{task.name}.jsonl", (record_line(line) for line in found[FOLDERS[metric]]))
        done[task.name] = {key: found[key] for key in ("tokens", "flops")}
        write_json(place / "tasks.json", done)  # last: it says that the lines are whole
