"""Fine-tuning an adapter and measuring what it is worth, in a notebook as in a run."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ntk_jax.api.inputs import SpanLike, dropped_of, encoded
from ntk_jax.data.packing import row_length_for
from ntk_jax.data.sources import read_records
from ntk_jax.data.templates import Rendering
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import evaluate_records
from ntk_jax.evaluation.generated import Grading, generated_answers
from ntk_jax.evaluation.loss import held_out_losses
from ntk_jax.evaluation.shots import check_shots
from ntk_jax.evaluation.tasks import Task, check_metrics, comparison, read_tasks, task_of
from ntk_jax.models.model import Model, computing_in
from ntk_jax.models.peft import save_adapter
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.train import train


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What fine-tuning gives back.

    model: the model with the trained adapter. second_moment: Adam's bias-corrected v, shaped like the adapter (for
    `adam_preconditioned`). history: a dict a step: step (from 1), loss, learning_rate, grad_norm, tokens, label_tokens.
    examples: how many were trained on. dropped: how many the span left out, by reason. tokens, flops: of all steps.
    """

    model: Model
    second_moment: dict[str, Any]
    history: list[dict[str, Any]]
    examples: int
    dropped: dict[str, int]
    tokens: int
    flops: float


def finetune(
    model: Model,
    examples: Any,
    *,
    training: TrainConfig | None = None,
    span: SpanLike = "response",
    dtype: str | None = None,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    out: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Finetuned:
    """Fine-tunes the model's LoRA adapter on examples; the model that is given stays as it is.

    Args:
        model: from `load_model` with lora= or adapter=.
        examples: as in `mean_gradient`; several sets are one list, `[*domain, *selection]`.
        training: a `TrainConfig`: epochs or max_steps, learning_rate, batch_size, schedule, .... None: its defaults,
            the paper's.
        span: the positions whose next token is learned, and how examples become tokens (`Span`).
        dtype, mesh: as in `mean_gradient`. seed: of the order of examples.
        out: a folder for checkpoints, history.jsonl and the adapter in PEFT's format (adapter/); the same call goes on
            from the last checkpoint after an interruption. None keeps nothing; over several processes give one.
        progress: called with (steps done, of how many, a note).

    Returns:
        A `Finetuned`, whose `model` is what the other functions take.

    Raises:
        UserError: no adapter, no examples, one that cannot be used (under the span's overflow `error`), settings that
            cannot be trained with, a loss or gradient that is not finite (naming step and example), a folder of another
            training.

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2))
        >>> domain = [{"prompt": "A cat", "response": "purrs"}]
        >>> warm = nj.finetune(model, domain, training=nj.TrainConfig(max_steps=5, learning_rate=1e-2))
        >>> warm.history[-1]["loss"] < warm.history[0]["loss"]
        True
    """
    model = computing_in(model, dtype)
    given = encoded(model, examples, span)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out)
        trained = train(
            model,
            given.kept,
            training or TrainConfig(),
            folder=folder,
            seed=seed,
            row_length=row_length_for(given.longest),
            mesh=mesh,
            progress=progress,
        )
        assert model.lora_config is not None  # `train` refuses a model without an adapter
        if out is not None:
            save_adapter(folder / "adapter", trained.lora, model.lora_config, model.config, model.name)
    return Finetuned(
        model=dataclasses.replace(model, lora=trained.lora),
        second_moment=trained.second_moment,
        history=trained.history,
        examples=len(given.kept),
        dropped=dropped_of(given.examples),
        tokens=trained.tokens,
        flops=trained.flops,
    )


def evaluate(
    models: Model | Mapping[str, Model],
    questions: Any,
    *,
    metrics: Sequence[str] | None = None,
    grading: Grading | None = None,
    max_length: int | None = None,
    overflow: str = "drop",
    template: str = "auto",
    add_eos: bool = True,
    control_tokens: str = "literal",
    template_options: Mapping[str, Any] | None = None,
    shots: int = 0,
    shot_files: Mapping[str, Any] | None = None,
    limit: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    batch_tokens: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Multiple choice by likelihood, and held-out loss, of one model or of several on the same records.

    Args:
        models: a model, or several by name.
        questions: files or globs of multiple-choice records (`"choices": [...], "answer": index`) or of any records
            with a response, each file one task; or records, which are one task, `questions`.
        metrics: some of `accuracy`, `loss`, `generated`; None: accuracy of a task whose records have choices, else the
            loss. grading: of generated answers (`Grading`: the rule, the tokens of a reply, ...).
        max_length: tokens of a prompt with its response, or one choice; None: as many as the model has positions. Of
            longer ones `overflow` says: `drop`, or `truncate` the start of the prompt.
        template, add_eos, control_tokens, template_options: as in `Span`; the loss includes the EOS.
        shots: solved examples before each question, drawn by `seed` for each task: with a chat template earlier turns,
            else text before the prompt. shot_files: {task or pattern: file, or records} that they are drawn from; None:
            the file beside the task's own with `train` in place of `test`. A record that asks what a question of the
            task asks is passed over; a question that would be too long gets fewer.
        limit: a sample of each task by `seed`, which also draws the bootstrap's resamples.
        dtype, batch_tokens, mesh: as in `mean_gradient`.
        bootstrap, confidence: resamples, and the level of the intervals.

    Returns:
        A dict. "average": {model: {"raw" or "normalized": {"accuracy", "low", "high"}}}, where `normalized` divides a
        choice's log likelihood by its tokens (one model that is given without a name is called `model`). "tasks": the
        same for each task, with counts of predicted labels. "paired": differences of all pairs of models. "balanced":
        the means over tasks that are classifications of their balanced accuracies, with differences; each such task
        has its own, and in "constant" the best answer that is always the same.
        "predictions": {model: {task: [a dict a question]}}. Where there are losses, "loss" holds "tasks", "average" and
        "paired" in the same way with `by_example` (the mean of the examples' losses) and `by_token` (of all tokens
        alike) in place of the likelihoods, in nats a token, lower is better; "losses" the dict of each example. Where
        answers were generated, "generated" holds the same of their accuracies, and "answers" each reply. With shots,
        "shots" says which they are and how many questions had fewer.

    Raises:
        UserError: no records, one that is no question where accuracy is asked for (naming file and id), a task of which
            no record is short enough.

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model")
        >>> question = {"prompt": "A cat", "choices": ["purrs", "barks"], "answer": 0}
        >>> found = nj.evaluate(model, [question])
        >>> found["average"]["model"]["raw"]["accuracy"] in (0.0, 1.0)
        True
        >>> found = nj.evaluate(model, [{"prompt": "A cat", "response": "purrs and sleeps"}])
        >>> found["loss"]["average"]["model"]["by_example"]["loss"] > 0
        True
    """
    arms = {"model": models} if isinstance(models, Model) else dict(models)
    if not arms:
        raise UserError("there are no models to evaluate; give at least one")
    rendering = Rendering(template, add_eos, control_tokens, template_options or {})
    tasks = _tasks(questions, metrics, {"limit": limit, "seed": seed, "shots": shots, "shot_files": shot_files})
    predictions: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    losses: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    answers: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    for arm, given in arms.items():
        model = computing_in(given, dtype)
        options: dict[str, Any] = {
            "max_length": min(max_length or model.config.max_positions, model.config.max_positions),
            "rendering": rendering,
            "overflow": overflow,
            "batch_tokens": batch_tokens,
            "mesh": mesh,
        }
        for task in tasks:
            options |= {"where": task.where, "shots": task.shots.records}
            if "accuracy" in task.metrics:
                found = evaluate_records(model, task.records, **options)
                predictions[arm][task.name] = found["predictions"]
            if "loss" in task.metrics:
                found = held_out_losses(model, task.records, **options)
                losses[arm][task.name] = found["losses"]
            if "generated" in task.metrics:
                asked = {name: options[name] for name in ("max_length", "rendering", "mesh", "where", "shots")}
                found = generated_answers(model, task.records, grading=grading or Grading(), **asked)
                answers[arm][task.name] = found["answers"]
    results = comparison(
        predictions, losses, answers, bootstrap=bootstrap, confidence=confidence, seed=seed, tasks=tasks
    )
    kept = {"losses": losses, "answers": answers}
    return {**results, "predictions": predictions, **{name: kept[name] for name in kept if any(kept[name].values())}}


def _tasks(questions: Any, metrics: Sequence[str] | None, options: dict[str, Any]) -> list[Task]:
    """options: of `read_tasks`."""
    items = [questions] if isinstance(questions, (str, Path, Mapping)) else list(questions)
    if items and all(isinstance(item, Mapping) for item in items):
        check_metrics(metrics)
        if options["shots"]:
            check_shots(["questions"], options["shot_files"])
        return [task_of("questions", "the questions", list(read_records(items)), metrics, **options)]
    return read_tasks([str(item) for item in items], metrics, **options)
