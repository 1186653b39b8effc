"""How long a stage took in all, over every process that worked on it and every start after a kill.

Each start keeps its own file of seconds beside the stages, renewed while it works, so that what a kill takes away is
the time since the last renewal. The files are no results: nothing depends on them and they have no checksum.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntk_jax.parallel import hosts
from ntk_jax.storage.atomic import make_folder, read_json, write_json

FOLDER = ".clock"  # in the run directory
RENEW_SECONDS = 2.0


class Clock:
    """Counts the seconds of a part of a run, such as "score" or "finetune/random", on top of those of earlier
    starts."""

    def __init__(self, folder: Path, part: str, now: Callable[[], float] = time.monotonic) -> None:
        self._home = folder / FOLDER / part / "starts"
        self._now, self._begun, self._renewed = now, now(), float("-inf")
        self._own = f"{os.uname().nodename}-{os.getpid()}-{time.time_ns()}.json"

    def ticking(self, progress: Callable[..., None]) -> Callable[..., None]:
        """The same progress, whose calls also renew this start's file."""

        def tick(*arguments: Any) -> None:
            progress(*arguments)
            if self._now() - self._renewed >= RENEW_SECONDS:
                self._write()

        return tick

    def seconds(self) -> float | None:
        """Seconds of all starts up to now; None where the file of one of them cannot be read."""
        if not hosts.is_primary():
            return None
        self._write()
        try:
            return sum(float(read_json(path, dict)["seconds"]) for path in self._home.glob("*.json"))
        except (ValueError, TypeError, OverflowError):  # UserError too
            return None

    def _write(self) -> None:
        self._renewed = self._now()
        if hosts.is_primary():
            write_json(make_folder(self._home) / self._own, {"seconds": self._now() - self._begun})


def forget(folder: Path, stage: str) -> None:
    """Drops what earlier starts of a stage counted, because it is computed anew."""
    shutil.rmtree(folder / FOLDER / stage, ignore_errors=True)
