"""Importance weights of hashed n-grams: DSIR (Xie et al., Data Selection for Language Models via Importance Resampling,
arXiv 2302.03169), a lexical baseline that looks at no model.

    log w(x) = Σ_g c_g(x) (log p(g) - log q(g))

over the hashed words and pairs of words of x, with p from the domain and q from the pool, both smoothed by `smoothing`
counts a bucket. The `count` largest of log w + Gumbel noise are a sample without replacement in proportion to w,
which is what the paper selects; without noise they are the largest. The sum grows with a text's length, so one long
text can outweigh everything; `length: mean` divides it by the number of n-grams.

Source: the texts themselves. Cost: two passes over the pool's text. Memory: 16 bytes a bucket and 4 bytes an example.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.mining.hashing import hashed_ngrams, total_counts
from ntk_jax.selection.ranker import Candidates, Ranker, Ranking
from ntk_jax.selection.texts import text_of, usable_texts
from ntk_jax.selection.top import top_places
from ntk_jax.settings import Count, Positive, setting

_STREAM = 0xD51


@dataclass(frozen=True)
class DsirOptions:
    """DSIR with the domain's examples as the target."""

    buckets: Count = setting(10000, "hash buckets of n-grams")
    longest: Count = setting(2, "words of the longest n-gram")
    smoothing: Positive = setting(1.0, "counts added to every bucket of both distributions")
    length: Literal["sum", "mean"] = setting(
        "sum", "weights summed over n-grams (the paper) or divided by their number"
    )
    noise: bool = setting(True, "sample in proportion to the weights (the paper); false: take the largest")


@dataclass(frozen=True)
class Importance:
    """Log weights of buckets. log_ratio: [buckets]."""

    log_ratio: np.ndarray
    longest: int = 2
    mean: bool = False

    def score(self, text: str) -> float:
        """log w of a text; 0 for one without words."""
        found = hashed_ngrams(text, len(self.log_ratio), self.longest)
        total = float(self.log_ratio[found].sum())
        return total / max(len(found), 1) if self.mean else total

    def scores(self, texts: Iterable[str]) -> np.ndarray:
        """[n] fp32 log weights."""
        return np.fromiter((self.score(text) for text in texts), np.float32)


def importance(
    target: Iterable[str],
    raw: Iterable[str],
    *,
    buckets: int = 10000,
    longest: int = 2,
    smoothing: float = 1.0,
    mean: bool = False,
) -> Importance:
    """The weights for a target's texts against raw texts (the corpus, or a sample of it).

    Raises UserError: one of them holds no word.
    """
    counts = []
    for texts, what in ((target, "the domain's texts"), (raw, "the pool's texts")):
        own = total_counts(texts, buckets, longest)
        if not own.any():
            raise UserError(f"{what} hold no word to compare; give some")
        counts.append((own + smoothing) / (own + smoothing).sum())
    return Importance(np.log(counts[0]) - np.log(counts[1]), longest, mean)


def gumbel(count: int, seed: int, stream: int = _STREAM) -> np.ndarray:
    """[count] Gumbel noise: the largest of log w + this are a sample without replacement in proportion to w
    (Efraimidis & Spirakis, Weighted random sampling with a reservoir, 2006). stream: each use has its own."""
    return np.random.default_rng([seed, stream]).gumbel(size=count)


def rank(candidates: Candidates, options: DsirOptions) -> Ranking:
    """A sample of the usable examples by importance weight, or the largest; scores are log weights without noise.

    Raises UserError: no word in the domain or the pool, fewer usable examples than are asked for, or a changed pool.
    """
    size = len(candidates.usable)
    weights = importance(
        map(text_of, candidates.domain),
        (text for _, text in usable_texts(candidates, 0)),
        buckets=options.buckets,
        longest=options.longest,
        smoothing=options.smoothing,
        mean=options.length == "mean",
    )
    scores = np.full(size, np.nan, np.float32)
    for place, text in usable_texts(candidates, size):
        scores[place] = weights.score(text)
    noisy = scores + gumbel(size, candidates.seed) if options.noise else scores
    return Ranking(scores, top_places(noisy, candidates.usable, candidates.count))


RANKER = Ranker(
    name="dsir",
    title="DSIR",
    help="importance resampling of hashed n-grams towards the domain (Xie et al., arXiv 2302.03169)",
    rank=rank,
    options=DsirOptions,
)
