"""All ways of ranking by name, in the order in which help lists them; a new one is one file and one line here."""

from __future__ import annotations

from ntk_jax.selection import bm25, kernel, length_matched, random, sketch, votes
from ntk_jax.selection.ranker import Ranker

RANKERS: dict[str, Ranker] = {
    ranker.name: ranker
    for ranker in (
        kernel.RANKER,
        sketch.RANKER,
        votes.RANKER,
        bm25.RANKER,
        random.RANKER,
        length_matched.RANKER,
    )
}
