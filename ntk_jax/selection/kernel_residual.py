"""The kernel score less what the length of the response predicts of it.

    score(x) = k(x) - f(log L(x)),    with `spread`: (k(x) - f(log L(x))) / g(log L(x))

with k the kernel score and L the tokens of the response. f goes through the median scores of groups of like length, g
through their median absolute deviations, straight in log L between the groups' middles. Groups are the shortest runs
of lengths with at least `examples` examples; equal lengths are never apart. Scores can follow the length of a response
more than its content; of this one the half of each length is above 0, so nothing is left of the trend. Without
`spread` lengths whose scores vary more still hold more of both ends, which in kernel scores of means are the short
ones.

Source: the exact scores that scoring stored, and the lengths. Cost: a sort of N numbers. Memory: 60 N bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.selection.ranker import Candidates, Ranker, Ranking, needed
from ntk_jax.selection.top import top_places
from ntk_jax.settings import Count, setting


@dataclass(frozen=True)
class KernelResidualOptions:
    """Kernel scores without what the response's length predicts."""

    examples: Count = setting(50, "least examples of a group of like lengths, whose median score is what is predicted")
    spread: bool = setting(False, "also divide by the group's median absolute deviation")


def rank(candidates: Candidates, options: KernelResidualOptions) -> Ranking:
    """The `count` usable examples whose scores exceed most what their lengths predict, ties in pool order.

    Raises UserError: a scored example has no response length, or fewer usable examples have a score than are asked for.
    """
    kernel = needed(candidates.scores, "scores", "kernel_residual")
    known = np.flatnonzero(candidates.usable & ~np.isnan(kernel))
    lengths = candidates.span[known]
    if not lengths.all():
        raise UserError("some scored examples have no response length; give the lengths in tokens of all of them")
    scores = np.full(len(kernel), np.nan, np.float32)
    if len(known):
        scores[known] = residuals(kernel[known], lengths, options.examples, options.spread)
    return Ranking(scores, top_places(scores, candidates.usable, candidates.count))


def residuals(scores: np.ndarray, lengths: np.ndarray, examples: int, spread: bool = False) -> np.ndarray:
    """[N] float64: scores [N] less what lengths [N] (above 0) predict, as above."""
    values, logs = np.asarray(scores, np.float64), np.log(np.asarray(lengths, np.float64))
    groups = _groups(lengths, examples)
    middles = np.array([logs[group].mean() for group in groups])

    def through(points: list[float]) -> np.ndarray:
        return np.interp(logs, middles, points)

    left = values - through([float(np.median(values[group])) for group in groups])
    if not spread:
        return left
    deviations = np.array([np.median(np.abs(values[group] - np.median(values[group]))) for group in groups])
    some = deviations[deviations > 0]
    typical = np.median(some) if len(some) else 1.0  # where most scores of a group are equal
    return left / through(np.where(deviations > 0, deviations, typical).tolist())


def _groups(lengths: np.ndarray, examples: int) -> list[np.ndarray]:
    """Indices by ascending length, in groups of at least so many; what is left at the end is of the last."""
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    cuts, start = [], 0
    for end in [*(np.flatnonzero(np.diff(ordered)) + 1).tolist()]:
        if end - start >= examples and len(ordered) - end >= examples:
            cuts.append(end)
            start = end
    return np.split(order, cuts)


def _label(options: Any, settings: Mapping[str, Any]) -> str:
    return f"residual:{settings['objective']}"


RANKER = Ranker(
    name="kernel_residual",
    title="NTK kernel score less length",
    help="the exact kernel score less what the length of the response predicts of it",
    rank=rank,
    options=KernelResidualOptions,
    needs=("scores",),
    label=_label,
)
