"""A run directory in a bucket: the run works in a working copy on a local disk, and the bucket is kept equal to it.

At the start the working copy is brought to the bucket, every few seconds and at the end of every stage the bucket to
the working copy (`storage/mirror.py`). A lease says who works there (`storage/lease.py`). The working copy may be
deleted whenever no run uses it: what the next one needs is in the bucket.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ntk_jax.errors import TryAgain, UserError
from ntk_jax.parallel import hosts
from ntk_jax.storage import atomic
from ntk_jax.storage.lease import FOLDER, STALE_SECONDS, STARTING, WHOLE, Lease, held, holder, is_held, say
from ntk_jax.storage.mirror import Mirror, fetch_changed, objects, pull, push, recall
from ntk_jax.storage.run import SHARDS, lock

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # protocol -> what fsspec needs for it
PUSH_SECONDS, SLOWEST_SECONDS = 5.0, 60.0  # between two pushes; between two attempts when the bucket cannot be reached
PATIENCE_SECONDS = 300.0  # of the end of a stage with such a bucket
# Who raises the errors of a store, and which of them say that there is something to put right.
_STORES = ("aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs", "urllib3")
_REFUSALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")

# How the messages of a damaged file end.
_DAMAGED = re.compile(r"(restore it, or )?(?P<remedy>delete (the folder|the store|it and run again)\b.*)$", re.DOTALL)


def is_address(out: str) -> bool:
    """Whether a run directory is in a bucket."""
    return "://" in out


def _address(url: str) -> str:
    """One spelling of what is one place."""
    protocol, separator, path = url.partition("://")
    return f"{protocol}{separator}{path.rstrip('/')}"


def run_folder(out: str, shard: str = "") -> Path:
    """Where a run works: the run directory itself, or the working copy of one in a bucket. `shard`, as in
    `score-1-of-4`: it has a working copy of its own, so that several on one machine do not meet.
    Raises UserError: it is an address, but of no bucket."""
    if not is_address(out):
        return Path(out)
    protocol, _, path = _address(out).partition("://")
    if protocol not in PACKAGES or not path.strip("/"):
        raise UserError(f"{out} is no run directory; give a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path).strip("-.")[-60:]
    scratch = os.environ.get("NTK_JAX_SCRATCH") or Path.home() / ".cache" / "ntk_jax" / "runs"
    digest = hashlib.sha256(_address(out).encode()).hexdigest()[:8]
    return Path(scratch).absolute() / f"{name}-{digest}{'.' if shard else ''}{shard}"


def file_system(url: str) -> tuple[Any, str]:
    """(the fsspec file system, the path in it) of an address. Raises UserError: a package is missing."""
    # Plain buckets are meant. gcsfs would ask of every bucket whether it is one, by another API (gRPC) that not every
    # network and no emulator lets through. It reads this when it is imported.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec

        # What others write must be seen: no listings from memory, and none shared with other users of the library.
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError:
        package = PACKAGES[url.partition("://")[0]]
        raise UserError(f"{url} needs the package {package}; pip install 'ntk_jax[buckets]'") from None
    return fs, root.rstrip("/")


def look_at(url: str) -> int:
    """How many objects a run directory in a bucket has; it can be read and written. Raises UserError and TryAgain as
    `opened`."""
    url = _address(url)
    with _explained(url):
        fs, root = file_system(url)
        count = len(objects(fs, root))
        probe = f"{root}/{FOLDER}/probe-{uuid.uuid4().hex}"  # beside the leases, and none for want of a dot
        fs.pipe_file(probe, b"probe")
        fs.cat_file(probe)
        fs.rm_file(probe)
        return count


@contextlib.contextmanager
def opened(url: str, shard: str = "") -> Iterator[Mirror]:
    """Holds a run directory in a bucket, for this process alone or for one shard, with its working copy up to date.

    Raises UserError: there is something to put right. TryAgain: others hold it, or the bucket cannot be reached.
    """
    url = _address(url)
    if hosts.is_distributed():
        raise UserError(
            f"{url}: several processes with one mesh need a run directory on a file system that all of them see; give "
            "such an --out, or run shards"
        )
    folder = run_folder(url, shard)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_in_the_users_words(url, folder))
        with _explained(url):
            fs, root = file_system(url)
            objects(fs, root)  # a mistake in the address or the credentials shows here
            stack.enter_context(lock(folder))
            mirror = recall(url, folder, fs, root)
            lease = Lease(shard or WHOLE, holder(mirror.identity, mirror.folder / ".lock"))
            token = stack.enter_context(held(fs, root, url, lease, lambda: _lost(url)))
            mirror.check = lambda: is_held(fs, root, lease, token) or _lost(url)
            pull(mirror)
        if shard:  # `shards_asked` reads it, here and where the shards are merged
            signature = f"{os.getpid()} on {os.uname().nodename}\n"
            atomic.write_text(atomic.make_folder(folder / SHARDS) / shard, signature)
        stack.enter_context(_pushed_meanwhile(mirror))
        stack.enter_context(_ended_in_order())
        yield mirror


@contextlib.contextmanager
def starting(mirror: Mirror, stage: str) -> Iterator[None]:
    """Lets the shards of a directory write what they share (config, provenance, fingerprint) one after the other."""
    lease = Lease(STARTING, holder(mirror.identity, mirror.folder / ".lock"))
    with held(mirror.fs, mirror.root, mirror.url, lease, lambda: _lost(mirror.url), wait=True):
        fetch_changed(mirror, ("config.yaml", "provenance.json", f"{stage}/fingerprint.json", f"{stage}/manifest.json"))
        yield
        push_all(mirror)


def push_all(mirror: Mirror) -> None:
    """`push`, again and again if need be. Raises TryAgain: the bucket could not be reached for PATIENCE_SECONDS."""
    until, pause, said = time.monotonic() + PATIENCE_SECONDS, 1.0, False
    while True:
        try:
            push(mirror)
            return
        except (UserError, TryAgain):
            raise
        except Exception as error:
            if time.monotonic() + pause > until:
                raise TryAgain(
                    f"{mirror.url} cannot be written ({_gist(error)}); the working copy {mirror.folder} keeps "
                    "everything, and the same command on this machine goes on from there"
                ) from error
            if not said:
                say(f"{mirror.url} cannot be written ({_gist(error)}); trying for {PATIENCE_SECONDS:.0f} s")
            said = True
        time.sleep(pause)
        pause = min(2 * pause, SLOWEST_SECONDS)


@contextlib.contextmanager
def _pushed_meanwhile(mirror: Mirror) -> Iterator[None]:
    """Pushes every few seconds, and at the end, however it comes."""
    ended = threading.Event()

    def now_and_then() -> None:
        pause = PUSH_SECONDS
        while not ended.wait(pause):
            try:
                push(mirror)
                if pause > PUSH_SECONDS:
                    say(f"{mirror.url} can be written again")
                pause = PUSH_SECONDS
            except Exception as error:
                if pause == PUSH_SECONDS:
                    ours = isinstance(error, (UserError, TryAgain))
                    what = str(error) if ours else f"{mirror.url} cannot be written ({_gist(error)})"
                    say(f"{what}; the run goes on, and tries again")
                pause = min(2 * pause, SLOWEST_SECONDS)

    thread = threading.Thread(target=now_and_then, daemon=True, name="push")
    thread.start()
    try:
        yield
    except BaseException:
        ended.set()
        with contextlib.suppress(Exception):  # the error that is under way is the one to tell
            push(mirror)
        raise
    else:
        ended.set()
        push_all(mirror)
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM, by which a machine that is about to be taken away says so, ends the run as an interruption from the
    keyboard does: with a last push."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- what to say -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns what a store raises into one line."""
    try:
        yield
    except Exception as error:
        module = type(error).__module__.partition(".")[0]
        if isinstance(error, (UserError, TryAgain)) or not (isinstance(error, OSError) or module in _STORES):
            raise
        refused = (
            isinstance(error, (PermissionError, FileNotFoundError))
            or type(error).__name__ in _REFUSALS
            or getattr(error, "code", None) in (400, 401, 403, 404)
            or str(error).startswith("Forbidden")
        )
        if refused:
            raise UserError(
                f"{url} cannot be used ({_gist(error)}); correct the bucket's name, the credentials or their "
                "permissions (list, read, write and delete)"
            ) from error
        raise TryAgain(f"{url} cannot be reached ({_gist(error)}); the same command again goes on") from error


def _gist(error: BaseException) -> str:
    text = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def _in_the_users_words(url: str, folder: Path) -> Iterator[None]:
    """In the messages of the stages, the address that the user typed stands for the working copy; but not where they
    speak of its disk, or of a damaged file, for that of the bucket may be whole."""
    try:
        yield
    except UserError as error:
        text = str(error)
        if str(folder) not in text or re.match("cannot write |the working copy ", text):
            raise
        text = text.replace(str(folder), url)
        damaged = _DAMAGED.search(text)
        if damaged:
            there = f"if it is damaged there too, {damaged['remedy']}"
            text = f"{text[: damaged.start()]}delete the working copy {folder}, for the bucket may be intact; {there}"
            raise UserError(text) from error
        raise UserError(f"{text} (working copy: {folder})") from error


def _lost(url: str) -> NoReturn:
    """Ends this process at once: nothing is written any more."""
    hosts.end_now(
        f"{url} was taken over by another process, because this one did not renew its lease for {STALE_SECONDS:.0f} s "
        "(was it suspended, or the network away?); this one ends, the other goes on"
    )
