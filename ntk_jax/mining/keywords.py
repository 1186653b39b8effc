"""How much of a text is words of a list: the regular expression that people begin with, and the baseline to beat.

A keyword matches whole words without regard to case; one that ends in `*` matches every word that begins so; one of
several words matches them in a row, whatever white space is between them. The score is the share of a text's words that
matches cover, so that a long text is not preferred.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.mining.hashing import words_of


def keyword_pattern(keywords: Sequence[str]) -> re.Pattern[str]:
    """The expression of a list. Raises UserError: no keyword, or an empty one."""
    parts = []
    for keyword in keywords:
        words = keyword.lower().split()
        if not words or words == ["*"]:
            raise UserError(f"{keyword!r} is no keyword; give at least one word")
        parts.append(r"\s+".join(map(_word, words)))
    if not parts:
        raise UserError("there is no keyword; give at least one")
    return re.compile(r"\b(?:" + "|".join(sorted(parts, key=len, reverse=True)) + r")\b", re.IGNORECASE)


def keyword_scores(texts: Iterable[str], keywords: Sequence[str]) -> np.ndarray:
    """[n] fp32 shares of words that belong to a match; 0 for a text without words."""
    pattern = keyword_pattern(keywords)
    scores = []
    for text in texts:
        covered = sum(len(match.split()) for match in pattern.findall(text))
        scores.append(covered / max(len(words_of(text)), 1))
    return np.array(scores, np.float32)


def _word(word: str) -> str:
    return re.escape(word[:-1]) + r"\w*" if word.endswith("*") else re.escape(word)
