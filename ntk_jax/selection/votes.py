"""Votes, as the paper pre-selects by them (arXiv 2511.07380, stage 1), and the ranking by votes alone.

Every domain example votes for its K nearest candidates by the cosine of mean hidden states; the M candidates with
the most votes stay. The paper leaves the tie-break at the cut open: here ties go to the larger mean similarity
over the domain, then to pool order.

As a ranker. Source: the votes that pre-selection stored, a forward pass an example, no gradient. Cost: a sort of N
pairs. Memory: 24 N bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.selection.ranker import Candidates, NoOptions, Ranker, Ranking, needed
from ntk_jax.selection.top import check_count


@dataclass(frozen=True)
class Votes:
    """votes: [N] int64. similarity: [N] fp32, mean cosine with the domain."""

    votes: np.ndarray
    similarity: np.ndarray


def count_votes(domain: np.ndarray, blocks: Iterable[np.ndarray], neighbours: int) -> Votes:
    """Counts votes while streaming the pool: memory is [Nd, K + block], never [Nd, N].

    domain: [Nd, D]; blocks: [n, D] each, in pool order; both of any norm. neighbours: K.
    Equal cosines go to the earlier candidate (`top_k` keeps the lower index first).
    """
    import jax.numpy as jnp  # here: the ranker's options are read without jax

    from ntk_jax.selection.nearest import cosines_with, largest

    if not len(domain) or neighbours < 1:
        raise UserError(f"votes need a domain ({len(domain)} examples) and neighbours of at least 1 ({neighbours})")
    queries = jnp.asarray(unit_rows(domain))
    best = np.full((len(domain), 0), -np.inf, np.float32)
    where = np.full((len(domain), 0), -1, np.int64)
    similarity, seen = [], 0
    for block in blocks:
        cosines = np.asarray(cosines_with(queries, jnp.asarray(unit_rows(block))))  # [Nd, n]
        similarity.append(cosines.mean(axis=0))
        merged = np.concatenate([best, cosines], axis=1)
        index = np.concatenate([where, np.broadcast_to(np.arange(seen, seen + len(block)), cosines.shape)], axis=1)
        keep = min(neighbours, merged.shape[1])
        values, order = largest(jnp.asarray(merged), keep)
        best, where = np.asarray(values), np.take_along_axis(index, np.asarray(order), axis=1)
        seen += len(block)
    if not seen:
        raise UserError("the pool is empty: nothing to vote for")
    return Votes(np.bincount(where.ravel(), minlength=seen), np.concatenate(similarity))


def keep_most_voted(votes: Votes, keep: int) -> np.ndarray:
    """Ascending pool indices of the `keep` candidates with most votes; raises UserError if there are fewer."""
    if keep > len(votes.votes):
        raise UserError(
            f"keep = {keep} is larger than the pool ({len(votes.votes)} examples that were voted on); lower it"
        )
    return np.sort(most_voted_first(votes)[:keep])


def most_voted_first(votes: Votes) -> np.ndarray:
    """All indices: most votes first, then the larger mean similarity, then pool order."""
    return np.lexsort((np.arange(len(votes.votes)), -votes.similarity, -votes.votes))


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to norm 1 in fp32; zero rows stay zero."""
    wide = np.asarray(rows, np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)


def rank(candidates: Candidates, options: NoOptions) -> Ranking:
    """The usable examples with most votes; scores are the votes, ties go as above.

    Raises UserError: fewer usable examples were voted on than are asked for.
    """
    votes, similarity = needed(candidates.votes, "votes", "votes")
    voted = np.flatnonzero(candidates.usable & (votes >= 0))
    check_count(candidates.count, len(voted))
    first = most_voted_first(Votes(votes[voted], similarity[voted]))[: candidates.count]
    scores = np.full(len(votes), np.nan, np.float32)
    scores[voted] = votes[voted]
    return Ranking(scores, voted[first])


RANKER = Ranker(
    name="votes",
    title="nearest-neighbour votes",
    help="most votes of the domain by cosine of mean hidden states (the first stage of arXiv 2511.07380, alone)",
    rank=rank,
    options=NoOptions,
    needs=("votes",),
)
