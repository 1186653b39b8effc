"""Multiple choice by likelihood, held-out loss and generated answers, as each file asks for them, for every arm, and
the comparison of the arms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import evaluate_records, task_files
from ntk_jax.evaluation.generated import Grading, generated_answers, rule_of
from ntk_jax.evaluation.loss import held_out_losses
from ntk_jax.evaluation.tasks import METRICS, Task, check_metrics, comparison, read_tasks
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.common.examples import rendering_of
from ntk_jax.pipelines.common.reading import reading_of, say_formats
from ntk_jax.pipelines.select.arms import Arm, arms
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.selection.records import record_line
from ntk_jax.storage.atomic import make_folder, read_json, write_json, write_lines
from ntk_jax.storage.reading import read_json_lines

FACTS = ("title", "examples", "steps", "tokens", "label_tokens", "domain_label_tokens", "flops")
FOLDERS = {
    "accuracy": "predictions",
    "loss": "losses",
    "generated": "answers",
}  # metric → where its lines are kept, a folder an arm
UNITS = {"accuracy": "questions", "loss": "examples", "generated": "replies"}


def check(config: SelectConfig) -> None:
    """Raises UserError: there is nothing to evaluate on, or no such metric."""
    if not config.evaluate.files:
        raise UserError("evaluate.files is empty; give at least one file, or stop with --until finetune")
    try:
        check_metrics(config.evaluate.metrics)
        grading_of(config)
    except UserError as error:
        raise UserError(f"evaluate.{error}") from None


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError for an evaluation file that is absent or holds records that its metrics cannot be taken of."""
    section = run.config.evaluate
    files = tuple(task_files(section.files).values()) if section.files else ()
    say_formats(run.job.progress, "evaluate.files", files, reading_of(run.config, "evaluate"))
    for task in tasks_of(run.config):
        for record in task.records if "generated" in task.metrics else ():
            rule_of(record, section.answer_rule, task.where)


def tasks_of(config: SelectConfig) -> list[Task]:
    """The tasks of evaluate.files. Raises UserError as `check_inputs`."""
    section, reading = config.evaluate, reading_of(config, "evaluate")
    return read_tasks(section.files, section.metrics, limit=section.limit, seed=config.seed, reading=reading)


def grading_of(config: SelectConfig) -> Grading:
    """How generated answers are asked for and read. Raises UserError as `Grading`."""
    section = config.evaluate
    try:
        return Grading(section.answer_rule, section.answer_pattern, section.answer_tokens, tuple(section.answer_stop))
    except UserError as error:
        raise UserError(f"answer_{error}") from None


def evaluate(run: SelectRun, folder: Path) -> Facts:
    """Writes predictions/<arm>/, losses/<arm>/ and answers/<arm>/, as the tasks ask for them, and results.json; a
    task on which an arm was evaluated before is not evaluated again."""
    config, clock, tasks = run.config, Clock(run.job.folder, "evaluate"), tasks_of(run.config)
    lines: dict[str, dict[str, Any]] = {metric: {} for metric in METRICS}
    for arm in arms(config):
        for metric in METRICS:
            asked = [task for task in tasks if metric in task.metrics]
            place = folder / FOLDERS[metric] / arm.name
            _measure(run, arm, metric, asked, place, clock)
            hosts.barrier(f"evaluated {metric} of {arm.name}")
            remedy = f"delete the folder {place} and run again"
            lines[metric][arm.name] = {
                task.name: read_json_lines(place / f"{task.name}.jsonl", remedy) for task in asked
            }
    section = config.evaluate
    results = comparison(
        *(lines[metric] for metric in METRICS),
        bootstrap=section.bootstrap,
        confidence=section.confidence,
        seed=config.seed,
    )
    results["arms"] = [_arm_facts(run, arm) for arm in arms(config)]
    write_json(folder / "results.json", results)
    write_json(folder / "summary.json", {"seconds": clock.seconds()})
    return {"tasks": [task.name for task in tasks]}


def _measure(run: SelectRun, arm: Arm, metric: str, tasks: list[Task], place: Path, clock: Clock) -> None:
    """Evaluates an arm on the tasks that tasks.json of its folder does not name yet."""
    done = hosts.broadcast(lambda: read_json(place / "tasks.json") if (place / "tasks.json").exists() else {})
    missing = [task for task in tasks if task.name not in done]
    if not missing:
        return
    trained = run.job.folder / "finetune" / arm.name / "adapter"
    model = run.model.adapted(trained) if arm.trained else run.model.base
    config = run.config
    for task in missing:
        unit = f"{UNITS[metric]} of {task.name}"
        options: dict[str, Any] = {
            "max_length": config.model.max_length,
            "rendering": rendering_of(config.model),
            "overflow": config.model.overflow,
            "batch_tokens": config.score.batch_tokens,
            "mesh": run.model.mesh,
            "where": task.where,
            "progress": clock.ticking(run.job.progress(f"evaluate {arm.name}", None, unit)),
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


def _arm_facts(run: SelectRun, arm: Arm) -> dict[str, Any]:
    if not arm.trained:
        return {"name": arm.name, "title": arm.title, **dict.fromkeys(FACTS[1:], 0)}
    facts = read_json(run.job.folder / "finetune" / arm.name / "summary.json", dict)
    return {"name": arm.name, **{key: facts[key] for key in FACTS}}
