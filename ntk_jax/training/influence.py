"""What training on a few examples really does: the held-out loss before and after, for many groups of examples.

This is what every score tries to predict (TracIn, arXiv 2002.08484: ⟨∇ℓ(held out), ∇ℓ(x)⟩ is the first-order drop of
one small gradient step). Each group starts from the same adapter with an empty optimiser, so groups can be compared.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_jax.data.batch import Batch, TokenRow
from ntk_jax.data.packing import pad
from ntk_jax.errors import UserError
from ntk_jax.models.model import Model
from ntk_jax.training.loss import loss_sum
from ntk_jax.training.optimizer import OptimizerSettings, make_optimizer

LABELS = 64  # label slots a row are rounded up to a multiple of this, so that one compiled step serves all groups


def loss_drops(
    model: Model,
    groups: Sequence[Sequence[TokenRow]],
    held_out: Sequence[TokenRow],
    *,
    steps: int,
    learning_rate: float,
    row_length: int,
    eval_rows: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, float]:
    """([G] fp64 drop of the held-out loss after `steps` Adam steps on each group, the loss before), nats a label token.

    groups: of one size, each one batch. held_out: rows of the domain that no group holds. Positive: training helped.
    The loss is over the rows' spans, adapters only are trained, without warm-up, decay or clipping.
    Raises UserError: no group, groups of different sizes, nothing held out, a loss that is not finite.
    """
    if not groups or len({len(group) for group in groups}) != 1 or not len(groups[0]):
        raise UserError("groups to train on must be there, hold examples and be of one size")
    if not held_out:
        raise UserError("there are no held-out examples to measure the loss on; give some")
    most = max(int(np.count_nonzero(row.span[:-1])) for group in [*groups, held_out] for row in group)
    slots = -(-most // LABELS) * LABELS
    evaluation = [_widened(batch, slots) for batch in _padded(held_out, row_length, eval_rows)]
    tokens = sum(int(np.count_nonzero(batch.label_segment)) for batch in evaluation)
    settings = OptimizerSettings(max_grad_norm=0.0, beta1=0.9, beta2=0.999, weight_decay=0.0)
    static = (model.graphdef, model.dtype, settings)

    def loss(lora: Any) -> float:
        return sum(float(_loss(*static[:2], lora, model.base, batch)) for batch in evaluation) / tokens

    before = loss(model.lora)
    drops = np.zeros(len(groups))
    for number, group in enumerate(groups):
        (batch,) = (_widened(batch, slots) for batch in _padded(group, row_length, len(group)))
        after = loss(_trained(*static, steps, model.lora, model.base, batch, jnp.float32(learning_rate)))
        drops[number] = before - after
        if not np.isfinite(after):
            raise UserError(f"training on group {number} (first example: {group[0].id!r}) ends in a loss that is not "
                            "finite; lower the learning rate")  # fmt: skip
        if progress:
            progress(number + 1, len(groups))
    return drops, before


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss(graphdef: Any, dtype: Any, lora: Any, base: Any, batch: Batch) -> jax.Array:
    return loss_sum(graphdef, lora, base, batch, dtype=dtype)[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _trained(
    graphdef: Any, dtype: Any, settings: OptimizerSettings, steps: int, lora: Any, base: Any, batch: Batch, rate: Any
) -> Any:
    """The adapter after `steps` updates on one batch."""
    optimizer = make_optimizer(settings)
    labels = jnp.maximum((jnp.asarray(batch.label_segment) > 0).sum(), 1)

    def step(state: Any, _: None) -> tuple[Any, None]:
        lora, moments = state
        gradient = jax.grad(lambda lora: loss_sum(graphdef, lora, base, batch, dtype=dtype)[0] / labels)(lora)
        updates, moments = optimizer.update(gradient, moments, lora)
        return (optax.apply_updates(lora, jax.tree.map(lambda u: rate * u, updates)), moments), None

    return jax.lax.scan(step, (lora, optimizer.init(lora)), None, length=steps)[0][0]


def _padded(rows: Sequence[TokenRow], row_length: int, rows_per_batch: int) -> Iterator[Batch]:
    return (packed.batch for packed in pad(rows, row_length=row_length, rows_per_batch=rows_per_batch))


def _widened(batch: Batch, slots: int) -> Batch:
    """The label arrays of one width for all groups: `pad` makes them as wide as the batch needs."""

    def widen(array: np.ndarray) -> np.ndarray:
        array = np.asarray(array)
        return np.pad(array[:, :slots], ((0, 0), (0, max(0, slots - array.shape[1]))))

    names = ("label_position", "label_target", "label_segment")
    return dataclasses.replace(batch, **{name: widen(getattr(batch, name)) for name in names})
