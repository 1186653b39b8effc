"""What was read of prompts, kept for those that begin alike.

Prompts are read in pieces of one length, counted from their first token. A piece's keys and values depend on its own
tokens and on all before them, so the hash of those tokens is its name. One piece is kept once, whoever reads it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import jax
import numpy as np

from ntk_jax.models.cache import Cache


def names_of(ids: Sequence[int], length: int) -> list[bytes]:
    """The names of the whole pieces of a prompt but for the one that it ends with: that one is always read, as the
    reply begins with its last logits."""
    names, name = [], b""
    for begin in range(0, len(ids) - length, length):
        name = hashlib.sha256(name + np.asarray(ids[begin : begin + length], "<i8").tobytes()).digest()
        names.append(name)
    return names


class Prefixes:
    """Pieces by name, `limit` bytes of them at most on a device; what was not used for longest goes first. Who uses a
    piece uses those before it too, so they go after it: of a prompt that is kept in part, it is the beginning."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[bytes, Cache] = OrderedDict()

    def __contains__(self, name: bytes) -> bool:
        return name in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def found(self, names: Sequence[bytes], begin: int) -> list[Cache]:
        """The pieces of a prompt from number `begin` on, up to the first that is not kept. names: of the prompt."""
        end = begin
        while end < len(names) and names[end] in self._kept:
            end += 1
        self._use(names[:end] if end > begin else [])
        return [self._kept[name] for name in names[begin:end]]

    def keep(self, names: Sequence[bytes], piece: Cache) -> None:
        """Adds the piece that is the last of `names`, those of a prompt up to it, if the one before it is here."""
        if names[-1] in self._kept or (len(names) > 1 and names[-2] not in self._kept):
            return
        self._kept[names[-1]] = piece
        self.bytes += _bytes_of(piece)
        self._use(names)
        while self.bytes > self.limit:
            self.bytes -= _bytes_of(self._kept.popitem(last=False)[1])

    def _use(self, names: Sequence[bytes]) -> None:
        for name in reversed(names):
            self._kept.move_to_end(name)


def _bytes_of(piece: Cache) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(piece))


def default_limit() -> int:
    """Bytes: a tenth of the accelerator's free memory; 1 GiB where that is not known, on a CPU, and where several
    processes must decide alike."""
    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}) if device.platform != "cpu" and jax.process_count() == 1 else {}
    if "bytes_limit" not in memory:
        return 2**30
    return max(0, memory["bytes_limit"] - memory.get("bytes_in_use", 0)) // 10
