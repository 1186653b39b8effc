"""LESS (Xia et al., arXiv 2402.04333): the change of the domain's loss that training on an example would bring, at
several checkpoints of the warm-up.

At a checkpoint i an example of the pool is represented by its Adam update, what one step of the optimiser would change
if it saw this example alone; an example of the domain by the gradient of its loss. Both are projected, and

    score(x) = max over groups j of  Σ_i w_i mean_{x_t in j} cos(z_i(x_t), z_i(x)),

w_i the learning rate that the steps before checkpoint i were made with, so that Σ_i w_i = 1. A group is a subtask of
the domain: examples of one `task`, or of another record key. The paper's code adds up, averages and takes the maximum
in this order too.

The paper warms up on a random part of the pool; a run here warms up on the domain, so that Adam's first moment points
where the domain goes, and an example with a small gradient, whose update is nearly all moment, is nearest to it. Of 400
examples of the built-in pool such scores had a rank correlation of -0.94 with the norm of the gradient, -0.01 without
the moment, which by default is therefore left out of an update; `momentum: true` is the paper's formula.

Source: stores of sketches of pool and domain, two for each checkpoint. Cost: one reading of them and, for each
checkpoint, N G K products for G groups. Memory beside the groups' means, 4 G K bytes a checkpoint: one block of the
pool, 4 n (K + G). NumPy only, no device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ntk_jax.data.records import Record, family_of
from ntk_jax.errors import UserError
from ntk_jax.selection.ranker import Candidates, Checkpoint, Ranker, Ranking, needed
from ntk_jax.selection.top import top_places
from ntk_jax.settings import Count, setting


@dataclass(frozen=True)
class LessOptions:
    """LESS: Adam updates of pool examples against gradients of domain examples, over checkpoints of the warm-up."""

    checkpoints: Count | None = setting(
        None, "of the warm-up, evenly spaced to its end; null: one an epoch, or 4 where steps are given"
    )
    by: Literal["subtask", "mean", "max"] = setting(
        "subtask", "largest mean cosine with a subtask of the domain, mean with all of it, or largest with one example"
    )
    momentum: bool = setting(
        False, "keep Adam's first moment in an update, as the paper, whose warm-up is on the pool, not on the domain"
    )
    group_by: str = setting("auto", "the record key that names a subtask of the domain; auto: task, else source")


def rank(candidates: Candidates, options: LessOptions) -> Ranking:
    """The `count` largest scores, ties in pool order; a domain example whose gradient is zero is near to nothing.

    Raises UserError: fewer usable examples have a score than are asked for, or all of the domain's gradients are zero
    at a checkpoint.
    """
    checkpoints = needed(candidates.checkpoints, "checkpoints", "less")
    places = checkpoints[0].sketches.places
    groups = groups_of(candidates.domain, options)
    scores = np.full(len(candidates.usable), np.nan, np.float32)
    found = np.concatenate([np.zeros(0, np.float32), *_scores(checkpoints, groups, candidates.usable[places])])
    scores[places[_ranked(checkpoints, candidates.usable[places])]] = found
    return Ranking(scores, top_places(scores, candidates.usable, candidates.count))


def groups_of(domain: Sequence[Record], options: LessOptions) -> np.ndarray:
    """[m] the number of each domain example's group. Raises UserError: a key for subtasks that no example has."""
    if options.by == "max":
        return np.arange(len(domain))
    names = ["" if options.by == "mean" else family_of(record, options.group_by) for record in domain]
    if options.by == "subtask" and options.group_by != "auto" and set(names) == {"(none)"}:
        raise UserError(f"group_by = {options.group_by}: no record of the domain has this key; correct it")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)


def _scores(checkpoints: Sequence[Checkpoint], groups: np.ndarray, among: np.ndarray) -> Iterator[np.ndarray]:
    """[n] of the ranked rows of each block of the pool."""
    from ntk_jax.selection.sketch_store import unit_rows

    targets = [_means(one, groups) * np.float32(one.weight) for one in checkpoints]
    blocks = (unit_rows(one.sketches.pool, among) for one in checkpoints)
    for block in zip(*blocks, strict=True):
        near = sum(np.asarray(unit, np.float32) @ mean.T for (unit, _), mean in zip(block, targets, strict=True))
        yield np.asarray(near).max(axis=1)


def _means(checkpoint: Checkpoint, groups: np.ndarray) -> np.ndarray:
    """[G, K]: the mean of the unit rows of each group's examples, whose product with a unit row is its mean cosine."""
    from ntk_jax.selection.sketch_store import unit_rows

    rows = np.concatenate([np.asarray(unit, np.float32) for unit, _ in unit_rows(checkpoint.sketches.domain)])
    if len(rows) != len(groups):
        raise UserError(
            f"{checkpoint.sketches.domain.folder} holds {len(rows)} examples of the domain, which has {len(groups)}; "
            "take the domain that it was made of"
        )
    if not rows.any():
        raise UserError("the gradients of all domain examples are zero, so every score would be 0; warm up less")
    total = np.zeros((int(groups.max()) + 1, rows.shape[1]))
    np.add.at(total, groups, rows)
    return np.asarray(total / np.bincount(groups)[:, None], np.float32)


def _ranked(checkpoints: Sequence[Checkpoint], among: np.ndarray) -> np.ndarray:
    """[rows] bool: rows that have a score. They are the same at all checkpoints, for a row is dropped by its tokens."""
    from ntk_jax.selection.sketch_store import ranked_rows

    return ranked_rows(checkpoints[0].sketches.pool, among)


def _label(options: Any, settings: Mapping[str, Any]) -> str:
    return f"less:{options.by}"


RANKER = Ranker(
    name="less",
    title="LESS",
    help="Adam updates near to the domain's gradients over checkpoints of the warm-up (LESS, arXiv 2402.04333)",
    rank=rank,
    options=LessOptions,
    needs=("checkpoints",),
    label=_label,
)
