"""The pool's texts for rankers that read words: streamed anew for each pass, with progress."""

from __future__ import annotations

from collections.abc import Iterator

from ntk_jax.data.records import Record
from ntk_jax.errors import UserError
from ntk_jax.selection.ranker import Candidates

_REPORT_EVERY = 1000  # examples between two reports of progress


def text_of(record: Record) -> str:
    """What a record's prompt and response, or its messages, say."""
    if "messages" in record:
        return "\n".join(message["content"] for message in record["messages"])
    return f"{record['prompt']}\n{record['response']}"


def usable_texts(candidates: Candidates, done: int) -> Iterator[tuple[int, str]]:
    """(place, text) of each usable example, streamed; one of two passes. done: what its progress begins at.

    Raises UserError: the pool's records are not as many as they were.
    """
    size, seen = len(candidates.usable), 0
    for seen, record in enumerate(candidates.records(), 1):
        if seen > size:
            break
        if candidates.usable[seen - 1]:
            yield seen - 1, text_of(record)
        if seen % _REPORT_EVERY == 0 or seen == size:
            candidates.progress(done + seen, 2 * size)
    if seen != size:
        raise UserError(
            f"the pool had {size} examples and now has {'more' if seen > size else seen}; did a file change?"
        )
