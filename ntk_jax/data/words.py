"""What counts as a word. Chinese, Japanese and Thai are written without spaces: each of their characters is one."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence

import numpy as np

_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_ANY_UNSPACED = re.compile(f"[{_UNSPACED}]")
_BARE = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
WRITTEN = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")  # with its punctuation


def bare_words(text: str) -> list[str]:
    """The words in small letters, without punctuation: how texts are compared."""
    return _BARE.findall(text.lower())


def written_words(text: str) -> list[str]:
    """The words as they are written, with their punctuation: how texts are measured."""
    return WRITTEN.findall(text) if _ANY_UNSPACED.search(text) else text.split()


def word_hashes(words: Sequence[str]) -> np.ndarray:
    """A hash of each word, the same on every machine: [n] uint64."""
    return np.fromiter(map(_word_hash, words), np.uint64, len(words))


def run_hashes(hashes: np.ndarray, length: int) -> np.ndarray:
    """The hash of each run of `length` words, in order: [n - length + 1] uint64, none where there are fewer words.

    hashes: of the words, [n] uint64."""
    count = len(hashes) - length + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for place in range(length):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[place : place + count]
    return mix(total)


def mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014): every bit of a uint64 moves every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def text_hash(text: str) -> int:
    """64 bits of a text, the same on every machine; half a surrogate pair is welcome."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf8", "surrogatepass"), digest_size=8).digest(), "little")


_word_hash = functools.lru_cache(maxsize=1 << 18)(text_hash)
