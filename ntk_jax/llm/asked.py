"""A request on its way: which pieces its prompt is read in, and what is written so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ntk_jax.llm.request import Request
from ntk_jax.models.cache import BLOCK, STRIDE

LEAST_PIECE = 32  # tokens of the shortest row that the end of a prompt is read in


@dataclass
class Asked:
    """ids: the prompt's. limit: tokens that the reply may have. piece: tokens of the pieces that the prompt is read in,
    cut at multiples of it; the last one may be shorter. names: of the pieces that others may share, as in
    `prefixes.names_of`; none where nothing is kept. read: tokens that are in the slot. made: the reply's."""

    ordinal: int
    request: Request
    ids: list[int]
    limit: int
    piece: int
    names: Sequence[bytes] = ()
    read: int = 0
    made: list[int] = field(default_factory=list)

    @property
    def start(self) -> int:
        """The place of the reply's first token in the cache."""
        return -(-len(self.ids) // STRIDE) * STRIDE

    def row(self, place: int) -> int:
        """The length of the row in which the piece that begins at a place is read: a power of two, or a whole piece."""
        left = len(self.ids) - place
        return min(self.piece, max(LEAST_PIECE, 1 << (left - 1).bit_length()))

    def is_last(self, place: int) -> bool:
        """Whether the prompt ends with the piece that begins there."""
        return len(self.ids) - place <= self.piece

    def name(self, place: int) -> bytes | None:
        """The name of the piece that begins there; None: nobody shares it."""
        number = place // self.piece
        return self.names[number] if number < len(self.names) else None

    def places(self, tokens: int) -> int:
        """Places that the slot needs for the prompt and so many tokens of the reply."""
        last = (len(self.ids) - 1) // self.piece * self.piece
        return max(-(-(last + self.row(last)) // BLOCK) * BLOCK, self.start + tokens)


def rung(count: int, least: int) -> int:
    """The next of least · 1, 2, 3, 4, 6, 8, 12, ...: at most half more than is needed."""
    units = -(-count // least)
    power = 1 << max(units - 1, 0).bit_length()
    return least * (power * 3 // 4 if power >= 4 and units <= power * 3 // 4 else power)
