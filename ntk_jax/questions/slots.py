"""Which questions are looked for: so many in every chunk, each with a part of it, and some of them of other kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ntk_jax.questions.question import KINDS, Chunk, Slot
from ntk_jax.questions.verify import sentences


def plan_slots(
    chunks: Sequence[Chunk], per_chunk: int, shares: Mapping[str, float], seed: int
) -> tuple[list[Slot], list[str | None]]:
    """(slots, of each the part of its chunk that it begins with, None: all of it), in the order of the chunks.

    shares: {kind: of the slots} of the kinds that are not plain, drawn by the seed. The second passage of a
    cross-document question is drawn from another document, from another chunk where there is but one document; with a
    single chunk such a question becomes a plain one.
    """
    total = len(chunks) * per_chunk
    draw = np.random.default_rng([seed, 0x51])
    kinds = ["answerable"] * total
    order, start = draw.permutation(total), 0
    for kind in KINDS[1:]:
        count = min(round(shares.get(kind, 0.0) * total), total - start)
        for place in order[start : start + count]:
            kinds[place] = kind
        start += count
    slots, parts = [], []
    places: dict[str, list[int]] = {}
    for place, one in enumerate(chunks):
        places.setdefault(one.document, []).append(place)
    for ordinal, kind in enumerate(kinds):
        chunk, number = chunks[ordinal // per_chunk], ordinal % per_chunk
        own: tuple[Chunk, ...] = (chunk,)
        if kind == "cross":
            other = _other(ordinal // per_chunk, chunks, places[chunk.document], int(draw.integers(2**31)))
            kind, own = ("cross", (chunk, other)) if other is not None else ("answerable", own)
        slots.append(Slot(f"{chunk.id}/{number}", kind, own, number))
        parts.append(part_of(chunk.text, number, per_chunk))
    return slots, parts


def part_of(text: str, number: int, parts: int) -> str | None:
    """The sentences of one of so many parts of a text of about equal length; None: all of it."""
    found = sentences(text)
    if parts < 2 or len(found) < 2:
        return None
    groups = np.array_split(np.arange(len(found)), min(parts, len(found)))
    return " ".join(found[i] for i in groups[number % len(groups)])


def _other(place: int, chunks: Sequence[Chunk], document: Sequence[int], draw: int) -> Chunk | None:
    """One of the chunks outside a document, whose places are ascending; where there is none, another one of it."""
    left_out = document if len(document) < len(chunks) else [place]
    if len(left_out) == len(chunks):
        return None
    found = draw % (len(chunks) - len(left_out))
    for out in left_out:
        found += out <= found
    return chunks[found]
