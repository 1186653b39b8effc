"""The worked example of docs/kernels.md: it runs, and prints what the page says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def example_runner():
    spec = importlib.util.spec_from_file_location("run_example", ROOT / "scripts/run_example.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_page_runs_and_prints_what_it_says(tmp_path):
    """In a process of its own, compiled as users have it."""
    pytest.importorskip("matplotlib")
    (tmp_path / "docs/figures").mkdir(parents=True)  # figures go where the example is run
    command = [sys.executable, ROOT / "scripts/run_example.py", ROOT / "docs/kernels.md"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "docs/figures").iterdir()} == {"kernel.svg", "stability.svg"}
    for name in ("kernel.svg", "stability.svg"):
        assert (ROOT / "docs/figures" / name).exists()


def test_outputs_are_compared_number_by_number():
    alike = example_runner().alike
    assert alike("cosine 0.912, 1,024 rows", "cosine 0.930, 1,030 rows")
    assert not alike("cosine 0.91", "cosine 0.70") and not alike("error 0.01", "error 0.06")
    assert not alike("40 recipes", "40 captions")
