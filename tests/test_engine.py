"""The engine, by a pipeline that it does not know: one folder and one line, and everything works for it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ntk_jax.engine import clock
from ntk_jax.engine.clock import Clock

MORE = Path(__file__).resolve().parent / "more_pipelines"
spec = importlib.util.spec_from_file_location("more_pipelines_main", MORE / "__main__.py")
assert spec and spec.loader
more = importlib.util.module_from_spec(spec)
spec.loader.exec_module(more)

TEXT = [f"line {'abc' * n}" for n in range(23)]  # 4 letters and 3 n
LETTERS = sum(4 + 3 * n for n in range(23))


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text("\n".join(TEXT))
    path = tmp_path / "toy.yaml"
    path.write_text(
        json.dumps({"pipeline": "toy", "out": str(tmp_path / "out"), "toy": {"file": f"{tmp_path}/text.txt"}})
    )
    return str(path)


def files(folder: Path) -> dict[str, bytes]:
    """The results: no times, no locks, no page."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for stage in ("count", "add")
        for path in (folder / stage).rglob("*")
        if path.is_file() and not path.name.endswith(".__lock")
    }


def test_a_run_its_report_and_its_help(config, tmp_path, capsys):
    assert more.main(["toy", config]) == 0
    assert f"{LETTERS} letters" in capsys.readouterr().out
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "Letters" in page and str(LETTERS) in page and "Counting" in page
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert [stage["name"] for stage in plan["pipelines"]["toy"]["stages"]] == ["count", "add"]
    assert more.main(["toy", config]) == 0  # done before
    assert more.main(["report", config]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        more.main(["toy", "--help"])
    assert re.search(r"toy\.block_lines = 4 ", capsys.readouterr().out)
    assert more.main(["help", "toy.pause"]) == 0
    assert "seconds that a block takes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        more.main(["count", "--help"])
    assert "--shard i/n" in capsys.readouterr().out


def test_estimate_and_doctor(config, capsys):
    assert more.main(["estimate", config]) == 0
    out = capsys.readouterr().out
    assert re.search(r"count +23 +23 +23\.0 k", out) and "letters of each line" in out
    assert more.main(["doctor", config]) == 0
    assert re.search(r"ok +toy\.file +23 lines", capsys.readouterr().out)


def test_mistakes(config, tmp_path, capsys):
    for arguments, message in (
        (["toy", config, "--toy.fil=x"], "unknown key toy.fil; did you mean toy.file?"),
        (["toy", config, "--toy.file=''"], "toy.file is not set; give a text file"),
        (["add", config], "stage add needs stage count, which is not done"),
        (["run", config], "is for pipeline toy; type `ntk-jax toy "),
    ):
        assert more.main(arguments) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("")
    assert more.main(["toy", config]) == 2
    assert "is empty; give a text with lines" in capsys.readouterr().err
    assert not (tmp_path / "out" / "count").exists(), "said before anything is written"


def test_shards_and_their_merge_have_the_bytes_of_one_process(config, tmp_path, capsys):
    assert more.main(["toy", config]) == 0
    out = ["--out", str(tmp_path / "shards")]
    for index in (2, 0, 1):
        assert more.main(["count", config, *out, "--shard", f"{index}/3"]) == 0
    assert "6 of 6 blocks of letters.zarr are there; close the stage with --merge" in capsys.readouterr().out
    assert more.main(["count", config, *out, "--merge"]) == 0
    assert more.main(["add", config, *out]) == 0
    assert files(tmp_path / "shards") == files(tmp_path / "out")


def test_killed_in_a_block_it_goes_on_to_the_same_bytes(config, tmp_path):
    assert more.main(["toy", config]) == 0
    out = tmp_path / "killed"
    command = [sys.executable, str(MORE), "toy", config, "--out", str(out), "--toy.pause=0.5"]
    environment = {**os.environ, "PYTHONPATH": str(MORE.parent.parent)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 100
    while not list((out / "count").glob("letters.zarr/done/c/*")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    done = len(list((out / "count").glob("letters.zarr/done/c/*")))
    assert 1 <= done < 6 and not (out / "count" / "manifest.json").exists()
    assert more.main(["toy", config, "--out", str(out)]) == 0
    assert files(out) == files(tmp_path / "out")


def test_seconds_add_up_over_starts(tmp_path):
    now = [0.0]
    first = Clock(tmp_path, "score", now=lambda: now[0])
    tick = first.ticking(lambda *_: None)
    for now[0] in (1.0, 5.0, 5.5):
        tick(1, 2)  # renewed at 1 and 5; a kill at 5.5 would take half a second
    second = Clock(tmp_path, "score", now=lambda: now[0])
    now[0] = 7.5
    assert second.seconds() == 5.0 + 2.0
    next(p for p in (tmp_path / clock.FOLDER).rglob("*.json") if p.name != second._own).write_text("{")
    assert second.seconds() is None, "not known is not a number"
    clock.forget(tmp_path, "score")
    assert second.seconds() == 2.0
