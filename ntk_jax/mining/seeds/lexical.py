"""Figures of words, for seeds beside the corpus that they are to be found in: how varied, how rare, how hard to read.

Types, hapaxes and their like grow with the amount of text, so both sides are measured on equally many words, drawn
from texts in a seeded order.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WINDOW = 50  # words, of the moving type-token ratio
FIGURES = ("diversity", "hapax_share", "richness", "distinct_pairs", "reading_ease", "grade", "words_per_sentence")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE = re.compile(r"[.!?]+(?:\s|$)|\n\s*\n")
_VOWELS = re.compile(r"[aeiouyàâäéèêëîïôöùûü]+")


def lexical(texts: Sequence[str], *, words: int | None = None, seed: int = 0) -> dict[str, Any]:
    """The figures of some texts. words: so many at most, from texts in a seeded order; None: all.

    `texts` and `words` that were measured;
    `diversity`: mean type-token ratio of windows of 50 words (MATTR, Covington & McFall 2010);
    `hapax_share`: share of the different words that occur once;
    `richness`: different words / √words (Guiraud 1954);
    `distinct_pairs`: share of pairs of neighbouring words that are different (distinct-2, Li et al. 2016);
    `reading_ease`: 206.835 − 1.015 words/sentences − 84.6 syllables/words (Flesch 1948);
    `grade`: 0.39 words/sentences + 11.8 syllables/words − 15.59 (Kincaid 1975), school years;
    `words_per_sentence`. Syllables are counted as groups of vowels, which fits English. NaN where there is no word.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    taken: list[list[str]] = []
    total, sentences = 0, 0.0
    for i in order:
        found = _WORD.findall(texts[int(i)].lower())
        cut = found if words is None else found[: words - total]
        if not cut:
            continue
        ends = sum(1 for part in _SENTENCE.split(texts[int(i)]) if _WORD.search(part))
        sentences += max(ends * len(cut) / len(found), 1)
        taken.append(cut)
        total += len(cut)
    if not total:
        return {"texts": 0, "words": 0, **dict.fromkeys(FIGURES, math.nan)}
    counts = Counter(word for one in taken for word in one)
    pairs = [pair for one in taken for pair in zip(one, one[1:], strict=False)]
    syllables = sum(n * syllables_of(word) for word, n in counts.items()) / total
    length = total / sentences
    return {
        "texts": len(taken),
        "words": total,
        "diversity": _moving_ratio(taken),
        "hapax_share": sum(n == 1 for n in counts.values()) / len(counts),
        "richness": len(counts) / math.sqrt(total),
        "distinct_pairs": len(set(pairs)) / len(pairs) if pairs else math.nan,
        "reading_ease": 206.835 - 1.015 * length - 84.6 * syllables,
        "grade": 0.39 * length + 11.8 * syllables - 15.59,
        "words_per_sentence": length,
    }


def compare_lexical(groups: Mapping[str, Sequence[str]], *, most: int = 50_000, seed: int = 0) -> dict[str, Any]:
    """{name: figures} of groups of texts, each on as many words as the smallest group has, at most `most`; groups
    without a word do not count for that."""
    sizes = [sum(len(_WORD.findall(text)) for text in texts) for texts in groups.values()]
    words = min([most, *(size for size in sizes if size)])
    return {name: lexical(texts, words=words, seed=seed) for name, texts in groups.items()}


def syllables_of(word: str) -> int:
    """Groups of vowels; a silent e at the end does not count. At least one."""
    groups = len(_VOWELS.findall(word))
    silent = word.endswith("e") and not word.endswith(("le", "ee", "ie", "oe", "ue", "ye"))
    return max(groups - (silent and groups > 1), 1)


def _moving_ratio(taken: Sequence[Sequence[str]]) -> float:
    """Mean share of different words in every window of `WINDOW` neighbours of a text; a shorter text is one window."""
    shares: list[float] = []
    for one in taken:
        size = min(WINDOW, len(one))
        inside = Counter(one[:size])
        shares.append(len(inside) / size)
        for old, new in zip(one, one[size:], strict=False):
            inside[new] += 1
            inside[old] -= 1
            if not inside[old]:
                del inside[old]
            shares.append(len(inside) / size)
    return math.fsum(shares) / len(shares)
