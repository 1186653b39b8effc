"""Which of the verified questions are kept: every chunk has its share, none says what another one says or what an
evaluation asks, and there are as many as were asked for, or it is stated how many are missing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ntk_jax.data.alike import first_alike
from ntk_jax.data.near_duplicates import near_duplicates
from ntk_jax.questions.leaks import Leaks
from ntk_jax.questions.question import KINDS, Slot, Trace, Version

Vectors = Callable[[Sequence[str]], np.ndarray]  # [N, D], embeddings of texts
# Why a verified question is not kept.
LEAKED, SAME_WORDS = "it shares a run of words with an evaluation item", "nearly the same words as another question"
SAME_SENSE, ENOUGH_OF_CHUNK = "nearly the same embedding as another question", "its chunk has enough questions"
TOO_SMALL, NOT_NEEDED = "its gap is too small", "enough questions with larger gaps"
ENOUGH_OF_KIND = "enough questions of its kind"


@dataclass(frozen=True)
class Candidate:
    """A verified question. ordinal: of its trace."""

    ordinal: int
    slot: Slot
    version: Version


@dataclass(frozen=True)
class Limits:
    """count: questions that are kept; None: all that pass. quota: of every chunk, that come before any other's next,
    so that no part of a document is left out. most: of one chunk; None: any number. least_gap: None: any. similarity:
    Jaccard of word runs, cosine: of embeddings, from which on two are the same. shares: {kind: of the count} that are
    kept of the kinds that are not plain."""

    count: int | None = None
    quota: int = 1
    most: int | None = None
    least_gap: float | None = None
    similarity: float = 0.7
    cosine: float = 0.95
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """candidates: in the order in which they were taken. dropped: {ordinal of the trace: why}. shortfall: questions
    that are missing of the count; kinds: {kind: those that are missing of its share}, which plain ones stand in for."""

    candidates: list[Candidate]
    dropped: dict[int, str]
    shortfall: int
    kinds: dict[str, int]


def keep(
    candidates: Sequence[Candidate],
    limits: Limits,
    *,
    vectors: Vectors | None = None,
    leaks: Leaks | None = None,
    before: Sequence[str] = (),
) -> Kept:
    """The questions that are kept. vectors: None has only words compared. leaks: the evaluation
    items. before: questions that are kept already."""
    dropped: dict[int, str] = {}
    passed = []
    for one in candidates:
        gap = one.version.gap
        if limits.least_gap is not None and gap is not None and gap < limits.least_gap:
            dropped[one.ordinal] = TOO_SMALL
        elif is_leaked(one.version, leaks):
            dropped[one.ordinal] = LEAKED
        else:
            passed.append(one)
    # Once more: a chunk whose best one says what another's does has its next one in its place.
    rest = in_order(_different(in_order(passed, limits.quota), limits, vectors, dropped, before), limits.quota)
    wanted = _wanted(limits, len(rest))
    taken, of_chunk, of_kind = [], Counter[str](), Counter[str]()
    spare = []
    for one in rest:
        chunk, kind = one.slot.chunks[0].id, one.slot.kind
        if limits.most is not None and of_chunk[chunk] >= limits.most:
            dropped[one.ordinal] = ENOUGH_OF_CHUNK
        elif of_kind[kind] >= wanted[kind]:
            spare.append(one)
        else:
            taken.append(one)
            of_chunk[chunk] += 1
            of_kind[kind] += 1
    missing = (limits.count or len(taken)) - len(taken)
    for one in spare:  # plain questions stand in for kinds of which there are too few
        plain = one.slot.kind == "answerable" and missing > 0
        if plain and (limits.most is None or of_chunk[one.slot.chunks[0].id] < limits.most):
            taken.append(one)
            of_chunk[one.slot.chunks[0].id] += 1
            missing -= 1
        else:
            dropped[one.ordinal] = NOT_NEEDED if one.slot.kind == "answerable" else ENOUGH_OF_KIND
    kinds = {kind: wanted[kind] - of_kind[kind] for kind in KINDS[1:] if of_kind[kind] < wanted[kind]}
    return Kept(taken, dropped, max(missing, 0) if limits.count is not None else 0, kinds if limits.count else {})


def is_leaked(version: Version, leaks: Leaks | None) -> bool:
    """Whether a question with its answer is too much like an evaluation item."""
    return leaks is not None and leaks.holds(version.question, version.expert.text if version.expert else "")


def without_leaks(trace: Trace, leaks: Leaks | None) -> None:
    """Marks the versions of a kept question that stood before it and are leaked as at fault: they are trained on, too,
    where rounds are compared."""
    for at, version in enumerate(trace.versions):
        if version.accepted and is_leaked(version, leaks):
            trace.versions[at] = replace(version, fault=LEAKED, accepted=False)


def in_order(candidates: Sequence[Candidate], quota: int) -> list[Candidate]:
    """The `quota` best of every chunk, then all others, each part by the gap; of equal ones the earlier."""
    by_chunk: dict[str, list[Candidate]] = defaultdict(list)
    for one in sorted(candidates, key=lambda one: (-_gap(one), one.ordinal)):
        by_chunk[one.slot.chunks[0].id].append(one)
    rank = {one.ordinal: place for found in by_chunk.values() for place, one in enumerate(found)}
    return sorted(candidates, key=lambda one: (max(rank[one.ordinal] - quota + 1, 0) > 0, -_gap(one), one.ordinal))


def _gap(one: Candidate) -> float:
    return one.version.gap if one.version.gap is not None else float("-inf")


def _different(
    candidates: Sequence[Candidate],
    limits: Limits,
    vectors: Vectors | None,
    dropped: dict[int, str],
    before: Sequence[str],
) -> list[Candidate]:
    """Without those that say what an earlier one says."""
    rest = list(candidates)
    for reason in (SAME_WORDS, SAME_SENSE):
        texts = [*before, *(one.version.question for one in rest)]
        if not rest or (reason == SAME_SENSE and vectors is None):
            continue
        if reason == SAME_WORDS:
            first = near_duplicates(texts, limits.similarity)
        else:
            assert vectors is not None
            first = first_alike(vectors(texts), limits.cosine)
        same = {place for place in range(len(before), len(texts)) if first[place] != place}
        dropped |= {rest[place - len(before)].ordinal: reason for place in same}
        rest = [one for place, one in enumerate(rest, len(before)) if place not in same]
    return rest


def _wanted(limits: Limits, candidates: int) -> dict[str, int]:
    """{kind: how many}; without a count every one that passes."""
    if limits.count is None:
        return dict.fromkeys(KINDS, candidates)
    shares = limits.shares
    found = {kind: round(shares.get(kind, 0.0) * limits.count) for kind in KINDS[1:]}
    return {"answerable": max(limits.count - sum(found.values()), 0), **found}
