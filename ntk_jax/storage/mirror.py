"""The working copy of a run directory in a bucket: `pull` brings the folder to the bucket, `push` the bucket to it.

Why a copy, though tensorstore and orbax can write to buckets: `storage/atomic.py` renames, which a bucket cannot; the
stages compare, list and read back small files through ordinary paths; and a run goes on while the network is away.

A push goes in the order of `_rank`: what says that something is done comes after what it speaks of. So what the bucket
holds when a process dies is what a local run that died might have left. The folder keeps account of which file was the
same as which object; while neither has changed since, nothing is copied.

The bucket is the truth. What was written here and never pushed stays only if every fingerprint and manifest in the
bucket is here too: results depend on nothing but the fingerprint, so then files of both sides go together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ntk_jax.errors import UserError
from ntk_jax.storage import atomic, reading, snapshot
from ntk_jax.storage.lease import mark_of
from ntk_jax.storage.run import SHARDS, SUMS

ACCOUNT = ".synced.json"
TRANSFERS = 8  # at once
# Locks, leases and the account; what is written to be renamed: by `storage/atomic.py`, tensorstore and orbax.
_LOCAL = re.compile(r"\.lock|\.synced\.json|\.leases/.*|(.*/)?\..*\.tmp|.*\.__lock|.*\.orbax-checkpoint-tmp.*")

Stat = tuple[int, int, int]  # size, time in nanoseconds and inode: a replaced file differs in one of them


@dataclasses.dataclass
class Mirror:
    """A folder and its place in a bucket: `root` of an fsspec file system.

    known: of every file that was the same as its object, (the object's mark, the file's stat) at that time.
    check: called before anything is written to the bucket. mutex: pushes come from two threads.
    """

    url: str
    folder: Path
    fs: Any
    root: str
    known: dict[str, tuple[str, Stat]] = dataclasses.field(default_factory=dict)
    check: Callable[[], object] = lambda: None
    mutex: threading.Lock = dataclasses.field(default_factory=threading.Lock)


def recall(url: str, folder: Path, fs: Any, root: str) -> Mirror:
    """The mirror in a folder, with its account if there is one."""
    mirror = Mirror(url, folder, fs, root)
    with contextlib.suppress(ValueError, TypeError, LookupError):  # UserError too: without it, all is copied
        account = reading.read_json(folder / ACCOUNT, "delete it", dict)
        mirror.known = {name: (mark, (stat[0], stat[1], stat[2])) for name, (mark, stat) in account.items()}
    return mirror


def _remember(mirror: Mirror) -> None:
    atomic.write_text(mirror.folder / ACCOUNT, json.dumps(mirror.known))


def pull(mirror: Mirror) -> None:
    """Brings the folder to the bucket; see above for what stays though it was never pushed."""
    there, here, known = objects(mirror.fs, mirror.root), _files(mirror.folder), mirror.known
    marks = {name: mark_of(info) for name, info in there.items()}
    equal = {name for name in here if name in marks and known.get(name) == (marks[name], here[name])}

    def agrees(name: str) -> bool:
        path = mirror.folder / name
        return name in equal or (path.exists() and path.read_bytes() == mirror.fs.cat_file(f"{mirror.root}/{name}"))

    goes_on = (mirror.folder / ACCOUNT).exists() and all(name in there for name in known if _is_state(name))
    goes_on = goes_on and all(agrees(name) for name in there if _is_state(name))
    closed = {name.partition("/")[0] for name in there if name.endswith("/manifest.json")}

    def stays(name: str) -> bool:
        if name not in there:  # not pushed yet, or deleted there
            return name.startswith(".") or (goes_on and name not in known)
        unpushed = name in known and known[name][0] == marks[name] and name.partition("/")[0] not in closed
        return name in equal or (goes_on and unpushed)

    # Cut short anywhere, the next pull must come to the same judgement: what it judges by is deleted and fetched last.
    for name in sorted(here, key=_is_state):
        if name not in there and not stays(name):
            (mirror.folder / name).unlink()
            with contextlib.suppress(OSError):  # a bucket has no empty folders
                os.removedirs((mirror.folder / name).parent)
    mirror.known = {name: same for name, same in known.items() if name in there}
    try:
        for last in (False, True):
            wanted = [name for name in there if _is_state(name) == last and not (name in here and stays(name))]
            with ThreadPoolExecutor(TRANSFERS) as pool:
                list(pool.map(lambda name: fetch(mirror, name, there[name]), wanted))  # raises the first error
    finally:
        _remember(mirror)


def push(mirror: Mirror) -> None:
    """Brings the bucket to the folder, as it was when this began. Passes on what the store raises."""
    with mirror.mutex:
        # A folder is not listed in one moment: what says that something is done counts only if it was there before.
        early, files = _files(mirror.folder), _files(mirror.folder)
        changed = [
            name
            for name, stat in files.items()
            if mirror.known.get(name, ("", None))[1] != stat and (_rank(name) <= DATA or early.get(name) == stat)
        ]
        # A run deletes nothing but checkpoints.
        gone = [name for name in mirror.known if name not in files and "/checkpoints/" in name]
        if not changed and not gone:
            return
        if not (mirror.folder / ACCOUNT).exists():
            raise UserError(f"the working copy {mirror.folder} was deleted while it was in use; run again")
        try:
            ordered = sorted(changed, key=lambda name: (_rank(name), files[name][1], name))
            for rank, names in itertools.groupby(ordered, _rank):
                mirror.check()
                if rank <= MARKERS:
                    with ThreadPoolExecutor(TRANSFERS) as pool:
                        list(pool.map(lambda name: _upload(mirror, name), names))
                else:  # descriptions speak of each other: one after the other, as they were written
                    for name in names:
                        _upload(mirror, name)
            if gone:
                mirror.check()
            for name in sorted(gone, key=_rank, reverse=True):  # first what says that a checkpoint is whole
                with contextlib.suppress(FileNotFoundError):
                    mirror.fs.rm_file(f"{mirror.root}/{name}")
                del mirror.known[name]
        finally:
            _remember(mirror)


def objects(fs: Any, root: str) -> dict[str, dict[str, Any]]:
    """What is in the bucket: name in the run directory -> what the store says of it."""
    fs.invalidate_cache()
    found = {}
    for path, info in fs.find(root, detail=True).items():
        name = path.removeprefix(f"{root}/")
        if name == path or name.endswith("/") or info.get("type") != "file" or _LOCAL.fullmatch(name):
            continue
        if {"", ".", ".."} & set(name.split("/")):
            raise UserError(f"{path} in the bucket is no path in a run directory; delete it")
        found[name] = info
    return found


FINGERPRINT, DATA, MARKERS, DESCRIPTIONS, CLOSING = range(5)


def _rank(name: str) -> int:
    """The place of a file in a push: what a stage is made from, data, and then what says that they are there: markers
    of blocks, descriptions (stages take an adapter for whole when its JSON is there), checksums and manifest."""
    folder, _, last = name.rpartition("/")
    if last == "fingerprint.json":
        return FINGERPRINT
    if last in (SUMS, "manifest.json"):
        return CLOSING
    if folder.endswith(".zarr/done/c"):
        return MARKERS
    describes = last == "_CHECKPOINT_METADATA" or (last.endswith(".json") and last != "zarr.json")
    return DESCRIPTIONS if describes else DATA


def _is_state(name: str) -> bool:
    """Whether it says what a stage was begun with or how it ended."""
    return _rank(name) in (FINGERPRINT, CLOSING)


def fetch(mirror: Mirror, name: str, info: Mapping[str, Any]) -> None:
    """Brings one object, whatever is here."""
    path, address = mirror.folder / name, f"{mirror.root}/{name}"
    temporary = path.with_name(f".{path.name}.tmp")
    atomic.make_folder(path.parent)
    mirror.fs.get_file(address, str(temporary))
    if name.startswith(f"{SHARDS}/"):  # their order in time says how many shards there are, see `shards_asked`
        when = mirror.fs.modified(address).timestamp()
        os.utime(temporary, (when, when))
    if snapshot.is_database(path.name):
        snapshot.forget_beside(path)
    os.replace(temporary, path)
    mirror.known[name] = (mark_of(info), _stat(path))


def _upload(mirror: Mirror, name: str) -> None:
    """Files but databases are replaced, never changed in place: so what goes up is whole, and goes up again if it was
    an old one."""
    path = mirror.folder / name
    try:
        before = _stat(path)
        with _whole(path) as source:
            size = os.stat(source).st_size
            mirror.fs.put_file(str(source), f"{mirror.root}/{name}")
        after = _stat(path)
    except FileNotFoundError:
        if path.exists():
            raise
        return  # deleted since it was listed
    mirror.fs.invalidate_cache()
    info = mirror.fs.info(f"{mirror.root}/{name}")
    if info["size"] == size and before == after:
        mirror.known[name] = (mark_of(info), before)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """The file to read instead of this one: a database is changed in place, so a copy of one moment of it goes up."""
    if not snapshot.is_database(path.name):
        yield path
        return
    copy = path.with_name(f".{path.name}.tmp")
    try:
        snapshot.snapshot(path, copy)
        yield copy
    except sqlite3.Error as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and what it held is asked for again") from None
    finally:
        copy.unlink(missing_ok=True)


def _files(folder: Path) -> dict[str, Stat]:
    """What is in the folder and belongs into the bucket."""
    found: dict[str, Stat] = {}
    start = len(str(folder)) + 1
    for place, _, names in os.walk(folder):
        for path in (f"{place}/{name}" for name in names):
            if not _LOCAL.fullmatch(path[start:]) and not snapshot.is_beside(path):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    found[path[start:]] = _stat(path)
    return found


def _stat(path: str | Path) -> Stat:
    stat = os.stat(path)
    newest = snapshot.newest(str(path)) if snapshot.is_database(str(path)) else None
    if newest is not None:
        return stat.st_size + newest.st_size, max(stat.st_mtime_ns, newest.st_mtime_ns), stat.st_ino
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
