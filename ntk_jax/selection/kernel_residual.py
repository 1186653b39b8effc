"""The kernel score less what the length of the response predicts of it.

    score(x) = k(x) - f(log L(x)),    with `spread`: (k(x) - f(log L(x))) / g(log L(x))

with k the kernel score and L the tokens of the response. Scores can follow the length of a response more than its
content. f is a running line: at each length the least-squares line in log L through the `examples` nearest by length
(all of a length, and as many on either side as are missing), drawn three times, what lies far from it counting less
each time (Cleveland, Robust locally weighted regression, JASA 1979, whose weights by distance are left out). g is the
mean distance from the line of the same examples. Without `spread` lengths whose scores vary more still hold more of
both ends; in kernel scores that are means over tokens these are the short ones.

Source: the exact scores that scoring stored, and the lengths. Cost: a sort of N numbers and sums over them. Memory: 150
N bytes.
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

_ROUNDS = 3
_FAR = 6.0  # mean distances from the line at which an example no longer counts


@dataclass(frozen=True)
class KernelResidualOptions:
    """Kernel scores without what the response's length predicts."""

    examples: Count = setting(50, "examples of like lengths through whose scores a line is drawn")
    spread: bool = setting(False, "also divide by the mean distance of these examples from the line")


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
    order = np.argsort(lengths, kind="stable")
    values, logs = np.asarray(scores, np.float64)[order], np.log(np.asarray(lengths, np.float64)[order])
    logs -= logs.mean()
    _, start, number = np.unique(lengths[order], return_index=True, return_inverse=True)
    stop = np.append(start[1:], len(order))
    missing = np.maximum(0, -(-(examples - (stop - start)) // 2))
    first, last = np.maximum(start - missing, 0), np.minimum(stop + missing, len(order))

    def near(numbers: np.ndarray) -> np.ndarray:
        """The sum over the examples nearest to each length."""
        sums = np.concatenate([[0.0], np.cumsum(numbers)])
        return sums[last] - sums[first]

    weights = np.ones(len(order))
    for _ in range(_ROUNDS):
        total = near(weights)
        log, value = near(weights * logs) / total, near(weights * values) / total
        variance = near(weights * logs**2) / total - log**2
        covariance = near(weights * logs * values) / total - log * value
        slope = np.where(variance > 1e-9, covariance / np.maximum(variance, 1e-9), 0.0)  # 0 where all are of one length
        left = values - (value + slope * (logs[start] - log))[number]
        distance = (near(np.abs(left)) / (last - first))[number]
        distance = np.where(distance > 0, distance, 1.0)
        weights = np.square(1.0 - np.square(np.clip(left / (_FAR * distance), -1.0, 1.0)))
    found = np.empty(len(order))
    found[order] = left / distance if spread else left
    return found


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
