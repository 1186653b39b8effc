"""What continual pre-training reads: full rows of several texts, each with its share of the tokens.

A source is a store of tokens (`data/token_store.py`), cut into windows of a row's length. A window holds the pieces of
the documents that lie in it; each piece is a segment of its own, so that no token sees another document. Windows of a
source come in a seeded order, anew for each pass. The sources take turns in a fixed pattern that keeps every share at
every moment; so which windows a step has is arithmetic on its number, for 10 rows as for 10^9, and nothing but one
order of windows a source is in memory.

A budget is exact: so many tokens are read, and the last row is cut. Arms with one budget read equally many.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_jax.data.batch import PackedBatch, TokenRow
from ntk_jax.data.packing import lay
from ntk_jax.data.token_store import TokenStore
from ntk_jax.errors import UserError
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.order import Shapes, shapes_for, stacked

PERIOD = 10_000  # rows after which the turns of the sources repeat: shares are exact to 1e-4


@dataclass(frozen=True)
class Mixture:
    """A feed of `tokens` tokens in rows of `row_length`, `batch_size` rows a step (or one less). Made by `mix`.

    sources: by name, those with a share. turns: [PERIOD] the source of each row. taken: [sources, PERIOD + 1] rows of
    each source before each turn.
    """

    sources: Mapping[str, TokenStore]
    shares: Mapping[str, float]
    tokens: int
    row_length: int
    batch_size: int
    seed: int
    turns: np.ndarray
    taken: np.ndarray

    @property
    def examples(self) -> int:
        """Rows of all steps."""
        return -(-self.tokens // self.row_length)

    @property
    def steps(self) -> int:
        """Optimiser steps; their sizes differ by one row at most."""
        return -(-self.examples // self.batch_size)

    def rows_of(self, step: int) -> range:
        """The rows of a step, counted over the whole training."""
        size, longer = divmod(self.examples, self.steps)
        start = step * size + min(step, longer)
        return range(start, start + size + (step < longer))

    def window(self, row: int) -> tuple[str, int, int, int]:
        """(source, pass over it, first token, last token + 1) of a row."""
        period, turn = divmod(row, PERIOD)
        number = int(self.turns[turn])
        ordinal = period * int(self.taken[number, -1]) + int(self.taken[number, turn])
        name = list(self.sources)[number]
        windows = self.sources[name].tokens // self.row_length
        epoch, place = divmod(ordinal, windows)
        start = int(_order(windows, self.seed, name, epoch)[place]) * self.row_length
        last = row == self.examples - 1
        return name, epoch, start, start + (self.tokens - row * self.row_length if last else self.row_length)

    def pieces(self, row: int) -> list[TokenRow]:
        """The documents' pieces of a row, in order. Every position with a next token in its piece is learned."""
        name, _, start, stop = self.window(row)
        found = self.sources[name].pieces(start, stop)
        return [TokenRow(ids, np.ones(len(ids), bool), f"{name}, document {number + 1}") for number, ids in found]

    def account(self) -> dict[str, dict[str, Any]]:
        """Of each source: share, tokens read, how often its windows are passed over, and the tokens of its text."""
        found = {}
        period, turn = divmod(self.examples, PERIOD)
        cut = self.examples * self.row_length - self.tokens
        for number, (name, store) in enumerate(self.sources.items()):
            rows = period * int(self.taken[number, -1]) + int(self.taken[number, turn])
            read = rows * self.row_length - (cut if self.window(self.examples - 1)[0] == name else 0)
            passes = rows / (store.tokens // self.row_length)
            found[name] = {"share": self.shares[name], "tokens": read, "passes": passes, "text_tokens": store.tokens}
        return found

    def identify(self, digest: Any) -> None:
        """As a `Feed`."""
        digest.update(f"{self.tokens}\0{self.batch_size}\0".encode())
        for name, store in self.sources.items():
            digest.update(f"{name}\0{self.shares[name]!r}\0{store.digest}\0".encode())

    def shapes(self, config: TrainConfig, groups: int) -> Shapes:
        """As a `Feed`. Label slots for rows of one piece, which have the most."""
        sizes = {len(self.rows_of(step)) for step in (0, self.steps - 1)}
        counts = [[self.row_length - 1] * size for size in sizes]
        return shapes_for(counts, row_length=self.row_length, tokens=config.tokens_per_microbatch, groups=groups)

    def step(self, step: int, shapes: Shapes) -> tuple[list[TokenRow], list[PackedBatch]]:
        """As a `Feed`."""
        rows: list[TokenRow] = []
        bins = []
        for row in self.rows_of(step):
            pieces = self.pieces(row)
            bins.append(range(len(rows), len(rows) + len(pieces)))
            rows += pieces
        packed = list(lay(rows, bins, row_length=self.row_length))
        return rows, stacked(packed, shapes)


def mix(
    sources: Mapping[str, TokenStore],
    shares: Mapping[str, float],
    *,
    tokens: int,
    row_length: int,
    batch_size: int,
    seed: int = 0,
) -> Mixture:
    """The mixture of sources by their shares of the tokens, {"mined": 0.25, "general": 0.75}; they need not sum to 1.

    Raises UserError: no share above 0, a share of no source, a budget that has no token to predict, a source whose text
    is shorter than one row, two sources with other tokenizers.
    """
    if row_length < 2 or tokens < 2 or batch_size < 1:
        raise UserError(
            f"tokens = {tokens}, row_length = {row_length} and batch_size = {batch_size} train nothing; give at least "
            "2, 2 and 1"
        )
    unknown = [name for name in shares if name not in sources]
    if unknown:
        raise UserError(f"there is a share of {unknown[0]}, but no text of that name; there are {', '.join(sources)}")
    bad = [name for name, share in shares.items() if not 0 <= share < np.inf]
    if bad or not any(shares.values()):
        raise UserError(f"shares = {dict(shares)} must be numbers of at least 0, and one of them above it")
    whole = sum(shares.values())
    taking = {name: share / whole for name, share in shares.items() if share > 0}
    for name in taking:
        if sources[name].tokens < row_length:
            raise UserError(
                f"the text {name} has {sources[name].tokens} tokens, fewer than a row of {row_length}; give more text "
                "or a smaller row length"
            )
    made_by = {str(sources[name].facts.get("tokenizer")) for name in taking}
    if len(made_by) > 1:
        raise UserError(f"the texts {', '.join(taking)} were written with different tokenizers; write them with one")
    turns, taken = _turns(tuple(taking.values()))
    return Mixture({name: sources[name] for name in taking}, taking, tokens, row_length, batch_size, seed, turns, taken)


@functools.lru_cache(maxsize=8)
def _turns(shares: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(the source of each turn [PERIOD], rows of each source before each turn [sources, PERIOD + 1]): each turn goes to
    the source that lags most behind its share, the first of equal ones."""
    quota = np.floor(np.asarray(shares) * PERIOD).astype(np.int64)
    rest = np.asarray(shares) * PERIOD - quota
    quota[np.argsort(-rest, kind="stable")[: PERIOD - quota.sum()]] += 1
    lag = np.zeros(len(shares), np.int64)
    turns = np.zeros(PERIOD, np.int32)
    for turn in range(PERIOD):
        lag += quota
        turns[turn] = lag.argmax()
        lag[turns[turn]] -= PERIOD
    members = turns == np.arange(len(shares))[:, None]
    return turns, np.concatenate([np.zeros((len(shares), 1), np.int64), np.cumsum(members, axis=1)], axis=1)


@functools.lru_cache(maxsize=8)
def _order(windows: int, seed: int, name: str, epoch: int) -> np.ndarray:
    """The order of a source's windows in one pass. It goes by the name, so that arms read what they share alike."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), epoch]).permutation(windows)
