"""Intervals over several runs and their examples: what another seed and other examples of the same kind would give.

A bootstrap over the examples of one run says nothing about the seed, and the spread of a few seeds nothing about the
examples. Here a resample draws runs, then examples, and arms share every draw, so that differences are paired in both.

Which sampling is assumed:

- `shared`: all runs were evaluated on the same examples, as those that differ in their seed are. Examples are then
  drawn once a resample, for all of its runs: what makes a question hard makes it hard in every run, and averaging over
  runs does not take that away. (Runs and examples are crossed: the pigeonhole bootstrap of Owen, Annals of Applied
  Statistics 2007, which is careful: what is peculiar to a run on an example counts up to three times.)
- not `shared`: each run has examples of its own, such as a sample by its seed. They are drawn within each drawn run.

Of R runs R - 1 are drawn, so that the variance between runs is right and not (R - 1) / R of it (Rao & Wu, Journal of
the American Statistical Association 1988). With one run this is the plain bootstrap of `bootstrap.py`, draw for draw.

Percentiles are those of the normal law where much is drawn, which the few runs of an experiment are not. Intervals are
therefore stretched about the estimate by t / z, with the degrees of freedom that Satterthwaite's formula gives where so
much of the variance is between so many runs (Biometrics Bulletin 1946); where runs agree, by nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from ntk_jax.errors import UserError
from ntk_jax.evaluation.bootstrap import interval, resampled_sums


@dataclass(frozen=True)
class Runs:
    """values: [N, A] of each run, A arms; the same N where examples are shared. weights: [N] of each run, such as
    tokens of a mean over tokens; None: all alike. groups: [N] of each run, the documents that are drawn in place of
    examples."""

    values: Sequence[np.ndarray]
    weights: Sequence[np.ndarray] | None = None
    shared: bool = True
    groups: Sequence[Sequence[str]] | None = None


@dataclass(frozen=True)
class Resampled:
    """by_run: [R, A] means of each run. draws: [resamples, A] means over resampled runs and examples."""

    by_run: np.ndarray
    draws: np.ndarray

    def minus(self, other: Resampled) -> Resampled:
        """The paired difference: of the same runs and draws. Raises UserError: they are not of the same shape."""
        if self.by_run.shape != other.by_run.shape or self.draws.shape != other.draws.shape:
            raise UserError("a paired difference needs the same runs and resamples on both sides")
        return Resampled(self.by_run - other.by_run, self.draws - other.draws)

    def of(self, arm: int) -> Resampled:
        """One arm's."""
        return Resampled(self.by_run[:, arm : arm + 1], self.draws[:, arm : arm + 1])


def resampled_runs(
    runs: Runs, *, resamples: int, seed: Sequence[int], seed_of_runs: Sequence[int] | None = None
) -> Resampled:
    """The means of runs, and of resampled runs × examples. seed: ints; with the same one all arms and measures of the
    same runs share their draws. seed_of_runs: of the draws of runs alone; None: `seed`. Parts that have it in common
    draw the same runs, for an interval over runs that are `together`.

    Raises UserError: no runs, no examples, runs that do not fit together.
    """
    weighted = _weighted(runs)
    groups: Sequence[Sequence[str] | None] = runs.groups or [None] * len(weighted)
    by_run = np.stack([_means(each.sum(axis=0)) for each in weighted])
    count = len(weighted)
    drawn = np.random.default_rng([*(seed if seed_of_runs is None else seed_of_runs), count]).integers(
        0, count, (resamples, max(1, count - 1))
    )
    draws = np.zeros((resamples, by_run.shape[1]))
    if runs.shared:
        sums = resampled_sums(np.concatenate(weighted, axis=1), resamples=resamples, seed=seed, groups=groups[0])
        each = _means(sums.reshape(resamples, count, -1))  # [resamples, R, A]
        draws = np.take_along_axis(each, drawn[:, :, None], axis=1).mean(axis=1)
    else:
        for slot in range(drawn.shape[1]):
            for run in range(count):
                places = np.flatnonzero(drawn[:, slot] == run)
                own = seed if count == 1 else (*seed, slot, run)
                if len(places):
                    sums = resampled_sums(weighted[run], resamples=len(places), seed=own, groups=groups[run])
                    draws[places] += _means(sums) / drawn.shape[1]
    return Resampled(by_run, draws)


def hierarchical_interval(
    parts: Sequence[Resampled], confidence: float, arm: int = 0, *, together: bool = False
) -> dict[str, float | int]:
    """{"value", "low", "high", "runs"}: the mean over parts (such as domains) of one arm's mean over runs, and its
    interval. Parts vary apart: each has draws by a seed of its own. Or their runs vary `together`, as they do where the
    k-th run of every part has the same adapter and order; their draws are then by one `seed_of_runs`. runs: the fewest
    of a part.

    Raises UserError: no parts; together, and not as many runs in all.
    """
    if not parts:
        raise UserError("an interval over runs needs at least one part with a run")
    if together and len({len(part.by_run) for part in parts}) > 1:
        raise UserError("runs that vary together are as many in every part")
    value = float(np.mean([part.by_run[:, arm].mean() for part in parts]))
    draws = np.mean([part.draws[:, arm] for part in parts], axis=0)
    low, high = interval(draws, confidence)
    by_run = [part.by_run[:, arm] for part in parts]
    stretch = stretch_of([np.mean(by_run, axis=0)] if together else by_run, draws, confidence)
    return {
        "value": value,
        "low": value - stretch * (value - low),
        "high": value + stretch * (high - value),
        "runs": min(len(part.by_run) for part in parts),
    }


def _weighted(runs: Runs) -> list[np.ndarray]:
    """[N, A + 1] of each run: weighted values, and the weights."""
    if not runs.values or any(len(values) == 0 for values in runs.values):
        raise UserError("an interval over runs needs at least one run, and an example in each")
    found = []
    for place, values in enumerate(runs.values):
        weights = np.ones(len(values)) if runs.weights is None else np.asarray(runs.weights[place], np.float64)
        if weights.shape != (len(values),) or not (weights > 0).all():
            raise UserError("weights are positive, one an example")
        found.append(np.concatenate([np.asarray(values, np.float64) * weights[:, None], weights[:, None]], axis=1))
    if len({each.shape[1] for each in found}) > 1 or (runs.shared and len({len(each) for each in found}) > 1):
        raise UserError("runs over shared examples have as many examples, and all runs the same arms")
    return found


def _means(sums: np.ndarray) -> np.ndarray:
    """[..., A + 1] → [..., A]."""
    return np.asarray(sums[..., :-1] / sums[..., -1:])


def stretch_of(by_run: Sequence[np.ndarray], draws: np.ndarray, confidence: float) -> float:
    """t / z: how much wider than the normal law's an interval is, for the few runs that some of its variance is of.
    by_run: [R] of each part that varies by itself."""
    total = float(draws.var())
    between, square = 0.0, 0.0
    for each in by_run:
        count = len(each)
        if count > 1:
            own = float(each.var(ddof=1)) / count / len(by_run) ** 2
            between, square = between + own, square + own**2 / (count - 1)
    if square == 0.0:
        return 1.0
    tail = 1.0 - (1.0 - confidence) / 2.0
    return max(1.0, float(stdtrit(max(total, between) ** 2 / square, tail) / ndtri(tail)))
