"""The pool of a run: streamed, never in memory. It is read once whole, to check every record, and once to be scored."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from ntk_jax.data.formats import AUTO, Reading
from ntk_jax.data.records import Record, family_of
from ntk_jax.data.sources import read, read_chosen, sample_indices
from ntk_jax.engine.stage import MakeProgress
from ntk_jax.pipelines.common.examples import Encoder, Examples, none_usable
from ntk_jax.pipelines.common.reading import say_formats
from ntk_jax.selection.sketch_store import longest_id


@dataclass(frozen=True)
class Census:
    """What one reading of a whole pool finds. total: records. longest_id: bytes. families: by first appearance."""

    total: int
    longest_id: int
    families: tuple[str, ...]


@dataclass
class Pool:
    """files, limit, seed: all of the files, or a seeded sample. group_by: the record key that names a family.
    reading: how the files are read.

    A *place* is an index into what this run looks at, an *ordinal* one into the files.
    """

    files: tuple[str, ...]
    limit: int | None
    seed: int
    group_by: str
    make_progress: MakeProgress
    reading: Reading = AUTO

    @functools.cached_property
    def census(self) -> Census:
        """Reads and checks every record: a bad line must be found now, for correcting it changes the pool, and with it
        every result. Raises UserError: a bad file or record."""
        say_formats(self.make_progress, "data.pool", self.files, self.reading)
        progress: Callable[..., None] = self.make_progress("check pool", None, "examples")
        total = longest = 0
        families: dict[str, None] = {}
        for total, record in enumerate(read(self.files, self.reading), 1):
            longest = max(longest, longest_id([record["id"]]))
            families.setdefault(family_of(record, self.group_by))
            if total % 1000 == 0:
                progress(total, None)
        progress(total, total)
        return Census(total, longest, tuple(families))

    @functools.cached_property
    def ordinals(self) -> np.ndarray:
        """Ascending positions in the files of what this run looks at."""
        chosen = sample_indices(self.census.total, self.limit, self.seed)
        return np.arange(self.census.total) if chosen is None else chosen

    def records(self, ordinals: np.ndarray) -> Iterator[Record]:
        """The records at these ascending ordinals, streamed; no other is parsed.

        Raises UserError: one of them is no longer there.
        """
        return read_chosen(self.files, ordinals, self.reading)

    def blocks(self, ordinals: np.ndarray, wanted: Collection[int], size: int) -> Iterator[tuple[int, list[Record]]]:
        """(block, its records) of the wanted blocks of `size` ordinals each, ascending."""
        numbers = sorted(wanted)
        parts = [ordinals[number * size : (number + 1) * size] for number in numbers]
        records = self.records(np.concatenate([np.zeros(0, np.int64), *parts]))
        for number, part in zip(numbers, parts, strict=True):
            yield number, list(itertools.islice(records, len(part)))

    def sample(self, encoder: Encoder, count: int, span: str) -> Examples:
        """A seeded sample of the pool; what cannot be used is left out. Raises UserError when nothing can."""
        chosen = sample_indices(len(self.ordinals), count, self.seed)
        records = list(self.records(self.ordinals if chosen is None else self.ordinals[chosen]))
        found = encoder.encode(records, span)
        if not found.rows:
            raise none_usable("data.pool", f"{len(records)} sampled examples", found.statistics)
        return found
