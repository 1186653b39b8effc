"""A bucket in memory, as much of an fsspec file system as `storage/` asks for, that fails on demand; and a stage."""

from __future__ import annotations

import datetime
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntk_jax.storage import arrays, atomic, bucket, lease, mirror
from ntk_jax.storage.run import begin, commit, verify

URL = "gs://bucket/run"
PLACE = "bucket/run"
FINGERPRINT = {"seed": 0}


class Died(Exception):
    """The machine that wrote is gone; nothing it does after that reaches the bucket."""


class Cloud:
    """objects: path -> (bytes, generation). before: called with (verb, path) before every request, and may raise."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.before: Callable[[str, str], None] = lambda verb, path: None
        self.log: list[tuple[str, str]] = []
        self._count, self._mutex = itertools.count(1), threading.RLock()

    def die_after(self, writes: int) -> None:
        """Lets that many changes through and then nothing more; leases do not count."""
        left = itertools.count(writes, -1)

        def before(verb: str, path: str) -> None:
            if verb in ("put", "rm") and "/.leases/" not in path and next(left) <= 0:
                self.before = dead
            self.before(verb, path) if self.before is dead else None

        def dead(verb: str, path: str) -> None:
            raise Died

        self.before = before

    def names(self, root: str) -> set[str]:
        """What is in a run directory; leases do not count."""
        found = {path.removeprefix(root + "/") for path in self.objects if path.startswith(root + "/")}
        return {name for name in found if not name.startswith(".leases/")}

    # -- what fsspec has ---------------------------------------------------------------------------------------------

    def invalidate_cache(self, path: str | None = None) -> None:
        pass

    def _request(self, verb: str, path: str) -> None:
        with self._mutex:
            self.before(verb, path)
            self.log.append((verb, path))

    def _describe(self, path: str) -> dict[str, Any]:
        data, generation = self.objects[path]
        return {"name": path, "type": "file", "size": len(data), "generation": str(generation)}

    def find(self, root: str, detail: bool = False) -> dict[str, dict[str, Any]]:
        self._request("find", root)
        with self._mutex:
            return {path: self._describe(path) for path in sorted(self.objects) if path.startswith(root + "/")}

    def info(self, path: str) -> dict[str, Any]:
        self._request("info", path)
        with self._mutex:
            if path not in self.objects:
                raise FileNotFoundError(path)
            return self._describe(path)

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.objects[path][1], datetime.UTC)

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        self._request("put", path)
        with self._mutex:
            if mode == "create" and path in self.objects:
                raise FileExistsError(path)
            self.objects[path] = (data, next(self._count))

    def put_file(self, local: str, path: str) -> None:
        self.pipe_file(path, Path(local).read_bytes())

    def cat_file(self, path: str) -> bytes:
        self._request("get", path)
        with self._mutex:
            if path not in self.objects:
                raise FileNotFoundError(path)
            return self.objects[path][0]

    def get_file(self, path: str, local: str) -> None:
        Path(local).write_bytes(self.cat_file(path))

    def rm_file(self, path: str) -> None:
        self._request("rm", path)
        with self._mutex:
            self.objects.pop(path, None)


@pytest.fixture(name="cloud")
def bucket_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A bucket in memory behind gs://, an own folder for working copies, and time that passes quickly."""
    found = Cloud()
    monkeypatch.setattr(bucket, "file_system", lambda url: (found, url.partition("://")[2]))
    monkeypatch.setenv("NTK_JAX_SCRATCH", str(tmp_path / "scratch"))
    for name, seconds in {"RENEW": 0.05, "STALE": 0.6, "GRACE": 0.1, "LOOK": 0.02}.items():
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(bucket, "PUSH_SECONDS", 0.05)
    return found


def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int) -> None:
    """From now on this is another machine: with another disk."""
    monkeypatch.setenv("NTK_JAX_SCRATCH", str(tmp_path / f"scratch {number}"))


def folder_of(cloud: Cloud, place: Path) -> mirror.Mirror:
    """A pulled copy of the bucket."""
    place.mkdir(parents=True, exist_ok=True)
    made = mirror.recall(URL, place, cloud, PLACE)
    mirror.pull(made)
    return made


def write(folder: Path, name: str, text: str) -> None:
    atomic.make_folder((folder / name).parent)
    atomic.write_text(folder / name, text)


def contents(folder: Path) -> dict[str, bytes]:
    """All results; a checkpoint may be left over, as after a kill between the last file of a stage and its deletion."""
    return {name: (folder / name).read_bytes() for name in mirror._files(folder) if "/checkpoints/" not in name}


def no_fault(verb: str, path: str) -> None:
    pass


def away(verb: str, path: str) -> None:
    if verb == "put" and "/.leases/" not in path:
        raise TimeoutError("the network is away")


def steps(folder: Path) -> Iterator[None]:
    """A stage like those of the pipelines: goes on from what is there, and yields wherever a push may strike."""
    stage = folder / "score"
    if begin(stage, FINGERPRINT) == "done":
        verify(stage)
        return
    yield
    atomic.write_text(folder / "config.yaml", "seed: 0\n")
    store = arrays.create(stage / "scores.zarr", {"x": ((2,), np.float32)}, 10, 2, {"seed": 0})
    yield
    for block in sorted(set(range(5)) - arrays.done_blocks(store)):
        start, stop = store.block_range(block)
        arrays.write_block(store, block, {"x": np.arange(2 * start, 2 * stop, dtype=np.float32).reshape(-1, 2)})
        yield
    place = atomic.make_folder(stage / "arm")
    if not (place / "summary.json").exists():  # as `arms.finetune` does
        for step in (1, 2):
            for name in ("data", "_CHECKPOINT_METADATA"):
                atomic.write_text(atomic.make_folder(stage / "checkpoints" / f"{step}") / name, f"{step}")
            if step == 2:
                for name in ("_CHECKPOINT_METADATA", "data"):
                    (stage / "checkpoints" / "1" / name).unlink(missing_ok=True)
            yield
        atomic.write_bytes(place / "weights", b"w" * 100)
        yield
        atomic.write_json(place / "summary.json", {"bytes": 100})
        yield
    assert (place / "weights").stat().st_size == json.loads((place / "summary.json").read_text())["bytes"]
    atomic.write_bytes(stage / "result", arrays.read(store, "x").tobytes())
    for path in sorted((stage / "checkpoints").glob("*/*")):
        path.unlink()
    yield
    commit(stage, FINGERPRINT, {"rows": 10})
    yield


def finished(folder: Path) -> dict[str, bytes]:
    for _ in steps(folder):
        pass
    return contents(folder)
