"""The flag that keeps XLA's sums exact on the CPU, and the check that it came in time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh process without this one's XLA flags."""
    rest = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    rest |= {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], env=rest, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "before, after",
    [
        ("", f"{FLAG}="),
        ("--xla_cpu_enable_fast_math=false", f"--xla_cpu_enable_fast_math=false {FLAG}="),
        (f"{FLAG}=-reduce", f"{FLAG}=-reduce"),  # the user's word counts
    ],
)
def test_importing_the_package_sets_the_flag(before: str, after: str) -> None:
    done = python("import os, ntk_jax; print(os.environ['XLA_FLAGS'])", XLA_FLAGS=before)
    assert done.stdout.strip() == after, done.stderr


CHECK = "import ntk_jax; from ntk_jax.xla import refuse_wrong_sums; refuse_wrong_sums(); print('right')"


def test_sums_are_right_when_the_package_comes_first() -> None:
    done = python(CHECK)
    assert done.stdout.strip() == "right", done.stderr


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="earlier ones compute this victim right, with or without")
def test_too_late_is_refused() -> None:
    done = python("import jax; jax.numpy.ones(3) + 1; " + CHECK)
    assert "import ntk_jax before the first jax computation" in done.stderr
