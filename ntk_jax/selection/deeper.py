"""As many examples of a ranking as are wanted after cleaning: the ranker is asked for more until enough stay.

A ranker is asked for N, then for 2 N, 4 N, ... up to all that it can rank, and each order is walked from its best
example on. A ranker that matches another one's selection (`Ranker.after`) has no more than that one selected: it is
asked for N again and again, each time without what was refused before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.selection.clean import QUOTA, Cleaned, Drop
from ntk_jax.selection.ranker import Ranking

Rank = Callable[[int, np.ndarray], Ranking]  # (count, usable [N] bool) -> order [count]
Walk = Callable[[np.ndarray, int], Cleaned]  # (order, want) -> what stays of it


@dataclass(frozen=True)
class Chosen:
    """ranking: the last that the ranker gave; its scores are those of all. cleaned: what stays, and what does not."""

    ranking: Ranking
    cleaned: Cleaned


def deeper(rank: Rank, walk: Walk, usable: np.ndarray, count: int, want: int) -> Chosen:
    """`want` examples that stay, or as many as there are. usable: [N] bool, of which `count` can be ranked.

    Raises UserError: what the ranker raises when it is asked for `count`.
    """
    depth = count
    while True:
        ranking = rank(depth, usable)
        cleaned = walk(ranking.order, want)
        most = rankable(ranking, usable)
        if len(cleaned.kept) >= want or depth >= most:
            return Chosen(ranking, cleaned)
        depth = min(most, max(2 * depth, want))


def rankable(ranking: Ranking, usable: np.ndarray) -> int:
    """How many examples the ranker can rank: those that have a score, all where it ranks without scores."""
    known = ~np.isnan(ranking.scores)
    return int((usable & known).sum()) if known[ranking.order].all() else int(usable.sum())


def again(rank: Rank, walk: Walk, usable: np.ndarray, count: int, groups: Sequence[str] | None = None) -> Chosen:
    """`count` examples that stay, or fewer where too few are left. groups: of each place, where there are quotas: of a
    group that is full only those that stay are drawn from again.

    Raises UserError: what the ranker raises at first.
    """
    left = usable.copy()
    drops: list[Drop] = []
    ranking = rank(count, left)
    while True:
        cleaned = walk(ranking.order, count)
        drops += cleaned.drops
        if not cleaned.drops:
            return Chosen(ranking, Cleaned(cleaned.kept, drops))
        left[[drop.place for drop in cleaned.drops]] = False
        full = {drop.refusal.of for drop in cleaned.drops if drop.refusal.reason == QUOTA}
        if full and groups is not None:
            left &= np.array([group not in full for group in groups]) | _marked(cleaned.kept, len(left))
        try:
            ranking = rank(count, left)
        except UserError:  # too few are left, or have what it ranks by
            return Chosen(ranking, Cleaned(cleaned.kept, drops))


def _marked(places: Iterable[int], size: int) -> np.ndarray:
    marked = np.zeros(size, bool)
    marked[list(places)] = True
    return marked
