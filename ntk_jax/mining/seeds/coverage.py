"""How much of the dimensions and topics the seeds of each domain cover, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ntk_jax.mining.seeds.dimensions import Dimensions
from ntk_jax.mining.seeds.seed import Seed


def coverage(
    seeds: Sequence[Seed],
    domains: Sequence[str],
    dimensions: Dimensions,
    topics: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[str, Any]]:
    """{domain: its coverage} as JSON values.

    Each holds: `seeds`, `placed` (those with a cell of the dimensions: a user's own documents need have none),
    `several` (those of other domains, too), `origins` {origin: seeds}, `cells` that are covered `of` so many, `types`,
    `lengths`, `demeanours` {value: seeds}, `table` (seeds of each type, row by row in the order of `dimensions.types`,
    by demeanour), `gaps` (values that no seed has: {dimension: [...]}), `topics` (different ones), and where topics are
    given `topic_gaps` (those without a seed).
    """
    return {name: _of(name, [seed for seed in seeds if name in seed.domains], dimensions, topics) for name in domains}


def _of(
    name: str, seeds: Sequence[Seed], dimensions: Dimensions, topics: Mapping[str, Sequence[str]] | None
) -> dict[str, Any]:
    values = {
        "types": ("type", dimensions.types),
        "lengths": ("length", tuple(length.name for length in dimensions.lengths)),
        "demeanours": ("demeanour", dimensions.demeanours),
    }
    cells = [tuple(seed.facts.get(key) for key, _ in values.values()) for seed in seeds]
    placed = [cell for cell in cells if all(v in known for v, (_, known) in zip(cell, values.values(), strict=True))]
    counts = {
        dimension: {value: sum(cell[axis] == value for cell in placed) for value in known}
        for axis, (dimension, (_, known)) in enumerate(values.items())
    }
    both = Counter((kind, demeanour) for kind, _, demeanour in placed)
    written = {_topic(topic) for seed in seeds for topic in _topics(seed)}
    found: dict[str, Any] = {
        "seeds": len(seeds),
        "placed": len(placed),
        "several": sum(len(seed.domains) > 1 for seed in seeds),
        "origins": dict(sorted(Counter(str(seed.facts.get("origin", "file")) for seed in seeds).items())),
        "cells": len(set(placed)),
        "of": dimensions.cells,
        **counts,
        "table": [[both[kind, demeanour] for demeanour in dimensions.demeanours] for kind in dimensions.types],
        "gaps": {dimension: [v for v, n in found.items() if not n] for dimension, found in counts.items()},
        "topics": len(written),
    }
    if topics and name in topics:
        given = {_topic(topic) for seed in seeds for topic in seed.facts.get("topics", ())}
        found["topic_gaps"] = [topic for topic in topics[name] if _topic(topic) not in given]
    return found


def _topics(seed: Seed) -> list[str]:
    topic = seed.facts.get("topic")
    return [topic] if isinstance(topic, str) else [t for t in seed.facts.get("topics", ()) if isinstance(t, str)]


def _topic(topic: str) -> str:
    return " ".join(topic.casefold().split()).strip(" .")
