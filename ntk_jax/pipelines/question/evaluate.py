"""The trained arms on every evaluation file: items on documents that were asked about and on others apart, and files of
other subjects, where forgetting shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import task_files
from ntk_jax.evaluation.tasks import Task, split_task
from ntk_jax.pipelines.common.evaluate import Evaluation, check_evaluation, check_files, evaluate_arms, tasks_of
from ntk_jax.pipelines.question.arms import BASE
from ntk_jax.pipelines.question.chunk import trained_documents
from ntk_jax.pipelines.question.config import QuestionConfig, evaluation_sources
from ntk_jax.pipelines.question.state import QuestionRun
from ntk_jax.pipelines.question.train import model_of
from ntk_jax.storage.atomic import read_json

BATCH_TOKENS = 8192
FACTS = ("title", "examples", "steps", "tokens", "label_tokens", "flops")


def check(config: QuestionConfig) -> None:
    """Raises UserError: no such metric, or arms that are no names."""
    check_evaluation(config)
    if config.evaluate.arms is not None and not config.evaluate.arms:
        raise UserError("evaluate.arms is empty; give base or arms of train.arms, or null for all")


def check_inputs(run: QuestionRun, closing: bool) -> None:
    """Raises UserError for an evaluation file that is absent or holds records that its metrics cannot be taken of."""
    check_files(run.config, run.job, evaluation_sources(run.config))


def evaluate(run: QuestionRun, folder: Path) -> Facts:
    """Writes what `evaluate_arms` does, for the base, all arms, and the arms on their way."""
    config, trained = run.config, run.job.folder / "train"
    summaries = {arm["name"]: arm for arm in read_json(trained / "summary.json", dict)["arms"]}
    names = list(config.evaluate.arms) if config.evaluate.arms is not None else [BASE, *_last_is_first(summaries)]
    for name in names:
        if name != BASE and name not in summaries:
            raise UserError(f"evaluate.arms: there is no arm {name}; choose from {', '.join([BASE, *summaries])}")
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
    """The tasks of all files, those of `evaluate.files` by whether their documents were asked about."""
    config = run.config
    key, own = (
        config.evaluate.by_document,
        set(task_files(config.evaluate.files).values() if config.evaluate.files else ()),
    )
    found: list[Task] = []
    for task in tasks_of(config, evaluation_sources(config)):
        if key is not None and task.where in own:
            found += split_task(task, key, trained_documents(run))
        else:
            found.append(task)
    return found


def _last_is_first(summaries: dict[str, Any]) -> list[str]:
    """The arms with the one that all are compared with at the end, as the report reads them."""
    first, *others = summaries
    return [*others, first]
