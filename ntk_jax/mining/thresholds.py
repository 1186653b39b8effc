"""Where to cut a domain's scores: quantiles, a histogram, a judged sample, and a value that follows from them.

There is no absolute default. A cosine means nothing by itself: 0.85 is usual with one encoder and never reached with
another. So a threshold is suggested from the corpus' own scores, in one of three ways, each of which says how it came:

- *judged*: the lowest one at which a judged sample has the wanted precision;
- *share*: the one that keeps this share of the corpus;
- *excess*: the lowest one at which at most a given part of what is kept would be there without the domain. Most of a
  corpus does not belong to a domain, so the scores below the mode, mirrored at the mode, stand for what does not (the
  empirical null of Efron, Large-Scale Simultaneous Hypothesis Testing, 2004). The scores are maxima over seeds, whose
  right tail is the heavier one, so this errs to low thresholds: it is a place to begin, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.evaluation.wilson import wilson
from ntk_jax.mining.metrics import Curve, precision_recall

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
_STREAM = 0x7E5


@dataclass(frozen=True)
class Suggestion:
    """A threshold, how many of how many it keeps, and how it came, in words for people. doubtful: nothing in the scores
    says where to cut."""

    value: float
    kept: int
    total: int
    how: str
    doubtful: bool = False


@dataclass(frozen=True)
class Sample:
    """Chunks to be judged, drawn by strata of score. places: [n] ascending; weights: [n] chunks each stands for."""

    places: np.ndarray
    weights: np.ndarray


def quantiles(scores: np.ndarray) -> dict[str, float]:
    """Some quantiles of [N] scores, with the lowest and the highest. Raises UserError: there is none."""
    _check_scores(scores, "the corpus")
    values = np.quantile(scores, QUANTILES)
    named = {f"{q:g}": float(value) for q, value in zip(QUANTILES, values, strict=True)}
    return {"lowest": float(scores.min()), **named, "highest": float(scores.max())}


def histogram(scores: np.ndarray, bins: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """(edges [bins + 1], counts [bins]) of [N] scores, from the lowest to the highest."""
    _check_scores(scores, "the corpus")
    counts, edges = np.histogram(scores, bins=bins)
    return edges, counts


def check_threshold(scores: np.ndarray, threshold: float, name: str) -> int:
    """How many of [N] scores are at or above a threshold. Raises UserError: none, or all of them."""
    _check_scores(scores, name)
    if not np.isfinite(threshold):
        raise UserError(f"the threshold of {name} is {threshold}; give a number, or leave it out for a suggestion")
    kept = int((scores >= np.float32(threshold)).sum())
    if kept == 0:
        raise UserError(
            f"the threshold {threshold:.4g} of {name} keeps 0 of {len(scores):,}; the best is {scores.max():.2f}; "
            "give a lower one, or leave it out for a suggestion"
        )
    if kept == len(scores):
        raise UserError(
            f"the threshold {threshold:.4g} of {name} keeps all {len(scores):,}; the lowest is {scores.min():.2f}; "
            "give a higher one, or leave it out for a suggestion"
        )
    return kept


def suggest_share(scores: np.ndarray, share: float) -> Suggestion:
    """The threshold that keeps about this share of [N] scores, at least one and not all of them; more, where many are
    equal."""
    _check_scores(scores, "the corpus")
    if not 0 < share < 1:
        raise UserError(f"share = {share} is outside 0 and 1, both excluded")
    ranked = np.sort(scores)[::-1]
    wanted = max(1, round(share * len(ranked)))
    value = float(ranked[wanted - 1])
    kept = int((scores >= value).sum())
    more = f", not {100 * share:.3g}%, for many scores are equal" if kept > 1.5 * wanted else ""
    return _suggestion(scores, value, f"keeps {100 * (kept / len(ranked) if more else share):.3g}% of the corpus{more}")


def suggest_excess(scores: np.ndarray, *, false_share: float = 0.2, at_most: float = 0.5) -> Suggestion:
    """The lowest threshold at which at most `false_share` of what is kept is what the mirrored lower half of [N] scores
    leads one to expect. Where there is no such threshold, or it keeps more than `at_most`: the one that keeps 1%."""
    _check_scores(scores, "the corpus")
    counts, edges = np.histogram(scores, bins=max(10, min(200, int(np.sqrt(len(scores))))))
    smooth = np.convolve(counts, np.ones(5) / 5, mode="same")
    peak = int(smooth.argmax())
    mode = (edges[peak] + edges[peak + 1]) / 2
    ranked = np.sort(scores)[::-1]
    mirrored = np.sort(2 * mode - scores[scores <= mode])  # ascending
    kept = np.arange(1, len(ranked) + 1)
    expected = len(mirrored) - np.searchsorted(mirrored, ranked, side="left")
    clear = kept - expected >= 4 * np.sqrt(kept + 1)  # a few far scores alone are chance
    good = np.flatnonzero((expected <= false_share * kept) & clear & (ranked > mode) & (kept <= at_most * len(ranked)))
    if not len(good):
        found = suggest_share(scores, 0.01)
        why = f"{found.how}, for no part of the scores stands out above the rest"
        return Suggestion(found.value, found.kept, found.total, why, doubtful=True)
    how = f"at most {false_share:.0%} of what it keeps is expected from the scores below the mode, {mode:.3f}"
    return _suggestion(scores, float(ranked[good[-1]]), how)


def judged_sample(scores: np.ndarray, count: int, seed: int = 0, strata: int = 10) -> Sample:
    """`count` places of [N] scores to be judged: as many from each of `strata` layers that lie ever nearer to the top
    (each holds half of what the one below it holds), because a precision is decided among the best."""
    _check_scores(scores, "the corpus")
    if count < 1:
        raise UserError(f"count = {count}: judge at least one chunk")
    order = np.argsort(-scores, kind="stable")
    sizes = [len(order) // 2 ** (number + 1) for number in range(strata - 1)][::-1]
    borders = np.unique([0, *[size for size in sizes if size > 0], len(order)])
    rng = np.random.default_rng([seed, _STREAM])
    places, weights = [], []
    left = min(count, len(order))
    for number, (start, stop) in enumerate(zip(borders[:-1], borders[1:], strict=True)):
        own = min(stop - start, -(-left // (len(borders) - 1 - number)))
        drawn = rng.permutation(order[start:stop])[:own]
        places.append(drawn)
        weights.append(np.full(own, (stop - start) / own if own else 0.0))
        left -= own
    joined = np.concatenate(places)
    rows = np.argsort(joined)
    return Sample(joined[rows].astype(np.int64), np.concatenate(weights)[rows])


def judged_curve(scores: np.ndarray, sample: Sample, right: np.ndarray) -> Curve:
    """Precision and recall of [N] scores as a judged sample has them. right: [n] bool, or NaN where there is no
    verdict. Raises UserError: no verdict, or nothing was right."""
    known = ~np.isnan(np.asarray(right, np.float64))
    if not known.any():
        raise UserError("the judge gave no usable verdict on any of the sample; see its replies")
    right = np.asarray(right)[known].astype(bool)
    if not right.any():
        raise UserError(
            f"the judge finds none of {known.sum()} sampled chunks to belong to the domain; "
            "look at its description, its seeds and their nearest chunks"
        )
    return precision_recall(right, scores[sample.places[known]], sample.weights[known])


def suggest_judged(scores: np.ndarray, sample: Sample, right: np.ndarray, *, precision: float = 0.9) -> Suggestion:
    """The lowest threshold at which the judged sample has this precision or more; where none has, that of the best F1.
    The words give the 95% interval of that precision, from the judged chunks at or above it: Wilson's, for as many
    equally weighted ones as say the same (Kish, Survey Sampling, 1965). It is too good by what the choice brings."""
    curve = judged_curve(scores, sample, right)
    value = curve.for_precision(precision)
    wanted = value is not None
    value = curve.best_f1() if value is None else value
    known = ~np.isnan(np.asarray(right, np.float64))
    above = known & (scores[sample.places] >= value)
    weights, share = sample.weights[above], curve.at(value)[0]
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    low, high = wilson(share * effective, effective)
    found = f"precision {share:.2f} (95% interval {low:.2f} to {high:.2f}, {int(above.sum())} judged)"
    how = found if wanted else f"{found}: the best F1, for no threshold has precision {precision:.2f}"
    return _suggestion(scores, value, how)


def _suggestion(scores: np.ndarray, value: float, how: str) -> Suggestion:
    """A suggestion never keeps everything: of scores that are all equal nothing can be suggested."""
    kept = int((scores >= value).sum())
    if kept == len(scores):
        raise UserError(
            f"no threshold parts the scores: {kept:,} of {len(scores):,} are at least {value:.4g}; "
            "look at the seeds, or give a threshold"
        )
    return Suggestion(value, kept, len(scores), how)


def _check_scores(scores: np.ndarray, name: str) -> None:
    """Raises UserError: there is none, or one is not a number."""
    if not len(scores):
        raise UserError(f"there is no score of {name}: nothing was searched")
    if np.isnan(scores).any():
        raise UserError(f"{name}: score number {int(np.flatnonzero(np.isnan(scores))[0])} is not a number; embed again")
