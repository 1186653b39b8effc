"""From choice likelihoods to accuracies: predictions of one arm, and the table that compares arms.

`evaluate_records` gives the predictions of one model; `compare` takes the predictions of all arms and gives the
body of evaluate/results.json. Both likelihoods are reported, summed (`raw`) and divided by
the number of tokens (`normalized`), with the counts of predicted labels, because a length-normalised score
can collapse onto one long label on a weak model and such a collapse is not a result.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ntk_jax.builtin.paths import DATA as BUILTIN_DATA
from ntk_jax.data.templates import Rendering
from ntk_jax.errors import UserError
from ntk_jax.evaluation.balanced import add_balanced, balanced_of, label_set
from ntk_jax.evaluation.bootstrap import accuracy_at, differences_at, drawn, group_of, groups_of, resampled_means
from ntk_jax.evaluation.choice import choice_log_likelihoods
from ntk_jax.evaluation.shots import before_choices
from ntk_jax.models.model import Model

KINDS = ("raw", "normalized")

Progress = Callable[[int, int], None]
Prediction = dict[str, Any]


def evaluate_records(
    model: Model,
    records: Sequence[Mapping[str, Any]],
    *,
    max_length: int,
    rendering: Rendering = Rendering(),  # noqa: B008 (it cannot change)
    overflow: str = "drop",
    batch_tokens: int = 8192,
    mesh: Mesh | None = None,
    where: str = "the questions",
    shots: Sequence[dict[str, Any]] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Predictions of one model on questions: {"predictions", "dropped", "tokens", "flops"}.

    predictions: a dict a question, in order: id, answer, choices, log_likelihoods [C], lengths [C], raw and normalized
    (predicted index; ties go to the first) and truncated if the prompt lost its start; or id and dropped (why) for a
    question left out. where: the file, for messages. shots: solved examples before each question; a prediction then has
    how many it was made behind, as `shots`.
    Raises `UserError` naming `where` and id for a record that is not a multiple-choice question.
    """
    asked, counts = [dict(record) for record in records], [0] * len(records)
    if shots and model.tokenizer is not None:
        asked, counts = before_choices(asked, shots, model.tokenizer, max_length=max_length, rendering=rendering)
    scores = choice_log_likelihoods(
        model,
        asked,
        max_length=max_length,
        rendering=rendering,
        overflow=overflow,
        batch_tokens=batch_tokens,
        mesh=mesh,
        where=where,
        progress=progress,
    )
    return {
        "predictions": [
            {"id": record["id"], "dropped": reason}
            if values is None or lengths is None
            else predict(record, values, lengths)
            | ({"truncated": True} if truncated else {})
            | ({"notes": list(notes)} if notes else {})
            | ({"shots": count} if shots else {})
            for record, count, values, lengths, reason, truncated, notes in zip(
                records,
                counts,
                scores.log_likelihoods,
                scores.lengths,
                scores.reasons,
                scores.truncated,
                scores.notes,
                strict=True,
            )
        ],
        "dropped": scores.dropped,
        "tokens": scores.tokens,
        "flops": scores.flops,
    }


def predict(record: Mapping[str, Any], values: np.ndarray, lengths: np.ndarray) -> Prediction:
    """One answered question's line in predictions/<arm>/<task>.jsonl. values, lengths: [C]."""
    return {
        "id": record["id"],
        "answer": record["answer"],
        "choices": list(record["choices"]),
        "log_likelihoods": [float(value) for value in values],
        "lengths": [int(length) for length in lengths],
        "raw": int(np.argmax(values)),
        "normalized": int(np.argmax(values / lengths)),
        **group_of(record),
    }


def compare(
    arms: Mapping[str, Mapping[str, Sequence[Prediction]]],
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The comparison of all arms: {"tasks", "average", "paired", "confidence", "bootstrap"} of results.json, and
    `balanced` where there are classifications (see `balanced.add_balanced`).

    arms: {arm: {task: predictions}}, the same tasks and questions for every arm. Accuracies are fractions; `low`
    and `high` bound the percentile bootstrap interval. `average` is the plain mean over tasks. `paired` holds, for
    each pair of arms (a later one minus an earlier one) and each kind, the difference of their averages, and that of a
    task their difference on it.
    chance: the mean of 1 / C over the questions, what guessing gets. resampled: "questions", or "documents" where every
    prediction has a `group`.
    """
    names = list(arms)
    if not names:
        raise UserError("evaluation: there are no arms to compare; give at least one")
    tasks, columns, balanced = [], [], []
    for number, task in enumerate(arms[names[0]]):
        answered = {arm: [p for p in arms[arm][task] if "dropped" not in p] for arm in names}
        questions = answered[names[0]]
        if not questions:
            why = ", ".join(sorted({p["dropped"] for p in arms[names[0]][task]})) or "there are none"
            raise UserError(
                f"evaluation: no question of {task} can be used ({why}); raise max_length or correct the records"
            )
        for arm in names[1:]:
            if [p["id"] for p in answered[arm]] != [p["id"] for p in questions]:
                raise UserError(f"evaluation: arms {names[0]} and {arm} answered other questions of {task}; redo both")
        correct = {
            kind: np.asarray([[p[kind] == p["answer"] for p in answered[arm]] for arm in names], np.float64).T
            for kind in KINDS
        }
        both = np.concatenate([correct[kind] for kind in KINDS], axis=1)  # [N, 2 A]: one draw serves all
        groups = groups_of(questions)
        draws: dict[str, Any] = {"resamples": bootstrap, "seed": (seed, number), "groups": groups}
        columns.append((both.mean(axis=0), resampled_means(both, **draws)))
        balanced.append(balanced_of(questions, both, **draws))
        labels = _labels(questions)
        tasks.append(
            {
                "name": task,
                "questions": len(questions),
                **drawn(groups),
                "dropped": dict(Counter(p["dropped"] for p in arms[names[0]][task] if "dropped" in p)),
                "truncated": sum(p.get("truncated", False) for p in questions),
                "notes": dict(Counter(note for p in questions for note in p.get("notes", ()))),
                "choices": float(np.mean([len(p["choices"]) for p in questions])),
                "chance": float(np.mean([1.0 / len(p["choices"]) for p in questions])),
                "truth": _count(labels, questions, "answer"),
                "results": {
                    arm: {
                        kind: {
                            **accuracy_at(columns[-1], k * len(names) + a, confidence),
                            "predicted": _count(labels, answered[arm], kind),
                        }
                        for k, kind in enumerate(KINDS)
                    }
                    for a, arm in enumerate(names)
                },
                "paired": differences_at(columns[-1], names, KINDS, confidence),
            }
        )
    average = (
        np.mean([column[0] for column in columns], axis=0),
        np.mean([column[1] for column in columns], axis=0),
    )
    results = {
        "tasks": tasks,
        "average": {
            arm: {kind: accuracy_at(average, k * len(names) + a, confidence) for k, kind in enumerate(KINDS)}
            for a, arm in enumerate(names)
        },
        "paired": differences_at(average, names, KINDS, confidence),
        "confidence": confidence,
        "bootstrap": bootstrap,
    }
    add_balanced(results, balanced, names, KINDS, confidence)
    return results


def task_files(files: Sequence[str]) -> dict[str, str]:
    """{task name: file}: globs are spread out, names are file stems, with the folder before them where two agree."""
    found: list[str] = []
    for file in map(str, files):
        found += _spread(file) if glob.has_magic(file) else [file]
    repeated = [file for file, count in Counter(found).items() if count > 1]
    if repeated:
        raise UserError(f"files: {repeated[0]} is given twice; give each file once")
    if not found:
        raise UserError("files: no files to evaluate on; give at least one")
    short = [_stem(file) for file in found]
    names = [
        name if short.count(name) == 1 else f"{Path(file).parent.name}-{name}"
        for name, file in zip(short, found, strict=True)
    ]
    clash = [name for name, count in Counter(names).items() if count > 1]
    if clash:
        raise UserError(f"files: two files would both be called {clash[0]}; rename one")
    return dict(zip(names, found, strict=True))


def _spread(pattern: str) -> list[str]:
    """The files that a glob matches, sorted; those of the package keep their `builtin:` names."""
    if pattern.startswith("builtin:"):
        names = glob.glob(pattern.removeprefix("builtin:"), root_dir=BUILTIN_DATA, recursive=True)
        matches = [f"builtin:{name}" for name in names]
    else:
        matches = glob.glob(pattern, recursive=True)
    if not matches:
        raise UserError(f"files: {pattern} matches no file; correct the pattern")
    return sorted(matches)


def _stem(file: str) -> str:
    """medical/medqa.jsonl.gz → medqa; tfds:name/split → name-split."""
    if ":" in file and not Path(file).exists():
        kind, _, rest = file.partition(":")
        if kind in ("tfds", "hf"):
            return rest.strip("/").replace("/", "-")
        file = rest
    return Path(file).name.split(".")[0]


def _labels(questions: Sequence[Prediction]) -> Callable[[Prediction, int], str]:
    """How a predicted index is named: by its text where all questions share one label set, else by its letter."""
    if label_set(questions) is not None:
        return lambda p, index: p["choices"][index]
    return lambda p, index: chr(ord("A") + index) if index < 26 else str(index + 1)


def _count(name: Callable[[Prediction, int], str], predictions: Sequence[Prediction], key: str) -> dict[str, int]:
    counts = Counter({name(p, i): 0 for p in predictions for i in range(len(p["choices"]))})
    counts.update(name(p, p[key]) for p in predictions)
    return dict(sorted(counts.items()))
