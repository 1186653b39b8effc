"""Which documents, and which paragraphs, stood in the corpus before: decided in groups that need nothing else.

A document is dropped if an earlier one has the same text (`exact`), or if it is like an earlier leader of one of its
MinHash buckets (`near`); what it is like is the earliest of these. A paragraph is removed if an earlier document that
is kept has it. Earlier is by shard, then by place in it. Each group (a text's hash, a bucket, a paragraph's hash) is
decided alone, so sorted arrays on one machine and a shuffle over many give the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ntk_jax.data.near_duplicates import band_keys, bands, buckets, leaders
from ntk_jax.data.words import text_hash, written_words
from ntk_jax.mining.corpus import layout

KEPT, EXACT, NEAR = 0, 1, 2
REASONS = ("", "exact_duplicate", "near_duplicate")
_PART = 1 << 22  # paragraphs compared at a time


def digest(text: str) -> int:
    """A hash of the text in which white space counts as one space."""
    return text_hash(" ".join(text.split()))


def paragraphs(text: str) -> Iterator[tuple[int, int, str]]:
    """The lines of a text that hold something: (start, stop, line), in characters."""
    start = 0
    for line in text.split("\n"):
        if line.strip():
            yield start, start + len(line), line
        start += len(line) + 1


def paragraph_hash(line: str, least: int) -> int | None:
    """A hash of the paragraph; None where it has fewer than `least` words, too few to mean anything by itself."""
    return digest(line) if len(written_words(line)) >= least else None


def paragraph_entries(text: str, row: int, least: int) -> set[tuple[int, int]]:
    """(hash, row) of each paragraph of a text of at least so many words, once each."""
    keys = {paragraph_hash(line, least) for _, _, line in paragraphs(text)}
    return {(key, row) for key in keys if key is not None}


def left_over(text: str, repeated: set[int], least: int) -> tuple[list[tuple[int, int]], int]:
    """(the longest stretches of a text that hold no paragraph that stood before, in characters; how many paragraphs
    did). repeated: the hashes of those that stood in other documents; within the text the first is kept too."""
    if not least:
        return [(0, len(text))], 0
    found, own, begin, removed = [], set[int](), 0, 0
    for start, stop, line in paragraphs(text):
        key = paragraph_hash(line, least)
        if key is None:
            continue
        if key not in repeated and key not in own:
            own.add(key)
            continue
        removed += 1
        found.append((begin, start))
        begin = stop
    return [(start, stop) for start, stop in [*found, (begin, len(text))] if start < stop], removed


# -- one group -----------------------------------------------------------------------------------------------------


def exact_group(ordinals: np.ndarray) -> np.ndarray:
    """For each document of a group with one text, in ascending order, the ordinal of the first."""
    return np.full(len(ordinals), ordinals[0])


def near_group(ordinals: np.ndarray, signatures: np.ndarray, threshold: float) -> np.ndarray:
    """For each document of a bucket, in ascending order, the ordinal of the leader it is like; its own where it leads.

    signatures: [n, permutations]."""
    return ordinals[leaders(signatures, threshold)]


# -- all groups, on one machine ------------------------------------------------------------------------------------


class Corpus:
    """The arrays of all shards as one, on the disk. bases: the ordinal of each shard's first document, and the end."""

    def __init__(self, folder: str | Path, counts: Sequence[int]) -> None:
        self.folder = folder
        self.bases = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.shards = range(len(counts))
        self.signature_arrays = [layout.read_array(layout.extracted(folder, "signatures", n)) for n in self.shards]

    def digests(self) -> np.ndarray:
        parts = [layout.read_array(layout.extracted(self.folder, "digests", n)) for n in self.shards]
        return np.concatenate([np.zeros(0, np.uint64), *parts])

    def keys(self, band: int, threshold: float) -> np.ndarray:
        parts = [band_keys(array, band, threshold) for array in self.signature_arrays]
        return np.concatenate([np.zeros(0, np.uint64), *parts])

    def signatures(self, ordinals: np.ndarray) -> np.ndarray:
        shard = np.searchsorted(self.bases, ordinals, side="right") - 1
        rows = ordinals - self.bases[shard]
        return np.stack([self.signature_arrays[s][r] for s, r in zip(shard, rows, strict=True)])


def verdicts(corpus: Corpus, exact: bool, threshold: float) -> np.ndarray:
    """[N] of `layout.VERDICTS`: why each document is dropped (`KEPT`: it is not), and the ordinal that it is like.

    threshold: of near-duplicates, 0 for none."""
    count = int(corpus.bases[-1])
    found = np.zeros(count, layout.VERDICTS)
    found["like"] = np.arange(count)
    if threshold:
        for band in range(bands(threshold, corpus.signature_arrays[0].shape[1])[0]):
            for members in buckets(corpus.keys(band, threshold)):
                like = near_group(members, corpus.signatures(members), threshold)
                found["like"][members] = np.minimum(found["like"][members], like)
    found["reason"] = np.where(found["like"] < np.arange(count), NEAR, KEPT)
    if exact:
        for members in buckets(corpus.digests()):
            found["reason"][members[1:]] = EXACT
            found["like"][members[1:]] = exact_group(members)[1:]
    return found


def repeats(entries: Sequence[np.ndarray], kept: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each shard the (hash, row) of its paragraphs that an earlier kept document has, ascending.

    entries: of each shard, [n] of `layout.PARAGRAPHS`, ascending. kept: [n] bool, which of its documents are."""
    parts = max(sum(map(len, entries)) // _PART, 1)
    edges = [np.uint64((number << 64) // parts) for number in range(1, parts)]
    found: list[list[np.ndarray]] = [[] for _ in entries]
    cuts = [[0, *np.searchsorted(own["hash"], edges).tolist(), len(own)] for own in entries]
    for part in range(parts):
        pieces = [np.array(own[cut[part] : cut[part + 1]]) for own, cut in zip(entries, cuts, strict=True)]
        pieces = [own[keep[own["row"]]] for own, keep in zip(pieces, kept, strict=True)]
        hashes = np.concatenate([own["hash"] for own in pieces])
        order = np.argsort(hashes, kind="stable")  # the pieces are in the order of the shards, so the first comes first
        again = np.zeros(len(hashes), bool)
        again[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
        masks = np.split(again, np.cumsum([len(own) for own in pieces])[:-1])
        for own, mask, into in zip(pieces, masks, found, strict=True):
            into.append(own[mask])
    return [np.concatenate([np.zeros(0, layout.PARAGRAPHS), *own]) for own in found]
