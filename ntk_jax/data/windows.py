"""Texts as token windows that an encoder reads at once, and windows laid side by side in rows.

A text longer than the encoder's limit becomes several windows of about equal length. Attention inside a segment costs
the row's length for each token, so that rows are only a little longer than their longest window, and shorter windows
fill what is left.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SHORTEST_ROW = 64  # tokens; several short windows share one


@dataclass(frozen=True)
class WindowTokens:
    """Cuts texts with a fast tokenizer. before, after: the special tokens around every window, such as [CLS], [SEP]."""

    tokenizer: Any  # tokenizers.Tokenizer without padding and truncation
    before: tuple[int, ...]
    after: tuple[int, ...]
    max_tokens: int
    lowercase: bool = False

    def windows(self, texts: Sequence[str], prefix: str = "", first_only: bool = False) -> list[list[np.ndarray]]:
        """The windows of each text, int32 ids with the special ones, at most `max_tokens` long; at least one a text.

        The prefix stands before the text, and again before every later window. first_only: one window, cut off where
        the limit is, as an encoder that truncates reads it; else windows of about equal length over the whole text.
        """
        if self.lowercase:
            texts, prefix = [text.lower() for text in texts], prefix.lower()
        encoded = self.tokenizer.encode_batch_fast([prefix + text for text in texts], add_special_tokens=False)
        lead = self.tokenizer.encode(prefix, add_special_tokens=False).ids if prefix else []
        return [self._cut(encoding.ids, lead, first_only) for encoding in encoded]

    def _cut(self, ids: list[int], prefix: list[int], first_only: bool) -> list[np.ndarray]:
        room = self.max_tokens - len(self.before) - len(self.after)
        if len(ids) <= room or first_only:
            return [self._framed(ids[:room])]
        # Some tokenizers join the prefix's last space to the text's first word: that token is the text's.
        lead = next((n for n, (own, alone) in enumerate(zip(ids, prefix, strict=False)) if own != alone), len(prefix))
        # A prefix that leaves less than half of the room for the text is not repeated.
        head = ids[:lead] if 2 * lead <= room else []
        body, room = ids[len(head) :], room - len(head)
        count = -(-len(body) // room)
        edges = [len(body) * number // count for number in range(count + 1)]
        return [self._framed([*head, *body[start:stop]]) for start, stop in zip(edges, edges[1:], strict=False)]

    def _framed(self, ids: Sequence[int]) -> np.ndarray:
        return np.asarray([*self.before, *ids, *self.after], np.int32)


@dataclass(frozen=True)
class WindowBatch:
    """Rows of windows. Letters: B rows, T positions, S windows a row at most.

    tokens, positions, segments: [B, T] int32; positions count from 0 in each segment; segments are 1..S, 0 is padding.
    index: [B, S] int32, the ordinal of the window that is segment s + 1, or -1.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    index: np.ndarray


def row_length(longest: int, most: int, shortest: int = SHORTEST_ROW) -> int:
    """The row for windows of at most `longest` tokens, never more than `most`: rounded up to an eighth of the next
    power of two, so that few shapes compile and little is padding."""
    step = max(16, (1 << max(longest - 1, 1).bit_length()) // 16)
    return min(max(shortest, -(-longest // step) * step), max(most, longest))


def plan_rows(
    lengths: Sequence[int], most: int, max_windows: int, shortest: int = SHORTEST_ROW
) -> list[tuple[int, list[int]]]:
    """(row length, ordinals of its windows) of every row, longest first: best-fit decreasing, where a window goes into
    the fullest open row that has room, and else opens a row of its own length rounded up, at least `shortest`.
    Deterministic."""
    rows: list[tuple[int, list[int]]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for ordinal in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        length = max(lengths[ordinal], 1)
        at = bisect.bisect_left(free, (length, -1))
        if at == len(free):
            left, row = row_length(length, most, shortest), len(rows)
            rows.append((left, []))
        else:
            left, row = free.pop(at)
        rows[row][1].append(ordinal)
        if left - length > 0 and len(rows[row][1]) < max_windows:
            bisect.insort(free, (left - length, row))
    return rows


def batches(
    rows: Sequence[tuple[int, list[int]]], batch_tokens: int, multiple: int = 1
) -> list[tuple[int, int, list[list[int]]]]:
    """(rows of the batch, its row length, ordinals of the windows of each filled row): rows of one length together, in
    batches of `batch_tokens` where that holds a row; what is left of one length goes into the next longer one's batch.

    The number of rows is a multiple of `multiple` (the devices that share them), and a power of two times that for the
    one batch that is not full.
    """
    made: list[tuple[int, int, list[list[int]]]] = []
    waiting: list[list[int]] = []
    longest_first = sorted({length for length, _ in rows})
    by_length: dict[int, list[list[int]]] = {length: [] for length in longest_first}
    for length, members in rows:
        by_length[length].append(members)
    for length in longest_first:  # shortest first: leftovers move up, where they fit
        waiting += by_length[length]
        full = max(1, batch_tokens // length // multiple) * multiple
        while len(waiting) >= full:
            made.append((full, length, waiting[:full]))
            waiting = waiting[full:]
    if waiting:
        count = multiple
        while count < len(waiting):
            count *= 2
        made.append((min(count, full), longest_first[-1], waiting))
    return made


def fill(batch: tuple[int, int, list[list[int]]], windows: Sequence[np.ndarray], max_windows: int) -> WindowBatch:
    """The arrays of a batch of `batches`."""
    count, length, members = batch
    tokens, positions, segments = np.zeros((3, count, length), np.int32)
    index = np.full((count, max_windows), -1, np.int32)
    for b, row in enumerate(members):
        cursor = 0
        for segment, ordinal in enumerate(row):
            ids = windows[ordinal]
            where = slice(cursor, cursor + len(ids))
            tokens[b, where], positions[b, where], segments[b, where] = ids, np.arange(len(ids)), segment + 1
            index[b, segment] = ordinal
            cursor += len(ids)
    return WindowBatch(tokens, positions, segments, index)
