"""The arms of a selection on every evaluation file, and their comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.models.model import Model
from ntk_jax.pipelines.common.evaluate import Evaluation, check_evaluation, check_files, evaluate_arms
from ntk_jax.pipelines.select.arms import Arm, arms
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.storage.atomic import read_json

FACTS = ("title", "examples", "dropped", "steps", "tokens", "label_tokens", "domain_label_tokens", "flops")


def check(config: SelectConfig) -> None:
    """Raises UserError: there is nothing to evaluate on, or no such metric."""
    if not config.evaluate.files:
        raise UserError("evaluate.files is empty; give at least one file, or stop with --until finetune")
    check_evaluation(config)


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError for an evaluation file that is absent or holds records that its metrics cannot be taken of."""
    check_files(run.config, run.job)


def evaluate(run: SelectRun, folder: Path) -> Facts:
    """Writes what `evaluate_arms` does, for the arms of `evaluate.arms`."""
    run = run.target
    found = {arm.name: arm for arm in arms(run.config)}

    def model_of(name: str) -> Model:
        trained = run.job.folder / "finetune" / name / "adapter"
        return run.model.adapted(trained) if found[name].trained else run.model.base

    asked = Evaluation(run.config, run.job, run.model, list(found), model_of, run.config.score.batch_tokens)
    return evaluate_arms(asked, folder, [_arm_facts(run, arm) for arm in found.values()])


def _arm_facts(run: SelectRun, arm: Arm) -> dict[str, Any]:
    if not arm.trained:
        return {"name": arm.name, "title": arm.title, **dict.fromkeys(FACTS[1:], 0), "dropped": {}}
    facts = read_json(run.job.folder / "finetune" / arm.name / "summary.json", dict)
    return {"name": arm.name, **{key: facts[key] for key in FACTS if key in facts}}
