"""What training on a group does to the held-out loss."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kernel_reference import random_rows, tiny_model

from ntk_jax.errors import UserError
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix
from ntk_jax.training.influence import loss_drops

RATE = 1e-2


@functools.partial(jax.jit, static_argnames="graphdef")
def summed_loss(graphdef, lora, base, ids, span):
    """Of the label tokens of one unpadded row, from whole logits."""
    positions = jnp.arange(len(ids))[None]
    hidden = hidden_states(graphdef, lora, base, ids[None], positions, jnp.ones_like(positions))
    log_probs = jax.nn.log_softmax(hidden[0] @ head_matrix(base).T)[:-1]
    return -(jnp.take_along_axis(log_probs, ids[1:, None], axis=1)[:, 0] * span[:-1]).sum()


def plain_loss(model, lora, rows):
    """Mean nats a label token, one row at a time."""
    total = sum(summed_loss(model.graphdef, lora, model.base, row.ids, row.span) for row in rows)
    return total / sum(int(row.span[:-1].sum()) for row in rows)


def rows_with_labels(count, seed):
    return [row for row in random_rows(4 * count, seed=seed) if row.span[:-1].any()][:count]


def test_drop_is_that_of_plain_adam():
    model = tiny_model()
    groups, held_out = [rows_with_labels(3, 1), rows_with_labels(3, 2)], rows_with_labels(5, 3)
    drops, before = loss_drops(model, groups, held_out, steps=2, learning_rate=RATE, row_length=64, eval_rows=2)
    assert before == pytest.approx(float(plain_loss(model, model.lora, held_out)), rel=1e-5)
    optimizer = optax.adam(RATE)
    for group, drop in zip(groups, drops, strict=True):
        lora, state = model.lora, optimizer.init(model.lora)
        for _ in range(2):
            gradient = jax.grad(lambda lora, group=group: plain_loss(model, lora, group))(lora)
            updates, state = optimizer.update(gradient, state, lora)
            lora = optax.apply_updates(lora, updates)
        assert drop == pytest.approx(before - float(plain_loss(model, lora, held_out)), abs=2e-4)
    assert not np.allclose(drops[0], drops[1])


def test_training_on_the_held_out_examples_helps():
    model, rows = tiny_model(), rows_with_labels(4, 4)
    drops, _ = loss_drops(model, [rows], rows, steps=8, learning_rate=RATE, row_length=64)
    assert drops[0] > 0


def test_mistakes():
    model, rows = tiny_model(), rows_with_labels(3, 5)
    options = {"steps": 1, "learning_rate": RATE, "row_length": 64}
    for groups in ([], [[]], [rows, rows[:2]]):
        with pytest.raises(UserError, match="groups to train on"):
            loss_drops(model, groups, rows, **options)
    with pytest.raises(UserError, match="no held-out examples"):
        loss_drops(model, [rows], [], **options)
    with pytest.raises(UserError, match="group 0 .* not finite; lower the learning rate"):
        loss_drops(model, [rows], rows, steps=1, learning_rate=float("nan"), row_length=64)
