"""Mutated configs, checkpoints and run directories end in a result or in one short line, never in a traceback."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fuzzing
import pytest

SHARES = {"configs": 60, "checkpoints": 60, "runs": 30}  # cases of the default suite
MANY = 10_000  # cases of each kind in the slow one
# Cases that once ended in a traceback or in a message too long or of several lines, by kind. While the mutations stay
# as they are, a seed gives the same case again; tests/files_found/runs.py has the plainest of them as texts.
FAILED = {
    "configs": (0, 3, 8, 32, 43, 86, 110, 129, 225, 257, 336, 391),
    "checkpoints": (1, 113, 130, 151, 155, 214, 301, 328, 349, 517, 558, 1530, 2421),
    "runs": (4, 28, 53, 57, 140, 164, 388, 2404, 2433, 3120, 3851, 5500, 7858, 438, 1063, 1729, 2582, 4054),
}


@pytest.fixture(scope="module", autouse=True)
def home() -> Iterator[None]:
    """Where the inputs are made, once for all children; in memory where that can be, for runs flush what they write."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        os.environ["NTK_JAX_FUZZ_HOME"] = folder
        yield
        del os.environ["NTK_JAX_FUZZ_HOME"]


@pytest.mark.parametrize("kind", SHARES)
def test_a_few_cases(kind: str) -> None:
    assert fuzzing.run_cases(kind, 0, SHARES[kind], FAILED[kind]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [*((kind, MANY) for kind in SHARES), ("whole_runs", 500)])
def test_many_cases(kind: str, count: int) -> None:
    assert fuzzing.run_cases(kind, 0, count) == []


def test_a_fault_is_found() -> None:
    """An exception, a long message, one of two lines, and a child that dies."""
    assert "ZeroDivisionError" in (fuzzing.fault(lambda _: 1 / 0, 0) or "")
    assert fuzzing.unclear("x" * 301) and fuzzing.unclear("two\nlines") and fuzzing.unclear("")
    assert fuzzing.unclear("one short line") is None
    found = fuzzing.run_cases("dies", 0, 3)
    assert len(found) == 1 and found[0].startswith("dies 1: the process ended with -6")
