"""Runs the steps of the corpus on this machine, several shards at a time."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.errors import TryAgain
from ntk_jax.mining.corpus.files import Shard
from ntk_jax.mining.corpus.process import NONE, Manifest, Progress, Settings, extract_shard, finish_shard, keep
from ntk_jax.mining.corpus.store import close


def run_corpus(
    shards: Sequence[Shard],
    settings: Settings,
    folder: str | Path,
    *,
    evaluation: np.ndarray = NONE,
    processes: int = 1,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """All steps; what `close` returns. processes: 1 computes in this one. progress: steps of shards.

    Raises UserError: as the steps; TryAgain: a process was killed, what is written is kept.
    """
    total = 2 * len(shards) + 1

    def done(before: int) -> Callable[[int], None]:
        return lambda count: progress(before + count, total)

    extract = partial(extract_shard, settings=settings, folder=folder, evaluation=evaluation)
    each(extract, shards, processes, done(0))
    keep(folder, len(shards), settings)
    progress(len(shards) + 1, total)
    finish = partial(finish_shard, folder=folder, settings=settings)
    each(finish, range(len(shards)), processes, done(len(shards) + 1))
    return close(folder, len(shards), settings)


def each(
    step: Callable[[Any], Any], items: Iterable[Any], processes: int, done: Callable[[int], None] = lambda count: None
) -> None:
    """Runs a step on every item, in so many processes. Raises what the step raises; TryAgain: a process was killed."""
    if processes == 1:
        for count, item in enumerate(items, 1):
            step(item)
            done(count)
        return
    # New interpreters, not forks: a fork of a process with threads may stand still for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            futures = [pool.submit(step, item) for item in items]
            for count, future in enumerate(as_completed(futures), 1):
                future.result()
                done(count)
        except BrokenProcessPool:
            raise TryAgain("a process of the corpus was killed; run again, what is written is kept") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, so that nobody writes beside the next run."""
    parent = multiprocessing.parent_process()
    assert parent

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
