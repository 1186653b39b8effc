"""The loss and its gradient against the plain way: one unpacked example at a time, whole logits, log_softmax."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_reference import random_rows, tiny_model

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.packing import pack, pad
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix
from ntk_jax.models.model import Model
from ntk_jax.training.loss import label_log_probs, loss_sum
from ntk_jax.training.order import Shapes, microbatches

ROWS = random_rows(6, seed=3, lengths=(5, 9, 14))


def plain_loss(model: Model, lora: Any, base: Any, rows: Sequence[TokenRow]) -> jax.Array:
    """Sum of -log p of the tokens after span positions: one example a row, the whole [B, T, V] logits."""
    length = max(len(row.ids) for row in rows)
    ids = np.stack([np.pad(row.ids, (0, length - len(row.ids))) for row in rows])
    counted = np.stack([np.pad(row.span[:-1], (0, length - len(row.ids))) for row in rows])  # [B, T - 1]
    positions = np.broadcast_to(np.arange(length), ids.shape)
    hidden = hidden_states(model.graphdef, lora, base, ids, positions, np.ones_like(ids))
    log_probs = jax.nn.log_softmax(hidden @ head_matrix(base).T)
    targets = jnp.take_along_axis(log_probs[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    return -(targets * counted).sum()


def close(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    """Each leaf within `tolerance` of the largest entry of b's leaf."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.abs(np.asarray(x) - np.asarray(y)).max() <= tolerance * np.abs(np.asarray(y)).max() for x, y in pairs)


LAYOUTS = {
    "packed": lambda: list(pack(ROWS, row_length=32, rows_per_batch=2)),
    "padded": lambda: list(pad(ROWS, row_length=16, rows_per_batch=3)),
    "one label list a group": lambda: microbatches(ROWS, Shapes(rows=4, groups=2, labels=16), 32),
}


@functools.cache
def plain_gradient(family: str) -> tuple[jax.Array, Any]:
    model = tiny_model(family)
    loss = jax.jit(jax.value_and_grad(lambda theta: plain_loss(model, theta[0], theta[1], ROWS)))
    return loss((model.lora, model.base))


@pytest.mark.parametrize(("family", "layout"), [*(("llama", layout) for layout in LAYOUTS), ("qwen2", "packed")])
def test_gradient_is_that_of_the_plain_loss(family: str, layout: str) -> None:
    model = tiny_model(family)
    loss = jax.jit(
        jax.value_and_grad(lambda theta, batch: loss_sum(model.graphdef, theta[0], theta[1], batch), has_aux=True)
    )
    parts = [loss((model.lora, model.base), packed.batch) for packed in LAYOUTS[layout]()]
    assert all(broken == -1 for (_, broken), _ in parts)
    expected, wanted = plain_gradient(family)
    np.testing.assert_allclose(sum(value for (value, _), _ in parts), expected, rtol=1e-5)
    assert close(functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), [g for _, g in parts]), wanted, 2e-5)


def test_remat_changes_nothing() -> None:
    model = tiny_model()
    batch = next(pack(ROWS, row_length=32, rows_per_batch=2)).batch
    kept, recomputed = (
        jax.grad(lambda lora, remat=remat: loss_sum(model.graphdef, lora, model.base, batch, remat=remat)[0])(
            model.lora
        )
        for remat in (False, True)
    )
    assert close(recomputed, kept)


def test_prompt_labels_do_not_count() -> None:
    """Only what the span predicts is learned: a prompt's own tokens enter as context, never as targets."""
    model = tiny_model()
    ids = np.arange(1, 13, dtype=np.int32)
    response = TokenRow(ids, np.isin(np.arange(12), range(7, 11)), "a")  # predicts tokens 8 .. 11
    everything = replace(response, span=np.arange(12) < 11)
    batch, whole = (next(pad([row], row_length=16, rows_per_batch=1)).batch for row in (response, everything))
    used = batch.label_segment[0] > 0
    assert batch.label_target[0][used].tolist() == ids[8:].tolist()

    # Changing what stands in the prompt's label slots of the fully labelled batch changes its loss ...
    prompt = whole.label_position[0] < 7
    other = replace(whole, label_target=np.where(prompt & (whole.label_segment > 0), 90, whole.label_target))
    values = [label_log_probs(model.graphdef, model.lora, model.base, b)[0] for b in (whole, other)]
    assert np.abs(values[0] - values[1])[prompt[: len(values[0])]].max() > 1e-3
    # ... and the response-only loss is the rest of it, which stays as it was.
    expected = -values[0][~prompt & (whole.label_segment[0] > 0)].sum()
    np.testing.assert_allclose(loss_sum(model.graphdef, model.lora, model.base, batch)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(values[0][~prompt], values[1][~prompt], rtol=1e-6)

    # Unused slots count for nothing, whatever they hold.
    dirty = replace(
        batch,
        label_target=np.where(used, batch.label_target, 50),
        label_position=np.where(used, batch.label_position, 3),
    )
    gradient = jax.jit(jax.grad(lambda lora, b: loss_sum(model.graphdef, lora, model.base, b)[0]))
    gradients = [gradient(model.lora, b) for b in (batch, dirty)]
    assert close(gradients[1], gradients[0], 1e-6)


def test_broken_label_is_found() -> None:
    model = tiny_model()
    batch = next(pack(ROWS, row_length=32, rows_per_batch=2)).batch
    row, slot = 1, 2
    assert batch.label_segment[row, slot] > 0
    base = {**model.base, "head": model.base["head"].at[batch.label_target[row, slot]].set(jnp.nan)}
    _, broken = loss_sum(model.graphdef, model.lora, base, batch)
    values = label_log_probs(model.graphdef, model.lora, base, batch)
    assert broken == np.flatnonzero(~np.isfinite(np.asarray(values)).ravel())[0]
