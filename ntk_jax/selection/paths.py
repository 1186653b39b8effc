"""Target-Aligned Paths (Yang, He & Cheng, Let the Target Select for Itself, arXiv 2605.09404): how much of an
example's loss the warm-up on the domain has taken away, without any gradient of it.

    score(x) = (l_0(x) - l_w(x)) / l_0(x)

with l_0 and l_w the loss of x, nats a response token, under the model before and after the warm-up: at best 1, below 0
where the warm-up made x less likely. A loss before that is below 1e-6 nats is taken as that.

Source: the losses that the stage losses stored, two forward passes an example, 4 P FLOPs a token. Cost: a sort of N
numbers. Memory: 20 N bytes.
"""

from __future__ import annotations

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.selection.ranker import Candidates, NoOptions, Ranker, Ranking, needed
from ntk_jax.selection.top import top_places

LEAST = 1e-6  # nats a token: what is as good as certain before has no share to lose


def rank(candidates: Candidates, options: NoOptions) -> Ranking:
    """The `count` usable examples with the largest share of their loss lost, ties in pool order.

    Raises UserError: no loss differs between the two models, or fewer usable examples have both losses than are asked
    for.
    """
    base, warm = (np.asarray(losses, np.float64) for losses in needed(candidates.losses, "losses", "paths"))
    scores = ((base - warm) / np.maximum(base, LEAST)).astype(np.float32)
    known = scores[candidates.usable & ~np.isnan(scores)]
    if len(known) and not known.any():
        raise UserError("the warm-up changed no example's loss, so every score would be 0; warm up with more steps")
    return Ranking(scores, top_places(scores, candidates.usable, candidates.count))


RANKER = Ranker(
    name="paths",
    title="target-aligned paths",
    help="the share of an example's loss that the warm-up on the domain takes away (arXiv 2605.09404)",
    rank=rank,
    options=NoOptions,
    needs=("losses",),
)
