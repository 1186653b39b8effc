"""Counts what is dropped, by reason, and keeps a sample of each reason for people to look at.

Of each reason the documents with the smallest seeded hash of their id are kept: the same ones however the corpus is
divided and in whatever order it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from ntk_jax.mining.corpus.documents import Drop

_TEXT = 500  # characters of a document that is shown


class Drops:
    """The counts and samples of one part of the corpus. keep: samples of a reason."""

    def __init__(self, keep: int = 20, seed: int = 0) -> None:
        self.keep, self.seed = keep, seed
        self.counts: dict[str, int] = {}
        self.samples: dict[str, list[dict[str, Any]]] = {}

    def add(self, drop: Drop, **facts: Any) -> None:
        """Counts one document. facts: JSON values that stay with it where it is sampled."""
        self.counts[drop.reason] = self.counts.get(drop.reason, 0) + 1
        rank = hashlib.blake2b(f"{self.seed} {drop.id}".encode("utf8", "replace"), digest_size=8).hexdigest()
        held = self.samples.setdefault(drop.reason, [])
        if len(held) < self.keep or rank < held[-1]["rank"]:
            sample = {"rank": rank, "document": drop.id, "detail": drop.detail[:300], "text": drop.text[:_TEXT]}
            held.append(sample | facts)
            held.sort(key=_order)
            del held[self.keep :]

    def as_json(self) -> dict[str, Any]:
        """{"counts": {reason: documents}, "samples": {reason: [{"rank", "document", "detail", "text"}]}}."""
        reasons = sorted(self.counts)
        return {
            "counts": {reason: self.counts[reason] for reason in reasons},
            "samples": {reason: self.samples[reason] for reason in reasons if self.samples.get(reason)},
        }


def merge(parts: Iterable[Mapping[str, Any]], keep: int) -> dict[str, Any]:
    """What `as_json` of all parts together would be."""
    whole = Drops(keep)
    for part in parts:
        for reason, count in part["counts"].items():
            whole.counts[reason] = whole.counts.get(reason, 0) + count
        for reason, samples in part["samples"].items():
            whole.samples[reason] = sorted([*whole.samples.get(reason, []), *samples], key=_order)[:keep]
    return whole.as_json()


def _order(sample: Mapping[str, Any]) -> tuple[str, str]:
    return sample["rank"], sample["document"]
