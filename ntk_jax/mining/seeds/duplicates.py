"""Drops seeds that say what another one says: by their words (MinHash) and by their embeddings (cosine)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ntk_jax.data.alike import first_alike
from ntk_jax.data.near_duplicates import near_duplicates
from ntk_jax.mining.seeds.seed import Seed


def drop_duplicates(
    seeds: Sequence[Seed],
    *,
    similarity: float = 0.7,
    vectors: np.ndarray | None = None,
    cosine: float = 0.95,
) -> tuple[list[int], list[Seed], list[dict[str, Any]]]:
    """(ordinals that stay, these seeds, what was dropped) of seeds; of two alike the earlier one stays.

    Seeds of the same text become one that stands for the domains of both. Keywords are only compared so: what they
    share is their domain's description, not what they say. vectors [S, D]: embeddings of the seeds; None: only words
    are compared. similarity: Jaccard similarity of word runs, cosine: of embeddings, from which on two are alike. A
    dropped one is {"id", "like": the id that stays, "reason", "domains", "text"}.
    """
    texts = [seed.text for seed in seeds]
    equal = _first_equal(texts)
    compared = np.array([i for i, seed in enumerate(seeds) if seed.facts.get("origin") != "keyword"], np.int64)
    by_words, by_vectors = np.arange(len(seeds)), np.arange(len(seeds))
    by_words[compared] = compared[near_duplicates([texts[i] for i in compared], similarity)]
    if vectors is not None:
        by_vectors[compared] = compared[first_alike(np.asarray(vectors)[compared], cosine)]
    names: dict[int, list[str]] = {}
    dropped = []
    for i, seed in enumerate(seeds):
        for first, reason in (
            (equal[i], "the same text"),
            (int(by_words[i]), "nearly the same words"),
            (int(by_vectors[i]), "nearly the same embedding"),
        ):
            if first in names:
                shown = {"id": seed.id, "like": seeds[first].id, "reason": reason}
                dropped.append({**shown, "domains": list(seed.domains), "text": seed.text})
                if reason == "the same text":
                    names[first] += [name for name in seed.domains if name not in names[first]]
                break
        else:
            names[i] = list(seed.domains)
    kept = list(names)
    return kept, [replace(seeds[i], domains=tuple(names[i])) for i in kept], dropped


def _first_equal(texts: Sequence[str]) -> list[int]:
    """For each text the first of the same words, whatever its spaces."""
    known: dict[str, int] = {}
    return [known.setdefault(" ".join(text.split()), i) for i, text in enumerate(texts)]
