"""The flag that keeps XLA's sums exact on the CPU, the check that it came in time, and the compilation cache."""

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


CACHE = """
import jax
from ntk_jax.xla import keep_compiled
PRETEND
keep_compiled()
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: (x * 3).sum())(jax.numpy.ones(7)).block_until_ready()
print(jax.config.jax_compilation_cache_dir, "/jax/compilation_cache/cache_hits" in hits)
"""


def test_compiled_programs_are_kept_on_an_accelerator(tmp_path: Path) -> None:
    """The second process finds what the first compiled; on a CPU, and where the user says so, nothing is kept."""
    as_on_gpu = CACHE.replace("PRETEND", "jax.default_backend = lambda: 'gpu'")
    own = tmp_path / "ntk_jax" / "compiled"
    for hit in (False, True):
        done = python(as_on_gpu, XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR="")
        assert done.stdout.split() == [str(own), str(hit)], done.stderr
    done = python(as_on_gpu, XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert done.stdout.split() == [str(tmp_path / "mine"), "False"], done.stderr
    done = python(CACHE.replace("PRETEND", ""), XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR="")
    assert done.stdout.split()[-1] == "False" and str(own) not in done.stdout, done.stderr
