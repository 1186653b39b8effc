"""Scores of a pool from sketches: each example against a set of targets, block by block, the pool never in memory.

| by            | score of x over targets t_1 ... t_m                                                        |
|---------------|--------------------------------------------------------------------------------------------|
| `mean`        | mean ⟨z, z_t⟩: the kernel's estimate; what `score` computes exactly                         |
| `cosine`      | mean cos(z, z_t): no example counts more for having a large gradient                       |
| `max`         | max cos(z, z_t): near to one target is enough (LESS, arXiv 2402.04333, takes such a maximum) |
| `round_robin` | targets take turns, each takes its best remaining example by cosine                        |

Sketches come as unit rows and their norms. Beside the targets, memory is one block: 4 n (K + m) bytes, and for
`round_robin` 12 m k for the k best of each target. NumPy only: no disk, no device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ntk_jax.errors import UserError

Block = tuple[np.ndarray, np.ndarray]  # unit rows [n, K] of any float dtype, norms [n]
KINDS = ("mean", "cosine", "max", "round_robin")


@dataclass(frozen=True)
class Ranking:
    """scores: [N] fp32, in pool order. order: [count] indices, best first (`round_robin`: as they were picked, and
    `scores` has their cosine with the target that picked them; for all others, the largest cosine)."""

    scores: np.ndarray
    order: np.ndarray


def rank(by: str, targets: Block, blocks: Iterable[Block], count: int) -> Ranking:
    """The `count` best examples of a pool, and the scores of all; equal scores in pool order.

    targets: ([m, K], [m]); blocks: ([n, K], [n]) each, in pool order.
    Raises UserError: no targets, targets that are all zero, an empty pool, or fewer examples than `count`.
    """
    if by not in KINDS:
        raise UserError(f"by = {by!r} is not one of {', '.join(KINDS)}")
    rows, norms = np.asarray(targets[0], np.float32), np.asarray(targets[1], np.float32)
    if not len(rows):
        raise UserError("there are no targets: the set of their sketches is empty")
    if not norms.any():
        raise UserError("the sketches of all targets are zero, so every score would be 0; take another objective")
    if by != "mean":  # a target whose sketch is zero is near to nothing
        rows, norms = rows[norms > 0], norms[norms > 0]
    if by == "round_robin":
        return _round_robin(rows, blocks, count)
    scores = np.concatenate([np.zeros(0, np.float32), *_scores(by, rows, norms, blocks)])
    _check_count(count, len(scores))
    # One score an example: the scores alone are small, and a stable sort keeps ties in pool order.
    return Ranking(scores, np.argsort(-scores, kind="stable")[:count])


def best_per_target(blocks: Iterable[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(values, indices), [m, min(count, N)] each: the largest of each column of [N, m] values that come in blocks of
    rows, largest first, ties in pool order; what a full sort would give, in one pass. indices: int64."""
    best: list[tuple[np.ndarray, np.ndarray]] | None = None
    seen = 0
    for block in blocks:
        if best is None:
            best = [(np.zeros(0, np.float32), np.zeros(0, np.int64)) for _ in range(block.shape[1])]
        for target, column in enumerate(block.T):
            best[target] = _merge(*best[target], column, seen, count)
        seen += len(block)
    if best is None:
        raise UserError("the pool is empty: nothing to rank")
    return np.stack([values for values, _ in best]), np.stack([where for _, where in best])


def take_turns(values: np.ndarray, where: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices, values), [count] each: row after row of [m, k] takes its best entry that nobody has taken, and again.
    k must be at least `count`, or all there are: then no row runs out."""
    order, picked = np.zeros(count, np.int64), np.zeros(count, np.float32)
    taken: set[int] = set()
    places = [0] * len(where)
    for turn in range(count):
        target = turn % len(where)
        while int(where[target, places[target]]) in taken:
            places[target] += 1
        order[turn], picked[turn] = where[target, places[target]], values[target, places[target]]
        taken.add(int(order[turn]))
    return order, picked


def _round_robin(targets: np.ndarray, blocks: Iterable[Block], count: int) -> Ranking:
    largest = [np.zeros(0, np.float32)]

    def cosines() -> Iterator[np.ndarray]:
        for unit, _ in blocks:
            found = np.asarray(unit, np.float32) @ targets.T
            largest.append(found.max(axis=1))
            yield found

    values, where = best_per_target(cosines(), count)
    scores = np.concatenate(largest)
    _check_count(count, len(scores))
    order, scores_of_picked = take_turns(values, where, count)
    scores[order] = scores_of_picked
    return Ranking(scores, order)


def _scores(by: str, targets: np.ndarray, norms: np.ndarray, blocks: Iterable[Block]) -> Iterator[np.ndarray]:
    """[n] of each block. A mean over targets is one product with their mean."""
    middle = (targets * norms[:, None] if by == "mean" else targets).mean(axis=0, dtype=np.float64).astype(np.float32)
    for unit, lengths in blocks:
        wide = np.asarray(unit, np.float32)
        if by == "max":
            yield (wide @ targets.T).max(axis=1)
        else:
            yield wide @ middle * (np.asarray(lengths, np.float32) if by == "mean" else np.float32(1))


def _merge(
    values: np.ndarray, where: np.ndarray, column: np.ndarray, first: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best of what is held and of a column whose indices begin at `first`. An equal value loses to what is held,
    which is earlier in the pool; so does a stable sort decide within the column."""
    fresh = np.flatnonzero(column > values[-1]) if len(values) == count else np.arange(len(column))
    if not len(fresh):
        return values, where
    values, where = np.concatenate([values, column[fresh]]), np.concatenate([where, first + fresh])
    order = np.argsort(-values, kind="stable")[:count]
    return values[order], where[order]


def _check_count(count: int, pool: int) -> None:
    if not pool:
        raise UserError("the pool is empty: nothing to rank")
    if not 1 <= count <= pool:
        raise UserError(
            f"select.count = {count}, but the pool has {pool} usable examples; it must be between 1 and that"
        )
