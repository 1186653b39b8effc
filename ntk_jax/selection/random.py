"""The random control: what any other selection must beat.

Source: a seeded permutation of the usable places. Cost and memory: 8 N bytes, no look at any record.
"""

from __future__ import annotations

import numpy as np

from ntk_jax.selection.ranker import Candidates, NoOptions, Ranker, Ranking
from ntk_jax.selection.top import check_count

_STREAM = 0x5E1  # apart from every other use of the run's seed


def rank(candidates: Candidates, options: NoOptions) -> Ranking:
    """`count` usable places drawn without replacement, in the order drawn; no place has a score.

    Raises UserError: fewer usable examples than are asked for.
    """
    usable = np.flatnonzero(candidates.usable)
    order = usable[random_n(len(usable), candidates.count, candidates.seed)]
    return Ranking(np.full(len(candidates.usable), np.nan, np.float32), order)


def random_n(pool: int, count: int, seed: int) -> np.ndarray:
    """`count` distinct indices below `pool`, in random order, from the seed."""
    check_count(count, pool)
    return np.random.default_rng([seed, _STREAM]).permutation(pool)[:count]


RANKER = Ranker(
    name="random",
    title="random",
    help="a seeded draw from the usable pool: the control",
    rank=rank,
    options=NoOptions,
)
