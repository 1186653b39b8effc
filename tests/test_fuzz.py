"""Mutated configs, checkpoints and run directories end in a result or in one short line, never in a traceback."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fuzzing
import pytest

SHARES = {"configs": 200, "checkpoints": 200, "runs": 100}  # cases of the default suite
MANY = 10_000  # cases of each kind in the slow one
# Cases that once ended in a traceback or in a message of several lines, by kind; each seed gives the same case again.
FAILED = {
    "configs": (0, 8, 43),
    "checkpoints": (130, 155, 214, 301, 328, 517, 558, 1530, 2421),
    "runs": (169, 500),
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
