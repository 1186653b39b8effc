"""Seeds in the order in which the device meets them: those of the same domains side by side.

A chunk's best score in a domain is then a maximum over whole tiles of seeds, in one pass over the scores, however many
domains there are and whichever seeds stand for several.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.errors import UserError

TILE = 16  # seeds that are reduced together
SEEDS_AT_ONCE = 512  # at most: their scores with all chunks of a block are in memory together


@dataclass(frozen=True)
class Seeds:
    """Letters: S seeds, M domains, P places on the device, G different sets of domains.

    vectors: [steps, p, D] fp32 on the device, P = steps · p: each set filled up to whole tiles with copies of its first
    seed, the last step with zeros. ordinal: [P] int32, whose copy it is (-1: nobody's). place: [S], where each seed is.
    group: [P / TILE] int32, the set of each tile (the last set has no domain). member: [G, M] bool, domains of a set.
    """

    vectors: jax.Array
    ordinal: np.ndarray
    place: np.ndarray
    group: np.ndarray
    member: np.ndarray


def lay_out(seeds: np.ndarray, domain_of_seed: np.ndarray) -> Seeds:
    """The layout of seeds [S, D] with their domains [S, M] bool, made once for all blocks.

    Raises UserError: no seeds, other shapes, a vector that is not finite, a seed without a domain.
    """
    vectors, domains = np.asarray(seeds, np.float32), np.asarray(domain_of_seed, bool)
    if vectors.ndim != 2 or domains.ndim != 2 or not len(vectors) or len(vectors) != len(domains):
        raise UserError(f"seeds of shape {vectors.shape} with domains of shape {domains.shape}: give [S, D] and [S, M]")
    for problem, is_bad in (
        ("holds NaN or Inf; embed it again", ~np.isfinite(vectors).all(axis=1)),
        ("has no domain; give it one or leave it out", ~domains.any(axis=1)),
    ):
        if is_bad.any():
            raise UserError(f"seed {int(np.argmax(is_bad))} {problem}")
    member, group_of_seed = np.unique(domains, axis=0, return_inverse=True)
    ordinal, group = [], []
    for number in range(len(member)):
        own = np.flatnonzero(group_of_seed.reshape(-1) == number)
        ordinal += [own, np.full(-len(own) % TILE, own[0])]
        group += [number] * -(-len(own) // TILE)
    laid = np.concatenate(ordinal)
    steps = -(-len(laid) // SEEDS_AT_ONCE)
    empty = -len(laid) % (steps * TILE)
    place = np.zeros(len(vectors), np.int64)
    place[laid[::-1]] = np.arange(len(laid))[::-1]
    filled = np.concatenate([vectors[laid], np.zeros((empty, vectors.shape[1]), np.float32)])
    return Seeds(
        jnp.asarray(filled.reshape(steps, -1, vectors.shape[1])),
        np.concatenate([laid, np.full(empty, -1)]).astype(np.int32),
        place,
        np.asarray(group + [len(member)] * (empty // TILE), np.int32),
        np.concatenate([member, np.zeros((1, member.shape[1]), bool)]),
    )
