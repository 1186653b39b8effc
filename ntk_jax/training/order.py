"""Which examples step i sees, and in what shape: pure functions of (examples, config, seed, i).

The step number alone is the data position, so a resumed run sees exactly the batches that an
uninterrupted one sees. An epoch is one seeded permutation, cut into ceil(N / batch_size) parts whose sizes
differ by one at most: each example is seen once an epoch and no step is left with a tiny remainder (the loss
is a mean over the step's tokens, so the examples of a tiny step would count for much more than the others).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from ntk_jax.data.batch import Batch, PackedBatch, TokenRow
from ntk_jax.data.packing import pack
from ntk_jax.training.optimizer import TrainConfig

PLANNED_STEPS = 256  # steps packed in advance to choose the shapes: enough to know, cheap for long trainings
MICROBATCH_OVERHEAD = 256  # what one more microbatch costs, in tokens: dispatch, weights read, gradients added up


@dataclass(frozen=True)
class Shapes:
    """What is chosen once a training so that one program compiles.

    rows: of a microbatch. groups: devices that share them, rows / groups each. labels: slots of a group.
    """

    rows: int
    groups: int
    labels: int


def count_steps(examples: int, config: TrainConfig) -> int:
    """Optimiser steps of the whole training."""
    if config.max_steps is not None:
        return config.max_steps
    return max(1, round(config.epochs * -(-examples // config.batch_size)))


def step_indices(step: int, examples: int, batch_size: int, seed: int) -> np.ndarray:
    """Ordinals of the examples of `step`, [<= batch_size]."""
    per_epoch = -(-examples // batch_size)
    epoch, part = divmod(step, per_epoch)
    return np.array_split(epoch_order(examples, seed, epoch), per_epoch)[part]


def count_seen(examples: int, config: TrainConfig) -> int:
    """Examples seen by all steps, each counted as often as it is seen: the sum of the lengths of `step_indices`."""
    per_epoch = -(-examples // config.batch_size)
    epochs, parts = divmod(count_steps(examples, config), per_epoch)
    # Of the parts of an epoch the first are one longer, as `np.array_split` makes them.
    return epochs * examples + parts * (examples // per_epoch) + min(parts, examples % per_epoch)


def step_rows(rows: Sequence[TokenRow], step: int, config: TrainConfig, seed: int) -> list[TokenRow]:
    """The examples of `step`, in the order in which `PackedBatch.index` counts them."""
    return [rows[i] for i in step_indices(step, len(rows), config.batch_size, seed)]


def plan_shapes(
    rows: Sequence[TokenRow], config: TrainConfig, *, steps: int, seed: int, row_length: int, groups: int = 1
) -> Shapes:
    """Chooses the microbatch from a look at the first steps.

    Rows: what takes the least work within `tokens_per_microbatch`, empty rows included: a step that needs 9 rows
    would waste 7 of them in microbatches of 8, and is better off with 5. Labels: the most that a group has there;
    a rare step with more compiles its own shape.
    """
    found = (step_rows(rows, step, config, seed) for step in range(min(steps, PLANNED_STEPS)))
    return plan_steps(found, config, row_length=row_length, groups=groups)


def plan_together(
    sets: Sequence[Sequence[TokenRow]], config: TrainConfig, *, seed: int, row_length: int, groups: int = 1
) -> Shapes:
    """One shape for trainings on several sets of examples, so that one program serves all. Every step is looked at: the
    shape then is the same whichever of them are trained on."""
    found = (step_rows(rows, step, config, seed) for rows in sets for step in range(count_steps(len(rows), config)))
    return plan_steps(found, config, row_length=row_length, groups=groups)


def plan_steps(steps: Iterable[Sequence[TokenRow]], config: TrainConfig, *, row_length: int, groups: int = 1) -> Shapes:
    """As `plan_shapes`, from the examples of some steps."""
    counts = [[_labels(row) for row in _pack(rows, row_length)] for rows in steps]
    return shapes_for(counts, row_length=row_length, tokens=config.tokens_per_microbatch, groups=groups)


def shapes_for(counts: Sequence[Sequence[int]], *, row_length: int, tokens: int, groups: int = 1) -> Shapes:
    """The microbatch of least work for steps with these packed rows, of which a step's list has each one's labels.
    tokens: of a microbatch at most, over all groups."""
    most = max(1, tokens // (row_length * groups))
    cost = {}
    for r in range(groups, most * groups + 1, groups):
        cost[r] = sum(-(-len(c) // r) for c in counts) * (r * row_length + MICROBATCH_OVERHEAD)
    chosen = min(cost, key=lambda r: (cost[r], -r))
    return Shapes(chosen, groups, max(_most_labels(c, _deal(c, chosen, groups)) for c in counts))


def microbatches(rows: Sequence[TokenRow], shapes: Shapes, row_length: int) -> list[PackedBatch]:
    """Packs the examples of one step into microbatches of the planned shape (numpy, on the host)."""
    return stacked(list(_pack(rows, row_length)), shapes)


def stacked(packed: Sequence[PackedBatch], shapes: Shapes) -> list[PackedBatch]:
    """Puts packed rows, each a batch of its own, into microbatches of the planned shape.

    Label arrays are [groups, M] (see `loss.label_log_probs`): the slots of all rows of one device in one list,
    so that the head sees few unused slots although rows differ much in how many labels they have.
    """
    counts = [_labels(row) for row in packed]
    hands = _deal(counts, shapes.rows, shapes.groups)
    labels = max(shapes.labels, _most_labels(counts, hands))
    height = shapes.rows // shapes.groups
    empty = jax.tree.map(np.zeros_like, packed[0].batch), np.full_like(packed[0].index, -1)
    out = []
    for start in range(0, len(hands), shapes.groups):
        lanes = []
        for hand in hands[start : start + shapes.groups]:
            lane = [(packed[i].batch, packed[i].index) for i in hand]
            lanes.append(_one_label_list(lane + [empty] * (height - len(lane)), labels))
        batch = jax.tree.map(lambda *parts: np.concatenate(parts), *(lane[0] for lane in lanes))
        out.append(PackedBatch(batch, np.concatenate([lane[1] for lane in lanes])))
    return out


def _one_label_list(lane: list[tuple[Batch, np.ndarray]], labels: int) -> tuple[Batch, np.ndarray]:
    """Stacks one-row batches [1, ...] to [rows, ...] and their label slots to [1, labels]."""
    batch: Batch = jax.tree.map(lambda *rows: np.concatenate(rows), *(row for row, _ in lane))
    used = batch.label_segment > 0
    start = np.arange(len(lane))[:, None] * batch.tokens.shape[1]  # of each row among the positions of the group
    slots = {
        "label_position": (batch.label_position + start)[used],
        "label_target": batch.label_target[used],
        "label_segment": batch.label_segment[used],
    }
    padded = {name: np.pad(values, (0, labels - len(values)))[None].astype(np.int32) for name, values in slots.items()}
    return replace(batch, **padded), np.concatenate([index for _, index in lane])


def _deal(counts: Sequence[int], rows: int, groups: int) -> list[list[int]]:
    """Deals packed rows to the groups of as few microbatches as hold them, back and forth, most labels first.

    Returns hands of row ordinals, `groups` hands a microbatch, each of at most rows / groups rows and with about
    the same number of labels.
    """
    hands: list[list[int]] = [[] for _ in range(-(-len(counts) // rows) * groups)]
    for turn, ordinal in enumerate(np.argsort(-np.asarray(counts), kind="stable").tolist()):
        lap, place = divmod(turn, len(hands))
        hands[place if lap % 2 == 0 else len(hands) - 1 - place].append(ordinal)
    return hands


def _most_labels(counts: Sequence[int], hands: list[list[int]]) -> int:
    """Label slots that hold every hand, rounded up by an eighth at most (16 at least), so that few shapes compile."""
    most = max(1, *(sum(counts[i] for i in hand) for hand in hands))
    unit = max(16, 1 << (most.bit_length() - 4) if most >= 16 else 16)
    return -(-most // unit) * unit


def _labels(row: PackedBatch) -> int:
    return int(np.count_nonzero(row.batch.label_segment))


def _pack(rows: Sequence[TokenRow], row_length: int) -> Iterator[PackedBatch]:
    """One packed row at a time. The sum of the loss does not care who shares a row: a row takes all that fit."""
    return pack(rows, row_length=row_length, rows_per_batch=1, max_segments=row_length)


@functools.lru_cache(maxsize=2)
def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """[examples] one seeded permutation an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(examples)
