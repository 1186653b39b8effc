"""What a question may not share with an evaluation item: a run of words of what that asks or answers, or all words of
what it asks, however few these are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ntk_jax.data.contamination import contamination, evaluation_runs
from ntk_jax.data.words import bare_words, text_hash

_ASKED = re.compile(r"[^.!?:\n\u3002\uff01\uff1f\uff1a\u061f]+[?\uff1f\u061f]")  # behind any label


@dataclass(frozen=True)
class Leaks:
    """Evaluation items, as questions are compared with them. words: of a run. runs: hashes of all runs of so many
    words, ascending [n] uint64. asked: hashes of the questions."""

    words: int
    runs: np.ndarray
    asked: frozenset[int]

    def holds(self, question: str, answer: str) -> bool:
        """Whether a question with its answer is too much like an item to be trained on."""
        return _key(question) in self.asked or self.shares(f"{question}\n{answer}")

    def shares(self, text: str) -> bool:
        """Whether a text shares a run of words with an item."""
        return contamination(text, self.runs, self.words) is not None


def leaks_of(items: Iterable[tuple[str, str]], words: int) -> Leaks:
    """items: (what is asked, its answer). What stands in the first is a question as a whole, and so is each of its
    sentences that ends with a question mark."""
    texts, asked = [], set()
    for prompt, response in items:
        texts.append(f"{prompt}\n{response}")
        asked |= {_key(one) for one in (prompt, *_ASKED.findall(prompt))}
    return Leaks(words, evaluation_runs(texts, words)[0], frozenset(asked))


def _key(question: str) -> int:
    return text_hash(" ".join(bare_words(question)))
