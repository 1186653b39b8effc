"""Cuts documents into chunks of at most so many words, at the ends of sentences and of about equal length."""

from __future__ import annotations

import re
from bisect import bisect_right

from ntk_jax.data.words import WRITTEN

# A sentence ends at a mark, with its quotes and brackets, before white space and no small letter; at the marks of
# Chinese and Japanese; and where a line ends.
_END = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*(?=\s+[^\sa-z])|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d\u2019]*|\n+")
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|vs|etc|Fig|No|Vol|e\.g|i\.e|cf|al|approx|Jr|Sr|Inc|Co))\.$"
)
_LONGEST_ABBREVIATION = 8


def chunks_of(text: str, words: int, start: int = 0, stop: int | None = None) -> list[tuple[int, int, int]]:
    """The chunks of the characters [start, stop) of a text: (start, stop, words) of each, in characters of the text.

    Together they hold every word once and in order; none begins or ends with white space. A chunk ends at the end of a
    sentence unless one sentence alone has more than `words`, which is then cut between words. Chunks are of about equal
    length: 190 words in chunks of at most 180 give two of about 95. Raises ValueError: words is less than 1.
    """
    if words < 1:
        raise ValueError(f"a chunk has at least one word, got {words}")
    stop = len(text) if stop is None else stop
    spans = [found.span() for found in WRITTEN.finditer(text, start, stop)]
    ends = _sentence_ends(text, spans, start, stop)
    found, first = [], 0
    while first < len(spans):
        left = len(spans) - first
        goal = left / -(-left // words)
        limit = min(first + words, len(spans))
        inside = ends[bisect_right(ends, first) : bisect_right(ends, limit)]
        last = min(inside, key=lambda end: (abs(end - first - goal), -end), default=limit)
        found.append((spans[first][0], spans[last - 1][1], last - first))
        first = last
    return found


def _sentence_ends(text: str, spans: list[tuple[int, int]], start: int, stop: int) -> list[int]:
    """After how many words a sentence ends, ascending."""
    starts = [begin for begin, _ in spans]
    ends = set()
    for mark in _END.finditer(text, start, stop):
        if mark[0][0] == "." and _ABBREVIATION.search(text, max(mark.end() - _LONGEST_ABBREVIATION, start), mark.end()):
            continue
        ends.add(bisect_right(starts, mark.end() - 1))
    return sorted(ends | {len(spans)})
