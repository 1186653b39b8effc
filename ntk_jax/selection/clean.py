"""What may not be selected though it ranks high: examples that hold an evaluation item, and near-duplicates.

A ranking is walked from its best example on. Each example is held against every check in turn; the first that refuses
it says why, and the walk goes on with the next one. What stays is then itself what later examples are held against, so
of two that are alike the better ranked one stays.

| check         | refuses an example                                                                            |
|---------------|------------------------------------------------------------------------------------------------|
| `Leaks`       | that holds a run of words of an evaluation item (`data/evaluation_items.py`)                    |
| `NearItems`   | whose embedding has a cosine with that of an evaluation item (`near_items.py`)                  |
| `NearTexts`   | whose runs of words overlap (Jaccard, estimated by MinHash) with one that stays                 |
| `NearVectors` | whose features have a cosine with those of one that stays                                       |
| `Quotas`      | of a group that has as many as it may (`quotas.py`)                                             |

Cost: for an example that is looked at a signature (0.2 ms for 200 words) and its runs; `NearVectors` D products with
each that stays. Memory: of what is looked at, 4 bytes a permutation; of what stays, the same again and 4 D bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ntk_jax.data.evaluation_items import EvaluationItems, Overlap
from ntk_jax.data.near_index import NearIndex
from ntk_jax.settings import Count, Fraction, setting

CONTAMINATED = "contamination"
NEAR_ITEM = "contamination by embedding"
NEAR_DOMAIN = "near-duplicate of the domain"
NEAR_TEXT = "near-duplicate"
NEAR_SKETCH = "near-duplicate by sketch"
QUOTA = "quota"
REASONS = (CONTAMINATED, NEAR_ITEM, NEAR_DOMAIN, NEAR_TEXT, NEAR_SKETCH, QUOTA)
AUTO = "auto"


@dataclass(frozen=True)
class CleanOptions:
    """What is left out of every selection; the next best takes its place. Nothing, by default."""

    decontaminate: tuple[str, ...] = setting(
        (),
        "evaluation files, or auto for those that the arms are evaluated on: examples that share ngram words in a row "
        "with an item are left out",
    )
    ngram: Count = setting(13, "words in a row (Brown et al. 2020); a shorter item is looked for whole")
    shortest: Count = setting(5, "evaluation items of fewer words are not looked for, and counted")
    share: Fraction = setting(
        0.0,
        "least share of an item's runs of ngram words that is found; 0: one is enough. Raise it where items share an "
        "instruction",
    )
    decontaminate_cosine: float | None = setting(
        None,
        "leave out also what has such a cosine of embeddings (section embedding) with an item of decontaminate, as a "
        "paraphrase has; needs the stage embed",
    )
    whole_pool: bool = setting(
        False, "look for evaluation items in the whole pool before any method ranks it, not in the best ranked alone"
    )
    near_duplicates: float | None = setting(
        None,
        "leave out what shares so much (Jaccard, by MinHash; 0.8 is usual) of its word runs with a better ranked one",
    )
    cosine: float | None = setting(
        None, "leave out what has such a cosine of gradient sketches with a better ranked one; needs sketches"
    )
    against_domain: bool = setting(False, "leave out near-duplicates of the domain's examples, too")
    shingle: Count = setting(5, "words of a run that is compared for near-duplicates")
    permutations: Count = setting(128, "hashes of a MinHash signature; more estimate the overlap better")


@dataclass(frozen=True)
class Refusal:
    """Why an example is left out. reason: one of `REASONS`. of: the id of what it is like, or its group's name. where:
    the evaluation file that this is in, `domain` or `selection`. similarity: in (0, 1], None for a quota. shared: the
    words that both have, where words are compared one by one."""

    reason: str
    of: str
    where: str
    similarity: float | None = None
    shared: str | None = None


@dataclass(frozen=True)
class Drop:
    """An example that is left out. place: in the pool. rank: in the ranking, from 1; None where nothing is ranked."""

    place: int
    rank: int | None
    refusal: Refusal


@dataclass(frozen=True)
class Cleaned:
    """kept: [n] places, best first. drops: what stood between them, best first."""

    kept: np.ndarray
    drops: list[Drop] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """{reason: examples}, in the order of `REASONS`."""
        return counts_of(self.drops)


class Check(Protocol):
    """Decides whether an example may be selected beside those that stay."""

    def refuse(self, place: int) -> Refusal | None:
        """Why it may not; None: it may."""

    def keep(self, place: int) -> None:
        """The example stays: what comes later is held against it."""


def walk(order: Iterable[int], want: int | None, checks: Sequence[Check]) -> Cleaned:
    """The first `want` examples of an order that no check refuses, or as many as there are. None: all there are.

    order: places, best first.
    """
    kept: list[int] = []
    drops: list[Drop] = []
    for rank, place in enumerate(map(int, order), 1):
        if len(kept) == want:
            break
        refusal = next((found for check in checks if (found := check.refuse(place))), None)
        if refusal:
            drops.append(Drop(place, rank, refusal))
            continue
        for check in checks:
            check.keep(place)
        kept.append(place)
    return Cleaned(np.array(kept, np.int64), drops)


def counts_of(drops: Iterable[Drop]) -> dict[str, int]:
    """{reason: examples}, in the order of `REASONS`."""
    found = Counter(drop.refusal.reason for drop in drops)
    return {reason: found[reason] for reason in REASONS if found[reason]}


class Leaks:
    """Refuses what holds a piece of an evaluation item. overlap(place): what was found in the example's text."""

    def __init__(self, items: EvaluationItems, overlap: Callable[[int], Overlap | None]) -> None:
        self._items, self._overlap = items, overlap

    def refuse(self, place: int) -> Refusal | None:
        """See `Check`."""
        found = self._overlap(place)
        return leak(self._items, found) if found else None

    def keep(self, place: int) -> None:
        """Whatever stays, the items are the same."""


def leak(items: EvaluationItems, found: Overlap) -> Refusal:
    """What is said of an example that shares words with an evaluation item."""
    return Refusal(CONTAMINATED, items.ids[found.item], items.files[found.item], round(found.share, 6), found.words)


class NearTexts:
    """Refuses what is nearly the same text as one that stays, or as one of the domain.

    signature(place): [permutations] uint32, of `data/near_duplicates.py`. name(place): its id. domain: {id: signature}.
    Raises ValueError: a threshold outside (0, 1].
    """

    def __init__(
        self,
        threshold: float,
        signature: Callable[[int], np.ndarray],
        name: Callable[[int], str],
        *,
        permutations: int,
        domain: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._signature, self._name = signature, name
        self._domain, self._own = (NearIndex(threshold, permutations) for _ in range(2))
        self._domain_ids, self._kept = list(domain or ()), list[int]()
        for own in (domain or {}).values():
            self._domain.add(own)

    def refuse(self, place: int) -> Refusal | None:
        """See `Check`."""
        own = self._signature(place)
        if found := self._domain.first_like(own):
            return Refusal(NEAR_DOMAIN, self._domain_ids[found[0]], "domain", round(found[1], 6))
        if found := self._own.first_like(own):
            return Refusal(NEAR_TEXT, self._name(self._kept[found[0]]), "selection", round(found[1], 6))
        return None

    def keep(self, place: int) -> None:
        """See `Check`."""
        self._own.add(self._signature(place))
        self._kept.append(place)


class NearVectors:
    """Refuses what points the same way as one that stays, or as one of the domain.

    vector(place): [D] of norm 1 or 0; None: it has none, and is not compared. domain: {id: [D]}.
    """

    def __init__(
        self,
        threshold: float,
        vector: Callable[[int], np.ndarray | None],
        name: Callable[[int], str],
        *,
        domain: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._threshold, self._vector, self._name = threshold, vector, name
        self._ids = list(domain or ())
        self._domain = len(self._ids)
        self._count = self._domain
        self._rows = np.stack(list(domain.values())).astype(np.float32) if domain else np.zeros((0, 0), np.float32)

    def refuse(self, place: int) -> Refusal | None:
        """See `Check`."""
        own = self._vector(place)
        if own is None or not self._count:
            return None
        cosines = self._rows[: self._count] @ own
        alike = np.flatnonzero(cosines >= self._threshold)
        if not len(alike):
            return None
        first = int(alike[0])
        reason, where = (NEAR_DOMAIN, "domain") if first < self._domain else (NEAR_SKETCH, "selection")
        return Refusal(reason, self._ids[first], where, round(min(float(cosines[first]), 1.0), 6))

    def keep(self, place: int) -> None:
        """See `Check`."""
        own = self._vector(place)
        if own is None:
            return
        if self._count == len(self._rows):
            grown = np.zeros((max(256, 2 * self._count), len(own)), np.float32)
            grown[: self._count] = self._rows[: self._count].reshape(self._count, len(own))
            self._rows = grown
        self._rows[self._count] = own
        self._ids.append(self._name(place))
        self._count += 1
