"""Which seeds are to be written: for each its domains, its cell of the dimensions and perhaps its topic."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ntk_jax.errors import UserError, shown
from ntk_jax.mining.seeds.dimensions import Dimensions, Length

MOST_LETTERS = 40  # of a domain's name in an id


@dataclass(frozen=True)
class Slot:
    """A seed that is to be written. topic: of each domain, where topics are given."""

    id: str
    domains: tuple[str, ...]
    type: str
    length: Length
    demeanour: str
    topics: tuple[str, ...] = ()


def plan_seeds(
    domains: Sequence[str],
    *,
    per_domain: int,
    two_domain_share: float,
    dimensions: Dimensions,
    topics: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> list[Slot]:
    """Exactly `per_domain` slots for each domain; a slot of two domains counts for both.

    two_domain_share: of a domain's slots, those that another domain has a part in (none where there is one domain).
    topics: of each domain, given out in turn; a domain without is left to the writer's invention.
    Within a domain no cell comes twice before all have come once, and pairs of values and single values come as evenly
    as that allows. The same arguments give the same slots.

    Raises UserError: topics of an unknown domain, or an empty topic.
    """
    topics = _checked(topics or {}, domains)
    rng = np.random.default_rng([seed, per_domain])
    counts = {name: np.zeros(dimensions.shape, np.int64) for name in domains}
    given = {name: 0 for name in domains}
    slots: list[Slot] = []
    for names in _groups(domains, per_domain, two_domain_share):
        cell = _evenest(np.sum([counts[name] for name in names], axis=0), rng)
        wanted = []
        for name in names:
            counts[name][cell] += 1
            if topics.get(name):
                wanted.append(topics[name][given[name] % len(topics[name])])
            given[name] += 1
        slot = "+".join(_plain(name) for name in names)
        kind, length, demeanour = (int(i) for i in cell)
        slots.append(
            Slot(
                id=f"{slot}-{len(slots):05d}",
                domains=names,
                type=dimensions.types[kind],
                length=dimensions.lengths[length],
                demeanour=dimensions.demeanours[demeanour],
                topics=tuple(wanted),
            )
        )
    return slots


def _groups(domains: Sequence[str], per_domain: int, share: float) -> list[tuple[str, ...]]:
    """The domains of each slot: pairs of those that most pairs are still due to, then every domain by itself."""
    due = {name: round(share * per_domain) if len(domains) > 1 else 0 for name in domains}
    left = {name: per_domain for name in domains}
    met = {frozenset((a, b)): 0 for a in domains for b in domains if a != b}
    groups: list[tuple[str, ...]] = []
    while sum(1 for name in domains if due[name]) > 1:
        first = max(domains, key=lambda name: due[name])  # of equals the one that is named first
        others = [name for name in domains if name != first and due[name]]
        second = max(others, key=lambda name: (due[name], -met[frozenset((first, name))]))
        met[frozenset((first, second))] += 1
        for name in (first, second):
            due[name] -= 1
            left[name] -= 1
        groups.append((first, second))
    return groups + [(name,) for name in domains for _ in range(left[name])]


def _evenest(counts: np.ndarray, rng: np.random.Generator) -> tuple[int, ...]:
    """A cell with the lowest count, of these one whose pairs and single values have the lowest; then by chance."""
    pairs = sum(counts.sum(axis=axis, keepdims=True) for axis in range(3))
    singles = sum(counts.sum(axis=axes, keepdims=True) for axes in ((0, 1), (0, 2), (1, 2)))
    order = np.lexsort(
        (rng.random(counts.size), (singles + 0 * counts).ravel(), (pairs + 0 * counts).ravel(), counts.ravel())
    )
    return tuple(int(i) for i in np.unravel_index(order[0], counts.shape))


def _checked(topics: Mapping[str, Sequence[str]], domains: Sequence[str]) -> dict[str, list[str]]:
    for name, listed in topics.items():
        if name not in domains:
            raise UserError(f"topics: {shown(name)} is no domain of this run")
        if isinstance(listed, str) or not all(isinstance(topic, str) and topic.strip() for topic in listed):
            raise UserError(f"topics of {shown(name)}: give a list of topics, each a few words, found {shown(listed)}")
    return {name: [topic.strip() for topic in listed] for name, listed in topics.items()}


def _plain(name: str) -> str:
    """A domain's name as a part of an id."""
    return re.sub(r"\W+", "_", name).strip("_")[:MOST_LETTERS].lower() or "domain"
