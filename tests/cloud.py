"""A bucket in memory, as much of an fsspec file system as `storage/` asks for, that fails when it is told to."""

from __future__ import annotations

import base64
import datetime
import hashlib
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Died(Exception):
    """The machine that wrote is gone; nothing it does after that reaches the bucket."""


class Cloud:
    """objects: path -> (bytes, generation). md5: whether listings tell the MD5. before: called with (verb, path) before
    every request, and may raise; `died` is set by one that never lets another through."""

    def __init__(self, md5: bool = True) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.md5 = md5
        self.before: Callable[[str, str], None] = lambda verb, path: None
        self.log: list[tuple[str, str]] = []
        self._count, self._turn = itertools.count(1), threading.RLock()

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
        return {path.removeprefix(root + "/") for path in self.objects if path.startswith(root + "/")}

    # -- what fsspec has ---------------------------------------------------------------------------------------------

    def invalidate_cache(self, path: str | None = None) -> None:
        pass

    def _request(self, verb: str, path: str) -> None:
        with self._turn:
            self.before(verb, path)
            self.log.append((verb, path))

    def _describe(self, path: str) -> dict[str, Any]:
        data, generation = self.objects[path]
        described = {"name": path, "type": "file", "size": len(data), "generation": str(generation)}
        if self.md5:
            described["md5Hash"] = base64.b64encode(hashlib.md5(data).digest()).decode()
        return described

    def find(self, root: str, detail: bool = False) -> dict[str, dict[str, Any]]:
        self._request("find", root)
        with self._turn:
            return {path: self._describe(path) for path in sorted(self.objects) if path.startswith(root + "/")}

    def info(self, path: str) -> dict[str, Any]:
        self._request("info", path)
        with self._turn:
            if path not in self.objects:
                raise FileNotFoundError(path)
            return self._describe(path)

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.objects[path][1], datetime.UTC)

    def pipe_file(self, path: str, data: bytes) -> None:
        self._request("put", path)
        with self._turn:
            self.objects[path] = (data, next(self._count))

    def put_file(self, local: str, path: str) -> None:
        self.pipe_file(path, Path(local).read_bytes())

    def cat_file(self, path: str) -> bytes:
        self._request("get", path)
        with self._turn:
            if path not in self.objects:
                raise FileNotFoundError(path)
            return self.objects[path][0]

    def get_file(self, path: str, local: str) -> None:
        Path(local).write_bytes(self.cat_file(path))

    def rm_file(self, path: str) -> None:
        self._request("rm", path)
        with self._turn:
            self.objects.pop(path, None)
