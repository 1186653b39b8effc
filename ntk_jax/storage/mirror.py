"""A folder and a place in a bucket, made equal: `pull` brings the folder to the bucket, `push` the bucket to it.

A push goes in the order of `_rank`: what says that something is done comes after what it speaks of, and only if it was
there before that was listed. So what the bucket holds when a process dies is what a local run that died might have
left.

The folder keeps account of which file was the same as which object, and when: while neither has changed since, nothing
is copied. The bucket is the truth; but what was written here and never pushed, because the process or the network died,
stays if nobody has changed the results in the bucket meanwhile, nor begun or ended a stage of it in another way.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ntk_jax.errors import TryAgain, UserError
from ntk_jax.storage import atomic
from ntk_jax.storage.lease import mark_of
from ntk_jax.storage.run import SHARDS, SUMS

ACCOUNT = ".synced.json"
AT_ONCE = 8  # transfers
# Locks, leases and the account; what is written to be renamed: by `storage/atomic.py`, tensorstore and orbax.
_NOT_SHARED = re.compile(r"\.lock|\.synced\.json|\.leases/.*|(.*/)?\..*\.tmp|.*\.__lock|.*\.orbax-checkpoint-tmp.*")

P = ParamSpec("P")
T = TypeVar("T")
Stat = tuple[int, int, int]  # size, time in nanoseconds and inode: a replaced file differs in one of them


@dataclasses.dataclass
class Mirror:
    """A folder that is kept equal to `root` of an fsspec file system.

    identity: of the folder, for `lease.holder`. trusted: whether the account speaks of all that is in it.
    same: of every file that was the same as its object, (the object's mark, the file's stat) at that time.
    check: called before anything is written to the bucket, and again before what is of the next rank.
    """

    url: str
    folder: Path
    fs: Any
    root: str
    identity: str = ""
    trusted: bool = False
    same: dict[str, tuple[str, Stat]] = dataclasses.field(default_factory=dict)
    check: Callable[[], object] = lambda: None
    turn: threading.Lock = dataclasses.field(default_factory=threading.Lock)


def recall(url: str, folder: Path, fs: Any, root: str) -> Mirror:
    """The mirror in a folder, with its account. Where there is none, nothing in the folder will be trusted."""
    mirror = Mirror(url, folder, fs, root, uuid.uuid4().hex[:12])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / ACCOUNT).read_text(encoding="utf8"))
        if found["url"].rstrip("/") == url:  # versions before this one took it as it was typed
            mirror.same = {name: (mark, (stat[0], stat[1], stat[2])) for name, (mark, stat) in found["same"].items()}
            mirror.identity, mirror.trusted = found["identity"], found["trusted"]
    _remember(mirror)
    return mirror


def _remember(mirror: Mirror) -> None:
    tree = {key: getattr(mirror, key) for key in ("url", "identity", "trusted", "same")}
    atomic.write_text(mirror.folder / ACCOUNT, json.dumps(tree))


def _telling(do: Callable[Concatenate[Mirror, P], T]) -> Callable[Concatenate[Mirror, P], T]:
    """Tells a disk that fails from a bucket that does: the errors of the folder's files name them."""

    @functools.wraps(do)
    def done(mirror: Mirror, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return do(mirror, *args, **kwargs)
        except OSError as error:
            name = error.filename
            if not isinstance(name, (str, os.PathLike)) or not Path(name).is_relative_to(mirror.folder):
                raise
            raise UserError(
                f"the working copy {mirror.folder} cannot be used ({os.path.relpath(name, mirror.folder)}: "
                f"{error.strerror}); correct its permissions or its disk, or set NTK_JAX_SCRATCH to another folder"
            ) from error

    return done


# -- from the bucket -------------------------------------------------------------------------------------------------


@_telling
def pull(mirror: Mirror) -> None:
    """Brings the folder to the bucket. A file that was written here and not pushed stays, if nobody has changed what
    this folder knew of the results; one that was deleted here and not there comes back."""
    there, here = objects(mirror.fs, mirror.root), _files(mirror.folder)
    marks = {name: mark_of(info) for name, info in there.items()}
    equal = {name for name in here if name in there and _equal(mirror, name, there[name], here[name])}
    # config.yaml, provenance.json and the files of shards are no results: every shard writes them.
    results = [name for name in mirror.same if "/" in name and not name.startswith(".")]
    goes_on = mirror.trusted and all(name in equal or marks.get(name) == mirror.same[name][0] for name in results)
    goes_on = goes_on and not _met_another(mirror, there.keys() - equal, here.keys() - equal)
    if not goes_on:
        mirror.trusted = False  # until this is done: cut short in the middle, it must not seem to go on the next time
        _remember(mirror)
    closed = {name.partition("/")[0] for name in there if _rank(name) == MANIFEST}

    def stays(name: str) -> bool:
        """Whether the file here is what counts, and the bucket is behind."""
        if name not in there:
            return goes_on and name not in mirror.same
        known = name in mirror.same and mirror.same[name][0] == marks[name]
        return goes_on and known and name.partition("/")[0] not in closed

    for name in here:
        if name not in there and not stays(name):
            (mirror.folder / name).unlink()
    wanted = [name for name in there if name not in equal and not (name in here and stays(name))]
    mirror.same = {name: same for name, same in mirror.same.items() if name in there}
    try:
        _several(lambda name: fetch(mirror, name, there[name]), wanted)
    finally:
        _remember(mirror)
    _sweep(mirror.folder)
    mirror.trusted = True
    _remember(mirror)


def _met_another(mirror: Mirror, there: Set[str], here: Set[str]) -> bool:
    """Whether a stage that has files here which the bucket lacks was begun or ended there by somebody else: then its
    files, and those of the stages built on them, are of two runs. there, here: what is not the same in both."""
    for stage in {name.partition("/")[0] for name in here if "/" in name}:
        for name in {f"{stage}/fingerprint.json", f"{stage}/manifest.json"} & there:
            path = mirror.folder / name
            if not path.exists() or path.read_bytes() != mirror.fs.cat_file(f"{mirror.root}/{name}"):
                return True
    return False


def fetch(mirror: Mirror, name: str, info: Mapping[str, Any]) -> None:
    """Brings one object. Raises UserError: the disk is full or not writable. TryAgain: it did not come whole."""
    path = mirror.folder / name
    temporary = path.with_name(f".{path.name}.tmp")
    atomic.make_folder(path.parent)
    address = f"{mirror.root}/{name}"
    try:
        mirror.fs.get_file(address, str(temporary))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # no store says that of itself
        raise atomic.user_error(error, path) if full else error from None
    if temporary.stat().st_size != info["size"]:
        raise TryAgain(f"{mirror.url}/{name} came down incomplete; the same command again goes on")
    if name.startswith(f"{SHARDS}/"):  # their order in time says how many shards there are, see `shards_asked`
        when = mirror.fs.modified(address).timestamp()
        os.utime(temporary, (when, when))
    os.replace(temporary, path)
    mirror.same[name] = (mark_of(info), _stat(path))


@_telling
def fetch_changed(mirror: Mirror, names: Iterable[str]) -> None:
    """Brings these objects if they are there and others than this folder knew."""
    with mirror.turn:
        for name in names:
            info = _info(mirror, name)
            if info is not None and (name not in mirror.same or mirror.same[name][0] != mark_of(info)):
                fetch(mirror, name, info)


def _equal(mirror: Mirror, name: str, info: Mapping[str, Any], stat: Stat) -> bool:
    """Whether a file is the same as its object: by the account, or by an MD5 that the store tells, for what was pushed
    just before a kill, and for a folder without an account."""
    mark = mark_of(info)
    if mirror.same.get(name) == (mark, stat):
        return True
    said = base64.b64decode(info["md5Hash"]).hex() if info.get("md5Hash") else mark
    if not re.fullmatch("[0-9a-f]{32}", said) or stat[0] != info["size"]:
        return False
    try:
        with open(mirror.folder / name, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        error.filename = mirror.folder / name  # a disk that cannot be read does not say of what
        raise
    if digest != said:
        return False
    mirror.same[name] = (mark, stat)
    return True


# -- to the bucket ---------------------------------------------------------------------------------------------------

FINGERPRINT, DATA, BLOCKS, DESCRIPTIONS, CHECKSUMS, MANIFEST = range(6)


def _rank(name: str) -> int:
    """The place of a file in a push: what a stage is made from first, then data, and then what says that they are
    there: markers of blocks, descriptions (`stages/` takes an adapter for whole when its JSON is there), manifests."""
    folder, _, last = name.rpartition("/")
    if last == "fingerprint.json":
        return FINGERPRINT
    if last in (SUMS, "manifest.json"):
        return CHECKSUMS if last == SUMS else MANIFEST
    if folder.endswith(".zarr/done"):
        return BLOCKS
    description = last.endswith(".json") and last != "zarr.json" and folder
    return DESCRIPTIONS if description or last == "_CHECKPOINT_METADATA" else DATA


@_telling
def push(mirror: Mirror) -> None:
    """Brings the bucket to the folder, as it was when this began. Raises whatever the store raises."""
    with mirror.turn:
        # What says that something is done counts only if it was there before everything was listed.
        before = _changed(mirror, _files(mirror.folder))
        files = _files(mirror.folder)
        changed = {
            name: stat
            for name, stat in _changed(mirror, files).items()
            if _rank(name) <= DATA or before.get(name) == stat
        }
        # A run deletes nothing but checkpoints.
        gone = [name for name in mirror.same if name not in files and "/checkpoints/" in name]
        if not changed and not gone:
            return
        if not (mirror.folder / ACCOUNT).exists():
            raise UserError(f"the working copy {mirror.folder} was deleted while it was in use; run again")
        try:
            ordered = sorted(changed, key=lambda name: (_rank(name), changed[name][1], name))
            for rank, names in itertools.groupby(ordered, _rank):
                mirror.check()
                if rank <= BLOCKS:
                    _several(lambda name: _upload(mirror, name), list(names))
                else:  # descriptions speak of each other: one after the other
                    for name in names:
                        _upload(mirror, name)
            if gone:
                mirror.check()
            for name in sorted(gone, key=_rank, reverse=True):  # first what says that a checkpoint is whole
                with contextlib.suppress(FileNotFoundError):
                    mirror.fs.rm_file(f"{mirror.root}/{name}")
                del mirror.same[name]
        finally:
            _remember(mirror)


def _changed(mirror: Mirror, files: Mapping[str, Stat]) -> dict[str, Stat]:
    return {name: stat for name, stat in files.items() if name not in mirror.same or mirror.same[name][1] != stat}


def _upload(mirror: Mirror, name: str) -> None:
    """Files are replaced, never changed in place: so what goes up is whole, and goes up again if it was an old one."""
    path = mirror.folder / name
    try:
        before = _stat(path)
        mirror.fs.put_file(str(path), f"{mirror.root}/{name}")
        after = _stat(path)
    except FileNotFoundError:
        if path.exists():
            raise
        return  # deleted since it was listed
    info = _info(mirror, name)
    if info is not None and info["size"] == before[0] and before == after:
        mirror.same[name] = (mark_of(info), before)


# -- what there is ---------------------------------------------------------------------------------------------------


def objects(fs: Any, root: str) -> dict[str, dict[str, Any]]:
    """What is in the bucket: name in the run directory -> what the store says of it."""
    fs.invalidate_cache()
    found = {}
    for path, info in fs.find(root, detail=True).items():
        name = path.removeprefix(f"{root}/")
        if name == path or name.endswith("/") or info.get("type") != "file" or _NOT_SHARED.fullmatch(name):
            continue
        if {"", ".", ".."} & set(name.split("/")):
            raise UserError(f"{path} in the bucket is no path in a run directory; delete it")
        found[name] = info
    return found


def _info(mirror: Mirror, name: str) -> dict[str, Any] | None:
    mirror.fs.invalidate_cache()
    try:
        return mirror.fs.info(f"{mirror.root}/{name}")
    except FileNotFoundError:
        return None


def _files(folder: Path) -> dict[str, Stat]:
    """What is in the folder and belongs into the bucket."""
    found: dict[str, Stat] = {}
    start = len(str(folder)) + 1
    for place, _, names in os.walk(folder):
        for name in names:
            path = f"{place}/{name}"
            if not _NOT_SHARED.fullmatch(path[start:]):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    found[path[start:]] = _stat(path)
    return found


def _stat(path: str | Path) -> Stat:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _sweep(folder: Path) -> None:
    """Takes empty folders away: a bucket has none."""
    for place, _, _ in os.walk(folder, topdown=False):
        if place != str(folder):
            with contextlib.suppress(OSError):
                os.rmdir(place)


def _several(do: Callable[[str], None], names: list[str]) -> None:
    """A few at once; the first error is raised, when what was under way has ended."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for _ in pool.map(do, names):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
