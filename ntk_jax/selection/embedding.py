"""Nearness of embeddings: RDS+ (Ivison et al., Large-Scale Data Selection for Instruction Tuning, arXiv 2503.01807).

| by            | score of x over the domain's examples d_1 ... d_m                                            |
|---------------|----------------------------------------------------------------------------------------------|
| `mean`        | mean cos(e(x), e(d))                                                                         |
| `max`         | max cos(e(x), e(d)): near to one example is enough                                           |
| `round_robin` | the domain's examples take turns, each takes its nearest that nobody has taken (RDS+'s)      |

RDS+ averages the last hidden states of all tokens of the base model, the i-th weighted by i (the section `embedding`'s
default), and lets the queries take turns. Under `round_robin` with more domain examples than `count` the first `count`
of them take one each. Its reference code also averages over the padding of a batch; here nothing is padded.

Source: the embeddings that the stage embed stored, a forward pass an example, 2 P FLOPs a token. Cost: N m D products
for `max` and `round_robin`, N D for `mean`, and one reading of the pool's embeddings. Memory: as `sketch.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ntk_jax.selection.ranker import Candidates, Ranker, Ranking
from ntk_jax.selection.sketch import rank_blocks
from ntk_jax.selection.top import check_count
from ntk_jax.selection.unit_embeddings import embedded, unit_blocks
from ntk_jax.settings import setting

_AS_SKETCHES = {"mean": "cosine", "max": "max", "round_robin": "round_robin"}  # of rows of norm 1


@dataclass(frozen=True)
class EmbeddingOptions:
    """Embeddings compared with those of the domain's examples."""

    by: Literal["mean", "max", "round_robin"] = setting(
        "round_robin",
        "mean cosine with the domain, the largest with one example, or examples taking turns (RDS+)",
    )


def rank(candidates: Candidates, options: EmbeddingOptions) -> Ranking:
    """The `count` nearest usable examples of those that have an embedding; the others have no score.

    Raises UserError: as `embedded` and `unit_blocks`, or fewer examples than `count`.
    """
    embeddings, places, domain = embedded(candidates, "embedding")
    check_count(candidates.count, len(places))
    blocks = ((rows, np.ones(len(rows), np.float32)) for rows in unit_blocks(candidates, embeddings))
    targets = domain, np.ones(len(domain), np.float32)
    found = rank_blocks(_AS_SKETCHES[options.by], targets, blocks, candidates.count)
    scores = np.full(len(candidates.usable), np.nan, np.float32)
    scores[places] = found.scores
    return Ranking(scores, places[found.order])


def _label(options: Any, settings: Mapping[str, Any]) -> str:
    return f"embedding:{options.by}"


RANKER = Ranker(
    name="embedding",
    title="embeddings",
    help="nearness of the model's embeddings to those of the domain (RDS+, arXiv 2503.01807, is by: round_robin)",
    rank=rank,
    options=EmbeddingOptions,
    needs=("embeddings",),
    label=_label,
)
