"""Who works on a run directory in a bucket: leases, objects that their holders rewrite every few seconds.

A lease is the object NAME.NUMBER with the highest number. Whoever wants it creates the next number by a conditional
write (`If-None-Match: *` on S3, `ifGenerationMatch=0` on Google Cloud Storage), which succeeds for one process only. An
empty object is a lease that was given back; it stays, so that no number is used twice.

A process that dies leaves its lease behind. Whoever has watched it for STALE_SECONDS without a change puts an empty
next number behind it: no clock is compared with another. Should the holder only have slept, it finds that number and
ends. Nobody is refused at once, for the holder may be about to end: a spot machine gets GRACE_SECONDS for a last push,
while the next one starts already.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ntk_jax.errors import TryAgain

FOLDER = ".leases"
WHOLE, STARTING = "run", "starting"  # the directory for one process; what all shards write, for one of them at a time
RENEW_SECONDS, STALE_SECONDS = 10.0, 45.0
GRACE_SECONDS = 30.0  # between SIGTERM and SIGKILL on Kubernetes and on spot machines
LOOK_SECONDS = 1.0


class _Lease(NamedTuple):
    number: int
    mark: str
    taken: bool


@contextlib.contextmanager
def held(
    fs: Any, root: str, url: str, name: str, lost: Callable[[], object], wait: bool = False
) -> Iterator[Callable[[], bool]]:
    """Holds a lease, renewed by a thread; yields the function that says whether it is still held.

    fs, root: an fsspec file system and the run directory in it; url: the same for messages. name: WHOLE, STARTING or
    that of a shard. lost: called in that thread once another process has the lease. wait: for however long.
    Raises TryAgain: it is held by others, who go on. Passes on what the store raises.
    """
    number = _take(fs, root, url, name, wait)

    def is_held() -> bool:
        found = _leases(fs, root).get(name)
        return found is not None and found.number == number

    def renew() -> None:
        with contextlib.suppress(Exception):  # a store that cannot be reached says nothing of the lease
            if not is_held():
                lost()
            else:
                fs.pipe_file(_key(root, name, number), _signature())

    try:
        with repeated(RENEW_SECONDS, renew):
            yield is_held
    finally:
        with contextlib.suppress(Exception):  # a lease that stays becomes stale
            if is_held():
                fs.pipe_file(_key(root, name, number), b"")


@contextlib.contextmanager
def repeated(seconds: float, do: Callable[[], object]) -> Iterator[None]:
    """Calls `do`, which raises nothing, every so often in a thread."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(seconds):
            do()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def mark_of(info: Mapping[str, Any]) -> str:
    """What changes when an object does: its generation or its ETag."""
    return str(info.get("generation") or info["ETag"]).strip('"')


def say(line: str) -> None:
    """A line on stderr, beside those of the progress."""
    print(f"ntk-jax: {line}", file=sys.stderr, flush=True)


def _take(fs: Any, root: str, url: str, name: str, wait: bool) -> int:
    """Takes the lease as soon as no other excludes it; returns its number."""
    began = since = time.monotonic()
    announced, before = wait, dict[str, _Lease]()
    while True:
        found, now = _leases(fs, root), time.monotonic()
        others = {other: found[other] for other in _excluding(found, name)}
        if others != before:
            before, since = others, now
        if not others:
            number = found[name].number + 1 if name in found else 1
            if _create(fs, root, name, number, _signature()):
                # Not so if others have taken and deleted this number since it was listed, or if a run and a shard came
                # together: then both step back.
                found = _leases(fs, root)
                if found[name].number == number and _excluding(found, name) == [name]:
                    return number
                fs.pipe_file(_key(root, name, number), b"")
        elif now - since > STALE_SECONDS:
            for other in others:
                _create(fs, root, other, found[other].number + 1, b"")
            continue
        else:
            first = next(iter(others))
            who = _who(fs, root, first, found[first].number)
            if not wait and now - began > STALE_SECONDS + GRACE_SECONDS:
                raise TryAgain(f"{url} is in use by {who}; wait until it ends, or give another --out")
            if not announced:
                patience = f"{STALE_SECONDS + GRACE_SECONDS:.0f} s"
                say(f"{url} is held by {who}; waiting for up to {patience} until it ends or is found dead")
                announced = True
        time.sleep(LOOK_SECONDS * random.uniform(0.5, 1.0))


def _leases(fs: Any, root: str) -> dict[str, _Lease]:
    """The lease of each name, taken or given back."""
    fs.invalidate_cache()
    found: dict[str, _Lease] = {}
    for path, info in fs.find(f"{root}/{FOLDER}", detail=True).items():
        name, _, number = path.rpartition("/")[2].rpartition(".")
        if number.isdigit() and (name not in found or found[name].number < int(number)):
            found[name] = _Lease(int(number), mark_of(info), taken=info["size"] > 0)
    return found


def _excluding(found: Mapping[str, _Lease], name: str) -> list[str]:
    """The leases that cannot be held beside this one: those of the same name, and the whole directory's beside any."""
    return [
        other
        for other, lease in sorted(found.items())
        if lease.taken and (other == name or (WHOLE in (other, name) and STARTING not in (other, name)))
    ]


def _create(fs: Any, root: str, name: str, number: int, data: bytes) -> bool:
    """Creates this number, unless another process has; the one before counts no more and is deleted."""
    try:
        fs.pipe_file(_key(root, name, number), data, mode="create")
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno == errno.EBUSY:  # S3's answer to two at once (409)
            return False
        raise
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(_key(root, name, number - 1))
    return True


def _key(root: str, name: str, number: int) -> str:
    return f"{root}/{FOLDER}/{name}.{number}"


def _signature() -> bytes:
    """Never the same twice, for an ETag is a hash of the content."""
    return f"process id {os.getpid()} on {os.uname().nodename}\n{time.time_ns()}".encode()


def _who(fs: Any, root: str, name: str, number: int) -> str:
    signature = b"process id unknown"
    with contextlib.suppress(Exception):  # it may be gone by now
        signature = fs.cat_file(_key(root, name, number)) or signature
    return f"{name} ({signature.decode().splitlines()[0]})"
