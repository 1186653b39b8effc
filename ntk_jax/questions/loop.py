"""The adversarial loop (arXiv 2602.18137): a question is asked, target and expert answer, the gap between them is
measured, and the question is rewritten so that the gap grows. All open questions of a round go to the models together.

A rewritten question takes the place of the one before only if its gap is larger and the passage still answers it.
Rounds, patience and the rest are not in the paper; the defaults are this package's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.questions.gaps import Measure, fit_measure, spread
from ntk_jax.questions.question import NO_GAIN, Likelihood, Slot, Trace, Version
from ntk_jax.questions.rounds import JUDGED, MakeProgress, Rounds, Settings, Try, Voices, is_better


@dataclass(frozen=True)
class Search:
    """What the loop found. measure: None where no question could be measured. rounds: of each its counts and the spread
    of its gaps."""

    traces: list[Trace]
    measure: Measure | None
    rounds: list[dict[str, Any]]


def search(
    slots: Sequence[Slot],
    voices: Voices,
    settings: Settings,
    *,
    target: Likelihood | None = None,
    expert: Likelihood | None = None,
    focuses: Sequence[str | None] | None = None,
    progress: MakeProgress | None = None,
) -> Search:
    """Looks for the question of every slot with the largest gap.

    target, expert: likelihoods under these models, which the signals nll and both need (expert: for the reference
    `expert` alone). focuses: of each slot, the part of its passage that the first question is to be about.
    Raises UserError as the voices' clients (a refused key, a spent cap) and `fit_measure` (gaps that are all the same).
    """
    traces = [Trace(slot, focus) for slot, focus in zip(slots, focuses or [None] * len(slots), strict=True)]
    work = Rounds(voices, settings, target, expert, progress)
    measure: Measure | None = None
    rounds: list[dict[str, Any]] = []
    for number in range(settings.rounds + 1):
        open_now = work.affordable([trace for trace in traces if trace.stopped is None])
        if not open_now:
            break
        tries = work.asked(open_now, traces, number)
        work.answered(tries, number)
        if measure is None and any(one.signals for one in tries):
            measure = fit_measure([one.signals for one in tries if one.signals], settings.signal)
        for one in tries:
            one.gap = measure.gap(one.signals) if measure is not None and one.fault is None else None
        work.judged(tries, number)
        gains = [_settle(one, number, settings) for one in tries]
        gaps = [one.gap for one in tries if one.gap is not None]
        rounds.append({"round": number, "tried": len(tries), "accepted": sum(gains), "gaps": spread(gaps)})
    for trace in traces:
        trace.stopped = trace.stopped or "rounds"
    return Search(traces, measure, rounds)


def _settle(one: Try, number: int, settings: Settings) -> bool:
    """Writes a try down as a version; whether it took the place of the one before."""
    trace, standing = one.trace, one.trace.standing
    better = one.fault is None and is_better(one, settings)
    tokens = [said.tokens for said in one.said.values()]
    trace.versions.append(
        Version(
            number,
            one.question,
            one.expert,
            one.target,
            one.signals,
            one.gap,
            one.fault if one.fault or better else NO_GAIN,
            better,
            one.feedback,
            {name: said.prompt for name, said in one.said.items()},
            sum(said.calls for said in one.said.values()),
            (sum(t[0] for t in tokens), sum(t[1] for t in tokens)),
            {name: one.said[name].raw for name in JUDGED if name in one.said},
        )
    )
    if better:
        trace.best, trace.stale = len(trace.versions) - 1, 0
    elif standing is not None:
        trace.stale += 1
    if trace.standing is not None and trace.stopped is None:
        gap = trace.standing.gap
        if settings.enough is not None and gap is not None and gap >= settings.enough:
            trace.stopped = "enough"
        elif trace.stale >= settings.patience:
            trace.stopped = "patience"
    return better
