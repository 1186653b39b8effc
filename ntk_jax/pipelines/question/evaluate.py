"""The trained arms on every evaluation file: items on documents that were asked about and on others apart, and files of
other subjects, where forgetting shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError, note, shown
from ntk_jax.evaluation.accuracy import task_files
from ntk_jax.evaluation.tasks import OF_TRAINED, Task, sampled, split_task
from ntk_jax.pipelines.common.evaluate import Evaluation, check_evaluation, check_files, evaluate_arms, tasks_of
from ntk_jax.pipelines.question.arms import BASE, OWN, ROUND
from ntk_jax.pipelines.question.chunk import trained_documents
from ntk_jax.pipelines.question.config import QuestionConfig, evaluation_sources
from ntk_jax.pipelines.question.state import QuestionRun
from ntk_jax.pipelines.question.train import model_of
from ntk_jax.storage.atomic import read_json

BATCH_TOKENS = 8192
FACTS = ("title", "examples", "steps", "tokens", "label_tokens", "flops")


def check(config: QuestionConfig) -> None:
    """Raises UserError: no such metric, or arms that are not trained."""
    check_evaluation(config)
    if config.evaluate.arms is None:
        return
    if not config.evaluate.arms:
        raise UserError("evaluate.arms is empty; give base or arms of train.arms, or null for all")
    rounds = range(config.ask.rounds if config.train.by_round and OWN in config.train.arms else 0)
    known = [BASE, *config.train.arms, *(f"{ROUND}{number}" for number in rounds)]
    for name in config.evaluate.arms:
        if name not in known:
            raise UserError(f"evaluate.arms: there is no arm {name}; choose from {', '.join(known)}")


def check_inputs(run: QuestionRun, closing: bool) -> None:
    """Raises UserError for an evaluation file that is absent or holds records that its metrics cannot be taken of, or
    that do not name their documents."""
    config = run.config
    check_files(config, run.job, evaluation_sources(config), whole=True)
    if config.evaluate.by_document is not None and config.evaluate.files:
        for task in tasks_of(config, config.evaluate.files, whole=True):
            split_task(task, config.evaluate.by_document, ())


def evaluate(run: QuestionRun, folder: Path) -> Facts:
    """Writes what `evaluate_arms` does, for the base, all arms, and the arms on their way."""
    config, trained = run.config, run.job.folder / "train"
    summaries = {arm["name"]: arm for arm in read_json(trained / "summary.json", dict)["arms"]}
    every_arm = [BASE, *_last_is_first(summaries)]
    # A method that brought nothing has no arm, also where it is asked for.
    names = every_arm if config.evaluate.arms is None else [name for name in config.evaluate.arms if name in every_arm]
    if not names:
        raise UserError(f"evaluate.arms: none of these was trained; choose from {', '.join(every_arm)}")
    points = [f"{name}@{step}" for name in names if name != BASE for step in summaries[name]["points"][:-1]]
    facts: list[dict[str, Any]] = [{"name": BASE, "title": "base model"} | dict.fromkeys(FACTS[1:], 0)]
    for name in names:
        if name != BASE:
            facts.append({"name": name, **{key: summaries[name][key] for key in FACTS}})
    for point in points:
        name, step = point.split("@")
        about = summaries[name]
        facts.append({"name": point, "arm": name, "step": int(step), "tokens": about["tokens_at"][step]})
    every = [*names, *points]
    found = tasks(run)
    others = set(task_files(config.evaluate.general).values() if config.evaluate.general else ())
    general = {"general": [task.name for task in found if task.where in others]}
    asked = Evaluation(
        config, run.job, run.model, every, lambda name: model_of(run, trained, name), BATCH_TOKENS, found, general
    )
    return evaluate_arms(asked, folder, [fact for fact in facts if fact["name"] in every])


def tasks(run: QuestionRun) -> list[Task]:
    """The tasks of all files, those of `evaluate.files` by whether their documents were asked about. evaluate.limit is
    of each part: of few documents that were asked about, a sample of the whole file would hold next to nothing."""
    config = run.config
    key = config.evaluate.by_document
    trained = set(trained_documents(run)) if key is not None else set()
    found: list[Task] = []
    for task, own in _whole_tasks(config):
        parts = _by_document(task, key, trained) if key is not None and own else [task]
        found += [sampled(part, config.evaluate.limit, config.seed) for part in parts]
    return found


def expected_tasks(config: QuestionConfig) -> list[Task]:
    """Tasks of as many records as `tasks` has at most, where it is not known yet which documents are asked about."""
    section = config.evaluate
    return [
        sampled(task, section.limit and section.limit * (2 if own and section.by_document else 1), config.seed)
        for task, own in _whole_tasks(config)
    ]


def _whole_tasks(config: QuestionConfig) -> Iterator[tuple[Task, bool]]:
    """The tasks of all files with all records, and whether each is one of `evaluate.files`."""
    own = set(task_files(config.evaluate.files).values() if config.evaluate.files else ())
    for task in tasks_of(config, evaluation_sources(config), whole=True):
        yield task, task.where in own


def _by_document(task: Task, key: str, trained: set[str]) -> list[Task]:
    """The task in its two parts. That no item is of a document that was asked about is said: names may differ."""
    parts = split_task(task, key, trained)
    if not any(part.name.endswith(OF_TRAINED) for part in parts):
        document, item = next(iter(sorted(trained))), str(task.records[0][key])
        note(
            f"{Path(task.where).name}: no item is about a document that was asked about, so all count as unseen; "
            f"documents are called {shown(document)}, the {key} of an item {shown(item)}: where these mean the same, "
            "set documents.columns or evaluate.by_document"
        )
    return parts


def _last_is_first(summaries: dict[str, Any]) -> list[str]:
    """The arms with the one that all are compared with at the end, as the report reads them."""
    first, *others = summaries
    return [*others, first]
