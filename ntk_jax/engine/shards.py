"""Job arrays: which blocks of a stage one process computes, and how much of the whole is there.

Shard i of n has the blocks whose number leaves i when divided by n. A block's bytes depend on nothing but the block, so
whoever computes it, and with whatever n, the store is the same; blocks that are there already are never computed again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ntk_jax.errors import UserError
from ntk_jax.storage.arrays import done_blocks, is_store, open_store

SHOWN = 12  # ranges of missing blocks in a message


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, counted from 0."""

    index: int
    count: int

    def owns(self, block: int) -> bool:
        return block % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """`i/n` with 0 <= i < n. Raises UserError: it is nothing of the kind."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if not found or not int(found[1]) < int(found[2]):
        raise UserError(f"--shard {text}: give i/n, where n processes have the numbers i from 0 to n-1, such as 0/4")
    return Shard(int(found[1]), int(found[2]))


def refuse_missing(folder: Path, stores: Sequence[str], asked: int | None) -> None:
    """Raises UserError unless all blocks of a stage's stores are there: names those missing, and the shards of `asked`
    (the n that its shards were started with, None where there were none) that they belong to.

    folder: the stage's. stores: the names of its stores in it.
    """
    parts, owners = [], set()
    for name in stores:
        if not is_store(folder / name):
            parts.append(f"{name} is not begun")
            owners |= set(range(asked or 0))
            continue
        store = open_store(folder / name)
        missing = sorted(set(range(store.blocks)) - done_blocks(store))
        if missing:
            parts.append(f"{name} lacks {len(missing)} of its {store.blocks} blocks ({ranges(missing)})")
            owners |= {block % asked for block in missing} if asked else set()
    if parts:
        remedy = f"run --shard {ranges(owners)} of {asked} (again), or the command without --shard" if asked else (
            "run its shards, or the command without --merge"
        )  # fmt: skip
        raise UserError(f"{folder} cannot be closed: {'; '.join(parts)}; {remedy}")


def standing(folder: Path, stores: Sequence[str]) -> str:
    """How much of a stage is there, for a person."""
    opened = {name: open_store(folder / name) for name in stores}
    return ", ".join(f"{len(done_blocks(store))} of {store.blocks} blocks of {name}" for name, store in opened.items())


def ranges(numbers: Iterable[int]) -> str:
    """`0, 3-5, 9`; the end of what is very long is left out."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(runs) > SHOWN else "")
