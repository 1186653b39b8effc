"""A run directory in a bucket: the run works in a working copy on a local disk, and the bucket is kept equal to it.

At the start the working copy is brought to the bucket, every few seconds and at the end of every stage the bucket to
the working copy (`storage/mirror.py`). A lease says who works there (`storage/lease.py`). The working copy may be
deleted whenever no run uses it: what the next one needs is in the bucket.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ntk_jax.errors import LONGEST, TryAgain, UserError, one_line
from ntk_jax.parallel import hosts
from ntk_jax.storage import atomic
from ntk_jax.storage.lease import FOLDER, STALE_SECONDS, STARTING, WHOLE, held, repeated, say
from ntk_jax.storage.mirror import Mirror, fetch, objects, pull, push, recall
from ntk_jax.storage.run import SHARDS, lock

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # protocol -> what fsspec needs for it
PUSH_SECONDS = 5.0  # between two pushes
PATIENCE_SECONDS = 300.0  # of the end of a stage with a bucket that cannot be reached


def is_address(out: str) -> bool:
    """Whether a run directory is in a bucket."""
    return "://" in out


def run_folder(out: str, shard: str = "") -> Path:
    """Where a run works: the run directory itself, or the working copy of one in a bucket. `shard`, as in
    `score-1-of-4`, has a working copy of its own, so that several go on one machine.
    Raises UserError: it is an address, but of no bucket."""
    if not is_address(out):
        return Path(out)
    protocol, _, path = out.rstrip("/").partition("://")
    if protocol not in PACKAGES or not path.strip("/"):
        raise UserError(f"{out} is no run directory; give a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path).strip("-.")[-60:]
    scratch = os.environ.get("NTK_JAX_SCRATCH") or Path.home() / ".cache" / "ntk_jax" / "runs"
    digest = hashlib.sha256(f"{protocol}://{path}".encode()).hexdigest()[:8]
    return Path(scratch).absolute() / f"{name}-{digest}{'.' if shard else ''}{shard}"


def file_system(url: str) -> tuple[Any, str]:
    """(the fsspec file system, the path in it) of an address. Raises UserError: a package is missing."""
    # Plain buckets are meant. gcsfs would ask of every bucket whether it is one, by another API (gRPC) that not every
    # network and no emulator lets through. It reads this when it is imported.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec

        # What others write must show at once: no listings from memory, and none shared with other users of the library.
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError:
        package = PACKAGES[url.partition("://")[0]]
        raise UserError(f"{url} needs the package {package}; pip install 'ntk_jax[buckets]'") from None
    return fs, root.rstrip("/")


def look_at(url: str) -> int:
    """How many objects a run directory in a bucket has; it can be read and written. Raises as `opened`."""
    with _explained(url):
        fs, root = file_system(url)
        count = len(objects(fs, root))
        probe = f"{root}/{FOLDER}/probe-{uuid.uuid4().hex}"  # without a number, so no lease
        fs.pipe_file(probe, b"probe")
        fs.cat_file(probe)
        fs.rm_file(probe)
        return count


@contextlib.contextmanager
def opened(url: str, shard: str = "") -> Iterator[Mirror]:
    """Holds a run directory in a bucket, for this process alone or for one shard, with its working copy up to date.

    Raises UserError: something that the user can fix. TryAgain: others hold it, or the bucket cannot be reached.
    """
    if hosts.is_distributed():
        raise UserError(
            f"{url}: several processes with one mesh need a run directory on a file system that all of them see; give "
            "such an --out, or run shards"
        )
    url, folder = url.rstrip("/"), run_folder(url, shard)
    with contextlib.ExitStack() as stack:
        with _explained(url):
            fs, root = file_system(url)
            stack.enter_context(lock(folder))
            mirror = recall(url, folder, fs, root)
            is_held = stack.enter_context(held(fs, root, url, shard or WHOLE, functools.partial(_lost, url)))
            mirror.check = lambda: is_held() or _lost(url)
            pull(mirror)
        if shard:  # `shards_asked` reads it, here and where the shards are merged
            signature = f"{os.getpid()} on {os.uname().nodename}\n"
            atomic.write_text(atomic.make_folder(folder / SHARDS) / shard, signature)
        stack.enter_context(_pushed_meanwhile(mirror))
        with contextlib.suppress(ValueError):  # outside the main thread
            # A machine that is about to be taken away sends SIGTERM: the run ends as at Ctrl-C, with a last push.
            before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            stack.callback(signal.signal, signal.SIGTERM, before)
        try:
            yield mirror
        except UserError as error:
            if str(folder) not in str(error):
                raise
            remedy = (
                f" ({folder.name} is the working copy of {url}: delete there what is to be computed anew, or the "
                "working copy if only that is damaged)"
            )
            text = str(error).replace(f"{folder}/", "")  # a line has no room for a long path twice
            raise UserError(one_line(text, max(100, LONGEST - len(remedy))) + remedy) from error


@contextlib.contextmanager
def starting(mirror: Mirror, stage: str) -> Iterator[None]:
    """Lets the shards of a directory write what they have in common (config, provenance, fingerprint) one after the
    other."""
    with contextlib.ExitStack() as stack:
        with _explained(mirror.url):
            lost = functools.partial(_lost, mirror.url)
            stack.enter_context(held(mirror.fs, mirror.root, mirror.url, STARTING, lost, wait=True))
            there = objects(mirror.fs, mirror.root)
            for name in ("config.yaml", "provenance.json", f"{stage}/fingerprint.json", f"{stage}/manifest.json"):
                if name in there:
                    with mirror.mutex:
                        fetch(mirror, name, there[name])
        yield
        push_all(mirror)


def push_all(mirror: Mirror) -> None:
    """`push`, again and again if need be. Raises TryAgain: the bucket could not be reached for PATIENCE_SECONDS."""
    until, announced = time.monotonic() + PATIENCE_SECONDS, False
    with _explained(mirror.url):
        while True:
            try:
                return push(mirror)
            except (UserError, TryAgain):
                raise
            except Exception as error:
                if time.monotonic() + PUSH_SECONDS > until:
                    raise
                if not announced:
                    say(f"{mirror.url} cannot be written ({_gist(error)}); trying for {PATIENCE_SECONDS:.0f} s")
                announced = True
            time.sleep(PUSH_SECONDS)


@contextlib.contextmanager
def _pushed_meanwhile(mirror: Mirror) -> Iterator[None]:
    """Pushes every few seconds, and at the end, however it comes."""
    failing = False

    def now_and_then() -> None:
        nonlocal failing
        try:
            push(mirror)
            if failing:
                say(f"{mirror.url} can be written again")
            failing = False
        except Exception as error:
            if not failing:
                say(f"{mirror.url} cannot be written ({_gist(error)}); the run goes on, and tries again")
            failing = True

    try:
        with repeated(PUSH_SECONDS, now_and_then):
            yield
    except BaseException:
        with contextlib.suppress(Exception):  # the error that is under way is the one to report
            push(mirror)
        raise
    push_all(mirror)


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """One line for what a store or the disk of the working copy raises: UserError where the user can fix it, TryAgain
    for the rest. Mistakes of the program pass."""
    try:
        yield
    except (UserError, TryAgain):
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__ == "builtins":
            raise
        name = getattr(error, "filename", None)  # stores name no local path
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or (name and os.path.isabs(name)):
            raise UserError(
                f"the working copy of {url} cannot be used ({_gist(error)}); free space on its disk or fix the "
                "permissions, or set NTK_JAX_SCRATCH to another folder"
            ) from error
        refused = isinstance(error, (PermissionError, FileNotFoundError)) or str(error).startswith("Forbidden")
        refused = refused or getattr(error, "code", 0) in (400, 401, 403, 404)  # of HTTP, from gcsfs
        if refused or any(word in type(error).__name__ for word in ("Credential", "ProfileNotFound")):
            raise UserError(
                f"{url} cannot be used ({_gist(error)}); check the bucket's name, the credentials and their "
                "permissions (list, read, write and delete)"
            ) from error
        raise TryAgain(
            f"{url} cannot be reached ({_gist(error)}); the working copy keeps what is not there yet, and the same "
            "command on this machine goes on from it"
        ) from error


def _gist(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".removesuffix(": ")


def _lost(url: str) -> NoReturn:
    """Ends this process at once: nothing is written any more."""
    hosts.end_now(
        f"{url} was taken over by another process, because this one did not renew its lease for {STALE_SECONDS:.0f} s "
        "(was it suspended, or the network away?); this one ends, the other goes on"
    )
