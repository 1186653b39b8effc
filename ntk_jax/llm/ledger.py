"""What is spent: every attempt is a row before it is sent, and holds back the most that it can cost.

Money is counted in whole billionths of the unit that the prices are in, so that sums have no rounding. An attempt that
was never settled, because its process was killed, keeps what it held back: it counts as billed.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ntk_jax.errors import UserError
from ntk_jax.llm.database import Database

BILLIONTHS = 1_000_000_000


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, of prompts and of replies, in any one unit of money. 0: nothing."""

    per_million_in: float = 0.0
    per_million_out: float = 0.0

    def cost(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Billionths of the unit, rounded up."""
        exact = 1000 * (prompt_tokens * self.per_million_in + completion_tokens * self.per_million_out)
        return math.ceil(round(exact, 3))

    @property
    def free(self) -> bool:
        """Whether nothing costs anything."""
        return self.per_million_in == 0 == self.per_million_out


@dataclass(frozen=True)
class Attempt:
    """A row that was written and not yet settled."""

    number: int
    reserved: int
    began: float


@dataclass(frozen=True)
class Totals:
    """Over all processes that used the file. spent, reserved: in units of money; reserved is of attempts under way, and
    of those whose process was killed. Tokens are those that were reported."""

    attempts: int
    spent: float
    reserved: float
    prompt_tokens: int
    completion_tokens: int


class Ledger:
    """The tables `attempts` and `account` of a database. cap: the most that may ever be spent by this file, in units of
    money; None: no end."""

    def __init__(self, database: Database, prices: Prices | None = None, cap: float | None = None) -> None:
        """Raises UserError: a cap that lets no call through, or a price that is none."""
        self.database = database
        self.prices = prices or Prices()
        if cap is not None and not cap > 0:
            raise UserError(f"a cap of {cap:g} lets no call through; give more than 0, or none for no cap")
        if not all(0 <= price < math.inf for price in (self.prices.per_million_in, self.prices.per_million_out)):
            raise UserError("a price is negative or no number; give the cost of a million tokens, 0 where it is free")
        self._cap = None if cap in (None, math.inf) else math.floor(cap * BILLIONTHS)
        self._under_way = 0
        self._settled = threading.Condition()

    def reserve(
        self, key: str, prompt_tokens: int, completion_tokens: int, stopped: Callable[[], bool] = lambda: False
    ) -> Attempt | None:
        """Writes the row of an attempt that may cost so many tokens at most, and holds their price back.

        Where that does not fit under the cap, it waits for attempts of this process that are under way, which may give
        some back. None: `stopped` became true meanwhile. Raises UserError: the cap is spent.
        """
        worst = self.prices.cost(prompt_tokens, completion_tokens)
        while not stopped():
            with self._settled:
                attempt = self._write(key, worst)
                if attempt is not None:
                    self._under_way += 1
                    return attempt
                if self._under_way == 0:
                    raise UserError(self._spent(worst))
                self._settled.wait(0.5)
        return None

    def settle(
        self,
        attempt: Attempt,
        outcome: str,
        tokens: tuple[int, int] | None,
        billed: bool,
        keep: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        """Ends an attempt: in one transaction with the reply, which `keep` writes.

        tokens: (of the prompt, of the reply) as reported; None where nothing was, and then all that was held back is
        billed, or nothing if it is known not to be `billed`.
        """
        known = self.prices.cost(*tokens) if tokens else attempt.reserved
        cost = known if billed else 0
        prompt_tokens, completion_tokens = tokens or (0, 0)
        try:
            with self.database.transaction() as connection:
                connection.execute(
                    "UPDATE attempts SET cost = ?, outcome = ?, prompt_tokens = ?, completion_tokens = ?, seconds = ? "
                    "WHERE number = ?",
                    (cost, outcome, prompt_tokens, completion_tokens, time.time() - attempt.began, attempt.number),
                )
                connection.execute(
                    "UPDATE account SET reserved = reserved - ?, spent = spent + ?, prompt_tokens = prompt_tokens + ?, "
                    "completion_tokens = completion_tokens + ?",
                    (attempt.reserved, cost, prompt_tokens, completion_tokens),
                )
                if keep is not None:
                    keep(connection)
        finally:
            with self._settled:
                self._under_way -= 1
                self._settled.notify_all()

    def totals(self) -> Totals:
        """What the file says now."""
        with self.database.reading() as connection:
            row = connection.execute(
                "SELECT attempts, spent, reserved, prompt_tokens, completion_tokens FROM account"
            ).fetchone()
        attempts, spent, reserved, prompt_tokens, completion_tokens = row
        return Totals(attempts, spent / BILLIONTHS, reserved / BILLIONTHS, prompt_tokens, completion_tokens)

    def outcomes(self) -> dict[str, int]:
        """{outcome: attempts}, the most frequent first; `no end` are those under way or lost by a kill."""
        with self.database.reading() as connection:
            rows = connection.execute(
                "SELECT coalesce(outcome, 'no end'), count(*) FROM attempts GROUP BY 1 ORDER BY 2 DESC, 1"
            ).fetchall()
        return dict(rows)

    def line(self) -> str:
        """What was spent, for a progress: money where there are prices, else tokens."""
        totals = self.totals()
        if self.prices.free:
            return f"{totals.prompt_tokens + totals.completion_tokens:,} tokens"
        of = f" of {self._cap / BILLIONTHS:.4g}" if self._cap is not None else ""
        return f"{totals.spent + totals.reserved:.4f}{of} spent"

    def _write(self, key: str, worst: int) -> Attempt | None:
        """None: it does not fit. One transaction, so that several processes share one cap."""
        began = time.time()
        with self.database.transaction() as connection:
            spent, reserved = connection.execute("SELECT spent, reserved FROM account").fetchone()
            if self._cap is not None and spent + reserved + worst > self._cap:
                return None
            connection.execute(
                "UPDATE account SET reserved = reserved + ?, attempts = attempts + 1",
                (worst,),
            )
            row = connection.execute("INSERT INTO attempts (key, sent, reserved) VALUES (?, ?, ?)", (key, began, worst))
            assert row.lastrowid is not None
            return Attempt(row.lastrowid, worst, began)

    def _spent(self, worst: int) -> str:
        totals = self.totals()
        cap = (self._cap or 0) / BILLIONTHS
        lost = f" and {totals.reserved:.4g} held back by calls without an end" if totals.reserved else ""
        return (
            f"the cap of {cap:.6g} is reached: {totals.spent:.6g} spent{lost}, and the next call may cost "
            f"{worst / BILLIONTHS:.3g}; all replies are kept; give a higher cap and run the same command"
        )
