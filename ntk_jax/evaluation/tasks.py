"""What a file is evaluated for: accuracy where its records have choices, held-out loss where they have none, and the
answers that models write where these are asked for. And the comparison of arms by all of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ntk_jax.data.formats import AUTO, Reading
from ntk_jax.data.sources import read, sample_indices
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import compare, task_files
from ntk_jax.evaluation.bootstrap import GROUP
from ntk_jax.evaluation.choice import check_question
from ntk_jax.evaluation.generated import compare_generated
from ntk_jax.evaluation.loss import compare_losses
from ntk_jax.evaluation.shots import Shots, check_shots, shot_facts, shots_of

METRICS = ("accuracy", "loss", "generated")
OF_TRAINED, OF_UNSEEN = " (trained documents)", " (unseen documents)"  # how the tasks of `split_task` are called
_ENDING = re.compile(r"\.(?:pdf|txt|text|md|markdown|html?|docx?|rtf)$", re.IGNORECASE)


@dataclass(frozen=True)
class Task:
    """name: of its results. where: the file, for messages. records: all, or the sample that is used. metrics: some of
    `METRICS`, in that order. shots: the solved examples before each of its records."""

    name: str
    where: str
    records: list[dict[str, Any]]
    metrics: tuple[str, ...]
    shots: Shots = Shots()


def read_tasks(
    files: Sequence[str],
    metrics: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    reading: Reading = AUTO,
    shots: int = 0,
    shot_files: Mapping[str, Any] | None = None,
) -> list[Task]:
    """The tasks of files or globs, each file one. metrics: see `metrics_of`. limit: a seeded sample of each file.
    reading: what the files are. shots, shot_files: as `shots.shots_of`.

    Raises UserError: as `task_files`, `read` and `shots_of`, and naming file and record as `metrics_of`.
    """
    check_metrics(metrics)
    found = task_files(files)
    if shots:
        check_shots(list(found), shot_files)
    options: dict[str, Any] = {"limit": limit, "seed": seed, "reading": reading}
    options |= {"shots": shots, "shot_files": shot_files}
    return [task_of(name, file, list(read(file, reading)), metrics, **options) for name, file in found.items()]


def task_of(
    name: str,
    where: str,
    records: list[dict[str, Any]],
    metrics: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    reading: Reading = AUTO,
    shots: int = 0,
    shot_files: Mapping[str, Any] | None = None,
) -> Task:
    """A task of checked records in memory. Raises UserError as `metrics_of` and `shots_of`."""
    found = metrics_of(records, where, metrics)
    before = shots_of(name, where, records, shots, shot_files, seed=seed, reading=reading)
    return sampled(Task(name, where, records, found, before), limit, seed)


def sampled(task: Task, limit: int | None, seed: int) -> Task:
    """The task with a seeded sample of its records; limit: None for all."""
    chosen = sample_indices(len(task.records), limit, seed)
    return task if chosen is None else replace(task, records=[task.records[i] for i in chosen])


def split_task(task: Task, key: str, trained: Collection[str]) -> list[Task]:
    """The task's records about documents that a model was trained on, and those about documents that it never saw, as
    tasks of their own: `<name> (trained documents)` and `<name> (unseen documents)`, without one that has no records.

    key: of a record, the document that it is about, such as document_id. trained: documents by that key, where `a.pdf`,
    `A.txt` and `a` are one: items name the file that a text was taken from. Bootstraps of both draw documents in place
    of records (`bootstrap.GROUP`). Raises UserError: a record without the key.
    """
    known = set(map(_document_name, trained))
    parts: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for record in task.records:
        if record.get(key) in (None, ""):
            raise UserError(
                f'{task.where}: record {record["id"]!r} has no "{key}", which names its document; give a key that '
                "all records have"
            )
        document = str(record[key])
        parts[_document_name(document) in known].append(record | {GROUP: document})
    names = {True: f"{task.name}{OF_TRAINED}", False: f"{task.name}{OF_UNSEEN}"}
    return [replace(task, name=names[side], records=found) for side, found in parts.items() if found]


def _document_name(name: object) -> str:
    """Without the ending of its file, and in one case."""
    return _ENDING.sub("", str(name).strip()).casefold()


def check_metrics(metrics: Sequence[str] | None) -> None:
    """Raises UserError for what is neither None nor a list of `METRICS`, at least one."""
    for name in metrics if metrics is not None else METRICS:
        if name not in METRICS:
            raise UserError(f"metrics: {name!r} is not one of {', '.join(METRICS)}")
    if metrics is not None and not metrics:
        raise UserError(f"metrics is empty; give {' or '.join(METRICS)}, or leave it out")


def metrics_of(records: Sequence[Mapping[str, Any]], where: str, asked: Sequence[str] | None = None) -> tuple[str, ...]:
    """What the records of a file are evaluated for. asked: None for accuracy where they have choices and loss where
    they have none; or some of `METRICS`, where `loss` and `generated` may be taken of any record with a response.

    Raises UserError, naming file and record: accuracy alone is asked for and there are no choices, only some records
    have choices, or a record is no question.
    """
    others = tuple(name for name in METRICS[1:] if name in (("loss",) if asked is None else asked))
    if asked is not None and "accuracy" not in asked:
        return others
    without = next((record for record in records if not record.get("choices")), None)
    if without is not None:
        if not others:
            raise UserError(
                f'{where}: record {without["id"]!r} has no choices, and accuracy needs them ("choices": [...], '
                '"answer": index); the metric for records without is loss'
            )
        if any(record.get("choices") for record in records):
            raise UserError(
                f"{where}: record {without['id']!r} has no choices, but others of the file have; put questions and "
                "other examples into files of their own, or ask for loss alone"
            )
        return others
    for record in records:
        check_question(record, where)
    return tuple(name for name in METRICS if name in (asked or ("accuracy",)))


def comparison(
    predictions: Mapping[str, Mapping[str, Any]],
    losses: Mapping[str, Mapping[str, Any]],
    generated: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
    tasks: Sequence[Task] = (),
) -> dict[str, Any]:
    """The body of results.json: what `compare` gives of the tasks with accuracies (no tasks, no averages and no pairs
    where there are none), and under `loss` what `compare_losses` gives, and under `generated` what `compare_generated`
    does, where there are some; and under `shots` what `shot_facts` gives, where there are some.

    predictions, losses, generated: {arm: {task: lines}}. tasks: for their shots. Raises UserError as these.
    """
    found: dict[str, Any] = {"tasks": [], "average": {}, "paired": [], "confidence": confidence, "bootstrap": bootstrap}
    if any(predictions.values()):
        found = compare(predictions, bootstrap=bootstrap, confidence=confidence, seed=seed)
    if any(losses.values()):
        found["loss"] = compare_losses(losses, bootstrap=bootstrap, confidence=confidence, seed=seed)
    if any(generated.values()):
        found["generated"] = compare_generated(generated, bootstrap=bootstrap, confidence=confidence, seed=seed)
    if any(task.shots.records for task in tasks):
        lines = dict(zip(METRICS, (predictions, losses, generated), strict=True))
        found["shots"] = shot_facts({task.name: task.shots for task in tasks}, lines)
    return found
