"""The main text of HTML pages, taken out in a process of its own that is killed when a page takes too long.

Extractors are native code that some pages hang, and no signal handler or guard of Python interrupts native code. So
the kernel ends the process after so much CPU time for a page: CPU time, so that a busy machine drops no other pages
than an idle one. A page that waits rather than computes is ended by the clock, after ten times that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import ntk_jax
from ntk_jax.errors import UserError
from ntk_jax.mining.corpus.extract_worker import LENGTH, SIZES

NEEDS = {  # modules, extras
    "resiliparse": (["resiliparse"], "crawl"),
    "trafilatura": (["trafilatura", "resiliparse"], "trafilatura,crawl"),
}
_WORKER = "ntk_jax.mining.corpus.extract_worker"
_START = 120.0  # seconds that a worker may take to begin, on a machine with much else to do
_RUNS = 3  # of a page whose worker could not even begin


def check_extractor(kind: str) -> None:
    """Raises UserError: there is no such extractor, or its library is not installed."""
    if kind not in NEEDS:
        raise UserError(f"no extractor is called {kind}; there are: {', '.join(NEEDS)}")
    modules, extra = NEEDS[kind]
    if any(importlib.util.find_spec(module) is None for module in modules):
        raise UserError(f"the extractor {kind} needs the extra {extra}; install it: pip install 'ntk_jax[{extra}]'")


@dataclass(frozen=True)
class Extracted:
    """text, title: what the page says. encoding: how its bytes were read. failure: why there is no text (`timeout`,
    `crashed`, `extractor_error`, `no_main_text`), with `detail`."""

    text: str = ""
    title: str = ""
    encoding: str = ""
    failure: str | None = None
    detail: str = ""


class Extractor:
    """A worker process that takes pages one after the other; used in a `with`.

    Args:
        kind: `resiliparse` (fast) or `trafilatura` (slower, other pages).
        seconds: of CPU that a page may take.
        recycle: pages after which the worker is replaced, so that what it leaks does not pile up.

    The worker starts with the first page. Raises UserError: the library is not installed, or workers do not start.
    """

    def __init__(self, kind: str = "resiliparse", *, seconds: float = 5.0, recycle: int = 2000) -> None:
        self.kind, self.seconds, self.recycle = kind, seconds, recycle
        self.process: subprocess.Popen[bytes] | None = None
        self.pages = 0

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def extract(self, page: bytes, charset: str | None = None) -> Extracted:
        """The main text of one page. charset: as its server named it, if it did."""
        if self.pages >= self.recycle:
            self.close()
        process = self.process or self._start()
        self.pages += 1
        deadline = time.monotonic() + 10 * self.seconds
        answer = _ask(process, page, charset, deadline)
        if answer is not None:
            return Extracted(**json.loads(answer))
        late = time.monotonic() >= deadline
        code = self.close(0.0 if late else 5.0)
        if late or code == -signal.SIGPROF:
            return Extracted(failure="timeout", detail=f"more than {self.seconds:g} s")
        return Extracted(failure="crashed", detail=f"the extractor ended with {code}")

    def close(self, patience: float = 0.0) -> int:
        """Ends the worker, after so many seconds in which it may end by itself; its exit status."""
        process, self.process, self.pages = self.process, None, 0
        if process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        return process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        """Starts a worker and waits until it has loaded its library, so that the time of a page is the page's."""
        check_extractor(self.kind)
        home = str(Path(ntk_jax.__file__).parent.parent)
        paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        for _ in range(_RUNS):
            self.process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, self.kind, repr(self.seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": paths},
            )
            assert self.process.stdin
            os.set_blocking(self.process.stdin.fileno(), False)
            if _receive(self.process, time.monotonic() + _START) == b"ready":
                return self.process
            self.close()
        raise UserError(f"the extractor {self.kind} does not start; try: {sys.executable} -m {_WORKER} {self.kind} 5")


def _ask(process: subprocess.Popen[bytes], page: bytes, charset: str | None, deadline: float) -> bytes | None:
    """What the worker answers; None where it ended, or did not by the deadline."""
    name = (charset or "").encode("utf8", "replace")
    left = memoryview(SIZES.pack(len(name), len(page)) + name + page)
    assert process.stdin
    while left:
        if not _ready(process.stdin, selectors.EVENT_WRITE, deadline):
            return None
        try:
            left = left[os.write(process.stdin.fileno(), left[:65536]) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            return None
    return _receive(process, deadline)


def _ready(pipe: IO[bytes], event: int, deadline: float) -> bool:
    """Whether it can be read or written before the deadline. `select.select` knows no descriptor above 1,023, which a
    process with many open stores has."""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, event)
        return bool(selector.select(max(deadline - time.monotonic(), 0)))


def _receive(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """One answer: its length, and so many bytes."""
    assert process.stdout
    found, want = bytearray(), LENGTH.size
    while len(found) < want:
        if not _ready(process.stdout, selectors.EVENT_READ, deadline):
            return None
        piece = os.read(process.stdout.fileno(), 1 << 20)
        if not piece:
            return None
        found += piece
        if want == LENGTH.size and len(found) >= want:
            want += LENGTH.unpack_from(found)[0]
    return bytes(found[LENGTH.size :])
