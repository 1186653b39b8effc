"""Token rows of many lengths laid side by side in batches of one constant shape, or one by one in batches of a few.

Attention stays inside a segment and positions restart there, so packing changes no number; it only saves the padding.
First-fit decreasing wastes at most 2/9 of the rows (Johnson 1973; Dósa 2007) and is deterministic.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ntk_jax.data.batch import Batch, PackedBatch, TokenRow
from ntk_jax.data.tokens import ChoiceRow
from ntk_jax.errors import UserError

SHORTEST_ROW = 32  # tokens, where rows come in several lengths
LABEL_SLOTS = 16  # least number of label slots a row; more come in powers of two, so that few shapes compile


def row_length_for(longest: int, multiple: int = 64) -> int:
    """The row length that holds an example of `longest` tokens, rounded up so that few shapes compile."""
    return max(1, -(-longest // multiple)) * multiple


def pack(
    rows: Sequence[TokenRow], *, row_length: int, rows_per_batch: int, least_rows: int = 0, max_segments: int = 16
) -> Iterator[PackedBatch]:
    """Packs the examples of one list, longest first, each into the first row that has room.

    Every batch has the same shapes: tokens [rows_per_batch, row_length], labels [rows_per_batch, G] with one G for the
    whole list, index [rows_per_batch, max_segments] (the ordinal in `rows` of segment s + 1, or -1). The last batch is
    filled with empty rows. No example is split.
    least_rows: where a list fills fewer rows, its batches have not rows_per_batch but this many, or twice, four times,
    ... as many, so that few rows are empty and few shapes compile; 0: always rows_per_batch.
    Raises UserError: an example is longer than a row.
    """
    lengths = [len(row.ids) for row in rows]
    bins = _first_fit(lengths, [row.id for row in rows], row_length, max_segments)
    yield from _batches(rows, bins, row_length, _batch_rows(len(bins), rows_per_batch, least_rows), max_segments)


def pad(rows: Sequence[TokenRow], *, row_length: int, rows_per_batch: int) -> Iterator[PackedBatch]:
    """One example a row, in order; otherwise as `pack` with max_segments = 1."""
    for row in rows:
        _check_length(len(row.ids), row.id, row_length)
    yield from _batches(rows, [[ordinal] for ordinal in range(len(rows))], row_length, rows_per_batch, 1)


def pad_by_length(
    rows: Sequence[TokenRow], *, row_length: int, rows_per_batch: int, most_rows: int = 0
) -> Iterator[PackedBatch]:
    """One example a row, the shortest first, in rows of 32, 64, 128, ... and at last row_length tokens: rows as long as
    the longest example would mostly be padding.

    A batch of rows k times as short holds up to k times as many, but no more than most_rows (0: rows_per_batch).
    Examples that fill less than half a batch of their length go into one of longer rows. A label width G is that of
    the examples in rows of one length.
    Raises UserError: an example is longer than row_length.
    """
    for row in rows:
        _check_length(len(row.ids), row.id, row_length)
    lengths = np.array([len(row.ids) for row in rows], np.int64)
    for length, size, ordinals in _by_length(lengths, row_length, rows_per_batch, most_rows):
        yield from _batches(rows, [[ordinal] for ordinal in ordinals.tolist()], length, size, 1)


def positions_by_length(lengths: np.ndarray, *, row_length: int, rows_per_batch: int, most_rows: int = 0) -> int:
    """Positions of all batches of `pad_by_length`, padding and empty rows included, for examples of these lengths."""
    planned = _by_length(lengths, row_length, rows_per_batch, most_rows)
    return sum(-(-len(ordinals) // size) * size * length for length, size, ordinals in planned)


def _by_length(
    lengths: np.ndarray, row_length: int, rows_per_batch: int, most_rows: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(length of a row, rows of a batch, ordinals of the examples) for each length of rows, the shortest first."""
    order = np.argsort(lengths, kind="stable")
    done = 0
    for length in row_lengths(row_length):
        there = int(np.searchsorted(lengths[order], length, side="right"))
        size = min(max(most_rows, rows_per_batch), rows_per_batch * (row_length // length))
        left = (there - done) % size
        # A batch that is half empty costs as much as its examples in rows of twice the length.
        stop = there if there == len(order) or 2 * left > size else there - left
        if stop > done:
            yield length, size, order[done:stop]
        done = stop
        if done == len(order):
            return


def row_lengths(row_length: int) -> list[int]:
    """The lengths of rows that `pad_by_length` makes, so that few shapes compile."""
    return [
        *itertools.takewhile(lambda length: length < row_length, (SHORTEST_ROW << k for k in itertools.count())),
        row_length,
    ]


def lay(rows: Sequence[TokenRow], bins: Sequence[Sequence[int]], *, row_length: int) -> Iterator[PackedBatch]:
    """Rows that are packed already, each a batch of its own: a bin names the examples of one row, by their ordinals in
    `rows` and in the order in which they lie. Otherwise as `pack`; the examples of a bin must fit a row."""
    yield from _batches(rows, bins, row_length, 1, max(map(len, bins)))


def pack_choices(
    rows: Sequence[ChoiceRow], *, row_length: int, rows_per_batch: int, least_rows: int = 0
) -> Iterator[PackedBatch]:
    """Packs multiple-choice questions: the prompt once, its choices as branches 1..C that cannot see each other.

    A question stays in one row and is one segment; the positions of each choice continue from the prompt. Labels list
    the tokens of every choice with the position that predicts them (for the first one, the prompt's last position);
    label_segment numbers the choices of a row 1..S, and index [B, S] gives the ordinal of a choice counted over all
    questions of the list in order (-1: none). S and G are one value for the list, so that shapes are constant.
    least_rows: as `pack`.
    Raises UserError: a question with all its choices is longer than a row (`ChoiceRow.tokens`).
    """
    bins = _first_fit([row.tokens for row in rows], [row.id for row in rows], row_length, row_length)
    offsets = np.cumsum([0] + [len(row.choices) for row in rows])
    labels = _round_up(sum(sum(map(len, rows[q].choices)) for q in members) for members in bins)
    slots = _round_up(sum(len(rows[q].choices) for q in members) for members in bins)
    size = _batch_rows(len(bins), rows_per_batch, least_rows)
    for start in range(0, len(bins), size):
        canvas = _canvas(size, row_length, labels, slots, branches=True)
        for b, members in enumerate(bins[start : start + size]):
            cursor = used = slot = 0
            for segment, q in enumerate(members, start=1):
                row, prompt = rows[q], len(rows[q].prompt)
                canvas.place(b, cursor, row.prompt, segment, first_position=0, branch=0)
                last_of_prompt, cursor = cursor + prompt - 1, cursor + prompt
                for number, choice in enumerate(row.choices):
                    canvas.place(b, cursor, choice, segment, first_position=prompt, branch=number + 1)
                    canvas.index[b, slot] = offsets[q] + number
                    predicting = np.arange(cursor - 1, cursor + len(choice) - 1)
                    predicting[0] = last_of_prompt
                    slot += 1
                    canvas.label(b, used, predicting, choice, slot)
                    canvas.span[b, predicting] = True
                    used, cursor = used + len(choice), cursor + len(choice)
        yield canvas.packed()


@dataclass(frozen=True)
class _Canvas:
    """The arrays of one batch while they are filled."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    span: np.ndarray
    label_position: np.ndarray
    label_target: np.ndarray
    label_segment: np.ndarray
    index: np.ndarray
    branches: np.ndarray | None

    def place(
        self, b: int, start: int, ids: np.ndarray, segment: int, first_position: int = 0, branch: int = 0
    ) -> None:
        where = slice(start, start + len(ids))
        self.tokens[b, where] = ids
        self.positions[b, where] = np.arange(first_position, first_position + len(ids))
        self.segments[b, where] = segment
        if self.branches is not None:
            self.branches[b, where] = branch

    def label(self, b: int, used: int, positions: np.ndarray, targets: np.ndarray, segment: int) -> None:
        where = slice(used, used + len(positions))
        self.label_position[b, where] = positions
        self.label_target[b, where] = targets
        self.label_segment[b, where] = segment

    def packed(self) -> PackedBatch:
        batch = Batch(
            self.tokens,
            self.positions,
            self.segments,
            self.span,
            self.label_position,
            self.label_target,
            self.label_segment,
            self.branches,
        )
        return PackedBatch(batch, self.index)


def _canvas(rows: int, length: int, labels: int, slots: int, branches: bool = False) -> _Canvas:
    def zeros(width: int) -> np.ndarray:
        return np.zeros((rows, width), np.int32)

    return _Canvas(
        zeros(length),
        zeros(length),
        zeros(length),
        np.zeros((rows, length), bool),
        zeros(labels),
        zeros(labels),
        zeros(labels),
        np.full((rows, slots), -1, np.int32),
        zeros(length) if branches else None,
    )


def _batches(
    rows: Sequence[TokenRow], bins: Sequence[Sequence[int]], row_length: int, rows_per_batch: int, max_segments: int
) -> Iterator[PackedBatch]:
    # A span position is a label where a next token exists in its own segment, so the last position never is.
    labels = _round_up(sum(int(np.count_nonzero(rows[i].span[:-1])) for i in members) for members in bins)
    for start in range(0, len(bins), rows_per_batch):
        canvas = _canvas(rows_per_batch, row_length, labels, max_segments)
        for b, members in enumerate(bins[start : start + rows_per_batch]):
            cursor = used = 0
            for segment, ordinal in enumerate(members, start=1):
                row = rows[ordinal]
                canvas.place(b, cursor, row.ids, segment)
                canvas.span[b, cursor : cursor + len(row.ids)] = row.span
                canvas.index[b, segment - 1] = ordinal
                predicting = np.flatnonzero(row.span[:-1])
                canvas.label(b, used, cursor + predicting, row.ids[predicting + 1], segment)
                used, cursor = used + len(predicting), cursor + len(row.ids)
        yield canvas.packed()


def _first_fit(lengths: Sequence[int], names: Sequence[str], row_length: int, max_items: int) -> list[list[int]]:
    """First-fit decreasing; ties keep the order of the list. Returns the members of each row, longest first."""
    for length, name in zip(lengths, names, strict=True):
        _check_length(length, name, row_length)
    free = np.zeros(len(lengths), np.int64)  # room left in each row, 0 once it is full or has all its segments
    bins: list[list[int]] = []
    for ordinal in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        length = max(lengths[ordinal], 1)
        fits = free[: len(bins)] >= length
        b = int(np.argmax(fits)) if fits.any() else len(bins)
        if b == len(bins):
            bins.append([])
            free[b] = row_length
        bins[b].append(ordinal)
        free[b] = free[b] - length if len(bins[b]) < max_items else 0
    return bins


def _batch_rows(rows: int, most: int, least: int) -> int:
    """Rows of each batch of a list that fills so many."""
    if not least or not rows:
        return most
    needed, size = -(-rows // -(-rows // most)), least  # the batches that there must be share the rows alike
    while size < needed:
        size *= 2
    return min(size, most)


def _check_length(length: int, name: str, row_length: int) -> None:
    if length > row_length:
        raise UserError(
            f"example {name or '(no id)'} has {length} tokens, a row {row_length};"
            " raise the row length or encode it with overflow = truncate"
        )


def _round_up(counts: Iterator[int]) -> int:
    most = max(counts, default=0)
    return max(LABEL_SLOTS, 1 << max(most - 1, 0).bit_length())
