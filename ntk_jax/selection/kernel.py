"""The paper's selection: the largest mean kernel with the domain, ⟨ḡ, g(x)⟩ (arXiv 2511.07380).

Source: the exact scores that scoring stored, one forward-mode derivative an example. Cost: a sort of N numbers.
Memory: 8 N bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ntk_jax.selection.ranker import Candidates, NoOptions, Ranker, Ranking, needed
from ntk_jax.selection.top import top_places


def rank(candidates: Candidates, options: NoOptions) -> Ranking:
    """The `count` largest scores, ties in pool order.

    Raises UserError: fewer usable examples have a score than are asked for.
    """
    scores = needed(candidates.scores, "scores", "kernel").astype(np.float32)
    return Ranking(scores, top_places(scores, candidates.usable, candidates.count))


def _label(options: Any, settings: Mapping[str, Any]) -> str:
    return f"ntk:{settings['objective']}"


RANKER = Ranker(
    name="kernel",
    title="NTK kernel score",
    help="the largest exact mean kernel with the domain (NTK-Selector, arXiv 2511.07380)",
    rank=rank,
    options=NoOptions,
    needs=("scores",),
    label=_label,
)
