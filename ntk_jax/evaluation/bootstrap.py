"""Percentile bootstrap intervals for accuracies and for paired differences between arms.

Questions are what varies: each resample draws questions with replacement, within each task, and an average
over tasks is the mean of the tasks' resampled accuracies. All arms of one comparison see the same draws, so
that the interval of a difference profits from what the arms have in common (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapters 13 and 15).

Questions about one document are alike. Where each says which document it is of, documents are drawn instead, each with
all of its questions (the cluster bootstrap of Davison & Hinkley, Bootstrap Methods and their Application, 1997, §3.8).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ntk_jax.errors import UserError

BLOCK = 1 << 22  # draws held at once: 32 MiB of indices
GROUP = (
    "bootstrap_group"  # the key of a record that says which document it is drawn with; a prediction calls it `group`
)


def resampled_means(
    values: np.ndarray, *, resamples: int, seed: Sequence[int], groups: Sequence[str] | None = None
) -> np.ndarray:
    """Means of resampled questions, [resamples, A] float64.

    values: [N, A]: for each question the correctness (or any number) in each of A arms; all arms share each draw.
    seed: a sequence of ints, such as (run seed, task number), so that tasks draw apart. groups: [N] the document of
    each question, where documents are drawn. Raises UserError: there are no questions.
    """
    values = np.asarray(values, np.float64)
    if groups is not None:
        sums = resampled_sums(_with_ones(values), resamples=resamples, seed=seed, groups=groups)
        return np.asarray(sums[:, :-1] / sums[:, -1:])
    means = np.empty((resamples, values.shape[1]))
    for start, stop, draws in _draws(len(values), resamples, seed):
        means[start:stop] = values[draws].mean(axis=1)
    return means


def resampled_sums(
    values: np.ndarray, *, resamples: int, seed: Sequence[int], groups: Sequence[str] | None = None
) -> np.ndarray:
    """Sums of the same draws as those of `resampled_means`, [resamples, A] float64."""
    values = np.asarray(values, np.float64)
    if groups is not None:
        names, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        by_group = np.zeros((len(names), values.shape[1]))
        np.add.at(by_group, place, values)
        values = by_group
    sums, count = np.empty((resamples, values.shape[1])), len(values)
    for start, stop, draws in _draws(count, resamples, seed):
        rows = np.arange(stop - start)[:, None] * count
        times = np.bincount((draws + rows).ravel(), minlength=(stop - start) * count)
        sums[start:stop] = times.reshape(stop - start, count).astype(np.float64) @ values
    return sums


def _with_ones(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.ones((len(values), 1))], axis=1)


def _draws(count: int, resamples: int, seed: Sequence[int]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Blocks of resamples: (first, behind the last, indices [block, count])."""
    if count == 0:
        raise UserError("a bootstrap interval needs at least one question; none was left to evaluate")
    generator = np.random.default_rng(list(seed))
    block = max(1, BLOCK // count)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        yield start, stop, generator.integers(0, count, (stop - start, count))


def group_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What a prediction for a record says of the document that it is drawn with: {"group": name}, or nothing."""
    return {"group": str(record[GROUP])} if record.get(GROUP) is not None else {}


def groups_of(predictions: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """The document of each prediction; None where not all of them have one, and questions are drawn."""
    if not predictions or any("group" not in prediction for prediction in predictions):
        return None
    return [str(prediction["group"]) for prediction in predictions]


def drawn(groups: Sequence[str] | None) -> dict[str, Any]:
    """What results say of the draws: `resampled` is "questions", or "documents" with their number beside it."""
    return {"resampled": "questions"} if groups is None else {"resampled": "documents", "documents": len(set(groups))}


def interval(means: np.ndarray, confidence: float) -> tuple[float, float]:
    """The central percentile interval of resampled means [resamples]; (low, high)."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def accuracy_at(column: tuple[np.ndarray, np.ndarray], place: int, confidence: float) -> dict[str, float]:
    """One arm's accuracy with its interval. column: (accuracies [A], those of resamples [resamples, A])."""
    low, high = interval(column[1][:, place], confidence)
    return {"accuracy": float(column[0][place]), "low": low, "high": high}


def difference_at(column: tuple[np.ndarray, np.ndarray], a: int, b: int, confidence: float) -> dict[str, float]:
    """The difference of arms a and b, a minus b, with its interval. column: as of `accuracy_at`."""
    means, resampled = column
    low, high = interval(resampled[:, a] - resampled[:, b], confidence)
    return {"difference": float(means[a] - means[b]), "low": low, "high": high}


def differences_at(
    column: tuple[np.ndarray, np.ndarray], arms: Sequence[str], kinds: Sequence[str | None], confidence: float
) -> list[dict[str, Any]]:
    """Every two arms' difference with its interval, a later one minus an earlier one, for each kind: {"a", "b", "kind",
    "difference", "low", "high"}. column: as of `accuracy_at`, all arms of the first kind, then of the next. kinds:
    (None,) where there is but one, which then is not named."""
    return [
        {"a": arms[a], "b": arms[b]}
        | ({} if kind is None else {"kind": kind})
        | difference_at(column, k * len(arms) + a, k * len(arms) + b, confidence)
        for b, a in itertools.combinations(range(len(arms)), 2)
        for k, kind in enumerate(kinds)
    ]
