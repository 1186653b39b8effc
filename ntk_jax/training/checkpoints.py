"""Orbax checkpoints of a training and its history file, kept so that a kill at any moment changes nothing.

A checkpoint holds the trained parameters and the optimiser's state; its step number is the data position.
Orbax writes into a temporary folder and renames it at the end, so a half-written checkpoint has no step number
and is swept away at the next start. The history up to a step is on disk before that step's checkpoint is
begun; a checkpoint whose history is not there, or that does not read back, is passed over for an older one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ntk_jax.errors import UserError
from ntk_jax.parallel.hosts import is_primary
from ntk_jax.storage.atomic import make_folder, user_error, write_lines
from ntk_jax.storage.reading import read_json_lines
from ntk_jax.training.feed import Feed
from ntk_jax.training.optimizer import TrainConfig

KEPT = 2  # the newest may be damaged by a full disk; the one before it is then still there
ABSL = logging.getLogger("absl")  # where orbax prints the traceback of an error that it raises as well

Entry = dict[str, float | int]


def training_key(
    config: TrainConfig,
    feed: Feed,
    trainable: Any,
    *,
    seed: int,
    row_length: int,
    parameters: str,
    dtype: str,
) -> str:
    """A hash of everything that decides the result, except the frozen weights: who may resume whose checkpoint."""
    digest = hashlib.sha256(json.dumps([asdict(config), seed, row_length, parameters, dtype], sort_keys=True).encode())
    feed.identify(digest)
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainable):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}\0".encode())
        if parameters == "lora":  # small; all the weights of an 8B model are too many to hash at every start
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints and the history of one training folder."""

    def __init__(self, folder: Path, key: str) -> None:
        self._key = key
        self._folder = folder / "checkpoints"
        self._history = folder / "history.jsonl"
        make_folder(folder)
        self._failed = False
        self._saving: Any = None  # orbax's handle of the last save
        self._loudness = ABSL.level
        ABSL.setLevel(logging.CRITICAL)
        self._manager = ocp.training.Checkpointer(
            self._folder.resolve(),
            # Every save that is asked for is made: `train` alone decides when.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(KEPT),
            cleanup_tmp_directories=True,
        )

    def restore(self, abstract_state: Any) -> tuple[int, Any, list[Entry]]:
        """(step, state, history) of the newest whole checkpoint; (0, None, []) when there is none.

        abstract_state: ShapeDtypeStructs with shardings. Raises `UserError` when the checkpoints were written by
        a training with another config, seed, data set or adapter. The history file is cut back to the step.
        """
        for step in sorted((checkpoint.step for checkpoint in self._manager.checkpoints), reverse=True):
            # Whatever cannot be read is damaged (orbax and tensorstore raise what they like): an older one, or the
            # beginning, leads to the same result.
            try:
                key = (self._manager.metadata(step).custom_metadata or {}).get("key")
            except Exception:
                continue
            if key is not None and key != self._key:
                raise UserError(
                    f"{self._folder}: the checkpoints there come from a training with other examples, settings, seed "
                    "or adapter; give another folder, or delete this one to train anew"
                )
            history = self._read_history(step)
            if key is None or history is None:
                continue
            try:
                state = self._manager.load(step, abstract_state)
            except Exception:
                continue
            self.write_history(history)
            return step, state, history
        self.write_history([])
        return 0, None, []

    def save(self, step: int, state: Any, history: Sequence[Entry]) -> None:
        """Writes the history, then starts saving `state` and returns; a save still under way is waited for."""
        self.write_history(history)
        try:
            self._finish()
            self._saving = self._manager.save_async(step, state, overwrite=True, custom_metadata={"key": self._key})
        except Exception as error:
            self._failed = True
            raise _explain(error, self._folder) from error

    def close(self) -> None:
        """Waits for the last save and stops orbax's threads; those of a save that failed may still print their
        traceback as the process ends, so then orbax stays quiet."""
        try:
            try:
                self._finish()
            finally:
                self._manager.close()
        except Exception as error:
            self._failed = True
            raise _explain(error, self._folder) from error
        finally:
            if not self._failed:
                ABSL.setLevel(self._loudness)

    def _finish(self) -> None:
        """Waits for the save under way. Unless its result is taken, orbax keeps a thread and three descriptors of each
        save until the process ends."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def write_history(self, history: Sequence[Entry]) -> None:
        """history.jsonl, replaced as a whole: readers never see half a line."""
        write_lines(self._history, [json.dumps(entry) for entry in history])

    def _read_history(self, step: int) -> list[Entry] | None:
        try:
            history: list[Any] = read_json_lines(self._history, "delete it")[:step]
        except UserError:
            return None
        whole = [entry.get("step") for entry in history] == [*range(1, step + 1)]
        return history if whole else None


def discard_checkpoints(folder: Path) -> None:
    """Deletes the checkpoints of a training whose result is safely stored elsewhere; the history stays."""
    if is_primary():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _explain(error: Exception, folder: Path) -> Exception:
    """The UserError for a save that failed; tensorstore hides the operating system's error in its message."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code is not None:
        error = OSError(int(code[1]), os.strerror(int(code[1])))
    return user_error(error, folder) if isinstance(error, OSError) else error
