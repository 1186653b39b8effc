"""Scores from the main directions u_1 ... u_k of the domain's gradients: what of an example's gradient lies in the
subspace that the domain's examples share, where a few odd examples of the domain have no say.

| by       | score of x                  | what it is                                                                 |
|----------|-----------------------------|----------------------------------------------------------------------------|
| `mean`   | Σ_k ⟨ḡ, u_k⟩ ⟨u_k, g(x)⟩    | the mean kernel, the domain's mean gradient ḡ cut to its main directions   |
| `energy` | (1/m) Σ_k σ_k² ⟨u_k, g(x)⟩² | the mean squared kernel, mean_i ⟨g(x_i), g(x)⟩², as far as these hold it   |

With k = m both are exact. Close to GIST (Min et al., arXiv 2602.18584), which also takes the subspace of a singular
value decomposition of validation gradients and projects training gradients into it, and scores by cosines there; these
two scores, and the way by forward-mode derivatives without any stored gradient, are this package's. Cost: N k products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ntk_jax.selection.ranker import Candidates, Ranker, Ranking, needed
from ntk_jax.selection.top import top_places
from ntk_jax.settings import Count, setting


@dataclass(frozen=True)
class LowRankOptions:
    """The main directions of the domain's gradients."""

    components: Count = setting(8, "k, directions; each costs a tangent beside the primal pass over the pool")
    by: Literal["mean", "energy"] = setting(
        "mean", "the mean kernel along them, or the mean squared kernel, to which either sign counts alike"
    )


def rank(candidates: Candidates, options: LowRankOptions) -> Ranking:
    """The `count` largest scores, ties in pool order.

    Raises UserError: fewer usable examples have a score than are asked for.
    """
    found = needed(candidates.components, "components", "low_rank")
    along = found.values.astype(np.float64)
    scores = along @ found.mean if options.by == "mean" else np.square(along) @ found.energies
    single = scores.astype(np.float32)
    return Ranking(single, top_places(single, candidates.usable, candidates.count))


def _label(options: Any, settings: Mapping[str, Any]) -> str:
    return f"low_rank:{options.by}"


RANKER = Ranker(
    name="low_rank",
    title="main gradient directions",
    help="the kernel with the main directions of the domain's gradients (compare GIST, arXiv 2602.18584)",
    rank=rank,
    options=LowRankOptions,
    needs=("components",),
    label=_label,
)
