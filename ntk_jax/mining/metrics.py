"""How well scores separate what belongs to a domain from what does not: precision, recall and average precision.

    precision(t) = Σ_{s_i ≥ t} w_i y_i / Σ_{s_i ≥ t} w_i        recall(t) = Σ_{s_i ≥ t} w_i y_i / Σ_i w_i y_i
    average precision = Σ_k (recall_k - recall_{k-1}) precision_k

over the distinct scores t, highest first, so that equal scores are kept or left out together: the sum of steps, without
interpolation (Davis & Goadrich, The relationship between precision-recall and ROC curves, 2006, on why not). The
weights w are 1, or how many chunks each judged chunk of a stratified sample stands for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ntk_jax.errors import UserError


@dataclass(frozen=True)
class Curve:
    """Precision and recall by threshold. threshold: [T] distinct scores, highest first; precision, recall, kept: [T] of
    all scores at or above it (kept: their weight). base_rate: the precision of keeping everything."""

    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    kept: np.ndarray
    base_rate: float

    @property
    def average_precision(self) -> float:
        """The area below the steps; the base rate is what scores at random reach."""
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))

    @property
    def f1(self) -> np.ndarray:
        """[T] harmonic means of precision and recall."""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)

    def at(self, threshold: float) -> tuple[float, float]:
        """(precision, recall) of what scores at or above `threshold`; (NaN, 0) where that is nothing."""
        place = int(np.searchsorted(-self.threshold, -threshold, side="right")) - 1
        return (float("nan"), 0.0) if place < 0 else (float(self.precision[place]), float(self.recall[place]))

    def at_kept(self, count: float) -> tuple[float, float]:
        """(precision, recall) of the `count` best, the last few by share where equal scores straddle the border."""
        total, true = self.kept[-1], self.precision * self.kept
        found = np.interp(count, np.append(0.0, self.kept), np.append(0.0, true))
        return float(found / min(count, total)), float(found / true[-1])

    def best_f1(self) -> float:
        """The threshold of the largest F1; of equal ones the higher."""
        return float(self.threshold[int(np.argmax(self.f1))])

    def for_precision(self, least: float) -> float | None:
        """The threshold of the largest recall at a precision of at least `least`, None where there is none."""
        good = np.flatnonzero(self.precision >= least)
        return float(self.threshold[good[-1]]) if len(good) else None


def precision_recall(right: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """The curve of [n] scores whose truth is `right` [n] bool.

    weights: [n] positive, how much each counts; None: 1. Raises UserError: nothing is right, so that there is no
    recall, or a score is not a number.
    """
    right, scores = np.asarray(right, bool), np.asarray(scores, np.float64)
    weight = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    if np.isnan(scores).any():
        raise UserError(f"score number {int(np.flatnonzero(np.isnan(scores))[0])} is not a number; score again")
    if not (right & (weight > 0)).any():
        raise UserError(f"none of {len(right)} examples is right: there is no recall to measure")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last place of each distinct score
    kept = np.cumsum(weight[order])[last]
    true = np.cumsum(weight[order] * right[order])[last]
    precision = np.divide(true, kept, out=np.zeros_like(true), where=kept > 0)
    return Curve(ranked[last], precision, true / true[-1], kept, float(true[-1] / kept[-1]))


def average_precision(right: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """That of `precision_recall`, which raises as it does."""
    return precision_recall(right, scores, weights).average_precision
