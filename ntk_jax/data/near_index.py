"""Near-duplicates of texts that come one by one: an index of those that stay, asked before each further one is added.

`near_duplicates.py` says how two texts are compared; here the decision about a text may depend on more than its words,
so who stays is for the caller to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from ntk_jax.data.near_duplicates import bands, keys_of_bands, like


class NearIndex:
    """The texts that stay. Memory: a signature and a number a band for each.

    threshold: least Jaccard overlap of two that are alike, in (0, 1]. permutations: numbers in a signature.
    Raises ValueError: a threshold outside.
    """

    def __init__(self, threshold: float, permutations: int) -> None:
        self._threshold = threshold
        bands(threshold, permutations)  # refuses a threshold outside
        self._signatures: list[np.ndarray] = []
        self._buckets: dict[tuple[int, int], list[int]] = defaultdict(list)

    def first_like(self, signature: np.ndarray) -> tuple[int, float] | None:
        """(ordinal, estimated overlap) of the first text of the index that shares a band with this one and overlaps
        with it by the threshold or more; None where there is none. signature: [permutations] uint32."""
        near = sorted({one for key in self._keys(signature) for one in self._buckets.get(key, ())})
        if not near:
            return None
        signatures = np.stack([self._signatures[one] for one in near])
        alike = np.flatnonzero(like(signatures, signature, self._threshold))
        if not len(alike):
            return None
        return near[alike[0]], float((signatures[alike[0]] == signature).mean())

    def add(self, signature: np.ndarray) -> int:
        """Its ordinal, from 0."""
        ordinal = len(self._signatures)
        self._signatures.append(signature)
        for key in self._keys(signature):
            self._buckets[key].append(ordinal)
        return ordinal

    def _keys(self, signature: np.ndarray) -> Iterator[tuple[int, int]]:
        return enumerate(keys_of_bands(signature, self._threshold).tolist())
