"""Packing moves tokens, and must do nothing else: every token once, whole, with its own span, labels and positions."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.data.batch import PackedBatch, TokenRow
from ntk_jax.data.packing import (
    LABEL_SLOTS,
    pack,
    pack_choices,
    pad,
    pad_by_length,
    positions_by_length,
    row_length_for,
    row_lengths,
)
from ntk_jax.data.tokens import ChoiceRow
from ntk_jax.errors import UserError

ROW = 24

quick = settings(max_examples=60, deadline=None)


@st.composite
def token_rows(draw: st.DrawFn) -> list[TokenRow]:
    lengths = draw(st.lists(st.integers(1, ROW), min_size=1, max_size=20))
    rows, token = [], 1
    for number, length in enumerate(lengths):
        span = np.array(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        rows.append(TokenRow(np.arange(token, token + length, dtype=np.int32), span, f"row{number}"))
        token += length  # every token of the list is different, so that none can be mistaken for another
    return rows


@st.composite
def choice_rows(draw: st.DrawFn) -> list[ChoiceRow]:
    shapes = st.tuples(st.integers(1, 8), st.lists(st.integers(1, 3), min_size=2, max_size=4))
    rows, token = [], 1
    for number, (prompt, choices) in enumerate(draw(st.lists(shapes, min_size=1, max_size=10))):
        parts = []
        for length in [prompt, *choices]:
            parts.append(np.arange(token, token + length, dtype=np.int32))
            token += length
        rows.append(ChoiceRow(parts[0], tuple(parts[1:]), f"q{number}"))
    return rows


def check_row(rows: list[TokenRow], packed: PackedBatch, b: int) -> list[int]:
    """Checks one row of a batch against the examples it says it holds; returns their ordinals."""
    batch, index = packed.batch, packed.index[b]
    ordinals = [int(o) for o in index if o >= 0]
    assert all(o < 0 for o in index[len(ordinals) :])
    labels = []
    for segment, ordinal in enumerate(ordinals, start=1):
        where = np.flatnonzero(batch.segments[b] == segment)
        row = rows[ordinal]
        np.testing.assert_array_equal(where, np.arange(where[0], where[0] + len(row.ids)))  # one piece
        np.testing.assert_array_equal(batch.tokens[b, where], row.ids)
        np.testing.assert_array_equal(batch.positions[b, where], np.arange(len(row.ids)))
        np.testing.assert_array_equal(batch.span[b, where], row.span)
        for t in range(len(row.ids) - 1):
            if row.span[t]:
                labels.append((where[0] + t, row.ids[t + 1], segment))
    used = batch.label_segment[b] > 0
    found = zip(batch.label_position[b][used], batch.label_target[b][used], batch.label_segment[b][used], strict=True)
    assert sorted(found) == sorted(labels)
    padding = batch.segments[b] == 0
    assert not batch.span[b, padding].any()
    assert not batch.tokens[b, padding].any()
    assert not batch.positions[b, padding].any()
    assert padding.sum() + sum(len(rows[o].ids) for o in ordinals) == ROW
    return ordinals


@quick
@given(token_rows(), st.integers(1, 4), st.integers(1, 5))
def test_pack_keeps_every_example_whole(rows: list[TokenRow], rows_per_batch: int, max_segments: int) -> None:
    seen = []
    shapes = set()
    for packed in pack(rows, row_length=ROW, rows_per_batch=rows_per_batch, max_segments=max_segments):
        shapes.add(tuple(leaf.shape for leaf in jax.tree.leaves(packed.batch)))
        assert packed.index.shape == (rows_per_batch, max_segments)
        assert all(leaf.dtype in (np.int32, bool) for leaf in jax.tree.leaves(packed.batch))
        for b in range(rows_per_batch):
            seen += check_row(rows, packed, b)
    assert sorted(seen) == list(range(len(rows)))
    assert len(shapes) == 1
    ((tokens, _, _, _, labels, *_),) = shapes
    assert tokens == (rows_per_batch, ROW)
    assert labels[1] >= LABEL_SLOTS and labels[1] & (labels[1] - 1) == 0


@quick
@given(token_rows(), st.integers(1, 4))
def test_pad_gives_one_example_a_row_in_order(rows: list[TokenRow], rows_per_batch: int) -> None:
    seen = []
    for packed in pad(rows, row_length=ROW, rows_per_batch=rows_per_batch):
        assert packed.index.shape == (rows_per_batch, 1)
        for b in range(rows_per_batch):
            seen += check_row(rows, packed, b)
    assert seen == list(range(len(rows)))


@quick
@given(st.lists(st.integers(1, 200), max_size=40), st.integers(1, 3), st.integers(0, 9))
def test_pad_by_length_keeps_every_example_whole_in_a_row_that_it_needs(
    lengths: list[int], rows_per_batch: int, most_rows: int
) -> None:
    rows = [TokenRow(np.full(n, i, np.int32), np.ones(n, bool), f"row{i}") for i, n in enumerate(lengths)]
    seen, batches, positions, last = [], [], 0, {}
    for packed in pad_by_length(rows, row_length=200, rows_per_batch=rows_per_batch, most_rows=most_rows):
        size, length = packed.batch.tokens.shape
        assert (
            length in (32, 64, 128, 200) and length <= row_lengths(200)[np.searchsorted(row_lengths(200), max(lengths))]
        )
        assert size == min(max(most_rows, rows_per_batch), rows_per_batch * (200 // length))
        for b, ordinal in enumerate(packed.index[:, 0]):
            used = packed.batch.segments[b] > 0
            assert packed.batch.tokens[b, used].tolist() == ([ordinal] * lengths[ordinal] if ordinal >= 0 else [])
        seen += packed.index[packed.index >= 0].tolist()
        batches.append(length)
        positions += size * length
        last[length] = int((packed.index < 0).sum()), size
    assert sorted(seen) == list(range(len(rows)))
    assert batches == sorted(batches)
    assert all(2 * empty < size for length, (empty, size) in last.items() if length != batches[-1]), (
        "or with longer ones"
    )
    planned = {"row_length": 200, "rows_per_batch": rows_per_batch, "most_rows": most_rows}
    assert positions_by_length(np.array(lengths, int), **planned) == positions


def test_short_examples_do_not_pay_for_a_long_one() -> None:
    rows = [TokenRow(np.ones(n, np.int32), np.ones(n, bool)) for n in [500] + [20] * 64]
    shapes = [
        packed.batch.tokens.shape for packed in pad_by_length(rows, row_length=512, rows_per_batch=4, most_rows=64)
    ]
    assert shapes == [(64, 32), (4, 512)]


@quick
@given(token_rows())
def test_packing_is_deterministic_and_no_larger_than_padding(rows: list[TokenRow]) -> None:
    first, again = (list(pack(rows, row_length=ROW, rows_per_batch=2)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.index, other.index)
        jax.tree.map(np.testing.assert_array_equal, one.batch, other.batch)
    assert len(first) <= len(list(pad(rows, row_length=ROW, rows_per_batch=2)))


@quick
@given(st.lists(st.integers(1, ROW), min_size=1, max_size=30))
def test_first_fit_leaves_no_example_that_would_fit_an_earlier_row(lengths: list[int]) -> None:
    rows = [TokenRow(np.ones(n, np.int32), np.ones(n, bool)) for n in lengths]
    packed = list(pack(rows, row_length=ROW, rows_per_batch=1, max_segments=ROW))
    loads = [[lengths[o] for o in p.index[0] if o >= 0] for p in packed]
    for later in range(1, len(loads)):
        for earlier in range(later):
            # what stood in the earlier row when this one came were only examples at least as long
            first = loads[later][0]
            assert sum(n for n in loads[earlier] if n >= first) + first > ROW


def test_rows_are_full_when_they_can_be() -> None:
    rows = [TokenRow(np.ones(n, np.int32), np.zeros(n, bool)) for n in (8, 16, 8, 16, 24)]
    (packed,) = pack(rows, row_length=24, rows_per_batch=3, max_segments=4)
    assert (packed.batch.segments > 0).all()
    np.testing.assert_array_equal(packed.index, [[4, -1, -1, -1], [1, 0, -1, -1], [3, 2, -1, -1]])


@pytest.mark.parametrize(
    ("count", "most", "least", "shape"),
    [
        (0, 8, 2, []),
        (1, 8, 2, [2]),
        (3, 8, 2, [4]),
        (9, 8, 1, [8, 8]),  # five rows a batch would do; shapes come in powers of two
        (9, 6, 1, [6, 6]),
        (17, 8, 1, [8, 8, 8]),
        (13, 12, 3, [12, 12]),
        (5, 8, 0, [8]),
    ],
)
def test_batches_of_few_rows_are_small(count: int, most: int, least: int, shape: list[int]) -> None:
    rows = [TokenRow(np.full(5, i + 1, np.int32), np.ones(5, bool)) for i in range(count)]
    packed = list(pack(rows, row_length=8, rows_per_batch=most, least_rows=least))
    assert [len(p.index) for p in packed] == shape
    assert sorted(int(o) for p in packed for o in p.index[p.index >= 0]) == list(range(count))
    questions = [ChoiceRow(row.ids[:3], (row.ids[3:4], row.ids[4:]), str(i)) for i, row in enumerate(rows)]
    packed = list(pack_choices(questions, row_length=8, rows_per_batch=most, least_rows=least))
    assert [len(p.index) for p in packed] == shape
    assert sorted(int(o) for p in packed for o in p.index[p.index >= 0]) == list(range(2 * count))


def test_the_label_width_is_one_for_the_list() -> None:
    short, long = (TokenRow(np.ones(n, np.int32), np.ones(n, bool), "x") for n in (3, 40))
    widths = {p.batch.label_target.shape[1] for p in pad([short, long, short], row_length=64, rows_per_batch=1)}
    assert widths == {64}  # 39 labels, rounded up
    widths = {p.batch.label_target.shape[1] for p in pad([short], row_length=64, rows_per_batch=1)}
    assert widths == {LABEL_SLOTS}


def test_nothing_packs_to_nothing() -> None:
    assert list(pack([], row_length=8, rows_per_batch=2)) == []
    assert list(pad([], row_length=8, rows_per_batch=2)) == []
    assert list(pack_choices([], row_length=8, rows_per_batch=2)) == []


def test_an_example_longer_than_a_row_is_named() -> None:
    row = TokenRow(np.ones(9, np.int32), np.ones(9, bool), "long-one")
    for call in (pack, pad):
        with pytest.raises(UserError, match="example long-one has 9 tokens, a row 8; raise the row length or encode"):
            list(call([row], row_length=8, rows_per_batch=1))
    question = ChoiceRow(np.ones(5, np.int32), (np.ones(2, np.int32), np.ones(2, np.int32)), "long-question")
    with pytest.raises(UserError, match="example long-question has 9 tokens, a row 8"):
        list(pack_choices([question], row_length=8, rows_per_batch=1))


def test_row_lengths_come_in_multiples() -> None:
    assert [row_length_for(n) for n in (0, 1, 64, 65, 128)] == [64, 64, 64, 128, 128]
    assert row_length_for(5, multiple=8) == 8


@quick
@given(choice_rows(), st.integers(1, 3))
def test_choices_share_one_prompt(rows: list[ChoiceRow], rows_per_batch: int) -> None:
    offsets = np.cumsum([0] + [len(row.choices) for row in rows])
    flat = [(q, c) for q, row in enumerate(rows) for c in range(len(row.choices))]
    seen = []
    shapes = set()
    for packed in pack_choices(rows, row_length=ROW, rows_per_batch=rows_per_batch):
        batch = packed.batch
        shapes.add((packed.index.shape, batch.label_target.shape))
        for b in range(rows_per_batch):
            slots = [int(o) for o in packed.index[b] if o >= 0]
            seen += slots
            total = sum(rows[q].tokens for q in {flat[o][0] for o in slots})
            assert np.count_nonzero(batch.segments[b]) == total  # each question once
            for slot, ordinal in enumerate(slots, start=1):
                q, c = flat[ordinal]
                assert ordinal == offsets[q] + c
                row, choice = rows[q], rows[q].choices[c]
                prompt_at = np.flatnonzero(np.isin(batch.tokens[b], row.prompt))
                choice_at = np.flatnonzero(np.isin(batch.tokens[b], choice))
                np.testing.assert_array_equal(batch.tokens[b, prompt_at], row.prompt)
                np.testing.assert_array_equal(batch.tokens[b, choice_at], choice)
                assert set(batch.branches[b, prompt_at]) == {0} and set(batch.branches[b, choice_at]) == {c + 1}
                assert len(set(batch.segments[b, np.r_[prompt_at, choice_at]])) == 1
                np.testing.assert_array_equal(
                    batch.positions[b, np.r_[prompt_at, choice_at]], np.arange(len(row.prompt) + len(choice))
                )
                mine = batch.label_segment[b] == slot
                np.testing.assert_array_equal(batch.label_target[b, mine], choice)
                np.testing.assert_array_equal(batch.label_position[b, mine], np.r_[prompt_at[-1], choice_at[:-1]])
            assert set(np.flatnonzero(batch.span[b])) == set(batch.label_position[b][batch.label_segment[b] > 0])
            assert batch.label_segment[b].max(initial=0) == len(slots)
    assert sorted(seen) == list(range(len(flat)))
    assert len(shapes) == 1


def test_two_questions_in_a_row_are_two_segments() -> None:
    def question(start: int) -> ChoiceRow:
        return ChoiceRow(np.arange(start, start + 3), (np.array([start + 3]), np.array([start + 4, start + 5])), "q")

    (packed,) = pack_choices([question(10), question(20)], row_length=16, rows_per_batch=1)
    batch = packed.batch
    np.testing.assert_array_equal(batch.tokens[0, :12], [10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25])
    np.testing.assert_array_equal(batch.segments[0], [1] * 6 + [2] * 6 + [0] * 4)
    np.testing.assert_array_equal(batch.branches[0, :12], [0, 0, 0, 1, 2, 2] * 2)
    np.testing.assert_array_equal(batch.positions[0, :12], [0, 1, 2, 3, 3, 4] * 2)
    np.testing.assert_array_equal(batch.label_position[0, :6], [2, 2, 4, 8, 8, 10])
    np.testing.assert_array_equal(batch.label_target[0, :6], [13, 14, 15, 23, 24, 25])
    np.testing.assert_array_equal(batch.label_segment[0, :8], [1, 2, 2, 3, 4, 4, 0, 0])
    np.testing.assert_array_equal(packed.index[0, :5], [0, 1, 2, 3, -1])
