"""From a selection to an answer: one LoRA fine-tuning per arm with honest controls, and their evaluation.

| arm        | trained on        | why                                                     |
|------------|-------------------|---------------------------------------------------------|
| `base`     | nothing           | where the model starts                                  |
| `domain`   | D                 | as many optimiser steps as `selected`: more of the same |
| `random`   | D + N random      | the same number of examples and epochs                  |
| `selected` | D + N by the kernel |                                                       |
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntk_jax.config import Config
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.sources import read_records
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import compare, read_questions, task_files
from ntk_jax.evaluation.accuracy import evaluate as evaluate_files
from ntk_jax.models.peft import save_adapter
from ntk_jax.parallel import hosts
from ntk_jax.selection.records import record_line
from ntk_jax.stages.context import Run
from ntk_jax.storage.atomic import read_json, write_json, write_lines
from ntk_jax.training.checkpoints import discard_checkpoints
from ntk_jax.training.order import count_steps
from ntk_jax.training.train import train

TITLES = {"base": "base model", "domain": "domain only", "random": "domain + random", "selected": "domain + selected"}


def finetune(run: Run, folder: Path) -> dict[str, Any]:
    """Trains every arm but `base`, each from the same fresh adapter. Writes <arm>/adapter and <arm>/summary.json;
    an arm whose summary is there is not trained again."""
    arms = run.config.evaluate.arms
    domain = [row for _, row in run.domain]
    section = run.config.finetune
    extra = {
        "selected": lambda: _rows(run, "selection.jsonl"),
        "random": lambda: _rows(run, "random.jsonl"),
        "domain": lambda: [],
    }
    steps = count_steps(len(domain) + run.config.select.count, run.train_config(section))
    for arm in arms:
        place = folder / arm
        if arm == "base" or hosts.broadcast((place / "summary.json").exists):
            continue
        place.mkdir(parents=True, exist_ok=True)
        rows = domain + extra[arm]()
        config = run.train_config(section, max_steps=steps)
        begun = time.monotonic()
        trained = train(
            run.base,
            rows,
            config,
            folder=place,
            seed=run.config.seed,
            row_length=run.row_length,
            mesh=run.mesh,
            progress=run.make_progress(f"finetune {arm}", steps, "steps"),
        )
        assert run.base.lora_config is not None  # a run always has an adapter
        save_adapter(place / "adapter", trained.lora, run.base.lora_config, run.base.config, run.config.model.path)
        write_json(
            place / "summary.json",
            {
                "title": TITLES[arm],
                "examples": len(rows),
                "examples_seen": trained.examples,
                "steps": trained.steps,
                "tokens": trained.tokens,
                "label_tokens": trained.label_tokens,
                "flops": trained.flops,
                "seconds": time.monotonic() - begun,
                "final_loss": trained.history[-1]["loss"],
            },
        )
        discard_checkpoints(place)
    return {"arms": [arm for arm in arms if arm != "base"]}


def evaluate(run: Run, folder: Path) -> dict[str, Any]:
    """Multiple choice by likelihood for every arm on every file. Writes predictions/<arm>/ and results.json."""
    config = run.config
    predictions = {}
    for arm in config.evaluate.arms:
        place = folder / "predictions" / arm
        if not hosts.broadcast(
            (place / "tasks.json").exists
        ):  # written last: an arm that has it is not evaluated again
            model = run.base if arm == "base" else run.adapted(run.folder / "finetune" / arm / "adapter")
            tasks = evaluate_files(
                model,
                config.evaluate.files,
                max_length=config.model.max_length,
                template=config.model.template,
                overflow=config.model.overflow,
                batch_tokens=config.score.batch_tokens,
                limit=config.evaluate.limit,
                seed=config.seed,
                mesh=run.mesh,
                progress=functools.partial(_questions_progress, run, arm),
            )
            place.mkdir(parents=True, exist_ok=True)
            for name, task in tasks.items():
                write_lines(place / f"{name}.jsonl", (record_line(line) for line in task["predictions"]))
            write_json(place / "tasks.json", {n: {k: t[k] for k in ("tokens", "flops")} for n, t in tasks.items()})
        hosts.barrier(f"evaluated {arm}")
        predictions[arm] = {name: _read_lines(place / f"{name}.jsonl") for name in read_json(place / "tasks.json")}
    results = compare(
        predictions, bootstrap=config.evaluate.bootstrap, confidence=config.evaluate.confidence, seed=config.seed
    )
    results["arms"] = [_arm_facts(run, arm) for arm in predictions]
    write_json(folder / "results.json", results)
    return {"tasks": [task["name"] for task in results["tasks"]]}


def _questions_progress(run: Run, arm: str, task: str) -> Callable[..., None]:
    return run.make_progress(f"evaluate {arm}", None, f"questions of {task}")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete the folder {path.parent} and run again") from None


def _arm_facts(run: Run, arm: str) -> dict[str, Any]:
    if arm == "base":
        return {"name": arm, "title": TITLES[arm], "examples": 0, "steps": 0, "tokens": 0, "flops": 0.0}
    facts = read_json(run.folder / "finetune" / arm / "summary.json")
    return {"name": arm, **{key: facts[key] for key in ("title", "examples", "steps", "tokens", "flops")}}


def check_arms(config: Config) -> None:
    """Raises UserError for arms that do not exist."""
    arms = config.evaluate.arms
    if not arms or not set(arms) <= set(TITLES):
        raise UserError(f"evaluate.arms = {list(arms)}: choose from {', '.join(TITLES)}")


def check_questions(config: Config) -> None:
    """Raises UserError for an evaluation file that is absent or holds anything but multiple-choice questions."""
    for file in task_files(config.evaluate.files).values():
        read_questions(file)


def _rows(run: Run, name: str) -> list[TokenRow]:
    """The rows of a file of the select stage, in rank order."""
    records = list(read_records(str(run.folder / "select" / name)))
    return [row for _, row in run.encode(records)[0]]
