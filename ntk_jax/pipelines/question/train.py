"""One fine-tuning for each arm, of an adapter or of all the weights, from the same beginning and with the same number
of training tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import check_record
from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.kernels.parameters import Tree, join_parameters, split_parameters
from ntk_jax.models.model import Model
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.common.examples import Encoder, none_usable
from ntk_jax.pipelines.common.tensorboard import followed
from ntk_jax.pipelines.common.training import check_training, train_config
from ntk_jax.pipelines.common.weights import check_parameters, start_of, trained_model
from ntk_jax.pipelines.question.arms import BASE, OWN, Arm, arms_of, check_arms, own_arm, records_of
from ntk_jax.pipelines.question.config import QuestionConfig
from ntk_jax.pipelines.question.state import QuestionRun
from ntk_jax.storage.atomic import make_folder, read_json, write_json
from ntk_jax.training.checkpoints import discard_checkpoints
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.order import count_steps, step_indices
from ntk_jax.training.pretrain import measured_steps, save_pretrained
from ntk_jax.training.train import train as train_rows


def check(config: QuestionConfig) -> None:
    """Raises UserError: an arm that there is not, or settings that cannot be trained with."""
    check_arms(config.train.arms)
    check_parameters(config.train.parameters, config.model.quantization, "train")
    if config.train.tokens is not None and config.train.max_steps is not None:
        raise UserError("train.tokens and train.max_steps both say how long to train; leave one of them out")
    check_training(config.train, "train")


def settings_of(config: QuestionConfig, **changes: Any) -> TrainConfig:
    """The trainer's settings."""
    return train_config(config.train, **changes)


def train(run: QuestionRun, folder: Path) -> Facts:
    """Writes <arm>/adapter or <arm>/model, the same in <arm>/step-N/ on the way, <arm>/history.jsonl and
    <arm>/summary.json for every arm; an arm whose summary is there is not trained again."""
    config = run.config
    arms = arms_of(run)
    rows = {arm.name: rows_of(run, arm) for arm in arms}
    tokens = config.train.tokens or _tokens_of_epochs(rows.get(OWN) or rows_of(run, own_arm(run)), config)
    for arm in arms:
        if not hosts.broadcast((folder / arm.name / "summary.json").exists):
            _train(run, arm, make_folder(folder / arm.name), rows[arm.name], tokens)
    write_json(
        folder / "summary.json",
        {
            "tokens": tokens,
            "parameters": config.train.parameters,
            "arms": [read_json(folder / arm.name / "summary.json", dict) for arm in arms],
        },
    )
    return {"arms": [arm.name for arm in arms]}


def rows_of(run: QuestionRun, arm: Arm) -> list[TokenRow]:
    """The token rows of an arm's records. Raises UserError: none can be used."""
    records = [check_record(one, f"{arm.path}") for one in records_of(run, arm)]
    found = Encoder(run.model, run.config.model).encode(records)
    if not found.rows:
        raise none_usable("train.arms", f"the records of {arm.name}", found.statistics)
    return found.rows


def model_of(run: QuestionRun, folder: Path, name: str) -> Model:
    """The model of an arm, or of an arm after a step (name@step). folder: of the stage."""
    if name == BASE:
        return run.model.base
    return trained_model(run.model, run.config.model, folder_of(folder, name), run.config.train.parameters)


def folder_of(folder: Path, name: str) -> Path:
    """Where what was trained of an arm is, or of an arm after a step. folder: of the stage."""
    arm, _, step = name.partition("@")
    return folder / arm / (f"step-{int(step):06d}" if step else "")


def steps_for(rows: Sequence[TokenRow], config: TrainConfig, tokens: int, seed: int) -> int:
    """The optimiser steps that read about so many tokens: as many as come nearest, one at least."""
    total, step = 0, 0
    while True:
        more = sum(len(rows[i].ids) for i in step_indices(step, len(rows), config.batch_size, seed))
        if step and abs(total + more - tokens) >= abs(total - tokens):
            return step
        total, step = total + more, step + 1


def _tokens_of_epochs(rows: Sequence[TokenRow], config: QuestionConfig) -> int:
    settings = settings_of(config)
    steps = count_steps(len(rows), settings)
    return sum(
        len(rows[i].ids)
        for step in range(steps)
        for i in step_indices(step, len(rows), settings.batch_size, config.seed)
    )


def _train(run: QuestionRun, arm: Arm, place: Path, rows: list[TokenRow], tokens: int) -> None:
    config, parameters = run.config, run.config.train.parameters
    model, name = start_of(run.model, parameters), f"train/{arm.name}"
    clock = Clock(run.job.folder, name)
    steps = steps_for(rows, settings_of(config), tokens, config.seed)
    points = measured_steps(steps, config.train.evaluations)
    progress = clock.ticking(run.job.progress(f"train {arm.name}", steps, "steps"))
    frozen = split_parameters(model, parameters)[1]

    def keep(step: int, trained: Tree) -> None:
        lora, base = join_parameters(trained, frozen, parameters)
        now = dataclasses.replace(model, lora=lora, base=base)
        save_pretrained(folder_of(place.parent, f"{arm.name}@{step}"), model, now, parameters, config.model.path)

    trained = train_rows(
        model,
        rows,
        settings_of(config, max_steps=steps),
        folder=place,
        seed=config.seed,
        row_length=row_length(rows),
        mesh=run.model.mesh,
        progress=followed(config, run.job.folder, name, progress),
        parameters=parameters,
        keep_steps=points[:-1],
        keep=keep,
    )
    save_pretrained(place, model, trained, parameters, config.model.path)
    summary: dict[str, Any] = {
        "name": arm.name,
        "title": arm.title,
        "examples": len(rows),
        "examples_seen": trained.examples,
        "steps": trained.steps,
        "points": points,
        "tokens": trained.tokens,
        "tokens_at": {str(p): sum(entry["tokens"] for entry in trained.history[:p]) for p in points},
        "label_tokens": trained.label_tokens,
        "flops": trained.flops,
        "seconds": clock.seconds(),
        "final_loss": trained.history[-1]["loss"],
    }
    write_json(place / "summary.json", summary)
    discard_checkpoints(place)


def row_length(rows: Sequence[TokenRow]) -> int:
    """Positions of a packed row that holds any of these."""
    longest = max(len(row.ids) for row in rows)
    return -(-longest // 64) * 64
