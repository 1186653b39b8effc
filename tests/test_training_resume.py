"""A training killed at any moment and started again ends with the same bits as one left alone."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest
import training_child as child
from kernel_reference import random_rows, tiny_model

from ntk_jax.errors import UserError
from ntk_jax.training.checkpoints import ABSL, Checkpoints, discard_checkpoints
from ntk_jax.training.train import train

Start = Callable[..., "subprocess.Popen[str]"]


class Killed(Exception):
    """Stands for the kill in the variants that stay in this process."""


def run_until(folder: Path, step: int) -> None:
    def progress(done: int, total: int, note: str) -> None:
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        child.run(folder, progress)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    return child.fingerprint(child.run(folder), folder)


def test_interrupted_anywhere(tmp_path: Path, undisturbed: str) -> None:
    for step in (1, 4, 5, 9, 17, 18):  # before the first checkpoint, at one, after one, at the very end
        run_until(tmp_path, step)
    seen: list[int] = []
    trained = child.run(tmp_path, lambda done, total, note: seen.append(done))
    assert child.fingerprint(trained, tmp_path) == undisturbed
    assert seen == [17, 18]  # it went on from the checkpoint of step 16
    assert [entry["step"] for entry in trained.history] == list(range(1, child.STEPS + 1))

    # Started once more, it has nothing left to do.
    again = child.run(tmp_path, lambda done, total, note: pytest.fail("trained a step twice"))
    assert child.fingerprint(again, tmp_path) == undisturbed


def test_saves_leave_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    """A training saves hundreds of times, and a process may have 1,024 descriptors."""

    def held() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    checkpoints, state, entries, before = Checkpoints(tmp_path, "key"), {"a": jnp.ones(4)}, [], (0, 0)
    for step in range(1, 5):
        entries.append({"step": step})
        checkpoints.save(step, state, entries)
        checkpoints._finish()
        before = before if step > 1 else held()
    assert all(now <= then for now, then in zip(held(), before, strict=True))
    checkpoints.close()


# The damaged file fails several reads at once; the checkpoint library looks at the first and drops the others.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path, undisturbed: str) -> None:
    run_until(tmp_path, 11)
    newest = tmp_path / "checkpoints" / "8"
    for file in newest.rglob("d/*"):
        file.write_bytes(b"not a checkpoint")
    # What a killed save leaves behind.
    shutil.copytree(tmp_path / "checkpoints" / "4", tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp")
    (tmp_path / "checkpoints" / "16").mkdir()  # and a killed deletion
    lines: list[int] = []

    def progress(done: int, total: int, note: str) -> None:
        lines.append(len((tmp_path / "history.jsonl").read_text().splitlines()))

    trained = child.run(tmp_path, progress)
    assert len(lines) == child.STEPS - 4 and lines[0] == 4  # the history was cut back to the checkpoint
    assert child.fingerprint(trained, tmp_path) == undisturbed
    gc.collect()  # the dropped reads complain when they are collected: here, and not in a later test


def test_checkpoint_without_its_history_is_not_used(tmp_path: Path, undisturbed: str) -> None:
    run_until(tmp_path, 11)
    history = tmp_path / "history.jsonl"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:6]))
    seen: list[int] = []
    trained = child.run(tmp_path, lambda done, total, note: seen.append(done))
    assert seen[0] == 5
    assert child.fingerprint(trained, tmp_path) == undisturbed


def test_checkpoints_of_another_training_are_refused(tmp_path: Path, undisturbed: str) -> None:
    run_until(tmp_path, 6)
    for changes in ({"seed": 4}, {"row_length": 64}):
        with pytest.raises(UserError, match="come from a training with other examples, settings, seed or adapter"):
            child.run(tmp_path, **changes)
    model, rows = tiny_model(), random_rows(24, seed=2)
    options = dict(folder=tmp_path, seed=3, row_length=32)
    for other in (
        (tiny_model(seed=1), rows, child.CONFIG),
        (model, [*rows[:-1], replace(rows[-1], id="another")], child.CONFIG),
        (model, rows, replace(child.CONFIG, learning_rate=1e-3)),
    ):
        with pytest.raises(UserError, match="come from a training"):
            train(*other, **options)  # type: ignore[arg-type]
    discard_checkpoints(tmp_path)
    assert child.fingerprint(child.run(tmp_path), tmp_path) == undisturbed


def test_failed_write_is_a_user_error_and_keeps_what_was_written(tmp_path: Path, undisturbed: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def progress(done: int, total: int, note: str) -> None:
        if done == 5:  # the checkpoint of step 4 is made; the next finds the disk "full"
            deadline = time.monotonic() + 60
            while not (tmp_path / "checkpoints" / "4").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))

    try:
        with pytest.raises(UserError, match="cannot write .*checkpoints: the file is larger than"):
            child.run(tmp_path, progress)
        assert ABSL.level == logging.CRITICAL  # orbax's threads print more when the process ends
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        ABSL.setLevel(logging.NOTSET)
    # Threads of the failed save may still write into what the next start clears away; a user's process has ended.
    until = time.monotonic() + 30
    while list(tmp_path.glob("checkpoints/*.orbax-checkpoint-tmp")) and time.monotonic() < until:
        for left in tmp_path.glob("checkpoints/*.orbax-checkpoint-tmp"):
            shutil.rmtree(left, ignore_errors=True)
        time.sleep(0.05)
    seen: list[int] = []
    trained = child.run(tmp_path, lambda done, total, note: seen.append(done))
    assert seen[0] == 5
    assert child.fingerprint(trained, tmp_path) == undisturbed


# ---------------------------------------------------------------------------------------------------------------
# Real processes, really killed


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `training_child.py`; whatever still runs at the end of the test is ended."""
    root = Path(__file__).resolve().parent.parent
    paths = [str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")]
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, kill_at: int = 0) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(root / "tests" / "training_child.py"), str(folder), str(kill_at)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out.strip()


def expect_killed(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, err


@pytest.mark.slow
def test_killed_processes(tmp_path: Path, start: Start) -> None:
    expected = start(tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    # In the middle of writing a checkpoint, as near as can be hit from outside.
    process = start(folder)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if any((folder / "checkpoints").glob("*")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    expect_killed(process)
    # After a step, by its own hand, with a save still under way.
    expect_killed(start(folder, kill_at=9))
    assert finish(start(folder)) == finish(expected)
    steps = [json.loads(line)["step"] for line in (folder / "history.jsonl").read_text().splitlines()]
    assert steps == list(range(1, child.STEPS + 1))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_moments(tmp_path: Path, start: Start) -> None:
    begun = time.monotonic()
    expected = finish(start(tmp_path / "undisturbed"))
    length = time.monotonic() - begun
    moments = random.Random(0)
    for number in range(10):
        folder = tmp_path / str(number)
        process = start(folder)
        time.sleep(moments.uniform(0.3, 1.0) * length)
        process.kill()
        process.communicate()
        assert finish(start(folder)) == expected
