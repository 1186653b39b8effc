"""The run directory: one process at a time, and stages that know whether they are done, half-way or out of date.

A stage folder first gets `fingerprint.json` (what the stage depends on), then its results, then `manifest.json`. So a
manifest means done, a fingerprint alone means resume, and a fingerprint that differs means that something changed.
Beside the manifest lie the checksums of all files (`sha256sum -c SHA256SUMS` reads them too), for a later stage must
not build on a file that was damaged or edited; array stores and checkpoints carry their own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ntk_jax.errors import UserError
from ntk_jax.storage import atomic
from ntk_jax.storage.hashing import sha256_file

SUMS = "SHA256SUMS"
SCHEMA = 2  # of fingerprint.json and manifest.json

State = Literal["done", "resume", "new"]


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Holds the run directory for this process; made if it is not there. The system lets go when the process dies.

    Raises UserError: another process holds it (its id is named), or the folder cannot be made or locked.
    """
    path = atomic.make_folder(folder) / ".lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise atomic.user_error(error, path) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"{folder} cannot be locked ({error.strerror}); give an --out on a local disk"
                ) from None
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise UserError(
                f"{folder} is in use by another process (id {holder}); wait until it ends, or give another --out"
            ) from None
        # A full disk must not keep anyone from a lock: the id is a courtesy.
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)  # lets go of the lock; the file stays, for removing it would race with the next holder


def look(folder: str | Path, fingerprint: Mapping[str, Any]) -> State:
    """The state of a stage: `done` (its manifest matches), `resume` (begun with this fingerprint), or `new`.

    fingerprint: nested JSON values that decide the stage's result, and nothing else.
    Raises UserError: the folder holds results of another fingerprint; the differing keys are named with both values.
    """
    folder = Path(folder)
    for name, state in (("manifest.json", "done"), ("fingerprint.json", "resume")):
        path = folder / name
        if path.exists():
            _compare(folder, path, fingerprint)
            return state  # type: ignore[return-value]
    return "new"


def begin(folder: str | Path, fingerprint: Mapping[str, Any]) -> State:
    """Opens a stage, so that from now on it belongs to this fingerprint; returns and raises as `look`."""
    folder = atomic.make_folder(folder)
    state = look(folder, fingerprint)
    if state == "new":
        atomic.write_json(folder / "fingerprint.json", {"schema": SCHEMA, "fingerprint": fingerprint})
    return state


def commit(folder: str | Path, fingerprint: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Closes a stage: the checksums of its files, then `manifest.json`, its last file. The manifest holds no time, so
    that equal commands have equal manifests. Raises UserError: the disk is full or not writable."""
    folder = Path(folder)
    atomic.write_lines(folder / SUMS, (f"{sha256_file(folder / name)}  {name}" for name in _results(folder)))
    atomic.write_json(folder / "manifest.json", {"schema": SCHEMA, "fingerprint": fingerprint, "facts": facts})


def verify(folder: str | Path) -> None:
    """Raises UserError naming the file: a result of a finished stage is gone, damaged or was edited."""
    folder = Path(folder)
    mend = f"restore it, or delete the folder {folder} to compute the stage anew"
    if not (folder / SUMS).exists():
        raise UserError(f"{folder / SUMS} is gone; {mend}")
    for line in (folder / SUMS).read_text(encoding="utf8").splitlines():
        digest, _, name = line.partition("  ")
        if not (folder / name).exists():
            raise UserError(f"{folder / name} is gone; {mend}")
        if sha256_file(folder / name) != digest:
            raise UserError(f"{folder / name} is not as its stage wrote it (checksum); {mend}")


def _results(folder: Path) -> list[str]:
    """The files of a stage that have no checksum of their own, sorted."""
    found = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        own = any(part == "checkpoints" or part.endswith(".zarr") for part in parts[:-1])
        about = parts[-1] in (SUMS, "manifest.json", "fingerprint.json")
        unfinished = parts[-1].startswith(".") and parts[-1].endswith(".tmp")  # what a kill left of an atomic write
        if path.is_file() and not own and not about and not unfinished:
            found.append("/".join(parts))
    return sorted(found)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, or None. Raises UserError: it is damaged."""
    path = Path(folder) / "manifest.json"
    return atomic.read_json(path) if path.exists() else None


def _compare(folder: Path, path: Path, fingerprint: Mapping[str, Any]) -> None:
    found = atomic.read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("fingerprint"), dict):
        raise UserError(f"{path} is damaged, it holds no fingerprint; delete the folder {folder} and run again")
    if found.get("schema") != SCHEMA:
        raise UserError(
            f"{folder} was written in format {found.get('schema')}, this version writes {SCHEMA};"
            " give another --out, or delete that folder"
        )
    old = _flat(found["fingerprint"])
    new = _flat(json.loads(json.dumps(atomic.plain(fingerprint))))
    differing = [key for key in sorted(old.keys() | new.keys()) if _text(old, key) != _text(new, key)]
    if differing:
        changes = "; ".join(
            f"{key} was {_short(_text(old, key))}, is now {_short(_text(new, key))}" for key in differing
        )
        raise UserError(
            f"{folder} was made from something else: {changes};"
            " give another --out, or delete that folder to compute the stage anew"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {"a.b": value}; lists count as one value."""
    if isinstance(tree, dict) and tree:
        return {name: value for key, item in tree.items() for name, value in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): tree}


def _text(flat: dict[str, Any], key: str) -> str:
    """A value as JSON; so true is not 1, and null is not absent."""
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "absent"


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
