"""Labels for the classifier from what the seeds found: the labelled set of DoPAMine (arXiv 2410.00260, section 2.3).

A chunk among the nearest of a seed, at or above the threshold of the seed's domain, is a positive of that domain. What
the paper does not say, and what makes the set useful:

- no seed may bring more than `per_seed` chunks, or one common theme fills the set;
- a chunk that another domain fits better by more than `margin` is no positive; within the margin it is one of both;
- a chunk above a domain's threshold that is no positive for one of these reasons is left out for that domain: it is no
  negative either;
- of more than `most` positives of a domain, those that lie far apart are taken (spread.py), and the others left out
  likewise;
- negatives are, in this order, positives of other domains, hard ones from the middle band of the domain's scores, and
  random ones from everything below the threshold.

Everything is decided by the arguments and the seed. Source: scores of the search, [N, M] and [S, K]. Memory: theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.mining.spread import spread
from ntk_jax.mining.thresholds import check_threshold

POSITIVE, HARD, RANDOM, OTHER = "positive", "hard negative", "random negative", "positive of another domain"
_STREAM = 0x1AB  # apart from every other use of a seed


@dataclass(frozen=True)
class Labelled:
    """A labelled set of chunks. n chunks, M domains.

    chunks: [n] int64, ascending ordinals. labels: [n, M] fp32, 1 belongs, 0 does not, NaN is not used. why: [n] what
    the chunk was taken for first. seed: [n] int32, the seed nearest to it in its best domain. score: [n] fp32, that
    seed's. counts: {domain: {what: how many}}, what was taken and what was passed over, by reason.
    """

    chunks: np.ndarray
    labels: np.ndarray
    why: np.ndarray
    seed: np.ndarray
    score: np.ndarray
    counts: Mapping[str, Mapping[str, int]]

    def take(self, places: np.ndarray) -> Labelled:
        """The rows at these places, in order of their chunks; the counts stay those of the whole set."""
        places = np.sort(np.asarray(places))
        chunks, labels, why = self.chunks[places], self.labels[places], self.why[places]
        return Labelled(chunks, labels, why, self.seed[places], self.score[places], self.counts)


def label(
    best: np.ndarray,
    best_seed: np.ndarray,
    top_score: np.ndarray,
    top_chunk: np.ndarray,
    domain_of_seed: np.ndarray,
    *,
    thresholds: Sequence[float] | np.ndarray,
    names: Sequence[str] | None = None,
    per_seed: int = 20,
    margin: float = 0.05,
    negatives: float = 3.0,
    hard_share: float = 0.5,
    middle: tuple[float, float] = (0.5, 0.9),
    usable: np.ndarray | None = None,
    most: int | None = None,
    vectors: Callable[[np.ndarray], np.ndarray] | None = None,
    seed: int = 0,
) -> Labelled:
    """The labelled set of a search.

    best: [N, M] fp32, each chunk's score in each domain; best_seed: [N, M] int32, the seed it comes from. top_score,
    top_chunk: [S, K], the best chunks of each seed, best first, -1 and -inf where there are fewer. domain_of_seed:
    [S, M] bool. thresholds: [M] cosines, at or above which a chunk may be a positive. names: of the domains, for
    messages and counts. per_seed: chunks that one seed may bring to one domain, at most K. negatives: as many for each
    positive of a domain, of which at least `hard_share` from the band between the quantiles `middle` of the domain's
    scores, where there are as many. usable: [N] bool, the chunks that may be taken (None: all). most:
    positives of a domain at most (None: all), for which vectors(chunks [n] ascending) must give unit vectors [n, D].
    Raises UserError: a threshold that keeps nothing or everything, or a value outside its range.
    """
    count, domains = best.shape
    names = [f"domain {place}" for place in range(domains)] if names is None else list(names)
    _check(names, domains, per_seed, margin, negatives, hard_share, middle)
    _check_most(most, vectors is not None)
    limits = np.asarray(thresholds, np.float32)
    free = np.ones(count, bool) if usable is None else np.asarray(usable, bool)
    for place, name in enumerate(names):
        check_threshold(best[free, place], float(limits[place]), name)
    labels = np.full((count, domains), np.nan, np.float32)
    why = np.full(count, "", dtype="<U32")
    counts: dict[str, dict[str, int]] = {name: {} for name in names}
    above = best >= limits
    highest = best.max(axis=1)

    for place, name in enumerate(names):
        found, capped = _nearest(top_score, top_chunk, domain_of_seed[:, place], float(limits[place]), per_seed)
        found = found[free[found]]
        near = highest[found] - best[found, place] <= margin
        labels[found[near], place] = 1.0
        counts[name][POSITIVE] = int(near.sum())
        counts[name]["nearer to another domain"] = int((~near).sum())
        counts[name]["beyond the cap of a seed"] = capped
    # A positive of one domain belongs to a second one whose score is as good within the margin, seed's cap or not.
    labels[(labels == 1.0).any(axis=1, keepdims=True) & above & (highest[:, None] - best <= margin)] = 1.0
    if most is not None and vectors is not None:
        _scatter(labels, names, counts, most, vectors, seed)
    chosen = (labels == 1.0).any(axis=1)
    labels[chosen[:, None] & ~above & (labels != 1.0)] = 0.0
    why[chosen] = POSITIVE

    for place, name in enumerate(names):
        counts[name]["with another domain"] = int(((labels[:, place] == 1.0) & ((labels == 1.0).sum(axis=1) > 1)).sum())
        others = int((chosen & (labels[:, place] == 0.0)).sum())
        counts[name][OTHER] = others
        wanted = max(0, round(negatives * counts[name][POSITIVE]))
        drawn = _negatives(best[:, place], free & ~chosen & ~above[:, place], wanted, hard_share, middle, [seed, place])
        for kind, chunks in drawn.items():
            labels[chunks, place] = 0.0
            why[chunks] = np.where(why[chunks] == "", kind, why[chunks])
            counts[name][kind] = len(chunks)
    return _collected(labels, why, best, best_seed, counts)


def negatives_below(
    best: np.ndarray,
    best_seed: np.ndarray,
    *,
    thresholds: Sequence[float] | np.ndarray,
    wanted: Sequence[int],
    names: Sequence[str],
    hard_share: float = 0.5,
    middle: tuple[float, float] = (0.5, 0.9),
    seed: int = 0,
) -> Labelled:
    """Negatives alone, for positives that come from elsewhere (a user's documents): as many for each domain as `wanted`
    says, drawn below its threshold as `label` draws them. best, best_seed, thresholds, middle: as of `label`.
    Raises UserError: a threshold that keeps nothing or everything."""
    _check(names, best.shape[1], 1, 0.0, 1.0, hard_share, middle)
    labels, why = np.full(best.shape, np.nan, np.float32), np.full(len(best), "", dtype="<U32")
    counts: dict[str, dict[str, int]] = {}
    for place, name in enumerate(names):
        check_threshold(best[:, place], float(thresholds[place]), name)
        below = best[:, place] < np.float32(thresholds[place])
        drawn = _negatives(best[:, place], below, int(wanted[place]), hard_share, middle, [seed, place])
        for kind, chunks in drawn.items():
            labels[chunks, place] = 0.0
            why[chunks] = np.where(why[chunks] == "", kind, why[chunks])
        counts[name] = {kind: len(chunks) for kind, chunks in drawn.items()}
    return _collected(labels, why, best, best_seed, counts)


def labels_of(domains: Sequence[Sequence[str]], names: Sequence[str], *, exclusive: bool = True) -> np.ndarray:
    """Labels [n, M] of texts whose domains are known: seeds, or a user's own documents.

    domains: the names of each text's domains; an empty list is a text that belongs to none. exclusive: a domain that is
    not named is a 0; else it is not used (NaN), for documents that may belong to more than was written down.
    Raises UserError: a name that is not one of `names`.
    """
    labels = np.full((len(domains), len(names)), 0.0 if exclusive else np.nan, np.float32)
    place = {name: number for number, name in enumerate(names)}
    for row, own in enumerate(domains):
        for name in own:
            if name not in place:
                raise UserError(f"text {row} is of the domain {name!r}, which is not one of {', '.join(names)}")
            labels[row, place[name]] = 1.0
        if not own:
            labels[row] = 0.0
    return labels


def background(
    count: int, domains: int, taken: np.ndarray, number: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(chunks [n] ascending, labels [n, M] of zeros): a random draw from N = `count` chunks without `taken`, as
    negatives for positives that come from elsewhere (seeds, users' documents). A few of them do belong to the domains:
    a classifier that is to be calibrated needs judged ones."""
    free = np.setdiff1d(np.arange(count), taken)
    drawn = np.sort(np.random.default_rng([seed, _STREAM]).permutation(free)[:number])
    return drawn.astype(np.int64), np.zeros((len(drawn), domains), np.float32)


def _check(
    names: Sequence[str],
    domains: int,
    per_seed: int,
    margin: float,
    negatives: float,
    hard_share: float,
    middle: tuple[float, float],
) -> None:
    """Raises UserError for values that label nothing."""
    if len(names) != domains:
        raise UserError(f"there are {domains} domains and {len(names)} names; give one each")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"the domain {twice[0]!r} is named twice; give each its own name")
    if per_seed < 1:
        raise UserError(f"per_seed = {per_seed}: a seed must bring at least one chunk")
    if margin < 0:
        raise UserError(f"margin = {margin} is below 0; with 0 only the nearest domain counts")
    if negatives <= 0:
        raise UserError(f"negatives = {negatives}: a classifier needs negatives; give how many for each positive")
    if not 0 <= hard_share <= 1:
        raise UserError(f"hard_share = {hard_share} is outside [0, 1]")
    low, high = middle
    if not 0 <= low < high <= 1:
        raise UserError(f"middle = {list(middle)}: give two quantiles in order, such as 0.5 and 0.9")


def _check_most(most: int | None, has_vectors: bool) -> None:
    if most is not None and most < 1:
        raise UserError(f"most = {most}: a domain needs at least one positive")
    if most is not None and not has_vectors:
        raise ValueError("most needs the vectors of the positives")


def _nearest(
    top_score: np.ndarray, top_chunk: np.ndarray, own: np.ndarray, threshold: float, per_seed: int
) -> tuple[np.ndarray, int]:
    """(distinct chunks that the domain's seeds bring, how many distinct ones only the cap keeps out)."""
    good = own[:, None] & (top_chunk >= 0) & (top_score >= threshold)
    within = np.unique(top_chunk[:, :per_seed][good[:, :per_seed]])
    return within.astype(np.int64), len(np.setdiff1d(top_chunk[good], within))


def _scatter(
    labels: np.ndarray,
    names: Sequence[str],
    counts: dict[str, dict[str, int]],
    most: int,
    vectors: Callable[[np.ndarray], np.ndarray],
    seed: int,
) -> None:
    """Leaves `most` positives of each domain, far from each other, and counts the others. Those that this domain's own
    seeds did not bring count among them: a domain has no more than `most`, whoever brought them."""
    for place, name in enumerate(names):
        found = np.flatnonzero(labels[:, place] == 1.0)
        if len(found) > most:
            labels[np.delete(found, spread(vectors(found), most, seed)), place] = np.nan
            counts[name][POSITIVE] = most
        counts[name]["passed over for ones farther apart"] = max(0, len(found) - most)


def _negatives(
    scores: np.ndarray,
    allowed: np.ndarray,
    wanted: int,
    hard_share: float,
    middle: tuple[float, float],
    seed: list[int],
) -> dict[str, np.ndarray]:
    """{kind: chunks}: hard ones from the band of quantiles, random ones from all that are allowed besides."""
    rng = np.random.default_rng([*seed, _STREAM])
    low, high = np.quantile(scores, middle)
    band = rng.permutation(np.flatnonzero(allowed & (scores >= low) & (scores <= high)))
    hard = band[: round(wanted * hard_share)]
    rest = allowed.copy()
    rest[hard] = False
    return {HARD: hard, RANDOM: rng.permutation(np.flatnonzero(rest))[: wanted - len(hard)]}


def _collected(
    labels: np.ndarray,
    why: np.ndarray,
    best: np.ndarray,
    best_seed: np.ndarray,
    counts: Mapping[str, Mapping[str, int]],
) -> Labelled:
    """The rows with a label, with the seed that is nearest in the chunk's best domain of those it belongs to."""
    chunks = np.flatnonzero(why != "")
    own = np.where(labels[chunks] == 1.0, best[chunks], -np.inf)
    none = ~np.isfinite(own).any(axis=1)
    own[none] = best[chunks[none]]
    place = own.argmax(axis=1)
    return Labelled(
        chunks.astype(np.int64),
        labels[chunks],
        why[chunks],
        best_seed[chunks, place].astype(np.int32),
        best[chunks, place].astype(np.float32),
        counts,
    )
