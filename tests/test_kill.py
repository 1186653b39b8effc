"""Real SIGKILLs at random moments of a real process, by the script that shows it for the quickstart."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import tiny_run_config, write_config, write_inputs

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_kills_leave_the_same_bytes(tmp_path):
    write_inputs(tmp_path)
    config = write_config(tmp_path, tiny_run_config(tmp_path))
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_resume.py", config, "--kills", "10", "--out", tmp_path / "check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"10 kills over \d+ run\(s\), results identical", result.stdout), result.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sketches_killed_twice_have_the_same_bytes(tmp_path):
    write_inputs(tmp_path)
    config = write_config(tmp_path, tiny_run_config(tmp_path, select={"methods": ["sketch"]}))
    script, out = ROOT / "scripts" / "check_sketch_resume.py", tmp_path / "check"
    result = subprocess.run(
        [sys.executable, script, config, "--examples", "300", "--kills", "2", "--out", out],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"[12] kills, \d+ files, identical", result.stdout), result.stdout
