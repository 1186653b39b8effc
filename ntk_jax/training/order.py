"""Which examples step i sees, and in what shape: pure functions of (examples, config, seed, i).

The step number alone is the data position, so a resumed run sees exactly the batches that an
uninterrupted one sees. An epoch is one seeded permutation, cut into ceil(N / batch_size) parts whose sizes
differ by one at most: each example is seen once an epoch and no step is left with a tiny remainder (the loss
is a mean over the step's tokens, so the examples of a tiny step would count for much more than the others).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ntk_jax.data.batch import PackedBatch, TokenRow
from ntk_jax.data.packing import pack
from ntk_jax.training.optimizer import TrainConfig

PLANNED_STEPS = 64  # steps packed in advance to choose the shapes: enough to know, cheap for long trainings
PADDING_SLACK = 1.10  # a larger microbatch may cost this much in empty rows


@dataclass(frozen=True)
class Shapes:
    """Rows of a microbatch and label slots of a row, chosen once a training so that one program compiles."""

    rows: int
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
    return np.array_split(_epoch_order(examples, seed, epoch), per_epoch)[part]


def step_rows(rows: Sequence[TokenRow], step: int, config: TrainConfig, seed: int) -> list[TokenRow]:
    """The examples of `step`, in the order in which `PackedBatch.index` counts them."""
    return [rows[i] for i in step_indices(step, len(rows), config.batch_size, seed)]


def plan_shapes(
    rows: Sequence[TokenRow], config: TrainConfig, *, steps: int, seed: int, row_length: int, multiple: int
) -> Shapes:
    """Chooses the microbatch from a look at the first steps.

    Rows: the most that stay within `tokens_per_microbatch` while empty rows cost at most 10% (a step that
    needs 9 rows would waste 7 in microbatches of 8); always a `multiple` of the devices that share them.
    Labels: the largest slot count seen, so that ordinary steps all have one shape; a rare larger step
    compiles its own.
    """
    needs, labels = [], 1
    for step in range(min(steps, PLANNED_STEPS)):
        packed = list(_pack(step_rows(rows, step, config, seed), row_length, 1))
        needs.append(len(packed))
        labels = max(labels, packed[0].batch.label_position.shape[1])
    most = max(1, config.tokens_per_microbatch // (row_length * multiple))
    cost = {r * multiple: sum(-(-need // (r * multiple)) * r * multiple for need in needs) for r in range(1, most + 1)}
    least = min(cost.values())
    return Shapes(max(r for r, c in cost.items() if c <= PADDING_SLACK * least), labels)


def microbatches(rows: Sequence[TokenRow], shapes: Shapes, row_length: int) -> Iterator[PackedBatch]:
    """Packs the examples of one step into microbatches of the planned shape (numpy, on the host)."""
    for packed in _pack(rows, row_length, shapes.rows):
        missing = shapes.labels - packed.batch.label_position.shape[1]
        if missing <= 0:
            yield packed
            continue
        # Slots of segment 0 are unused: appending them changes the shape and nothing else.
        wider = {
            name: np.pad(np.asarray(getattr(packed.batch, name)), ((0, 0), (0, missing)))
            for name in ("label_position", "label_target", "label_segment")
        }
        yield replace(packed, batch=replace(packed.batch, **wider))


def _pack(rows: Sequence[TokenRow], row_length: int, rows_per_batch: int) -> Iterator[PackedBatch]:
    # The sum of the loss does not care how many examples share a row, so a row takes all that fit.
    return pack(rows, row_length=row_length, rows_per_batch=rows_per_batch, max_segments=row_length)


@functools.lru_cache(maxsize=2)
def _epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)
