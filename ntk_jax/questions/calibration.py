"""How far a judge, or a measure without a model, can be relied upon: what it says of pairs that are known to say the
same or not (`planted_pairs`).

A judge of two answers is shown both; a pair is called different from a divergence of the threshold on. A judge of one
answer is shown what was made of the right one, and calls it different by refusing it. The false accepts are the vague
answers and the contradictions that are called the same, the false rejects the identical answers and paraphrases that
are called different. Their informedness (Youden's J, 1950) is 1 - false accepts - false rejects: 1 for who is always
right, 0 for who calls everything the same, everything different, or what chance says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ntk_jax.data.sources import sample_indices
from ntk_jax.evaluation.wilson import wilson
from ntk_jax.llm.request import Progress
from ntk_jax.questions.agreement import agreement
from ntk_jax.questions.judge import divergence_wish
from ntk_jax.questions.planted import KINDS, SAME, Item, Planted, planted_pairs
from ntk_jax.questions.question import Chunk, Slot, Trace
from ntk_jax.questions.verify import fault_of_answer
from ntk_jax.questions.voice import Said, Voice
from ntk_jax.questions.wording import support_wish

VOID = 0.1  # informedness below which a judge says nothing


def items_of(traces: Sequence[Trace], limit: int, seed: int) -> list[Item]:
    """What pairs are planted on: a seeded sample of so many traces, of each the first question whose answer stands by
    what needs no judge. What the judge itself said of it does not count: of questions that it had let pass it would
    find every answer right."""
    found = []
    for trace in traces:
        for version in trace.versions:
            answer = version.expert
            if answer is not None and answer.stated and fault_of_answer(trace.slot, answer) is None:
                found.append((version.question, trace.slot.passage, answer.text))
                break
    places = sample_indices(len(found), limit, seed)
    return found if places is None else [found[i] for i in places]


def calibrate(
    voice: Voice,
    items: Sequence[Item],
    *,
    seed: int,
    threshold: float = 0.5,
    max_tokens: int = 160,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What a judge says of the planted pairs of (question, passage, answer) items.

    Returns JSON values. "kinds": {kind: {"n", "read" (with a verdict), "mean" divergence, "different" (share called
    so)}}. "false_accept", "false_reject" with "..._interval" (Wilson, 95%), and "informedness": of the pairs with a
    verdict; None where there is none. "void": nothing can be concluded from this judge, as its informedness is below
    `VOID` or was not measured. "failures": {why there is no verdict: pairs}. Raises as `Client.ask`.
    """
    pairs = planted_pairs(items, seed)
    wishes = [
        divergence_wish(pair.question, pair.passage, pair.first, pair.second, seed=seed, max_tokens=max_tokens)
        for pair in pairs
    ]
    said = voice.ask(wishes, progress)
    values = [one.value.value if one.usable else None for one in said]
    return _table(voice.client.name, pairs, values, threshold, _failures(said))


def calibrate_verdicts(
    voice: Voice, items: Sequence[Item], *, seed: int, max_tokens: int = 160, progress: Progress | None = None
) -> dict[str, Any]:
    """The same of a judge of whether a passage gives an answer: it is asked of the second answer of each pair, without
    the first. That the items' own answers are right is taken for granted: where they are not, it refuses them rightly,
    and the false rejects are fewer than they seem."""
    pairs = planted_pairs(items, seed)
    wishes = []
    for pair in pairs:
        slot = Slot("", "answerable", (Chunk("", "", "", "", pair.passage),))
        wishes.append(support_wish(slot, pair.question, pair.second, max_tokens=max_tokens))
    said = voice.ask(wishes, progress)
    values = [float(not one.value) if one.usable else None for one in said]
    return _table(voice.client.name, pairs, values, 0.5, _failures(said))


def calibrate_agreement(items: Sequence[Item], seed: int, threshold: float = 0.5) -> dict[str, Any]:
    """The same of 1 - `agreement`, which takes no judge. It is made of rules, and the pairs too: real answers are
    harder than these figures say."""
    pairs = planted_pairs(items, seed)
    values = [1 - agreement(pair.first, pair.second) for pair in pairs]
    return _table("agreement", pairs, values, threshold, {})


def _failures(said: Sequence[Said]) -> dict[str, int]:
    """{why there is no verdict: pairs}, the commonest first."""
    return dict(Counter(one.value.reason for one in said if not one.usable).most_common())


def _table(
    name: str, pairs: Sequence[Planted], values: Sequence[float | None], threshold: float, failures: dict[str, int]
) -> dict[str, Any]:
    own: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for pair, value in zip(pairs, values, strict=True):
        if value is not None:
            own[pair.kind].append(value)
    asked = Counter(pair.kind for pair in pairs)
    apart = {kind: sum(value >= threshold for value in own[kind]) for kind in KINDS}
    kinds = {
        kind: {
            "n": asked[kind],
            "read": len(own[kind]),
            "mean": math.fsum(own[kind]) / len(own[kind]) if own[kind] else None,
            "different": apart[kind] / len(own[kind]) if own[kind] else None,
        }
        for kind in KINDS
    }
    others = [kind for kind in KINDS if kind not in SAME]
    accepted, differing = sum(len(own[kind]) - apart[kind] for kind in others), sum(len(own[kind]) for kind in others)
    rejected, same = sum(apart[kind] for kind in SAME), sum(len(own[kind]) for kind in SAME)
    informedness = 1 - accepted / differing - rejected / same if differing and same else None
    return {
        "judge": name,
        "threshold": threshold,
        "pairs": len(pairs),
        "kinds": kinds,
        "false_accept": accepted / differing if differing else None,
        "false_accept_interval": list(wilson(accepted, differing)),
        "false_reject": rejected / same if same else None,
        "false_reject_interval": list(wilson(rejected, same)),
        "informedness": informedness,
        "void": informedness is None or informedness < VOID,
        "failures": failures,
    }
