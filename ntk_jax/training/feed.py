"""What a training reads, step by step: a list of examples in a seeded order, or anything else that is a `Feed`.

The step number alone is the data position. A feed says which rows a step has as a pure function of it, so that a
resumed training reads exactly what an uninterrupted one reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ntk_jax.data.batch import PackedBatch, TokenRow
from ntk_jax.errors import UserError
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.order import Shapes, count_seen, count_steps, microbatches, plan_shapes, step_indices, step_rows


class Feed(Protocol):
    """steps: of the whole training. examples: read by all steps, each as often as it is read."""

    @property
    def steps(self) -> int: ...

    @property
    def examples(self) -> int: ...

    def identify(self, digest: Any) -> None:
        """Puts into a hash what decides the rows, besides the training's settings and seed."""
        ...

    def shapes(self, config: TrainConfig, groups: int) -> Shapes:
        """The shape of microbatches of at most `tokens_per_microbatch` over all groups of devices."""
        ...

    def step(self, step: int, shapes: Shapes) -> tuple[list[TokenRow], list[PackedBatch]]:
        """The rows of a step, as `PackedBatch.index` counts them, and its microbatches."""
        ...


@dataclass(frozen=True)
class Examples:
    """Whole examples of at most `row_length` tokens, epoch by epoch (`order.step_indices`)."""

    rows: Sequence[TokenRow]
    config: TrainConfig
    seed: int
    row_length: int

    @property
    def steps(self) -> int:
        return count_steps(len(self.rows), self.config)

    @property
    def examples(self) -> int:
        return count_seen(len(self.rows), self.config)

    def identify(self, digest: Any) -> None:
        for row in self.rows:
            digest.update(f"{row.id}\0{len(row.ids)}\0".encode())
            digest.update(np.ascontiguousarray(row.ids, np.int32).tobytes())
            digest.update(np.packbits(np.asarray(row.span, bool)).tobytes())

    def shapes(self, config: TrainConfig, groups: int) -> Shapes:
        return plan_shapes(
            self.rows, config, steps=self.steps, seed=self.seed, row_length=self.row_length, groups=groups
        )

    def ordinals(self, step: int) -> np.ndarray:
        """Which of the rows a step has, in the order in which `PackedBatch.index` counts them."""
        return step_indices(step, len(self.rows), self.config.batch_size, self.seed)

    def step(self, step: int, shapes: Shapes) -> tuple[list[TokenRow], list[PackedBatch]]:
        chosen = step_rows(self.rows, step, self.config, self.seed)
        return chosen, microbatches(chosen, shapes, self.row_length)


def examples_of(rows: Sequence[TokenRow], config: TrainConfig, seed: int, row_length: int) -> Examples:
    """The feed of a list of examples. Raises `UserError`: none, none with a label, one that is longer than a row."""
    if not rows:
        raise UserError("training: the set of examples is empty; look at the data files and at what was dropped")
    if not any(np.any(row.span) for row in rows):
        raise UserError("training: no example has a response token to learn from; look at span and max_length")
    for row in rows:
        if len(row.ids) > row_length:
            raise UserError(
                f"training: example {row.id!r} has {len(row.ids)} tokens, a row {row_length}; drop or truncate it"
            )
    return Examples(rows, config, seed, row_length)
