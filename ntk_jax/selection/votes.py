"""Pre-selection by votes, as the paper does it (arXiv 2511.07380, stage 1).

Every domain example votes for its K nearest candidates by the cosine of mean hidden states; the M candidates with
the most votes stay. The paper leaves the tie-break at the cut open: here ties go to the larger mean similarity
over the domain, then to pool order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.errors import UserError


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
    if not len(domain) or neighbours < 1:
        raise UserError(f"votes need a domain ({len(domain)} examples) and neighbours of at least 1 ({neighbours})")
    queries = jnp.asarray(unit_rows(domain))
    best = np.full((len(domain), 0), -np.inf, np.float32)
    where = np.full((len(domain), 0), -1, np.int64)
    similarity, seen = [], 0
    for block in blocks:
        cosines = np.asarray(_cosines(queries, jnp.asarray(unit_rows(block))))  # [Nd, n]
        similarity.append(cosines.mean(axis=0))
        merged = np.concatenate([best, cosines], axis=1)
        index = np.concatenate([where, np.broadcast_to(np.arange(seen, seen + len(block)), cosines.shape)], axis=1)
        keep = min(neighbours, merged.shape[1])
        values, order = _top(jnp.asarray(merged), keep)
        best, where = np.asarray(values), np.take_along_axis(index, np.asarray(order), axis=1)
        seen += len(block)
    if not seen:
        raise UserError("the pool is empty: nothing to vote for")
    return Votes(np.bincount(where.ravel(), minlength=seen), np.concatenate(similarity))


def keep_most_voted(votes: Votes, keep: int) -> np.ndarray:
    """Ascending pool indices of the `keep` candidates with most votes; raises UserError if there are fewer."""
    if keep > len(votes.votes):
        raise UserError(
            f"preselect.keep = {keep} is larger than the pool ({len(votes.votes)} scored examples); lower it"
        )
    order = np.lexsort((np.arange(len(votes.votes)), -votes.similarity, -votes.votes))
    return np.sort(order[:keep])


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to norm 1 in fp32; zero rows stay zero."""
    wide = np.asarray(rows, np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)


@jax.jit
def _cosines(queries: jax.Array, block: jax.Array) -> jax.Array:
    return jnp.einsum("qd,nd->qn", queries, block, precision="highest")


@functools.partial(jax.jit, static_argnames="k")
def _top(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.top_k(values, k)
