"""Kernel ridge regression with the kernel at θ_0 against the fine-tuning it stands for (arXiv 2511.07380, Table 3).

Both learn from the domain examples and answer the questions of evaluate.files. The regression sees a prompt's kernel
with the training prompts, taken at the position that predicts the answer; classes are the texts of the answers. If
fine-tuning does much better, it learns features that the kernel at its start does not have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import Record
from ntk_jax.data.tokens import ChoiceRow, encode_choices
from ntk_jax.evaluation.choice import choice_log_likelihoods
from ntk_jax.evaluation.tasks import read_tasks
from ntk_jax.kernels.gram import gradient_features_gram
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.regression import accuracy, choose_ridge, kernel_ridge, one_hot, predict
from ntk_jax.kernels.rows import layout_for
from ntk_jax.kernels.stability import Checkpoint
from ntk_jax.models.model import Model, with_lora
from ntk_jax.pipelines.common.examples import rendering_of
from ntk_jax.pipelines.common.reading import reading_of
from ntk_jax.pipelines.diagnose.state import DiagnoseRun

PROBES = 4  # of the centred trace's estimate: more cost memory and change little here
NEVER = -1e30  # the value of an answer that is not among the choices
LEAST = 0.5  # share of the questions whose right answer must be one of the training classes


def regression(
    run: DiagnoseRun, base: Model, start: Checkpoint, warm: Model, ends: Sequence[Checkpoint]
) -> dict[str, Any]:
    """{classes, train, test, kernels: [{at, objective, ridge, accuracy, predicted}], fine_tuned: [...], base}.

    base: the model without what was trained; start, warm: where kernels are taken; ends: what fine-tuning came to.
    """
    train = [record for record in run.domain.records if "choices" in record]
    asked = _questions(run) if run.config.evaluate.files else []
    if not asked or not train:
        return {"skipped": "the domain, or evaluate.files, holds no multiple-choice questions"}
    train, train_rows = _prompts(run, train)
    classes = sorted({_answer(record) for record in train})
    place = {name: number for number, name in enumerate(classes)}
    questions, question_rows = _prompts(run, [record for record in asked if _answer(record) in place])
    if len(classes) < 2 or len(questions) < LEAST * len(asked):
        return {
            "skipped": f"{len(questions)} of {len(asked)} questions are short enough and have one of the "
            f"{len(classes)} training answers: not a classification"
        }
    labels = np.array([place[_answer(record)] for record in train])
    allowed = np.array([[name in record["choices"] for name in classes] for record in questions])
    truth = np.array([place[_answer(record)] for record in questions])
    targets, mean = one_hot(labels, len(classes))

    longest = max(len(row.ids) for row in [*train_rows, *question_rows])
    layout = layout_for(longest, run.config.score.batch_tokens, packed=False)
    places = {"start": with_lora(base, start.lora), "warm-up": warm}
    wanted = [
        (at, kind) for at in places for kind in ("probe", "sum_logits") if at == "start" or warm.lora is not start.lora
    ]
    progress = run.job.progress("regression", len(wanted), "kernels")
    kernels = []
    for number, (at, kind) in enumerate(wanted):
        objective = Objective(kind, "mean", PROBES, run.config.seed)
        gram = gradient_features_gram(places[at], train_rows, None, objective, layout)
        if np.trace(gram) > 0:  # summed logits of a centred head have no gradient
            cross = gradient_features_gram(places[at], question_rows, train_rows, objective, layout)
            ridge, errors = choose_ridge(gram, targets)
            values = np.where(allowed, predict(cross, kernel_ridge(gram, targets, ridge)) + mean, NEVER)
            kernels.append(
                {
                    "at": at,
                    "objective": kind,
                    "ridge": ridge,
                    "leave_one_out_error": float(errors.min()),
                    "accuracy": accuracy(values, truth),
                    "predicted": _counted(classes[i] for i in values.argmax(axis=1).tolist()),
                }
            )
        progress(number + 1, len(wanted))
    if not kernels:
        return {"skipped": "all kernels are zero"}
    return {
        "classes": classes,
        "train": len(train),
        "test": len(questions),
        "chance": float(np.mean(1 / allowed.sum(axis=1))),
        "majority": float(np.mean(truth == np.bincount(labels).argmax())),
        "kernels": kernels,
        "fine_tuned": [
            {"trajectory": end.trajectory, "step": end.step}
            | _by_likelihood(run, end.trajectory, with_lora(base, end.lora), questions, classes)
            for end in ends
        ],
        "base": _by_likelihood(run, "base", base, questions, classes),
    }


def _answer(record: Record) -> str:
    return str(record["choices"][record["answer"]])


def _questions(run: DiagnoseRun) -> list[Record]:
    """A seeded sample of each file's questions."""
    found: list[Record] = []
    section, seed = run.config.diagnose, run.config.seed
    reading = reading_of(run.config, "evaluate")
    for task in read_tasks(run.config.evaluate.files, limit=section.questions, seed=seed, reading=reading):
        found += task.records if "accuracy" in task.metrics else []
    return found


def _prompts(run: DiagnoseRun, records: list[Record]) -> tuple[list[Record], list[TokenRow]]:
    """Questions without their answers, the last position as the span; those that are too long are left out."""
    section, kept, rows = run.config.model, [], []
    for record in records:
        row = encode_choices(
            record,
            run.model.base.tokenizer,
            max_length=section.max_length,
            overflow=section.overflow,
            rendering=rendering_of(section),
        )
        if isinstance(row, ChoiceRow):
            kept.append(record)
            rows.append(TokenRow(row.prompt, np.arange(len(row.prompt)) == len(row.prompt) - 1, record["id"]))
    return kept, rows


def _by_likelihood(
    run: DiagnoseRun, name: str, model: Model, questions: list[Record], classes: list[str]
) -> dict[str, Any]:
    """A model's own answers by likelihood, raw and length-normalised, among the choices that the regression has too."""
    section = run.config.model
    found = choice_log_likelihoods(
        model,
        questions,
        max_length=section.max_length,
        overflow=section.overflow,
        rendering=rendering_of(section),
        batch_tokens=run.config.score.batch_tokens,
        mesh=run.model.mesh,
        where="evaluate.files",
        progress=run.job.progress(f"answers, {name}", len(questions), "questions"),
    )
    picked: dict[str, list[str]] = {"raw": [], "normalized": []}
    right = []
    for record, values, lengths in zip(questions, found.log_likelihoods, found.lengths, strict=True):
        if values is None or lengths is None:
            continue
        known = np.array([choice in classes for choice in record["choices"]])
        right.append(_answer(record))
        for kind, scores in (("raw", values), ("normalized", values / lengths)):
            picked[kind].append(str(record["choices"][int(np.where(known, scores, -np.inf).argmax())]))
    shares = {
        kind: float(np.mean([a == b for a, b in zip(names, right, strict=True)])) for kind, names in picked.items()
    }
    return {"accuracy": shares["raw"], "normalized": shares["normalized"], "predicted": _counted(picked["raw"])}


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
