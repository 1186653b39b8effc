"""Balanced accuracy: the mean over labels of how many questions of that label are answered right.

Where most answers are No, a model that always says No is right most of the time and has learned nothing; its balanced
accuracy is one half (of C labels, 1 / C). Each label that is true of some question counts the same (Brodersen et al.,
The Balanced Accuracy and Its Posterior Distribution, 2010). It is defined for classifications, tasks whose questions
all share one set of labels; other tasks have none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_jax.evaluation.bootstrap import accuracy_at, differences_at, resampled_sums


@dataclass(frozen=True)
class Balanced:
    """Of one task. column: (balanced accuracies [K], those of resamples [resamples, K]) of K columns, each an arm with
    a kind of likelihood. constant: the best answer that is always the same, {"label", "accuracy", "balanced"}."""

    column: tuple[np.ndarray, np.ndarray]
    constant: dict[str, Any]


def label_set(questions: Sequence[Mapping[str, Any]]) -> frozenset[str] | None:
    """The labels of a classification: more than one question, all with the same choices in any order; else None."""
    shared = {frozenset(question.get("choices") or ()) for question in questions}
    return next(iter(shared)) or None if len(shared) == 1 and len(questions) > 1 else None


def balanced_of(
    questions: Sequence[Mapping[str, Any]],
    correct: np.ndarray,
    *,
    resamples: int,
    seed: Sequence[int],
    groups: Sequence[str] | None = None,
) -> Balanced | None:
    """Balanced accuracies of a classification, of the same draws as `resampled_means`; None for any other task.

    questions: with choices and answer. correct: [N, K] of 0 and 1. A resample that lacks a label takes the mean over
    those that it has.
    """
    if label_set(questions) is None:
        return None
    truth = [str(question["choices"][question["answer"]]) for question in questions]
    labels = sorted(set(truth))
    member = np.asarray([[label == own for label in labels] for own in truth], np.float64)  # [N, C]
    right = member[:, :, None] * np.asarray(correct, np.float64)[:, None, :]  # [N, C, K]
    columns = np.concatenate([member[:, :, None], right], axis=2).reshape(len(truth), -1)
    shape = (-1, len(labels), right.shape[2] + 1)
    sums = resampled_sums(columns, resamples=resamples, seed=seed, groups=groups)
    most, times = min(Counter(truth).items(), key=lambda item: (-item[1], item[0]))
    constant = {"label": most, "accuracy": times / len(truth), "balanced": 1.0 / len(labels)}
    whole = _mean_recall(columns.sum(axis=0).reshape(shape))[0]
    return Balanced((whole, _mean_recall(sums.reshape(shape))), constant)


def _mean_recall(sums: np.ndarray) -> np.ndarray:
    """[..., K] of sums [..., C, 1 + K]: how many questions each label has, and how many of these are right."""
    count, right = sums[..., :1], sums[..., 1:]
    recall = right / np.maximum(count, 1.0)  # of a label that does not occur: 0
    return np.asarray(recall.sum(axis=-2) / (count > 0).sum(axis=-2))


def add_balanced(
    results: dict[str, Any],
    found: Sequence[Balanced | None],
    arms: Sequence[str],
    kinds: Sequence[str | None],
    confidence: float,
) -> None:
    """Adds balanced accuracies to the comparison of arms, in place; nothing where no task is a classification.

    found: of each of `results["tasks"]`, with the columns of all arms for the first kind, then for the next. kinds:
    (None,) where results are not by kind. A task gets `balanced` beside each accuracy, `constant`, and
    `paired_balanced`, the differences of every two arms. The whole gets `balanced`: the names of these tasks, and the
    means over them and their differences as `average` and `paired`.
    """
    known = [(task, item) for task, item in zip(results["tasks"], found, strict=True) if item is not None]
    for task, item in known:
        task["constant"] = item.constant
        for arm, by_kind in _by_arm(item.column, arms, kinds, confidence).items():
            for kind, entry in by_kind.items():
                (task["results"][arm] if kind is None else task["results"][arm][kind])["balanced"] = entry
        task["paired_balanced"] = differences_at(item.column, arms, kinds, confidence)
    if known:
        columns = [item.column for _, item in known]
        average = (np.mean([c[0] for c in columns], axis=0), np.mean([c[1] for c in columns], axis=0))
        by_arm = _by_arm(average, arms, kinds, confidence)
        results["balanced"] = {
            "tasks": [task["name"] for task, _ in known],
            "average": {arm: by_kind.get(None, by_kind) for arm, by_kind in by_arm.items()},
            "paired": differences_at(average, arms, kinds, confidence),
        }


def _by_arm(
    column: tuple[np.ndarray, np.ndarray], arms: Sequence[str], kinds: Sequence[str | None], confidence: float
) -> dict[str, dict[str | None, Any]]:
    return {
        arm: {kind: accuracy_at(column, k * len(arms) + a, confidence) for k, kind in enumerate(kinds)}
        for a, arm in enumerate(arms)
    }
