"""Texts as counts of hashed words and pairs of words: what DSIR and the n-gram classifier read instead of embeddings.

A word is a run of Unicode letters, digits and underscores, lowercased; its hash is CRC-32 of its UTF-8 bytes, mixed
by a multiplication so that pairs spread; an n-gram's is the mixed sum of its words'. The same text has the same buckets
on every machine. Two n-grams that share a bucket are one (hashing trick, Weinberger et al., arXiv 0902.2206).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

_WORD = re.compile(r"\w+")
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


def words_of(text: str) -> list[str]:
    """The words of a text, lowercased, in order."""
    return _WORD.findall(text.lower())


def hashed_ngrams(text: str, buckets: int, longest: int = 2) -> np.ndarray:
    """[number of n-grams] int64 buckets below `buckets` of all n-grams of 1 .. `longest` words, repeats kept."""
    hashes = np.array([_hash(word) for word in words_of(text)], np.uint64)
    found = []
    for length in range(1, longest + 1):
        if len(hashes) < length:
            break
        own = np.zeros(len(hashes) - length + 1, np.uint64)
        for place in range(length):
            own = (own + hashes[place : len(hashes) - length + 1 + place]) * _MIX
            own ^= own >> np.uint64(29)
        found.append((own % np.uint64(buckets)).astype(np.int64))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def hashed_counts(text: str, buckets: int, longest: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(distinct buckets ascending, how often each occurs) of a text."""
    return np.unique(hashed_ngrams(text, buckets, longest), return_counts=True)


def total_counts(texts: Iterable[str], buckets: int, longest: int = 2) -> np.ndarray:
    """[buckets] float64: how often each bucket occurs in all texts together."""
    total = np.zeros(buckets)
    for text in texts:
        total += np.bincount(hashed_ngrams(text, buckets, longest), minlength=buckets)
    return total


def blocks_of(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of at most `size` texts, as they come."""
    block: list[str] = []
    for text in texts:
        block.append(text)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


@lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return zlib.crc32(word.encode("utf8", "surrogatepass"))
