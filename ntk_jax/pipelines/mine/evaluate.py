"""The models that were trained on mined and on control text, on every evaluation file, and their comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.evaluate import Evaluation, check_evaluation, check_files, evaluate_arms
from ntk_jax.pipelines.mine.pretrain import BASE, PretrainRun, model_of
from ntk_jax.storage.atomic import read_json

FACTS = ("title", "share", "steps", "tokens", "label_tokens", "flops")


def check(config: Any) -> None:
    """Raises UserError: no such metric, or no arm."""
    check_evaluation(config)
    if config.evaluate.arms is not None and not config.evaluate.arms:
        raise UserError("evaluate.arms is empty; give base or arms of pretrain.arms, or null for all")


def check_inputs(run: PretrainRun, closing: bool) -> None:
    """Raises UserError for an evaluation file that is absent or holds records that its metrics cannot be taken of."""
    check_files(run.config, run.job)


def evaluate(run: PretrainRun, folder: Path) -> Facts:
    """Writes what `evaluate_arms` does, for the arms of `evaluate.arms`, by default all that were trained."""
    config, trained = run.config, run.job.folder / "pretrain"
    facts = {arm["name"]: arm for arm in read_json(trained / "summary.json", dict)["arms"]}
    names = list(config.evaluate.arms) if config.evaluate.arms is not None else list(facts)
    for name in names:
        if name not in facts:
            raise UserError(f"evaluate.arms: there is no arm {name}; choose from {', '.join([BASE, *list(facts)[1:]])}")
    tokens = config.pretrain.tokens_per_microbatch
    asked = Evaluation(config, run.job, run.model, names, lambda name: model_of(run, trained, name), tokens)
    return evaluate_arms(
        asked, folder, [{"name": name, **{key: facts[name].get(key, 0) for key in FACTS}} for name in names]
    )
