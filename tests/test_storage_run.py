"""The run directory: one process at a time, stages that resume, and what happens when the configuration changed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ntk_jax.errors import LONGEST, UserError
from ntk_jax.storage.run import begin, commit, lock, look, read_manifest, verify

ROOT = Path(__file__).resolve().parent.parent
FINGERPRINT = {"seed": 0, "score": {"objective": "sum_logits", "span": "response"}, "files": ["a", "b"], "limit": None}

HOLDER = """
import sys
from ntk_jax.storage.run import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError) as error, lock(run):
            pass
        assert str(error.value) == (
            f"{run} is in use by another process (id {holder.pid}); wait until it ends, or give another folder"
        )
        os.kill(holder.pid, signal.SIGKILL)
        assert holder.wait() == -signal.SIGKILL
    with lock(run):
        assert (run / ".lock").read_text() == f"{os.getpid()}\n"
    with lock(run):
        pass


def test_a_lock_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(tmp_path):
        raise ZeroDivisionError
    with lock(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, mode: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match="cannot be locked .No locks available.; mount the file system with locks"),
        lock(tmp_path),
    ):
        pass


def test_a_run_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file is a file, but a folder is needed there"), lock(tmp_path / "file"):
        pass


def test_the_life_of_a_stage(tmp_path: Path) -> None:
    stage = tmp_path / "score"
    assert read_manifest(stage) is None
    assert begin(stage, FINGERPRINT) == "new"
    assert begin(stage, FINGERPRINT) == "resume"
    commit(stage, FINGERPRINT, {"rows": 3})
    assert begin(stage, FINGERPRINT) == "done"
    manifest = read_manifest(stage)
    assert manifest == {"schema": 3, "fingerprint": FINGERPRINT, "facts": {"rows": 3}}
    before = (stage / "manifest.json").read_bytes()
    commit(stage, FINGERPRINT, {"rows": 3})
    assert (stage / "manifest.json").read_bytes() == before  # no time and no process in it


def test_checksums_find_what_changed(tmp_path: Path) -> None:
    stage = tmp_path / "finetune"
    begin(stage, FINGERPRINT)
    (stage / "adapter").mkdir()
    (stage / "adapter" / "weights").write_bytes(b"1234")
    (stage / "scores.zarr").mkdir()
    (stage / "scores.zarr" / "chunk").write_bytes(b"has its own checksum")
    commit(stage, FINGERPRINT, {})
    verify(stage)
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=stage, capture_output=True, check=True)
    assert "zarr" not in (stage / "SHA256SUMS").read_text()

    (stage / "adapter" / "weights").write_bytes(b"1235")
    with pytest.raises(UserError, match=r"adapter/weights is not as its stage wrote it .*delete the folder"):
        verify(stage)
    (stage / "adapter" / "weights").unlink()
    with pytest.raises(UserError, match=r"adapter/weights is gone; restore it, or delete the folder"):
        verify(stage)
    (stage / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=r"SHA256SUMS is gone"):
        verify(stage)


def test_a_tuple_or_a_path_in_a_fingerprint_is_no_difference(tmp_path: Path) -> None:
    assert begin(tmp_path, {"files": ("a", "b"), "path": Path("x")}) == "new"
    assert begin(tmp_path, {"files": ["a", "b"], "path": "x"}) == "resume"
    assert begin(tmp_path, {"files": ("a", "b"), "path": Path("x")}) == "resume"


@pytest.mark.parametrize("finished", [False, True])
def test_a_change_is_named(tmp_path: Path, finished: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = Path("stage")
    stage.mkdir()
    begin(stage, FINGERPRINT)
    if finished:
        commit(stage, FINGERPRINT, {})
    before = {path.name: path.read_bytes() for path in stage.iterdir()}
    changed: dict[str, Any] = json.loads(json.dumps(FINGERPRINT)) | {"seed": 1, "extra": True}
    changed["score"]["objective"] = "probe"
    del changed["limit"]
    with pytest.raises(UserError) as error:
        begin(stage, changed)
    assert str(error.value) == (
        "stage was made from something else: extra was absent, is now true; limit was null, is now absent;"
        ' score.objective was "sum_logits", is now "probe"; seed was 0, is now 1;'
        " give another folder, or delete that folder to compute the stage anew"
    )
    assert {path.name: path.read_bytes() for path in stage.iterdir()} == before


def test_many_changes_are_named_without_values_as_far_as_a_line_goes(tmp_path: Path) -> None:
    old = {f"input.pool./a/long/path/to/somewhere/with/the/file_{n}.jsonl": n for n in range(40)}
    few = {"score.objective": "a" * 40, "score.span": "b" * 40, "seed": 1, "model.path": "c" * 40}
    for fingerprint, said in (
        (few, "score.span is another; seed is another; give"),
        (old, "more; give another folder"),
    ):
        folder = tmp_path / str(len(fingerprint))
        folder.mkdir()
        begin(folder, fingerprint)
        with pytest.raises(UserError) as error:
            begin(folder, {key: f"{value}!" for key, value in fingerprint.items()})
        assert said in str(error.value) and str(error.value).endswith("delete that folder to compute the stage anew")
        assert len(str(error.value)) <= LONGEST


def test_true_is_not_one(tmp_path: Path) -> None:
    begin(tmp_path, {"merge": 1})
    with pytest.raises(UserError, match="merge was 1, is now true"):
        begin(tmp_path, {"merge": True})


def test_what_is_only_shown_opens_a_stage_again(tmp_path: Path) -> None:
    shown = {"report.examples": 2}
    assert begin(tmp_path, FINGERPRINT, shown) == "new"
    commit(tmp_path, FINGERPRINT, {}, shown)
    assert look(tmp_path, FINGERPRINT, shown) == "done"
    other = {"report.examples": 3}
    assert look(tmp_path, FINGERPRINT, other) == "refresh"
    assert begin(tmp_path, FINGERPRINT, other) == "refresh" and read_manifest(tmp_path) is None
    assert look(tmp_path, FINGERPRINT, other) == "resume"


def test_what_keeps_more_than_is_asked_for_will_do(tmp_path: Path) -> None:
    kept = {"less.checkpoints": 2}
    assert begin(tmp_path, FINGERPRINT, None, kept) == "new"
    commit(tmp_path, FINGERPRINT, {}, None, kept)
    assert look(tmp_path, FINGERPRINT, None, kept) == look(tmp_path, FINGERPRINT) == "done"
    with pytest.raises(UserError, match="less.checkpoints was 2, is now 3"):
        look(tmp_path, FINGERPRINT, None, {"less.checkpoints": 3})
    with pytest.raises(UserError, match="momentum was absent, is now true"):
        look(tmp_path, FINGERPRINT, None, {**kept, "momentum": True})


def test_what_went_on_without_keeping_something_does_not_have_it(tmp_path: Path) -> None:
    kept = {"less.checkpoints": 2}
    begin(tmp_path, FINGERPRINT, None, kept)
    assert begin(tmp_path, FINGERPRINT) == "resume"
    with pytest.raises(UserError, match="less.checkpoints was absent, is now 2"):
        begin(tmp_path, FINGERPRINT, None, kept)


def test_of_parts_there_can_be_more_and_fewer_and_each_stays_as_it_was(tmp_path: Path) -> None:
    a, b = {"input.a": "1"}, {"input.b": "2"}
    shown = [{"arms": [*names]} for names in ("a", "ab", "b")]
    assert begin(tmp_path, FINGERPRINT, shown[0], None, a) == "new"
    commit(tmp_path, FINGERPRINT, {}, shown[0], None, a)
    assert look(tmp_path, FINGERPRINT, shown[0], None, a) == "done"
    for names, parts in ((shown[1], a | b), (shown[2], b)):
        assert begin(tmp_path, FINGERPRINT, names, None, parts) == "refresh"
        commit(tmp_path, FINGERPRINT, {}, names, None, parts)
    for other in ({"input.a": "9"}, a | {"input.b": "9"}):  # `a` was left out, and what was made of it lies here
        with pytest.raises(UserError, match=r'input.[ab] was "[12]", is now "9"'):
            look(tmp_path, FINGERPRINT, shown[1], None, other)
    assert look(tmp_path, FINGERPRINT, shown[2], None, a | b) == "done"
    with pytest.raises(UserError, match='input.a was "1", is now absent'):  # a stage that is decided by it as a whole
        begin(tmp_path / "whole", FINGERPRINT | a)
        look(tmp_path / "whole", FINGERPRINT, None, None, b)


def test_damaged_or_foreign_manifests(tmp_path: Path) -> None:
    begin(tmp_path, FINGERPRINT)
    manifest = tmp_path / "manifest.json"
    for content, message in (
        ("{", "manifest.json is damaged, it is not JSON"),
        ("[]", "manifest.json is damaged, it holds no fingerprint; delete the folder"),
        ('{"schema": 3, "fingerprint": {}, "kept": null}', "manifest.json is damaged, it holds no fingerprint"),
        ('{"schema": 3, "fingerprint": {}, "parts": []}', "manifest.json is damaged, it holds no fingerprint"),
        ('{"schema": 9, "fingerprint": {}}', "was written in format 9, this version writes 3; give another folder"),
    ):
        manifest.write_text(content)
        with pytest.raises(UserError) as error:
            begin(tmp_path, FINGERPRINT)
        assert message in str(error.value)


STAGE = """
import os, signal, sys
import numpy as np
from ntk_jax.storage import arrays, atomic
from ntk_jax.storage.run import begin, commit, lock
fsync, replace, calls = os.fsync, os.replace, 0
write_key, write_mark = arrays._write_key, arrays._write_mark
def write(folder, step):
    def dying(original):
        def call(*args, **options):
            global calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)
        return call
    os.fsync, os.replace = dying(fsync), dying(replace)
    arrays._write_key, arrays._write_mark = dying(write_key), dying(write_mark)
    fingerprint = {"seed": 0}
    with lock(folder):
        stage = folder + "/score"
        if begin(stage, fingerprint) != "done":
            store = arrays.create(stage + "/scores.zarr", {"score": ((), "float32")}, rows=5, block_rows=2)
            for block in sorted(set(range(store.blocks)) - arrays.done_blocks(store)):
                start, stop = store.block_range(block)
                arrays.write_block(store, block, {"score": np.arange(start, stop)})
            atomic.write_lines(stage + "/selection.jsonl", map(str, arrays.read(store, "score")))
            commit(stage, fingerprint, {})
for order in sys.argv[1:]:  # a process each, forked from this one, which has only imported
    folder, step = order.rsplit(":", 1)
    child = os.fork()
    if child == 0:
        write(folder, int(step))
        print(calls, flush=True)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGKILL if step != "0" else 0), (order, status)
"""


def test_kill_9_at_every_step_of_a_stage_changes_nothing(tmp_path: Path) -> None:
    def run(*orders: tuple[Path, int]) -> list[int]:
        """The steps of each order (folder, the step to die at; 0: none) that ended by itself."""
        command = [sys.executable, "-c", STAGE, *(f"{folder}:{step}" for folder, step in orders)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [int(line) for line in done.stdout.split()]

    def contents(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != ".lock"
        }

    (steps,) = run((tmp_path / "whole", 0))
    assert steps == 16  # four files of three steps each, three markers and the store's own description
    expected = contents(tmp_path / "whole")
    moments = range(1, steps + 1)
    run(*((tmp_path / str(step), moment) for step in moments for moment in (step, 0)))
    for step in moments:
        folder = tmp_path / str(step)
        assert contents(folder) == expected, f"killed at step {step}"
