"""How far a judge, or a measure without a model, can be relied upon: what it says of pairs that are known to say the
same or not (`planted_pairs`).

A judge of two answers is shown both; a pair is called different from a divergence of the threshold on. A judge of one
answer is shown what was made of the right one, and calls it different by refusing it. The false accepts are the vague
answers and the contradictions that are called the same, the false rejects the identical answers and paraphrases that
are called different. A judge of unanswerable questions is asked whether a passage is silent on its own question, which
is a false accept where it says so, and on one that was put to another passage. The informedness (Youden's J, 1950) is
1 - false accepts - false rejects: 1 for who is always right, 0 for who calls everything the same, everything different,
or what chance says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntk_jax.data.sources import sample_indices
from ntk_jax.evaluation.wilson import wilson
from ntk_jax.llm.request import Progress
from ntk_jax.questions.agreement import agreement
from ntk_jax.questions.judge import divergence_wish
from ntk_jax.questions.planted import SAME, Item, planted_pairs
from ntk_jax.questions.question import Chunk, Slot, Trace
from ntk_jax.questions.verify import fault_of_answer
from ntk_jax.questions.voice import Said, Voice, Wish, seed_of
from ntk_jax.questions.wording import NOT_STATED, support_wish

OWN, FOREIGN = "question of this passage", "question of another passage"
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
    so)}}. "false_accept", "false_reject" with "..._interval" (Wilson, 95%, over answers), and "informedness": of the
    pairs with a verdict; None where there is none. "void": nothing can be concluded from this judge, as its
    informedness is below `VOID` or was not measured. "failures": {why there is no verdict: pairs}. Raises as
    `Voice.ask`.
    """
    pairs = planted_pairs(items, seed)
    wishes = [
        divergence_wish(pair.question, pair.passage, pair.first, pair.second, seed=seed, max_tokens=max_tokens)
        for pair in pairs
    ]
    said = voice.ask(wishes, progress)
    values = [one.value.value if one.usable else None for one in said]
    return _table(voice.client.name, [pair.kind for pair in pairs], values, threshold, _failures(said))


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
    return _table(voice.client.name, [pair.kind for pair in pairs], values, 0.5, _failures(said))


def calibrate_silence(
    voice: Voice, items: Sequence[Item], *, seed: int, max_tokens: int = 160, progress: Progress | None = None
) -> dict[str, Any]:
    """The same of a judge of unanswerable questions: of every passage, whether it is silent on its own question, and on
    one of another passage, which is drawn; the passage of a question across documents is no other to those that it
    holds. That no other passage answers a question is taken for granted: where one does, the false rejects are fewer
    than they seem. {} where all items are of one passage."""
    rng = np.random.default_rng(seed_of(seed, "silence"))
    asked: list[tuple[str, Wish]] = []
    for own, passage, _ in items:
        others = [question for question, other, _ in items if other not in passage and passage not in other]
        slot = Slot("", "unanswerable", (Chunk("", "", "", "", passage),))
        for kind, question in ((OWN, own), (FOREIGN, others[int(rng.integers(len(others)))] if others else None)):
            if question is not None:
                asked.append((kind, support_wish(slot, question, NOT_STATED, max_tokens=max_tokens)))
    kinds = [kind for kind, _ in asked]
    if FOREIGN not in kinds:
        return {}
    said = voice.ask([wish for _, wish in asked], progress)
    values = [float(not one.value) if one.usable else None for one in said]
    return _table(voice.client.name, [kind for kind, _ in asked], values, 0.5, _failures(said), (FOREIGN,), (OWN,))


def calibrate_agreement(items: Sequence[Item], seed: int, threshold: float = 0.5) -> dict[str, Any]:
    """The same of 1 - `agreement`, which takes no judge. It is made of rules, and the pairs too: real answers are
    harder than these figures say."""
    pairs = planted_pairs(items, seed)
    values = [1 - agreement(pair.first, pair.second) for pair in pairs]
    return _table("agreement", [pair.kind for pair in pairs], values, threshold, {})


def _interval(count: int, pairs: int, kinds: int) -> list[float]:
    """Of a share of pairs. The pairs of one answer, of so many kinds, count as one draw, as if one verdict decided the
    others: where that is not so, the interval is too wide rather than too narrow."""
    return list(wilson(count / kinds, pairs / kinds))


def _failures(said: Sequence[Said]) -> dict[str, int]:
    """{why there is no verdict: pairs}, the commonest first."""
    return dict(Counter(one.value.reason for one in said if not one.usable).most_common())


def _table(
    name: str,
    pairs: Sequence[str],
    values: Sequence[float | None],
    threshold: float,
    failures: dict[str, int],
    right: Sequence[str] = SAME,
    wrong: Sequence[str] = ("vague", "contradiction"),
) -> dict[str, Any]:
    """pairs: the kind of each. values: how far apart it is called; None: no verdict. right, wrong: the kinds that ought
    to be below the threshold, and at or above it."""
    kinds_of = (*right, *wrong)
    own: dict[str, list[float]] = {kind: [] for kind in kinds_of}
    for kind, value in zip(pairs, values, strict=True):
        if value is not None:
            own[kind].append(value)
    asked = Counter(pairs)
    apart = {kind: sum(value >= threshold for value in own[kind]) for kind in kinds_of}
    kinds = {
        kind: {
            "n": asked[kind],
            "read": len(own[kind]),
            "mean": math.fsum(own[kind]) / len(own[kind]) if own[kind] else None,
            "different": apart[kind] / len(own[kind]) if own[kind] else None,
        }
        for kind in kinds_of
    }
    accepted, differing = sum(len(own[kind]) - apart[kind] for kind in wrong), sum(len(own[kind]) for kind in wrong)
    rejected, same = sum(apart[kind] for kind in right), sum(len(own[kind]) for kind in right)
    informedness = 1 - accepted / differing - rejected / same if differing and same else None
    return {
        "judge": name,
        "threshold": threshold,
        "pairs": len(pairs),
        "kinds": kinds,
        "false_accept": accepted / differing if differing else None,
        "false_accept_interval": _interval(accepted, differing, len(wrong)),
        "false_reject": rejected / same if same else None,
        "false_reject_interval": _interval(rejected, same, len(right)),
        "informedness": informedness,
        "void": informedness is None or informedness < VOID,
        "failures": failures,
    }
