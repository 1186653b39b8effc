"""The run directory: one process at a time, or the shards of a stage together; and stages that know whether they are
done, half-way or out of date.

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
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ntk_jax.errors import LONGEST, UserError
from ntk_jax.storage import atomic, reading
from ntk_jax.storage.hashing import sha256_file

SUMS = "SHA256SUMS"
SHARDS = ".shards"  # the locks of shards, one file each
LOOKS, LOOK_SECONDS = 5, 0.05  # how often a shard asks for its lock, which somebody may hold only to see whose it is
SCHEMA = 3  # of fingerprint.json and manifest.json

State = Literal["done", "resume", "refresh", "new"]


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Holds the run directory for this process alone; made if not there. The system lets go when the process dies.

    Raises UserError: others hold it (their ids are named), or the folder cannot be made or locked.
    """
    folder = atomic.make_folder(folder)
    with _flock(folder / ".lock", fcntl.LOCK_EX) as free:
        if free is None:
            raise _in_use(folder)
        _sign(free, f"{os.getpid()}")
        yield


@contextlib.contextmanager
def lock_shard(folder: str | Path, stage: str, index: int, count: int) -> Iterator[None]:
    """Holds one shard of a stage for this process, and the run directory together with other shards.

    Raises UserError: this shard is at work already, or the directory belongs to one process (whose id is named), or it
    cannot be made or locked.
    """
    folder = atomic.make_folder(folder)
    path = atomic.make_folder(folder / SHARDS) / f"{stage}-{index}-of-{count}"
    for _ in range(LOOKS):
        # Its own lock first: then a process that finds the directory shared also finds with whom.
        with _flock(path, fcntl.LOCK_EX) as own:
            if own is not None:
                _sign(own, f"{os.getpid()} on {os.uname().nodename}")
                with _flock(folder / ".lock", fcntl.LOCK_SH) as free:
                    if free is None:
                        raise _in_use(folder, asking=path)
                    yield
                return
        time.sleep(LOOK_SECONDS)
    raise UserError(
        f"shard {index}/{count} of {stage} is at work already in {folder} (process id {_signature(path)}); wait until "
        "it ends, or start another shard"
    )


@contextlib.contextmanager
def starting(folder: str | Path) -> Iterator[None]:
    """Lets the shards of a directory write what they share (config, provenance, fingerprint) one after the other."""
    with _flock(atomic.make_folder(Path(folder) / SHARDS) / "starting", fcntl.LOCK_EX, wait=True):
        yield


def shards_asked(folder: str | Path, stage: str) -> int | None:
    """The n that the latest shard of a stage was started with; None where there was none."""
    started = {path: path.stat().st_mtime_ns for path in (Path(folder) / SHARDS).glob(f"{stage}-*-of-*")}
    return int(max(started, key=started.__getitem__).name.rpartition("-")[2]) if started else None


def _in_use(folder: Path, asking: Path | None = None) -> UserError:
    """Who holds a run directory. Looking takes the lock of a shard for a moment; `lock_shard` looks more than once."""
    shards = []
    for path in sorted({*(folder / SHARDS).glob("*-of-*")} - {asking}):
        with _flock(path, fcntl.LOCK_SH) as free:
            if free is None:
                stage, index, _, count = path.name.rsplit("-", 3)
                shards.append(f"shard {index}/{count} of {stage} (process id {_signature(path)})")
    if shards:
        others = f" and {len(shards) - 1} more" if len(shards) > 1 else ""
        return UserError(f"{folder} is in use by {shards[0]}{others}; wait until they end, or give another folder")
    holder = _signature(folder / ".lock")
    return UserError(f"{folder} is in use by another process (id {holder}); wait until it ends, or give another folder")


@contextlib.contextmanager
def _flock(path: Path, mode: int, wait: bool = False) -> Iterator[int | None]:
    """Holds the lock on a file: its handle, or None where others have it and `wait` is not asked for.

    Raises UserError: the file cannot be locked at all.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise atomic.user_error(error, path) from None
    try:
        try:
            fcntl.flock(handle, mode | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"{path.parent} cannot be locked ({error.strerror}); mount the file system with locks (Lustre: "
                    "`flock`), or run one process with an --out on a local disk"
                ) from None
            yield None
            return
        yield handle
    finally:
        os.close(handle)  # lets go of the lock; the file stays, for removing it would race with the next holder


def _sign(handle: int, who: str) -> None:
    """Says in a lock's file who holds it. A full disk must not keep anyone from a lock: this is a courtesy."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{who}\n".encode("ascii", "replace"), 0)


def _signature(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace").strip() or "unknown"
    return "unknown"


def look(
    folder: str | Path,
    fingerprint: Mapping[str, Any],
    shown: Mapping[str, Any] | None = None,
    kept: Mapping[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,
) -> State:
    """The state of a stage: `done` (its manifest matches), `refresh` (it matches, but for what only decides how results
    are shown), `resume` (begun with this fingerprint), or `new`.

    fingerprint: nested JSON values that decide the stage's result, and nothing else. shown: those that only decide what
    it writes for people. kept: those, flat, that only decide what it keeps beside its result; one that keeps more
    matches. parts: those, flat, of which each decides a part of the result of its own: more of them and fewer match.
    Raises UserError: the folder holds results of another fingerprint; the differing keys are named with both values.
    """
    manifest, begun = (Path(folder) / name for name in ("manifest.json", "fingerprint.json"))
    if manifest.exists():
        found = _compare(Path(folder), manifest, fingerprint, kept, parts)
        return "done" if found.get("shown", {}) == _plain(shown) else "refresh"
    if begun.exists():
        _compare(Path(folder), begun, fingerprint, kept, parts)
        return "resume"
    return "new"


def begin(
    folder: str | Path,
    fingerprint: Mapping[str, Any],
    shown: Mapping[str, Any] | None = None,
    kept: Mapping[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,
) -> State:
    """Opens a stage, so that from now on it belongs to this fingerprint; returns and raises as `look`."""
    folder = atomic.make_folder(folder)
    state = look(folder, fingerprint, shown, kept, parts)
    if state == "refresh":  # open it before anything in it changes
        (folder / "manifest.json").unlink()
    if state != "done":  # what goes on without keeping something has not all of it in the end
        signed = _plain(_signed(fingerprint, shown, kept, _all_parts(folder, parts)))
        if state == "new" or atomic.read_json(folder / "fingerprint.json") != signed:
            atomic.write_json(folder / "fingerprint.json", signed)
    return state


def close_empty(folder: str | Path) -> None:
    """Forgets a stage that was opened and has written nothing: whatever is corrected next, there is nothing it could
    differ from."""
    folder = Path(folder)
    if [path.name for path in folder.iterdir()] == ["fingerprint.json"]:
        (folder / "fingerprint.json").unlink()
        folder.rmdir()


def commit(
    folder: str | Path,
    fingerprint: Mapping[str, Any],
    facts: Mapping[str, Any],
    shown: Mapping[str, Any] | None = None,
    kept: Mapping[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,
) -> None:
    """Closes a stage: the checksums of its files, then `manifest.json`, its last file. The manifest holds no time, so
    that equal commands have equal manifests. Raises UserError: the disk is full or not writable."""
    folder = Path(folder)
    parts = _all_parts(folder, parts)
    atomic.write_lines(folder / SUMS, (f"{sha256_file(folder / name)}  {name}" for name in _results(folder)))
    atomic.write_json(folder / "manifest.json", {**_signed(fingerprint, shown, kept, parts), "facts": facts})


def _plain(part: Mapping[str, Any] | None) -> Any:
    return json.loads(json.dumps(atomic.plain(part or {})))


def _signed(
    fingerprint: Mapping[str, Any],
    shown: Mapping[str, Any] | None,
    kept: Mapping[str, Any] | None,
    parts: Mapping[str, Any] | None,
) -> dict[str, Any]:
    more = {"shown": shown, "kept": kept, "parts": parts}
    return {"schema": SCHEMA, "fingerprint": fingerprint} | {name: part for name, part in more.items() if part}


def _all_parts(folder: Path, parts: Mapping[str, Any] | None) -> dict[str, Any]:
    """With those that are not asked for now: their results lie here and must fit if they are asked for again."""
    path = folder / "fingerprint.json"
    return (atomic.read_json(path, dict).part("parts") if path.exists() else {}) | dict(parts or {})


def verify(folder: str | Path) -> None:
    """Raises UserError naming the file: a result of a finished stage is gone, damaged or was edited."""
    folder = Path(folder)
    remedy = f"restore it, or delete the folder {folder} to compute the stage anew"
    if not (folder / SUMS).exists():
        raise UserError(f"{folder / SUMS} is gone; {remedy}")
    for number, line in enumerate(reading.read_text(folder / SUMS, remedy).splitlines(), 1):
        found = re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line)
        if not found or any(part in ("", "..") for part in found[2].split("/")) or not found[2].isprintable():
            raise UserError(f"{folder / SUMS} is damaged, line {number} is no checksum of a file; {remedy}")
        digest, name = found.groups()
        try:
            there = (folder / name).is_file()
        except OSError:  # a name that no file can have
            there = False
        if not there:
            raise UserError(f"{folder / name} is gone; {remedy}")
        if sha256_file(folder / name) != digest:
            raise UserError(f"{folder / name} is not as its stage wrote it (checksum); {remedy}")


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
    return atomic.read_json(path, dict) if path.exists() else None


def _compare(
    folder: Path,
    path: Path,
    fingerprint: Mapping[str, Any],
    kept: Mapping[str, Any] | None,
    parts: Mapping[str, Any] | None,
) -> dict[str, Any]:
    found = atomic.read_json(path)
    signed: dict[str, Any] = {"kept": {}, "parts": {}} | found if isinstance(found, dict) else {}
    if not all(isinstance(signed.get(name), dict) for name in ("fingerprint", "kept", "parts")):
        raise UserError(f"{path} is damaged, it holds no fingerprint; delete the folder {folder} and run again")
    if found.get("schema") != SCHEMA:
        raise UserError(
            f"{folder} was written in format {found.get('schema')}, this version writes {SCHEMA};"
            " give another folder, or delete that folder"
        )
    beside, before, parts = signed["kept"], signed["parts"], _plain(parts)
    old = _flat(signed["fingerprint"]) | beside | before
    new = _flat(_plain(fingerprint)) | _plain(kept) | parts
    more = (beside.keys() | before.keys()) - new.keys()  # it may keep more than is asked for
    keys = (old.keys() | new.keys()) - more - (parts.keys() - old.keys())
    differing = [key for key in sorted(keys) if _text(old, key) != _text(new, key)]
    if differing:
        raise UserError(_differences(folder, old, new, differing))
    return found


def _differences(folder: Path, old: dict[str, Any], new: dict[str, Any], keys: list[str]) -> str:
    """What differs, in a line: each key with both values; without the values where that is too long for a line; or some
    of the keys."""

    def line(changes: Iterable[str]) -> str:
        return (
            f"{folder} was made from something else: {'; '.join(changes)};"
            " give another folder, or delete that folder to compute the stage anew"
        )

    whole = line(f"{_end(key)} was {_short(_text(old, key))}, is now {_short(_text(new, key))}" for key in keys)
    if len(whole) <= LONGEST:
        return whole
    named = [f"{_end(key)} is another" for key in keys]
    kept = len(named)
    while kept > 1 and len(line([*named[:kept], "and 999 more"])) > LONGEST:
        kept -= 1
    more = [f"and {len(named) - kept} more"] if kept < len(named) else []
    return line([*named[:kept], *more])


def _end(key: str) -> str:
    """A key whole, or its end where it holds a path."""
    return key if len(key) <= 60 else f"\N{HORIZONTAL ELLIPSIS}{key[-56:]}"


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
