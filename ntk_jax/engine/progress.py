"""How far a stage has come: one refreshed line on a terminal, plain lines elsewhere, on process 0 only.

Everything goes to stderr, so that stdout carries results only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

import jax

TERMINAL_SECONDS = 0.2
PLAIN_SECONDS = 10.0


class Progress:
    """A callback `progress(done, total, note)` that prints at a readable pace.

    A line says at once that the stage begins; the first finished units and the end always print. Rate and time left are
    taken behind the first batch, from the second distinct `done` on, so that neither its compilation nor the blocks
    that a resumed run finds done distort them; before, no time left is stated.
    """

    def __init__(
        self,
        stage: str,
        total: int | None = None,
        unit: str = "examples",
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._quiet = jax.process_index() != 0
        self._begun = clock()
        self._first: int | None = None  # done at the first call
        self._origin: tuple[int, float] | None = None  # (done, time) at the first call with another one
        self._printed = float("-inf")
        self._finished = False
        if unit and not self._quiet:
            self._printed = self._begun
            self._print("  ".join([*self._count(0), "starting or compiling"]))

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Says that `done` of `total` units are finished; a call with `done == total` closes the line, until a larger
        total is given, as by what asks in waves."""
        if self._quiet or (self._finished and (total or 0) <= (self.total or 0)):
            return
        self.total = self.total if total is None else total
        now = self._clock()
        self._finished = self.total is not None and done >= self.total
        news = self._first is None and done > 0
        if self._first is None:
            self._first = done
        elif self._origin is None and done != self._first:
            self._origin = (done, now)
            news = self._first == 0
        pace = TERMINAL_SECONDS if self._terminal else PLAIN_SECONDS
        if news or self._finished or now - self._printed >= pace:
            self._printed = now
            self._print(self._line(done, now, note))

    def close(self) -> None:
        """Ends the line of a stage that stops before its total, for example at an error."""
        if self._terminal and self._printed >= self._begun and not self._finished and not self._quiet:
            self._stream.write("\n")
        self._finished = True

    def _count(self, done: int) -> list[str]:
        """The beginning of a line: stage, done, share."""
        parts, total = [f"{self.stage:<17}"], self.total
        if total:
            parts += [f"{done:,}/{total:,} {self.unit}", f"{100 * done / total:3.0f}%"]
        elif done:
            parts.append(f"{done:,} {self.unit}")
        return parts

    def _line(self, done: int, now: float, note: str) -> str:
        if not self.unit:  # nothing to count: a stage that only has something to say
            return f"{self.stage:<17}  {note}"
        total, parts = self.total, self._count(done)
        since, seconds = (done - self._origin[0], now - self._origin[1]) if self._origin else (0, 0.0)
        known = since > 0 and seconds > 0
        if known:
            parts.append(f"{_rate(since / seconds)} {self.unit}/s")
        if self._finished:
            parts.append(f"in {duration(now - self._begun)}")
        elif total and known:
            parts.append(f"{duration((total - done) * seconds / since)} left")
        if note:
            parts.append(note)
        return "  ".join(parts)

    def _print(self, line: str) -> None:
        if self._terminal:  # back to the first column, and clear what a longer line left
            self._stream.write(f"\r{line}\x1b[K" + ("\n" if self._finished else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """`45s`, `3m20s`, `2h05m`, `3d04h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
