"""The loss of each example alone, a baseline that looks at no domain: the examples that the model finds likeliest,
those in the middle, or those it finds unlikeliest (Yin & Rush, Compute-Constrained Data Selection, arXiv
2410.16208, whose Mid- and Top-PPL are `middle` and `highest`).

| take      | score of x with loss l(x), nats a response token, perplexity exp l(x)                           |
|-----------|-------------------------------------------------------------------------------------------------|
| `lowest`  | -l(x)                                                                                           |
| `middle`  | minus the distance of q from 1/2, q in (0, 1) the place of l(x) among all, equal ones at one    |
| `highest` | l(x)                                                                                            |

Source: the losses that the stage losses stored, a forward pass an example and model, 2 P FLOPs a token. Cost: a sort
of N numbers. Memory: 30 N bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ntk_jax.selection.ranker import Candidates, Ranker, Ranking, needed
from ntk_jax.selection.top import top_places
from ntk_jax.settings import setting


@dataclass(frozen=True)
class PerplexityOptions:
    """The model's loss on the responses."""

    take: Literal["lowest", "middle", "highest"] = setting(
        "middle", "which losses: the lowest, the middle, the highest"
    )
    of: Literal["base", "warm"] = setting("base", "the model as it is, or after the warm-up on the domain")


@dataclass(frozen=True)
class LowestPerplexityOptions:
    """The lowest of the model's losses on the responses, beside what `perplexity` takes in the same run."""

    of: Literal["base", "warm"] = setting("base", "the model as it is, or after the warm-up on the domain")


def rank(candidates: Candidates, options: PerplexityOptions) -> Ranking:
    """The `count` usable examples whose losses are taken first, ties in pool order.

    Raises UserError: fewer usable examples have a loss than are asked for.
    """
    base, warm = needed(candidates.losses, "losses", "perplexity")
    losses = np.asarray(base if options.of == "base" else warm, np.float32)
    known = np.flatnonzero(candidates.usable & ~np.isnan(losses))
    scores = np.full(len(losses), np.nan, np.float32)
    scores[known] = _scores(losses[known], options.take)
    return Ranking(scores, top_places(scores, candidates.usable, candidates.count))


def _scores(losses: np.ndarray, take: str) -> np.ndarray:
    if take != "middle":
        return losses if take == "highest" else -losses
    _, number, counts = np.unique(losses, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - counts / 2  # of the places that equal losses take up
    return -np.abs(middles[number] / max(len(losses), 1) - 0.5)


def rank_lowest(candidates: Candidates, options: LowestPerplexityOptions) -> Ranking:
    """As `rank` with take = lowest. Raises UserError likewise."""
    needed(candidates.losses, "losses", "perplexity_lowest")
    return rank(candidates, PerplexityOptions("lowest", options.of))


def _label(options: Any, settings: Mapping[str, Any]) -> str:
    return f"perplexity:{options.take}"


RANKER = Ranker(
    name="perplexity",
    title="perplexity",
    help="the model's loss on the response, of no domain: lowest, middle or highest (arXiv 2410.16208)",
    rank=rank,
    options=PerplexityOptions,
    needs=("losses",),
    label=_label,
)

LOWEST = dataclasses.replace(
    RANKER,
    name="perplexity_lowest",
    title="lowest perplexity",
    help="the lowest of the model's losses on the response, so that a run has them beside perplexity's middle",
    rank=rank_lowest,
    options=LowestPerplexityOptions,
    label=lambda options, settings: "perplexity:lowest",
)
