"""What the texts of ranked examples say: read from the pool by place when it is asked for, and kept in short."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np

from ntk_jax.data.evaluation_items import EvaluationItems, Overlap
from ntk_jax.data.near_duplicates import MinHash, signature
from ntk_jax.data.records import Record
from ntk_jax.errors import UserError
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.selection.ranker import Sketches
from ntk_jax.selection.sketch_features import sketch_features, stored_rows
from ntk_jax.selection.sketch_store import ids_of
from ntk_jax.selection.texts import text_of

COLUMNS = 1024  # of a sketch that are compared for near-duplicates: at a cosine of 0.95 they are 0.003 off
_REPORT_EVERY = 500


class Looked:
    """What was found in the examples that were looked at, by place: a few hundred bytes each, and 4 KB of a sketch.

    hashing, sketches: None where they are not compared. items: None where no evaluation item is looked for.
    """

    def __init__(
        self, run: SelectRun, items: EvaluationItems | None, hashing: MinHash | None, sketches: Sketches | None
    ) -> None:
        self._run, self.items, self.hashing, self._sketches = run, items, hashing, sketches
        self._share = run.config.select.clean.share
        self._names: dict[int, tuple[str, str]] = {}
        self._overlaps: dict[int, Overlap] = {}
        self._signatures: dict[int, np.ndarray] = {}
        self._vectors: dict[int, np.ndarray | None] = {}
        self._done: set[int] = set()

    def overlap(self, place: int) -> Overlap | None:
        """What a text shares with an evaluation item."""
        return self._overlaps.get(place)

    def signature(self, place: int) -> np.ndarray:
        """Of a text, for near-duplicates: [permutations] uint32."""
        return self._signatures[place]

    def vector(self, place: int) -> np.ndarray | None:
        """Columns of a sketch, of norm 1; None where an example has none."""
        return self._vectors[place]

    def name(self, place: int) -> str:
        """Its id."""
        return self._names[place][0]

    def names(self, places: Iterable[int]) -> list[tuple[str, str]]:
        """(id, source) of each place."""
        wanted = list(places)
        for place, record in self.records({place for place in wanted if place not in self._names}):
            self._names[place] = str(record["id"]), str(record["source"])
        return [self._names[place] for place in wanted]

    def look(self, places: Iterable[int], what: str) -> None:
        """Reads what has not been read yet, in one pass over the pool's files. what: for progress."""
        fresh = sorted({int(place) for place in places} - self._done)
        progress = self._run.job.progress(what, len(fresh), "examples") if fresh else None
        for number, (place, record) in enumerate(self.records(fresh), 1):
            self._names[place] = str(record["id"]), str(record["source"])
            text = text_of(record)
            found = self.items.overlap(text, self._share) if self.items else None
            if found:
                self._overlaps[place] = found
            elif self.hashing:
                self._signatures[place] = signature(text, self.hashing)
            if progress and (number % _REPORT_EVERY == 0 or number == len(fresh)):
                progress(number, len(fresh))
        if self._sketches and fresh:
            rows, there = sketch_features(self._sketches, np.array(fresh), COLUMNS)
            self._vectors |= {p: row if known else None for p, row, known in zip(fresh, rows, there, strict=True)}
        self._done.update(fresh)

    def records(self, places: Iterable[int]) -> Iterator[tuple[int, Record]]:
        """(place, record), ascending, streamed."""
        ordered = sorted(places)
        if ordered:
            pool = self._run.pool
            yield from zip(ordered, pool.records(pool.ordinals[np.array(ordered)]), strict=True)

    @functools.cached_property
    def domain_signatures(self) -> dict[str, np.ndarray]:
        """{id: signature} of the domain's records."""
        hashing = self.hashing or MinHash()
        return {str(record["id"]): signature(text_of(record), hashing) for record in self._run.domain.records}

    @functools.cached_property
    def domain_vectors(self) -> dict[str, np.ndarray]:
        """{id: columns of the sketch, of norm 1} of the domain's examples."""
        if self._sketches is None:
            raise UserError("sketches are compared, and there are none")
        store = self._sketches.domain
        return dict(zip(ids_of(store), stored_rows(store, np.arange(store.rows), COLUMNS), strict=True))
