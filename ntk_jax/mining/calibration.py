"""What a multi-label classifier owes besides its order: probabilities that mean something, and a threshold a domain.

Both come from rows that it was not trained on. Classes are weighted in training so that a rare domain counts as much as
its negatives, which shifts the logits; a temperature and an offset a domain, fitted to the unweighted held-out labels,
take that back (Platt, Probabilistic outputs for support vector machines, 1999; temperature: Guo et al., arXiv
1706.04599). A threshold looks better on the rows that chose it than on others: precision and recall are therefore
counted crosswise, on each half of the held-out groups at the threshold that the other half chooses. All of it is no
better than the labels: on mined labels a probability is that of the mined label, and the share of positives among them
is that of the labelled set, not of the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.mining.metrics import Curve, precision_recall

MOST_SCALE = 20.0  # of logits of unit deviation
_STREAM = 0xCA1


@dataclass(frozen=True)
class Calibration:
    """How raw logits z become probabilities, sigmoid(z * scale + offset), and where they are cut.

    scale, offset, thresholds: [M] fp32; scale is 1 / temperature. curves: {domain: held-out precision and recall by
    probability}, for the domains that have held-out positives. figures: {domain: {figure: value}}, for reports.
    """

    scale: np.ndarray
    offset: np.ndarray
    thresholds: np.ndarray
    curves: Mapping[str, Curve]
    figures: Mapping[str, Mapping[str, Any]]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """[n, M] fp32 from [n, M] raw logits."""
        return sigmoid(np.asarray(logits, np.float64) * self.scale + self.offset).astype(np.float32)


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def check_labels(labels: np.ndarray, names: Sequence[str], rows: int) -> None:
    """Raises UserError: labels and rows do not match, or a domain has no positive or no negative."""
    if labels.shape != (rows, len(names)):
        raise UserError(f"labels {list(labels.shape)} do not match {rows} rows and {len(names)} domains")
    for place, name in enumerate(names):
        for value, what in ((1.0, "positive"), (0.0, "negative")):
            if not (labels[:, place] == value).any():
                raise UserError(f"the domain {name} has no {what} example to train its classifier with; see its labels")


def held_out(
    labels: np.ndarray, share: float, seed: int, groups: Sequence[Any] | np.ndarray | None = None
) -> np.ndarray:
    """[n] bool: the rows that training does not see.

    Whole groups (documents, seeds), so that no document stands on both sides; groups None: each row is its own. About
    `share` of the groups that hold a positive and of the rest, drawn apart, so that rare positives are on both sides.
    Raises UserError: share is outside 0 and 1.
    """
    if not 0 < share < 1:
        raise UserError(f"held_out = {share} is outside 0 and 1, both excluded")
    rows = len(labels)
    _, number = np.unique(np.arange(rows) if groups is None else np.asarray(groups), return_inverse=True)
    held = np.zeros(number.max() + 1, bool)
    first = np.where((labels == 1.0).any(axis=1), np.nan_to_num(labels).argmax(axis=1), labels.shape[1])
    kind = np.full(len(held), labels.shape[1])
    np.minimum.at(kind, number, first)  # a group is of the first domain that one of its rows is a positive of
    rng = np.random.default_rng([seed, _STREAM])
    for value in np.unique(kind):
        own = rng.permutation(np.flatnonzero(kind == value))
        held[own[: max(1, round(share * len(own))) if len(own) > 1 else 0]] = True
    return held[number]


def calibrate(
    logits: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    precision: float | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> Calibration:
    """Temperature, offset, curves and thresholds from held-out rows.

    logits: [n, M]; labels: [n, M], NaN is not used. groups: [n] as of `held_out`. precision: the threshold of a domain
    is the lowest with this precision, and that of the best F1 where none has it, where it keeps less than half of what
    that keeps, or where precision is None. A domain
    without held-out positives or negatives keeps its logits and the threshold ½, and its figures say so. The figure
    `counted` has what the thresholds of one half keep of the other: {"kept", "right", "positives"}; it is absent where
    a half has no positives.
    """
    domains = len(names)
    scale, offset = np.ones(domains, np.float32), np.zeros(domains, np.float32)
    limits = np.full(domains, 0.5, np.float32)
    curves: dict[str, Curve] = {}
    figures: dict[str, dict[str, Any]] = {}
    whose = np.arange(len(labels)) if groups is None else np.asarray(groups)
    for place, name in enumerate(names):
        used = ~np.isnan(labels[:, place])
        z, y = np.asarray(logits[used, place], np.float64), labels[used, place]
        counts = {"held-out positives": int((y == 1).sum()), "held-out negatives": int((y == 0).sum())}
        if min(counts.values()) == 0:
            figures[name] = {**counts, "threshold": 0.5, "how": "½, for nothing was held out to choose it by"}
            continue
        scale[place], offset[place] = _platt(z, y)
        probability = sigmoid(z * scale[place] + offset[place]).astype(np.float32)
        curve = curves[name] = precision_recall(y == 1, probability)
        limits[place], how = _limit(curve, precision)
        counted = _crosswise(z, y == 1, whose[used], precision)
        figures[name] = {
            **counts,
            "average precision": curve.average_precision,
            **({"counted": counted} if counted else {}),
            "temperature": float(1 / scale[place]),
            "log loss": _log_loss(z * scale[place] + offset[place], y),
            "threshold": float(limits[place]),
            "how": how,
        }
    return Calibration(scale, offset, limits, curves, figures)


def _limit(curve: Curve, precision: float | None) -> tuple[float, str]:
    """(the threshold, how it was chosen). Of few rows the highest score may be right by luck, so that a threshold of
    this precision keeps next to nothing: it counts only where it keeps half of what the best F1 does."""
    best = curve.best_f1()
    wanted = None if precision is None else curve.for_precision(precision)
    if wanted is None:
        return best, "best F1"
    kept = {limit: float(curve.recall[np.flatnonzero(curve.threshold == limit)[-1]]) for limit in (best, wanted)}
    if kept[wanted] < kept[best] / 2:
        return best, f"best F1, for precision {precision:g} would keep {kept[wanted]:.0%} of what belongs"
    return wanted, f"precision {precision:g}"


def _crosswise(z: np.ndarray, right: np.ndarray, groups: np.ndarray, precision: float | None) -> dict[str, int] | None:
    """What the threshold that each half of the groups chooses keeps of the other half; None: a half has no positives.
    Logits do as well as probabilities here, which rise with them."""
    side = held_out(right[:, None].astype(np.float32), 0.5, 0, groups)
    if not (right[side].any() and right[~side].any()):
        return None
    counted = {"kept": 0, "right": 0, "positives": int(right.sum())}
    for own in (side, ~side):
        limit, _ = _limit(precision_recall(right[own], z[own]), precision)
        kept = ~own & (z >= limit)
        counted["kept"] += int(kept.sum())
        counted["right"] += int((kept & right).sum())
    return counted


def _platt(z: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(scale, offset) of the least log loss by Newton's method, the scale positive. The targets are Platt's, a little
    inside 0 and 1, and so the loss has a minimum also for a set that a threshold separates."""
    positives, negatives = float((y == 1).sum()), float((y == 0).sum())
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    width = max(float(z.std()), 1e-6)
    x = np.stack([z / width, np.ones_like(z)], axis=1)
    beta = np.array([1.0, 0.0])
    loss = _log_loss(x @ beta, target)
    for _ in range(100):
        p = sigmoid(x @ beta)
        slope = x.T @ (p - target) / len(z)
        curvature = (x * (p * (1 - p))[:, None]).T @ x / len(z) + 1e-9 * np.eye(2)
        step, size = np.linalg.solve(curvature, slope), 1.0
        while size > 1e-6 and _log_loss(x @ (beta - size * step), target) > loss:
            size /= 2
        beta = beta - size * step
        before, loss = loss, _log_loss(x @ beta, target)
        if before - loss < 1e-12:
            break
    scale = float(np.clip(beta[0], 1e-3, MOST_SCALE)) / width
    return scale, float(beta[1])


def _log_loss(z: np.ndarray, y: np.ndarray) -> float:
    """Mean binary cross entropy of logits, nats."""
    return float(np.mean(np.logaddexp(0.0, z) - y * z))
