"""The one loop over the blocks of an array store: what is there is skipped, the rest is computed and written in order.

A block's bytes depend on nothing but the block. So a killed process loses at most the block it was computing, and
several processes may fill a store together, each its shard of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ntk_jax.engine.shards import Shard
from ntk_jax.parallel import hosts
from ntk_jax.storage.arrays import Store, done_blocks, write_block

Progress = Callable[[int, int], None]
Read = Callable[[frozenset[int]], Iterable[tuple[int, Any]]]


def fill_blocks(
    store: Store,
    read: Read,
    compute: Callable[[int, Any, Progress], Mapping[str, Any]],
    *,
    shard: Shard | None = None,
    progress: Progress = lambda done, total: None,
    size: Callable[[int], int] | None = None,
) -> None:
    """Computes and writes the blocks of a store that are not there yet.

    read(blocks) -> (block, its items) for each of them, in ascending order. compute(block, items, progress) -> the
    arrays of the block, {name: [rows, ...]}, and says how many units of the block are done. shard: only its blocks.
    progress(done, total): in units; size(block): units of a block, by default its rows.
    Raises UserError: what `read` and `compute` raise, and the disk is full or not writable.
    """
    done = set(hosts.broadcast(lambda: sorted(done_blocks(store))))
    own = [block for block in range(store.blocks) if shard is None or shard.owns(block)]
    units = {block: size(block) if size else _rows(store, block) for block in own}
    finished, total = sum(units[block] for block in own if block in done), sum(units.values())
    progress(finished, total)

    def within(count: int, _: int) -> None:
        progress(finished + count, total)

    for block, items in read(frozenset(own) - done):
        write_block(store, block, compute(block, items, within))
        finished += units[block]
        progress(finished, total)
    hosts.barrier("all blocks are written")


def _rows(store: Store, block: int) -> int:
    start, stop = store.block_range(block)
    return stop - start
