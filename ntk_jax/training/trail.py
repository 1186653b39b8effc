"""How far a metagradient, or trainings on subsets, have come, so that what is killed goes on: the first state of each
segment of the training, of the way back the cotangent before the segment that it last went through, and the losses
after every few subsets.

In a folder these are files, `first-000012.npz`, `back.npz` and `subsets-000008-000012.npz`, each whole or absent: at
most one segment's steps are lost, there or back, or a few subsets. With P the bytes of the adapter they take 3 P a
segment and 3 P. Without a folder the first states lie in the host's memory. Numbers are kept as they are, so what goes
on ends where it would have ended. Several hosts see one folder, or all of them the same files in theirs.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.parallel.hosts import on_host, place
from ntk_jax.storage.atomic import make_folder, write_bytes
from ntk_jax.training.unrolled import State

_BACK = "back.npz"
_FILES = "first-*.npz and back.npz"


@dataclass(frozen=True)
class Back:
    """Of the way back. stop: all steps from this one on are gone back through. pulled: the cotangent there. values: of
    all rows, so far. before, after, losses: of the training."""

    stop: int
    pulled: Any
    values: np.ndarray
    before: float
    after: float
    losses: np.ndarray


@dataclass(frozen=True)
class Trail:
    """folder: None keeps first states in memory alone. key: of the training that the files are of. like: a state, and
    pulled: a cotangent, as they lie on the devices; all others are shaped like them."""

    folder: Path | None
    key: str
    like: State
    pulled: Any
    firsts: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def keep_first(self, step: int, state: State, losses: list[float]) -> None:
        """The state before a step that a segment begins with, and the losses of the steps up to it."""
        if self.folder is None:
            self.firsts[step] = on_host_with_places(state)
        else:
            _write(
                make_folder(self.folder) / f"first-{step:06d}.npz",
                state,
                key=np.array(self.key),
                losses=np.array(losses),
            )

    def first(self, step: int) -> State:
        """What `keep_first` kept."""
        if self.folder is None:
            found: State = place(*self.firsts.pop(step))
        else:
            found = _read(self.folder / f"first-{step:06d}.npz", self.like, self.key, _FILES)[0]
        return found

    def last_first(self, steps: list[int]) -> tuple[int, State, list[float]] | None:
        """The latest of these steps whose state is in the folder: (step, state, the losses up to it)."""
        for step in reversed(steps):
            path = None if self.folder is None else self.folder / f"first-{step:06d}.npz"
            if path is not None and path.exists():
                state, facts = _read(path, self.like, self.key, _FILES)
                return step, state, facts["losses"].tolist()
        return None

    def keep_back(self, found: Back) -> None:
        """Where the way back is; nothing without a folder."""
        if self.folder is not None:
            facts = {name: np.asarray(value) for name, value in vars(found).items() if name != "pulled"}
            _write(make_folder(self.folder) / _BACK, found.pulled, key=np.array(self.key), **facts)

    def back(self) -> Back | None:
        """What `keep_back` kept last; None: the way back has not gone through a segment."""
        if self.folder is None or not (self.folder / _BACK).exists():
            return None
        pulled, facts = _read(self.folder / _BACK, self.pulled, self.key, _FILES)
        numbers = float(facts["before"]), float(facts["after"]), facts["losses"]
        return Back(int(facts["stop"]), pulled, facts["values"], *numbers)


def on_host_with_places(tree: Any) -> tuple[Any, Any]:
    """(arrays on the host, where they were), for `place`."""
    return jax.tree.map(on_host, tree), jax.tree.map(lambda leaf: leaf.sharding, tree)


def keep_arrays(path: Path, key: str, **arrays: np.ndarray) -> None:
    """Arrays by name, for `kept_arrays`."""
    _write(make_folder(path.parent) / path.name, (), key=np.array(key), **arrays)


def kept_arrays(path: Path, key: str) -> dict[str, np.ndarray]:
    """What `keep_arrays` kept. Raises UserError: a file that is damaged or of another training."""
    return _read(path, (), key, path.name)[1]


def _write(path: Path, tree: Any, **facts: np.ndarray) -> None:
    arrays: dict[str, Any] = {f"leaf-{number}": on_host(leaf) for number, leaf in enumerate(jax.tree.leaves(tree))}
    arrays |= {f"fact-{name}": value for name, value in facts.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def _read(path: Path, like: Any, key: str, files: str) -> tuple[Any, dict[str, np.ndarray]]:
    """(the tree, on the devices as `like` is; the facts). files: what to delete where it is of no use. Raises
    UserError: a file that is missing, damaged or of something else."""
    leaves, structure = jax.tree.flatten(like)
    again = f"delete {files} in {path.parent} and run again"
    if not path.exists():
        raise UserError(f"{path} is missing; {again}")
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            arrays = {name: stored[name] for name in stored.files}
        found, own = [arrays[f"leaf-{number}"] for number in range(len(leaves))], str(arrays["fact-key"])
    except Exception as error:  # of zip, of its compression and of NumPy's headers: many types
        raise UserError(f"{path} is damaged ({str(error).split('.')[0]}); {again}") from None
    if own != key or any(a.shape != b.shape for a, b in zip(found, leaves, strict=True)):
        raise UserError(f"{path} is of another model, training or held-out set; give another folder, or {again}")
    tree = place(jax.tree.unflatten(structure, found), jax.tree.unflatten(structure, [b.sharding for b in leaves]))
    return tree, {name.removeprefix("fact-"): value for name, value in arrays.items() if name.startswith("fact-")}
