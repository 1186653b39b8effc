"""Texts that are nearly the same, by MinHash signatures and locality-sensitive hashing (Broder 1997; Leskovec et al.,
Mining of Massive Datasets, chapter 3).

A text is the set of its runs of a few words. Two texts whose sets overlap (Jaccard) by at least a threshold are alike.
A signature estimates the overlap; texts are compared only where one band of their signatures is equal. All hashes are
of this file, so that a signature is the same bytes on every machine and with every version of every library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ntk_jax.data.words import bare_words, mix, run_hashes, word_hashes

_FOUND = 0.99  # least chance that two texts just at the threshold share a band
_SHINGLES = 4096  # hashed at a time, so that a long text takes no more memory than a short one
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class MinHash:
    """How a signature is made. words: of a shingle. permutations: numbers in a signature; the estimate of an overlap J
    has standard deviation sqrt(J (1 - J) / permutations)."""

    words: int = 5
    permutations: int = 128
    seed: int = 0


def near_duplicates(
    texts: Iterable[str],
    threshold: float = 0.8,
    *,
    hashing: MinHash = MinHash(),  # noqa: B008 (frozen)
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """For each text the ordinal of the first one of its kind, its own where it is the first: [N] int64.

    What is left of `texts` where the result equals arange(N) holds no two that share a band and overlap (by the
    estimate) by `threshold` or more. The order of the texts decides which of a kind is the first.

    threshold: least Jaccard overlap of two texts that are alike, in (0, 1]. progress(done, total): total is 0 where
    `texts` has no length. Raises ValueError: a threshold outside.

    Example:
        >>> near_duplicates(["the cat sat on a mat today", "two dogs", "The cat sat on a mat, today!"]).tolist()
        [0, 1, 0]
    """
    total = len(texts) if isinstance(texts, Sequence) else 0
    found = []
    for text in texts:
        found.append(signature(text, hashing))
        if progress:
            progress(len(found), total)
    signatures = np.stack(found) if found else np.zeros((0, hashing.permutations), np.uint32)
    first = np.arange(len(signatures))
    for band in range(bands(threshold, hashing.permutations)[0]):
        for members in buckets(band_keys(signatures, band, threshold)):
            first[members] = np.minimum(first[members], members[leaders(signatures[members], threshold)])
    return roots(first)


def signature(text: str, hashing: MinHash = MinHash()) -> np.ndarray:  # noqa: B008 (frozen)
    """The least hash of the text's shingles under each permutation: [permutations] uint32. Upper case, punctuation and
    white space do not count; texts without a word are all alike."""
    multipliers, offsets = _permutations(hashing.permutations, hashing.seed)
    least = np.full(hashing.permutations, 0xFFFFFFFF, np.uint32)
    hashes = shingles(text, hashing.words)
    for start in range(0, len(hashes), _SHINGLES):
        values = (hashes[start : start + _SHINGLES, None] * multipliers + offsets) >> np.uint64(32)
        least = np.minimum(least, values.min(axis=0).astype(np.uint32))
    return least


def shingles(text: str, words: int) -> np.ndarray:
    """The hashes of all different runs of so many words, ascending: [n] uint64; of a shorter text that of the whole."""
    found = word_hashes(bare_words(text))
    return np.unique(run_hashes(found, min(words, len(found)))) if len(found) else np.zeros(0, np.uint64)


@functools.cache
def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, numbers in a band): as many numbers as leave a chance of 99% that two texts just at the threshold share a
    band; what shares one by accident is compared, and found unlike."""
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold of near-duplicates is a share in (0, 1], got {threshold}")
    rows = 1
    for more in range(2, permutations + 1):
        if 1 - (1 - threshold**more) ** (permutations // more) >= _FOUND:
            rows = more
    return permutations // rows, rows


def band_keys(signatures: np.ndarray, band: int, threshold: float) -> np.ndarray:
    """One number a text, equal where the texts' band is: [N] uint64. signatures: [N, permutations] uint32."""
    _, rows = bands(threshold, signatures.shape[1])
    keys = np.full(len(signatures), band + 1, np.uint64)
    for place in range(band * rows, (band + 1) * rows):
        keys = mix(keys ^ signatures[:, place].astype(np.uint64))
    return keys


def keys_of_bands(signature: np.ndarray, threshold: float) -> np.ndarray:
    """The `band_keys` of one text in all bands: [bands] uint64. signature: [permutations] uint32."""
    count, rows = bands(threshold, len(signature))
    keys = np.arange(1, count + 1, dtype=np.uint64)
    for numbers in signature[: count * rows].reshape(count, rows).T:
        keys = mix(keys ^ numbers.astype(np.uint64))
    return keys


def buckets(keys: np.ndarray) -> Iterable[np.ndarray]:
    """The ordinals of the texts that share a key, ascending, for each key that several have."""
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    starts, stops = np.concatenate([[0], edges]), np.concatenate([edges, [len(keys)]])
    for run in np.flatnonzero(stops - starts > 1):
        yield order[starts[run] : stops[run]]


def leaders(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """For each text of a bucket, in order, the place of the first leader that it is like: [n] int64. Who is like none
    before is a leader itself. So a bucket of many copies of one page takes one comparison a copy."""
    found = np.zeros(len(signatures), np.int64)
    chosen: list[int] = []
    for place, own in enumerate(signatures):
        alike = np.flatnonzero(like(signatures[chosen], own, threshold))
        if len(alike):
            found[place] = chosen[alike[0]]
        else:
            found[place] = place
            chosen.append(place)
    return found


def like(signatures: np.ndarray, own: np.ndarray, threshold: float) -> np.ndarray:
    """Which texts overlap with one text by the threshold or more, by the estimate: [N] bool. signatures: [N,
    permutations]. own: [permutations]."""
    # in whole numbers, for a threshold such as 0.7 is no float; the slack is far below one of the equal numbers
    found: np.ndarray = (signatures == own).sum(axis=1) >= threshold * len(own) - 1e-6
    return found


def roots(first: np.ndarray) -> np.ndarray:
    """Follows each text to one that is itself the first. first: [N], none greater than its own ordinal."""
    found = np.array(first)
    while True:
        further = found[found]
        if np.array_equal(further, found):
            return found
        found = further


@functools.cache
def _permutations(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The odd multipliers and the offsets of `count` multiply-shift hashes (Dietzfelbinger et al. 1997)."""
    start = np.uint64((0x5851F42D4C957F2D * (seed + 1)) & _MASK)
    stream = mix(start + np.arange(2 * count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return stream[:count] | np.uint64(1), stream[count:]
