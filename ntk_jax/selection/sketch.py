"""Scores of a pool from sketches: each example against a set of targets, block by block, the pool never in memory.

| by            | score of x over targets t_1 ... t_m                                                        |
|---------------|--------------------------------------------------------------------------------------------|
| `mean`        | mean ⟨z, z_t⟩: the kernel's estimate; what `score` computes exactly                         |
| `cosine`      | mean cos(z, z_t): no example counts more for having a large gradient                       |
| `max`         | max cos(z, z_t): near to one target is enough                                         |
| `round_robin` | targets take turns, each takes its best remaining example by cosine                        |

Source: the stores of sketches of pool and domain (`sketch_store.py`), unit rows and their norms. Cost: N m K products
for `max` and `round_robin`, N K for the others, and one reading of the pool's store. Memory beside the targets, 4 m K
bytes: one block, 4 n (K + m), and for `round_robin` 12 m k for the k best of each target. NumPy only, no device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.selection.ranker import Candidates, Ranker, Ranking, needed
from ntk_jax.selection.top import check_count
from ntk_jax.settings import setting

if TYPE_CHECKING:  # the options are read without tensorstore
    from ntk_jax.storage.arrays import Store

Block = tuple[np.ndarray, np.ndarray]  # unit rows [n, K] of any float dtype, norms [n]
KINDS = ("mean", "cosine", "max", "round_robin")


@dataclass(frozen=True)
class SketchOptions:
    """Sketches of gradients, compared with those of the domain's examples."""

    by: Literal["mean", "cosine", "max", "round_robin"] = setting(
        "cosine",
        "mean kernel or mean cosine with the domain, the largest cosine with one example, or examples taking turns",
    )


def rank(candidates: Candidates, options: SketchOptions) -> Ranking:
    """The `count` best usable examples of those that have a sketch; the others have no score.

    Raises UserError: as `rank_sketches`.
    """
    sketches = needed(candidates.sketches, "sketches", "sketch")
    places = sketches.places
    found = rank_sketches(sketches.pool, sketches.domain, options.by, candidates.count, among=candidates.usable[places])
    scores = np.full(len(candidates.usable), np.nan, np.float32)
    scores[places] = found.scores
    return Ranking(scores, places[found.order])


def rank_sketches(pool: Store, targets: Store, by: str, count: int, *, among: np.ndarray | None = None) -> Ranking:
    """The best `count` rows of a store of sketches against all rows of another.

    Args:
        pool, targets: open stores, from `sketch(..., out=)` or `open_sketches`. In memory are one block of the pool
            and the targets, 4 m K bytes.
        by: `mean`, `cosine`, `max` or `round_robin`, see the table of `ntk_jax/selection/sketch.py`.
        count: how many rows. among: [rows] bool, the rows that may be ranked; by default all that were not dropped.

    Returns:
        A `Ranking`: scores [rows] fp32, NaN for what was not ranked, and order [count], best first.

    Raises:
        UserError: the stores were not made by the same model, objective, projection and seed (the differing key is
            named with both values), a block is damaged or not written, or there are fewer rows than `count`.

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2))
        >>> records = [{"prompt": "A cat", "response": "purrs"}, {"prompt": "A dog", "response": "barks"}]
        >>> options = {"dim": 64, "allow_fresh_lora": True}
        >>> pool = nj.sketch(model, records, out="pool.zarr", **options)
        >>> targets = nj.sketch(model, records[1:], out="targets.zarr", **options)
        >>> nj.rank_sketches(pool, targets, "cosine", 1).order.tolist()
        [1]
    """
    from ntk_jax.selection.sketch_store import comparable_facts, ranked_rows, unit_rows
    from ntk_jax.storage.arrays import differing_facts

    difference = differing_facts(comparable_facts(pool), comparable_facts(targets))
    if difference:
        raise UserError(
            f"{pool.folder} was made with {difference} as {targets.folder}; sketches compare only when all but the "
            "examples is the same: sketch one of them again"
        )
    usable = np.flatnonzero(ranked_rows(pool, among))
    parts = list(unit_rows(targets))
    wanted = (np.concatenate([rows for rows, _ in parts]), np.concatenate([norms for _, norms in parts]))
    found = rank_blocks(by, wanted, unit_rows(pool, among), count)
    scores = np.full(pool.rows, np.nan, np.float32)
    scores[usable] = found.scores
    return Ranking(scores, usable[found.order])


def rank_blocks(by: str, targets: Block, blocks: Iterable[Block], count: int) -> Ranking:
    """The `count` best examples of a pool, and the scores of all; equal scores in pool order. Under `round_robin` the
    order is as they were picked, and a picked example's score is its cosine with the target that picked it, any other's
    its largest cosine.

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
    check_count(count, len(scores))
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
        raise UserError("the pool is empty: it has no usable example to select")
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
    check_count(count, len(scores))
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


def _label(options: Any, settings: Mapping[str, Any]) -> str:
    return f"sketch:{options.by}"


RANKER = Ranker(
    name="sketch",
    title="gradient sketches",
    help="nearness of projected gradients to those of the domain's examples",
    rank=rank,
    options=SketchOptions,
    needs=("sketches",),
    label=_label,
)
