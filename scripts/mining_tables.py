"""The figures of scripts/experiment_mining.py: average precision, precision and recall a method, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from ntk_jax.mining.metrics import precision_recall

RESAMPLES = 200
INTERVALS = (
    "Intervals over draws: mean ± t s / √draws, cut at 0 and 1, which a mean cannot leave; they are of the mean over "
    "draws from this set of seeds, which overlap, and not over other sets. Beside them the lowest and the highest "
    "draw. Intervals over documents: a bootstrap of whole documents."
)
READINGS = {"strict": 2, "wide": 1}  # the least label that counts as right


def measured(draws: Sequence[Mapping[str, np.ndarray]], truth: np.ndarray, documents: np.ndarray) -> dict[str, Any]:
    """Figures of {method: scores [N]} of each draw. truth: [N], 2 right, 1 right in the wide reading, 0 wrong."""
    found: dict[str, Any] = {"chunks": len(truth), "kept": int((truth >= 1).sum()), "readings": {}}
    for reading, least in READINGS.items():
        right = truth >= least
        if not right.any():
            continue
        rows = {
            method: _figures([scores[method] for scores in draws], right, documents, found["kept"])
            for method in draws[0]
        }
        found["readings"][reading] = {"base rate": float(right.mean()), "right": int(right.sum()), "methods": rows}
    return found


def tables(results: Sequence[Mapping[str, Any]], chunks: int, draws: int) -> str:
    """All results as Markdown."""
    parts = [f"# Mining a hidden source: {chunks:,} chunks, {draws} draws of seeds\n\n{INTERVALS}\n"]
    for result in results:
        for reading, found in result["readings"].items():
            parts.append(
                f"## {result['domain']}, {reading} reading, seeds: {result['seeds']}\n\n"
                f"{found['right']:,} of {result['chunks']:,} chunks are right (base rate {found['base rate']:.3f}). "
                f"Precision and recall are those of the best {result['kept']:,} chunks of each method.\n\n"
                "| method | average precision | 95% over draws | draws | 95% over documents | precision | recall |\n"
                "|---|---|---|---|---|---|---|"
            )
            ranked = sorted(found["methods"].items(), key=lambda item: -item[1]["average precision"]["mean"])
            for method, own in ranked:
                found_of = own["average precision"]
                each = [min(found_of["each"]), max(found_of["each"])]
                parts.append(
                    f"| {method} | {found_of['mean']:.3f} | {_interval(found_of['draws'])} | {_interval(each)} | "
                    f"{_interval(found_of['documents'])} | {own['precision']:.3f} | {own['recall']:.3f} |"
                )
            parts.append("")
    return "\n".join(parts) + "\n"


def _figures(all_scores: Sequence[np.ndarray], right: np.ndarray, documents: np.ndarray, kept: int) -> dict[str, Any]:
    """Of one method: a number a draw, their mean, and both intervals."""
    curves = [precision_recall(right, scores) for scores in all_scores]
    each = np.array([curve.average_precision for curve in curves])
    at = np.array([curve.at_kept(kept) for curve in curves])
    resampled = np.mean([_over_documents(scores, right, documents) for scores in all_scores], axis=0)
    return {
        "average precision": {
            "each": each,
            "mean": float(each.mean()),
            "draws": _over_draws(each),
            "documents": np.quantile(resampled, [0.025, 0.975]),
        },
        "precision": float(at[:, 0].mean()),
        "recall": float(at[:, 1].mean()),
    }


def _over_draws(values: np.ndarray) -> list[float] | None:
    """The t interval of a mean of shares, None for one draw. Cut at 0 and 1: no mean of shares lies outside, and so the
    cut takes nothing from its coverage."""
    if len(values) < 2:
        return None
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [max(0.0, float(values.mean() - half)), min(1.0, float(values.mean() + half))]


def _over_documents(scores: np.ndarray, right: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """[RESAMPLES] average precisions with documents drawn with replacement; the draws are the same at every call."""
    rng = np.random.default_rng(99)
    order = np.argsort(-scores, kind="stable")
    ranked, true = scores[order], right[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    count = int(documents.max()) + 1
    found = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        times = np.bincount(rng.integers(0, count, count), minlength=count)[documents][order]
        kept, hits = np.cumsum(times)[last], np.cumsum(times * true)[last]
        precision = np.divide(hits, kept, out=np.zeros(len(last)), where=kept > 0)
        found[number] = np.sum(np.diff(hits, prepend=0) * precision) / max(hits[-1], 1)
    return found


def _interval(ends: Sequence[float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
