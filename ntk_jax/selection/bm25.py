"""Word overlap with the domain: Okapi BM25, the lexical baseline that a gradient score must beat.

    score(x) = Σ_t q_t idf_t tf_t / (tf_t + k1 (1 - b + b L / L̄)),    idf_t = log(1 + (n - df_t + ½) / (df_t + ½))

with q_t how often the word t occurs in the prompts and responses of the whole domain, tf_t how often in the example x,
L its words, and n, L̄, df_t over the usable examples of the pool. The saturation is that of Robertson & Zaragoza (The
Probabilistic Relevance Framework: BM25 and Beyond, 2009, section 3.4), without the constant factor k1 + 1, which ranks
the same; the idf is Lucene's, which is positive also for a word that most examples have. Words are runs of Unicode
letters, digits and underscores, lowercased.

Source: the records themselves. Cost: two passes over the pool's text, the first for document frequencies and lengths,
the second for scores. Memory: the domain's words and 12 N bytes; the pool is never held.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ntk_jax.data.records import Record
from ntk_jax.errors import UserError
from ntk_jax.selection.ranker import Candidates, Ranker, Ranking
from ntk_jax.selection.texts import text_of, usable_texts
from ntk_jax.selection.top import top_places
from ntk_jax.settings import Fraction, NotNegative, setting

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Bm25Options:
    """BM25 with all prompts and responses of the domain as the query."""

    k1: NotNegative = setting(1.2, "how slowly repeated words saturate; 0 counts a word once")
    b: Fraction = setting(0.75, "how far scores are divided by the example's length; 0 not at all")


def rank(candidates: Candidates, options: Bm25Options) -> Ranking:
    """The usable examples with the largest BM25 score, ties in pool order.

    Raises UserError: the domain has no words, fewer usable examples than are asked for, or the pool's records are not
    as many as they were.
    """
    query = Counter(word for record in candidates.domain for word in words_of(record))
    if not query:
        raise UserError("the domain's prompts and responses hold no word to compare the pool with; give it some")
    size = len(candidates.usable)
    frequency: Counter[str] = Counter()
    lengths = np.zeros(size, np.int32)
    for place, text in usable_texts(candidates, 0):
        words = _words(text)
        lengths[place] = len(words)
        frequency.update(query.keys() & set(words))
    count = int(candidates.usable.sum())
    weight = {t: q * math.log(1 + (count - frequency[t] + 0.5) / (frequency[t] + 0.5)) for t, q in query.items()}
    mean = max(lengths.sum(dtype=np.int64) / max(count, 1), 1.0 / max(count, 1))  # above 0, though all may be empty

    scores = np.full(size, np.nan, np.float32)
    for place, text in usable_texts(candidates, size):
        words = _words(text)
        spread = options.k1 * (1 - options.b + options.b * len(words) / mean)
        found = Counter(word for word in words if word in weight)
        scores[place] = sum(weight[word] * times / (times + spread) for word, times in found.items())
    return Ranking(scores, top_places(scores, candidates.usable, candidates.count))


def words_of(record: Record) -> list[str]:
    """The words of a record's prompt and response, or of what its messages say, in order."""
    return _words(text_of(record))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


RANKER = Ranker(
    name="bm25",
    title="BM25",
    help="word overlap with the domain's prompts and responses (Okapi BM25, Robertson & Zaragoza 2009)",
    rank=rank,
    options=Bm25Options,
)
