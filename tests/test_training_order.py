"""The order of examples and the shapes of microbatches: pure functions, checked as such."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_reference import random_rows

from ntk_jax.data.batch import TokenRow
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.order import Shapes, count_steps, microbatches, plan_shapes, step_indices, step_rows


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.integers(1, 3))
def test_every_example_once_an_epoch(examples: int, batch_size: int, seed: int, epochs: int) -> None:
    config = TrainConfig(epochs=float(epochs), batch_size=batch_size)
    steps = count_steps(examples, config)
    assert steps % epochs == 0
    seen = [step_indices(step, examples, batch_size, seed) for step in range(steps)]
    sizes = [len(indices) for indices in seen]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    for epoch in range(epochs):
        part = np.concatenate(seen[epoch * steps // epochs : (epoch + 1) * steps // epochs])
        assert sorted(part) == list(range(examples))


def test_order_depends_on_seed_and_epoch_only() -> None:
    first = [step_indices(step, 50, 8, 3).tolist() for step in range(14)]
    assert first == [step_indices(step, 50, 8, 3).tolist() for step in reversed(range(14))][::-1]
    assert first[:7] != first[7:]  # another epoch, another order
    assert first[0] != step_indices(0, 50, 8, 4).tolist()


def test_number_of_steps() -> None:
    assert count_steps(1000, TrainConfig(epochs=3.0, batch_size=128)) == 24
    assert count_steps(1000, TrainConfig(epochs=0.5, batch_size=128)) == 4
    assert count_steps(5, TrainConfig(epochs=0.01, batch_size=128)) == 1
    assert count_steps(5, TrainConfig(max_steps=77)) == 77


@settings(max_examples=30, deadline=None)  # a busy machine is not a failure
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 3), st.integers(0, 9))
def test_microbatches_hold_every_label_once(examples: int, height: int, groups: int, seed: int) -> None:
    rows = random_rows(examples, seed=seed)
    found = []
    for packed in microbatches(rows, Shapes(height * groups, groups, 16), 32):
        batch = packed.batch
        assert batch.tokens.shape == (height * groups, 32)
        assert batch.label_target.shape[0] == groups
        flat_tokens = batch.tokens.reshape(groups, -1)
        flat_segments = batch.segments.reshape(groups, -1)
        for group in range(groups):
            used = batch.label_segment[group] > 0
            at = batch.label_position[group][used]
            # The slot's position is one of its segment, and the next token is its target.
            assert (flat_segments[group][at] == batch.label_segment[group][used]).all()
            assert (flat_tokens[group][at + 1] == batch.label_target[group][used]).all()
            for place, segment in zip(at, batch.label_segment[group][used], strict=True):
                row, column = group * height + place // 32, place % 32
                ordinal = packed.index[row, segment - 1]
                found.append((int(ordinal), int(batch.positions[row, column])))
    expected = [(i, int(t)) for i, row in enumerate(rows) for t in np.flatnonzero(row.span[:-1])]
    assert sorted(found) == sorted(expected)


def test_steps_share_one_shape() -> None:
    rows = random_rows(90, seed=1)
    config = TrainConfig(epochs=2.0, batch_size=10, tokens_per_microbatch=128)
    steps = count_steps(len(rows), config)
    shapes = plan_shapes(rows, config, steps=steps, seed=5, row_length=32)
    assert 1 <= shapes.rows <= 4
    found = {
        (packed.batch.tokens.shape, packed.batch.label_target.shape)
        for step in range(steps)
        for packed in microbatches(step_rows(rows, step, config, 5), shapes, 32)
    }
    assert found == {((shapes.rows, 32), (1, shapes.labels))}


def test_rows_of_a_microbatch_divide_over_devices() -> None:
    rows = random_rows(90, seed=1)
    config = TrainConfig(batch_size=10, tokens_per_microbatch=64)  # less than a row a device: still one each
    shapes = plan_shapes(rows, config, steps=9, seed=5, row_length=32, groups=8)
    assert shapes.rows == 8


def test_rows_of_a_microbatch_waste_little() -> None:
    """Nine full rows a step, eight allowed: five twice, not eight twice; one device's share at a time."""
    rows = [TokenRow(np.arange(64, dtype=np.int32), np.arange(64) < 63, str(i)) for i in range(9)]
    config = TrainConfig(batch_size=9, tokens_per_microbatch=8 * 64)
    assert plan_shapes(rows, config, steps=1, seed=0, row_length=64).rows == 5
    assert plan_shapes(rows, config, steps=1, seed=0, row_length=64, groups=2).rows == 6
