"""The chunks of a run's corpus by ordinal: all of them, or the seeded sample that `corpus.limit` asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.mining.corpus.layout import read_array
from ntk_jax.mining.corpus.store import count_chunks, read_chunks
from ntk_jax.pipelines.mine.state import MineRun
from ntk_jax.storage.arrays import Store

SAMPLE = "sample.npy"  # [n] int64, ascending: which chunks of the corpus are mined; absent where all are
READ = 2048  # chunks read at once


def count(run: MineRun) -> int:
    """How many there are."""
    sample = _sample(run)
    return count_chunks(_folder(run)) if sample is None else len(sample)


def read_range(run: MineRun, start: int, stop: int) -> list[dict[str, Any]]:
    """The chunks [start, stop): dicts of id, document, text, words, start, end, file, offset, url, title, ..."""
    sample = _sample(run)
    if sample is None:
        return read_chunks(_folder(run), start, stop)
    return list(_of_corpus(_folder(run), sample[start:stop]))


def read_chosen(run: MineRun, ordinals: Iterable[int]) -> Iterator[dict[str, Any]]:
    """The chunks of these ascending ordinals, a few at a time in memory."""
    wanted, sample = np.asarray(list(ordinals), np.int64), _sample(run)
    yield from _of_corpus(_folder(run), wanted if sample is None else sample[wanted])


def texts(run: MineRun) -> Iterator[str]:
    """The texts of all chunks in order."""
    total = count(run)
    for start in range(0, total, READ):
        yield from (chunk["text"] for chunk in read_range(run, start, min(start + READ, total)))


def texts_of_blocks(run: MineRun, store: Store, blocks: frozenset[int]) -> Iterator[tuple[int, list[str]]]:
    """(block, texts of its chunks) of these blocks of a store with a row a chunk."""
    for block in sorted(blocks):
        yield block, [chunk["text"] for chunk in read_range(run, *store.block_range(block))]


def _of_corpus(folder: Path, places: np.ndarray) -> Iterator[dict[str, Any]]:
    """Ascending places of the whole corpus; what lies close together is read together."""
    first = 0
    while first < len(places):
        start = int(places[first])
        last = int(np.searchsorted(places, start + READ))
        found = read_chunks(folder, start, int(places[last - 1]) + 1)
        for place in places[first:last]:
            yield found[int(place) - start]
        first = last


def _folder(run: MineRun) -> Path:
    return run.job.folder / "corpus"


def _sample(run: MineRun) -> np.ndarray | None:
    path = _folder(run) / SAMPLE
    return read_array(path) if path.exists() else None
