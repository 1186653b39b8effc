"""A file is whole or absent, whatever happens between the steps of writing it."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntk_jax.errors import UserError
from ntk_jax.storage import atomic

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("open", "fsync", "replace", "fsync of the folder")


def fail_at(monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    """Makes one step of the next write fail."""
    fsync, replace = os.fsync, os.replace
    calls = []

    def failing_fsync(handle: int) -> None:
        calls.append(handle)
        if step == ("fsync", "fsync of the folder")[len(calls) - 1]:
            raise error
        fsync(handle)

    def failing_replace(source: Any, target: Any) -> None:
        if step == "replace":
            raise error
        replace(source, target)

    def failing_open(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(os, "fsync", failing_fsync)
    monkeypatch.setattr(os, "replace", failing_replace)
    if step == "open":
        monkeypatch.setattr(atomic, "open", failing_open, raising=False)


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"old": 1})
    with monkeypatch.context() as patch:
        fail_at(patch, step, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(UserError, match="cannot write .*a.json: the disk is full; free some space and run again"):
            atomic.write_json(path, {"new": 2})
    kept = {"new": 2} if step == "fsync of the folder" else {"old": 1}
    assert atomic.read_json(path) == kept
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", STEPS)
def test_an_interruption_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.txt"
    with monkeypatch.context() as patch:
        fail_at(patch, step, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            atomic.write_text(path, "new")
    assert os.listdir(tmp_path) == (["a.txt"] if step == "fsync of the folder" else [])
    atomic.write_text(path, "again")
    assert path.read_text() == "again"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EROFS, "the file system is read-only; give another folder"),
        (errno.EACCES, "no permission to write there; give another folder or correct the permissions"),
        (errno.EDQUOT, "the disk quota is used up"),
    ],
)
def test_other_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str) -> None:
    fail_at(monkeypatch, "open", OSError(number, "no"))
    with pytest.raises(UserError) as error:
        atomic.write_text(tmp_path / "a", "x")
    assert str(error.value).startswith(f"cannot write {tmp_path}/a: {message}")


def test_an_error_without_a_remedy_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, "fsync", OSError(errno.EIO, "the disk is dying"))
    with pytest.raises(OSError, match="the disk is dying"):
        atomic.write_text(tmp_path / "a", "x")


def test_a_real_refusal_in_the_middle_of_a_file(tmp_path: Path) -> None:
    """The kernel itself refuses to write more than 4 KiB, as it would on a full disk."""
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match="a.txt: the file is larger than the file system allows"):
            atomic.write_lines(path, ("x" * 100 for _ in range(10_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_of_the_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")

    def lines() -> Iterator[str]:
        yield "half"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        atomic.write_lines(path, lines())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


KILLED = """
import os, signal, sys
from ntk_jax.storage import atomic
step, path = int(sys.argv[1]), sys.argv[2]
calls = 0
def dying(original):
    def call(*args):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)
    return call
os.fsync, os.replace = dying(os.fsync), dying(os.replace)
atomic.write_text(path, "new")
"""


@pytest.mark.parametrize(("step", "content"), [(1, "old"), (2, "old"), (3, "new"), (4, "new")])
def test_kill_9_between_the_steps(tmp_path: Path, step: int, content: str) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(step), str(path)], cwd=ROOT, check=False)
    assert done.returncode == (0 if step == 4 else -signal.SIGKILL)
    assert path.read_text() == content
    atomic.write_text(path, "after")  # the temporary file of the dead process is in nobody's way
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_is_written_is_what_was_given(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    atomic.write_lines(tmp_path / "l", ["é", "b"])
    assert (tmp_path / "l").read_bytes() == "é\nb\n".encode()
    with atomic.replacing(tmp_path / "a.npz") as file:
        np.savez(file, a=np.arange(3))
    with np.load(tmp_path / "a.npz") as loaded:
        np.testing.assert_array_equal(loaded["a"], [0, 1, 2])


def test_json_takes_numpy_and_has_no_nan(tmp_path: Path) -> None:
    value = {
        "z": np.float32(0.5),
        "a": np.arange(2),
        "t": (1, "é"),
        "n": [float("nan"), np.inf],
        "p": Path("x"),
        3: None,
    }
    atomic.write_json(tmp_path / "a", value)
    assert atomic.read_json(tmp_path / "a") == {
        "z": 0.5,
        "a": [0, 1],
        "t": [1, "é"],
        "n": [None, None],
        "p": "x",
        "3": None,
    }
    assert list(json.loads((tmp_path / "a").read_text())) == ["z", "a", "t", "n", "p", "3"]
    assert "é" in (tmp_path / "a").read_text()


def test_reading_json_that_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*none.json: No such file or directory"):
        atomic.read_json(tmp_path / "none.json")
    for content in (b'{"a": ', b"\xff\xfe"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UserError, match="bad.json is damaged, it is not (JSON|UTF-8 text) .*; delete the folder"):
            atomic.read_json(tmp_path / "bad.json")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file is a file, but a folder is needed there; give another folder"):
        atomic.make_folder(tmp_path / "file")
    with pytest.raises(UserError, match="a part of the path is a file; give another folder"):
        atomic.make_folder(tmp_path / "file" / "run")
    assert atomic.make_folder(tmp_path / "a" / "b").is_dir()


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "deep" / "out"
    with atomic.new_folder(place) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("new")
        assert not place.exists()
    assert (place / "sub" / "x").read_text() == "new"
    with pytest.raises(UserError, match="out is there already"), atomic.new_folder(place):
        raise AssertionError("nothing is begun")
    (place / "sub" / "x").unlink()
    (place / "sub").rmdir()
    (place.parent / ".out.tmp").mkdir()  # what a kill left
    (place.parent / ".out.tmp" / "half").write_text("")
    with pytest.raises(KeyError), atomic.new_folder(place) as folder:  # an empty folder may be filled
        assert not list(folder.iterdir())
        raise KeyError
    assert not list(place.iterdir()) and not (place.parent / ".out.tmp").exists()
    with monkeypatch.context() as patch:
        fail_at(patch, "replace", OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(UserError, match="cannot write .*out: the disk is full"), atomic.new_folder(place):
            pass
    assert [path.name for path in place.parent.iterdir()] == ["out"]
    monkeypatch.chdir(tmp_path)
    with atomic.new_folder("here") as folder:
        (folder / "x").write_text("")
    assert (tmp_path / "here" / "x").exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(UserError, match=f"{name} is there already"):
            atomic.refuse_existing(tmp_path / name)
    atomic.refuse_existing(tmp_path / "nothing")
