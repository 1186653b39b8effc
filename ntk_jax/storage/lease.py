"""Who works on a run directory in a bucket: leases, small objects that their holders write anew every few seconds.

A bucket has no locks. What S3 and Google Cloud Storage do promise is that a listing shows every object written before
it. So whoever wants a lease looks whether another stands in the way, writes its own, and looks again: of two that come
in the same moment at least one then sees the other, takes its own away and begins anew. Nothing more is asked of a
store, in particular no conditional writes, which some do not have and the libraries call experimental.

A process that dies leaves its lease behind. It counts no more when somebody who wants it has watched it for
STALE_SECONDS without its being written anew: no clock is compared with another. Its holder, should it only have slept,
finds it gone and ends; had it slept just before it wrote, both find each other, and who was there before ends.

Nobody is refused at once, for whoever holds the lease may be about to end: a machine that is taken away gives its
process GRACE_SECONDS or so for a last push, and the next one starts meanwhile. After that the answer is `TryAgain`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ntk_jax.errors import TryAgain

FOLDER = ".leases"
WHOLE, STARTING = "run", "starting"  # the directory for one process; what shards write together, for one at a time
RENEW_SECONDS, STALE_SECONDS = 10.0, 45.0
GRACE_SECONDS = 30.0  # between the SIGTERM and the SIGKILL of Kubernetes and of spot machines
LOOK_SECONDS = 1.0  # between two looks at a lease that is in the way
COLLISIONS = 8  # with others that come in the same moment, until one gives up


class Lease(NamedTuple):
    """`name` says what is held, `identity` by whom; the object is {FOLDER}/{name}.{identity}."""

    name: str
    identity: str

    @property
    def key(self) -> str:
        return f"{FOLDER}/{self.name}.{self.identity}"

    @property
    def what(self) -> str:
        """Its holder, for a message: `shard 1/4 of score` for the name `score-1-of-4`."""
        shard = re.fullmatch(r"(.+)-(\d+)-of-(\d+)", self.name)
        return f"shard {shard[2]}/{shard[3]} of {shard[1]}" if shard else "another process"

    def excludes(self, other: Lease) -> bool:
        """Whether the two cannot be held together. The same identity is the same holder: see `storage/bucket.py`."""
        if self.identity == other.identity:
            return False
        return self.name == other.name or (WHOLE in (self.name, other.name) and STARTING not in (self.name, other.name))


def holder(identity: str, lock: Path) -> str:
    """The identity of those who hold this lock on this machine, until it is started anew: there is one at a time.
    `identity`: of the folder, which a copied disk or a shared one has elsewhere too."""
    stat = lock.stat()
    identity += f" {stat.st_dev} {stat.st_ino} {os.uname().nodename} "
    boot = Path("/proc/sys/kernel/random/boot_id")
    with contextlib.suppress(OSError):  # Linux has it
        identity += boot.read_text(encoding="ascii")
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


@contextlib.contextmanager
def held(fs: Any, root: str, url: str, lease: Lease, lost: Callable[[], Any], wait: bool = False) -> Iterator[str]:
    """Holds a lease, which a thread of its own renews; gives the token to ask `is_held` with.

    fs, root: the fsspec file system and the run directory in it. url: the directory as the user knows it.
    lost: called in that thread when the lease turns out to be another's. wait: for those who hold it, however long.
    Raises TryAgain: others hold it and go on; they are named. Whatever else the store raises.
    """
    token = _take(fs, root, url, lease, wait)
    ended = threading.Event()

    def renew() -> None:
        others: dict[Lease, str] = {}
        while not ended.wait(RENEW_SECONDS):
            with contextlib.suppress(Exception):  # a store that cannot be reached says nothing of the lease
                # Twice in a row, and alive: somebody who comes in our first moment takes his away again. It is more
                # only where one of the two slept right here, between reading the lease and writing it.
                before, others = others, _in_the_way(fs, root, lease)
                met = [other for other, mark in others.items() if before.get(other, mark) != mark]
                if any(_token(fs, root, other) > token for other in met) or not is_held(fs, root, lease, token):
                    lost()
                    return
                _write(fs, root, lease, token)

    thread = threading.Thread(target=renew, daemon=True, name=f"lease {lease.name}")
    thread.start()
    try:
        yield token
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # if it stays, it will be found stale
            if is_held(fs, root, lease, token):
                fs.rm_file(f"{root}/{lease.key}")


def is_held(fs: Any, root: str, lease: Lease, token: str) -> bool:
    """Whether the lease is still there, and this process's."""
    return _token(fs, root, lease) == token


def _token(fs: Any, root: str, lease: Lease) -> str:
    """Of the process that holds the lease, for `identity` may come back in the next one: the larger of two is of the
    one that came later. Empty where there is no lease."""
    try:
        return str(json.loads(fs.cat_file(f"{root}/{lease.key}"))["token"])
    except FileNotFoundError:
        return ""


def mark_of(info: Mapping[str, Any]) -> str:
    """What changes when an object does: its generation or its ETag, else its size and time."""
    for key in ("generation", "ETag"):
        if info.get(key):
            return str(info[key]).strip('"')
    return f"{info['size']} {next((info[key] for key in ('mtime', 'created') if info.get(key)), '')}"


def _turn(fs: Any, root: str, lease: Lease) -> int:
    """The turn of whoever comes after this lease."""
    with contextlib.suppress(ValueError, KeyError, TypeError):  # there is none, or it is of another version
        return int(_token(fs, root, lease).partition(".")[0]) + 1
    return 0


def _take(fs: Any, root: str, url: str, lease: Lease, wait: bool) -> str:
    """Writes the lease where nobody stands in the way, now or soon; returns the token."""
    turn, until = _turn(fs, root, lease), time.monotonic() + STALE_SECONDS + GRACE_SECONDS
    watched: dict[Lease, tuple[str, float]] = {}  # a lease in the way: its mark, and when that was first seen
    said, collisions = wait, 0
    while True:
        others = _in_the_way(fs, root, lease)
        alive = [other for other, mark in others.items() if other in watched and watched[other][0] != mark]
        now = time.monotonic()
        if alive and not wait and now > until:
            raise _in_use(fs, root, url, lease, list(others))
        watched = {
            other: watched[other] if other in watched and other not in alive else (mark, now)
            for other, mark in others.items()
        }
        stale = [other for other, (_, since) in watched.items() if now - since > STALE_SECONDS]
        for other in stale:
            turn = max(turn, _turn(fs, root, other))
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(f"{root}/{other.key}")
        if len(stale) < len(others):
            if not said:
                said = True
                now_there, patience = _holder(fs, root, next(iter(others))), STALE_SECONDS + GRACE_SECONDS
                say(f"{url} is held by {now_there}; waiting for up to {patience:.0f} s until it ends or is found dead")
            time.sleep(LOOK_SECONDS * random.uniform(0.5, 1.0))
            continue
        token = f"{turn:06d}.{uuid.uuid4().hex}"
        _write(fs, root, lease, token)
        others = _in_the_way(fs, root, lease)
        if not others:
            return token
        fs.rm_file(f"{root}/{lease.key}")
        collisions += 1
        if collisions > COLLISIONS and not wait:
            raise _in_use(fs, root, url, lease, list(others))
        time.sleep(LOOK_SECONDS * random.uniform(0.0, min(collisions, COLLISIONS)))


def _in_the_way(fs: Any, root: str, lease: Lease) -> dict[Lease, str]:
    """The leases that exclude this one, with their marks."""
    fs.invalidate_cache()
    found = {}
    for path, info in fs.find(f"{root}/{FOLDER}", detail=True).items():
        name, dot, identity = path.rpartition("/")[2].rpartition(".")
        other = Lease(name, identity)
        if dot and other.excludes(lease):
            found[other] = mark_of(info)
    return dict(sorted(found.items()))


def _write(fs: Any, root: str, lease: Lease, token: str) -> None:
    """Writes the lease, never twice with the same content, so that its mark changes."""
    who = {"process": os.getpid(), "host": os.uname().nodename, "token": token, "written": time.time_ns()}
    fs.pipe_file(f"{root}/{lease.key}", json.dumps(who).encode())


def _in_use(fs: Any, root: str, url: str, asking: Lease, others: list[Lease]) -> TryAgain:
    if asking.name == others[0].name != WHOLE:
        return TryAgain(
            f"{others[0].what} is at work already in {url} ({_who(fs, root, others[0])}); wait until it ends, or start "
            "another shard"
        )
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    until = "they end" if others[0].name != WHOLE else "it ends"
    return TryAgain(
        f"{url} is in use by {_holder(fs, root, others[0])}{more}; wait until {until}, or give another folder"
    )


def _holder(fs: Any, root: str, lease: Lease) -> str:
    return f"{lease.what} ({_who(fs, root, lease)})"


def _who(fs: Any, root: str, lease: Lease) -> str:
    with contextlib.suppress(Exception):  # it may be gone by now
        who = json.loads(fs.cat_file(f"{root}/{lease.key}"))
        return f"process id {who['process']} on {who['host']}"
    return "process id unknown"


def say(line: str) -> None:
    """A line on stderr, beside those of the progress."""
    print(f"ntk-jax: {line}", file=sys.stderr, flush=True)
