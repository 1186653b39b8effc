"""How far apart the target and the expert are on a question, as one number that rounds and questions are compared by.

Three signals, each larger where the target knows less:

- nll: nats a token of the expert's answer under the target, less the same under a reference: the target with the
  passage in view (`context`), or the expert (`expert`). No judge is needed. Answers of few tokens have larger means a
  token, so what the length predicts is taken off.
- judge: how far the two answers disagree by a rubric, 0 to 1.
- band: 4 p (1 - p) of the share p of the target's own draws that agree with the expert, times how far the expert
  agrees with itself: largest where the expert is sure and the target sometimes right (the frontier of SPICE, arXiv
  2510.24684).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.questions.question import Likelihood
from ntk_jax.questions.wording import target_messages

SIGNALS = ("nll", "judge", "both", "band")
REFERENCES = ("context", "expert")
LEAST = 8  # gaps from which on the length's part is fitted, and equal gaps are refused
_EQUAL = 1e-6  # gaps that differ by no more are the same


@dataclass(frozen=True)
class Asked:
    """A question with the expert's answer, whose likelihoods are wanted. passage: what models read of it."""

    question: str
    passage: str
    answer: str


def likelihood_gaps(
    asked: Sequence[Asked], target: Likelihood, expert: Likelihood | None = None, *, sees_document: bool = False
) -> list[dict[str, float] | None]:
    """{"nll", "tokens", "target_nll", "reference_nll"} of each; nll is in nats a token of the target. None: it does not
    fit a context, or has no tokens.

    expert: None has the target itself with the passage in view as the reference, and then the target is measured
    without; with an expert sees_document says whether the target sees the passage, which the expert always does.
    """
    seen, unseen = _records(asked, True), _records(asked, False)
    measured = target(seen if expert is not None and sees_document else unseen)
    reference = (expert or target)(seen)
    found: list[dict[str, float] | None] = []
    for one, other in zip(measured, reference, strict=True):
        if one is None or other is None or not one[1] or not math.isfinite(one[0] + other[0]):
            found.append(None)
            continue
        tokens = one[1]  # of the target for both: the expert may count others
        own, theirs = one[0] / tokens, other[0] / tokens
        found.append({"nll": own - theirs, "tokens": tokens, "target_nll": own, "reference_nll": theirs})
    return found


def _records(asked: Sequence[Asked], with_passage: bool) -> list[dict[str, Any]]:
    return [
        {
            "id": f"gap-{number}",
            "source": "questions",
            "messages": [
                *target_messages(one.question, one.passage if with_passage else None),
                {"role": "assistant", "content": one.answer},
            ],
        }
        for number, one in enumerate(asked)
    ]


def band(shares: float, consistency: float) -> float:
    """The signal band. shares: of the target's draws that agree with the expert. consistency: of the expert."""
    return 4 * shares * (1 - shares) * consistency


@dataclass(frozen=True)
class Measure:
    """From signals to the gap, fixed by the first round. slope: nats a token for each unit of log tokens, which is
    taken off around `centre`. scales: {signal: (mean, standard deviation)} of the first round, for `both`."""

    signal: str = "nll"
    slope: float = 0.0
    centre: float = 0.0
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def gap(self, signals: Mapping[str, float]) -> float | None:
        """The gap of a version, None where a signal that it needs is not there."""
        if self.signal in ("judge", "band"):
            return signals.get(self.signal)
        controlled = self.controlled(signals)
        if self.signal == "nll" or controlled is None:
            return controlled
        if "judge" not in signals:
            return None
        parts = {"nll": controlled, "judge": signals["judge"]}
        return sum((value - self.scales[name][0]) / self.scales[name][1] for name, value in parts.items()) / 2

    def controlled(self, signals: Mapping[str, float]) -> float | None:
        """The likelihood gap without what the answer's length predicts."""
        if "nll" not in signals:
            return None
        return signals["nll"] - self.slope * (math.log(signals["tokens"]) - self.centre)


def fit_measure(signals: Sequence[Mapping[str, float]], signal: str) -> Measure:
    """The measure of a run by the signals of its first round.

    Raises UserError: no such signal; a signal that is the same for every question, which can rank none.
    """
    if signal not in SIGNALS:
        raise UserError(f"signal must be one of {', '.join(SIGNALS)}, got {signal!r}")
    measure = Measure(signal)
    if signal in ("nll", "both"):
        slope, centre = _length_slope([one for one in signals if "nll" in one])
        measure = Measure(signal, slope, centre)
    for name in {"both": ("nll", "judge")}.get(signal, (signal,)):
        values = [value for one in signals if (value := _value(measure, one, name)) is not None]
        check_spread(values, name)
        if signal == "both":
            # One value alone has no scale, and is compared as it stands.
            scale = float(np.std(values)) if len(values) > 1 else 1.0
            centre = float(np.mean(values)) if values else 0.0
            measure = Measure(signal, measure.slope, measure.centre, {**measure.scales, name: (centre, scale or 1.0)})
    return measure


def _value(measure: Measure, one: Mapping[str, float], name: str) -> float | None:
    return measure.controlled(one) if name == "nll" else one.get(name)


def _length_slope(signals: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """(slope, centre) of the least squares line of nll over log tokens; no slope where there is too little to see."""
    lengths = np.log([one["tokens"] for one in signals])
    if len(lengths) < LEAST or np.ptp(lengths) < _EQUAL:
        return 0.0, float(lengths.mean()) if len(lengths) else 0.0
    values = np.asarray([one["nll"] for one in signals])
    centred = lengths - lengths.mean()
    return float(centred @ (values - values.mean()) / (centred @ centred)), float(lengths.mean())


def spread(values: Sequence[float]) -> dict[str, float]:
    """How gaps lie: {"n", "mean", "sd", "least", "median", "most"}; n alone where there are none."""
    found = np.asarray([value for value in values if value is not None], np.float64)
    if not len(found):
        return {"n": 0}
    values = (found.mean(), found.std(), found.min(), np.median(found), found.max())
    # Rounded, so that a mean that is zero by definition is shown as one; plus zero, for that may be a negative one.
    named = zip(
        ("mean", "sd", "least", "median", "most"), (round(float(value), 9) + 0.0 for value in values), strict=True
    )
    return {"n": len(found), **dict(named)}


class EqualGaps(UserError):
    """All gaps are the same."""


def check_spread(values: Sequence[float], signal: str) -> None:
    """Raises EqualGaps: they can rank no question. Few may be so by accident."""
    about = spread(values)
    if about["n"] < LEAST or about["most"] - about["least"] > _EQUAL:
        return
    why = {
        "nll": "look at the target's weights, and whether its context holds the passage",
        "judge": "the judge gives one score to all; take another judge, or the signal nll",
        "band": "the target's draws all agree with the expert or all disagree; take the signal nll",
    }[signal]
    raise EqualGaps(
        f"the gap {signal} is {about['least']:.6g} for all {about['n']} questions (standard deviation "
        f"{about['sd']:.2g}), so it can rank none: {why}"
    )
