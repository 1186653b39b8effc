"""Run directories in buckets: what a failing bucket does to a run, and whole runs on several machines."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cloud import (
    FINGERPRINT,
    PLACE,
    URL,
    away,
    bucket_in_memory,  # noqa: F401
    finished,
    machine,
    no_fault,
    write,
)
from test_shards import BLOCKS, bytes_of
from tiny_run import run, tiny_run_config, write_config, write_inputs

from ntk_jax import cli
from ntk_jax.engine import doctor
from ntk_jax.engine import run as engine
from ntk_jax.errors import TryAgain, UserError
from ntk_jax.parallel import hosts
from ntk_jax.parallel.hosts import Hosts
from ntk_jax.pipelines import report_parts
from ntk_jax.storage import atomic, bucket, mirror
from ntk_jax.storage.bucket import opened, push_all, run_folder
from ntk_jax.storage.mirror import push
from ntk_jax.storage.run import begin, verify


def test_an_outage_is_announced_once_and_nothing_is_lost(cloud, capsys):
    with opened(URL) as copy:
        cloud.before = away
        atomic.write_text(copy.folder / "x", "x")
        time.sleep(0.6)
        assert capsys.readouterr().err == (
            f"ntk-jax: {URL} cannot be written (TimeoutError: the network is away); the run goes on, and tries again\n"
        )
        cloud.before = no_fault
        time.sleep(0.5)
        assert "can be written again" in capsys.readouterr().err
    assert cloud.objects[f"{PLACE}/x"][0] == b"x"


def test_the_end_of_a_stage_waits_and_gives_up(cloud, monkeypatch):
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(TryAgain) as error, opened(URL) as copy:
        cloud.before = away
        write(copy.folder, "a/x", "x")
        push_all(copy)
    assert str(error.value) == (
        f"{URL} cannot be reached (TimeoutError: the network is away); the working copy keeps what is not there yet, "
        "and the same command on this machine goes on from it"
    )
    cloud.before = no_fault
    with opened(URL) as copy:
        assert (copy.folder / "a" / "x").exists()
    assert f"{PLACE}/a/x" in cloud.objects


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (PermissionError("Denied"), UserError, "cannot be used (PermissionError: Denied); check the bucket's name"),
        (FileNotFoundError("no such bucket"), UserError, "cannot be used (FileNotFoundError: no such bucket)"),
        (OSError("Forbidden: b/x"), UserError, "cannot be used"),
        (TimeoutError(), TryAgain, "cannot be reached (TimeoutError); the working copy keeps"),
        (PermissionError(errno.EACCES, "Denied", "/scratch/a/x"), UserError, "the working copy of gs"),
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "the working copy of gs"),
        (ZeroDivisionError(), ZeroDivisionError, ""),
    ],
)
def test_a_bucket_or_a_disk_that_refuses(cloud, error, raised, says):
    def refuse(verb: str, path: str) -> None:
        raise error

    cloud.before = refuse
    with pytest.raises(raised) as found, opened(URL):
        pass
    assert says in str(found.value)


def test_an_interruption_and_an_error_push_what_there_is(cloud, monkeypatch):
    monkeypatch.setattr(bucket, "PUSH_SECONDS", 60.0)
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error), opened(URL) as copy:
            atomic.write_text(copy.folder / error.__name__, "x")
            raise error
        assert f"{PLACE}/{error.__name__}" in cloud.objects
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), opened(URL) as copy:
        atomic.write_text(copy.folder / "term", "x")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert f"{PLACE}/term" in cloud.objects and signal.getsignal(signal.SIGTERM) == before


def test_a_working_copy_deleted_meanwhile_deletes_nothing_in_the_bucket(cloud, monkeypatch):
    monkeypatch.setattr(bucket, "PUSH_SECONDS", 60.0)
    with pytest.raises(UserError, match="was deleted while it was in use"), opened(URL) as copy:
        write(copy.folder, "a/checkpoints/x", "x")
        push(copy)
        shutil.rmtree(copy.folder)
        push(copy)
    assert f"{PLACE}/a/checkpoints/x" in cloud.objects


def test_several_processes_with_one_mesh_are_refused(cloud, monkeypatch):
    monkeypatch.setattr(hosts, "_here", Hosts(0, 2, "there:1"))
    says = "on a file system that all of them see; give such an --out, or run shards"
    with pytest.raises(UserError, match=says), opened(URL):
        pass


def test_what_stages_say_of_the_working_copy_names_the_bucket(cloud):
    says = rf"score was made from something else: .* .{run_folder(URL).name} is the working copy of {URL}: delete there"
    with pytest.raises(UserError, match=says), opened(URL) as copy:
        begin(copy.folder / "score", FINGERPRINT)
        begin(copy.folder / "score", {"seed": 1})


def test_a_damaged_working_copy_is_replaced(cloud):
    with opened(URL) as copy:
        finished(copy.folder)
    path = copy.folder / "score" / "result"
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(bytes(len(data)))  # a bit flips: neither the size nor the time tells
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    says = "checksum.*or the working copy if only that is damaged"
    with pytest.raises(UserError, match=says), opened(URL) as copy:
        verify(copy.folder / "score")
    shutil.rmtree(copy.folder)
    with opened(URL) as copy:
        verify(copy.folder / "score")


@pytest.mark.parametrize("out", ["gs://", "http://a/b", "s3:///"])
def test_an_address_that_is_none(out):
    with pytest.raises(UserError, match="is no run directory; give a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"):
        run_folder(out)


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://a/b needs the package gcsfs; pip install 'ntk_jax\[buckets\]'"):
        bucket.file_system("gs://a/b")


def test_every_place_has_one_working_copy():
    folders = {run_folder(*a) for a in [("gs://a/b",), ("s3://a/b",), ("gs://a-b",), ("gs://a/b", "score-0-of-2")]}
    assert len(folders) == 4
    assert run_folder("gs://a/b//") == run_folder("gs://a/b") and run_folder("runs/a") == Path("runs/a")


# -- whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def whole(inputs) -> Path:
    return run(tiny_run_config(inputs, "whole", **BLOCKS), until="select")


def remote_config(inputs: Path, **sections: Any) -> Any:
    return dataclasses.replace(tiny_run_config(inputs, **BLOCKS, **sections), out=URL)


def test_a_run_whose_machine_dies_goes_on_elsewhere(inputs, whole, tmp_path, cloud, monkeypatch):
    """Twice, in the middle of warm-up and of scoring; then the report alone, and a change that is refused."""
    config = remote_config(inputs)
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 0.0)
    for number, writes in enumerate((8, 40)):
        machine(monkeypatch, tmp_path, number)
        cloud.die_after(writes)
        with pytest.raises(TryAgain, match="cannot be reached"):
            run(config, until="select")
        cloud.before = no_fault
    machine(monkeypatch, tmp_path, 3)
    folder = run(config, until="select")
    assert folder == run_folder(URL) and cloud.names(PLACE) == set(mirror._files(folder))
    for stage in ("score", "select"):
        assert bytes_of(folder / stage) == bytes_of(whole / stage)
    machine(monkeypatch, tmp_path, 4)
    engine.report(config, report_parts())
    assert "report/index.html" in cloud.names(PLACE)
    other = remote_config(inputs, seed=1)
    with pytest.raises(UserError, match="warmup was made from something else: seed was 0, is now 1"):
        run(other, until="select")


def test_shards_on_several_machines(inputs, whole, tmp_path, cloud, monkeypatch, capsys):
    config = remote_config(inputs)
    run(config, until="gradient")
    path = write_config(tmp_path, config)
    for number in (1, 0):
        machine(monkeypatch, tmp_path, number)
        assert cli.main(["score", str(path), "--shard", f"{number}/2"]) == 0
        assert re.search(f"is in {URL}; close the stage with --merge when all are", capsys.readouterr().out)
        if number:
            machine(monkeypatch, tmp_path, 2)
            assert cli.main(["score", str(path), "--merge"]) == 2
            says = "score cannot be closed: scores.zarr lacks 3 of its 6 blocks (0, 2, 4); run --shard 0 of 2"
            assert says in capsys.readouterr().err
    machine(monkeypatch, tmp_path, 3)
    assert cli.main(["score", str(path), "--merge"]) == 0
    assert cli.main(["select", str(path)]) == 0
    assert f"The run directory is {URL}; its working copy here is {run_folder(URL)}" in capsys.readouterr().out
    for stage in ("score", "select"):
        assert bytes_of(run_folder(URL) / stage) == bytes_of(whole / stage)
    stages = json.loads(cloud.objects[f"{PLACE}/provenance.json"][0])["stages"]
    assert list(stages) == ["warmup", "gradient", "score", "select"]
    shutil.rmtree(run_folder(URL))  # what is exported comes from the bucket
    assert cli.main(["export", URL, "--selection", str(tmp_path / "s.jsonl")]) == 0
    assert (tmp_path / "s.jsonl").read_bytes() == (whole / "select" / "selection.jsonl").read_bytes()


def test_doctor_and_estimate_take_an_address(inputs, tmp_path, cloud, capsys):
    config = remote_config(inputs)
    assert cli.main(["estimate", str(write_config(tmp_path, config))]) == 0
    says = rf"{URL} \(new\), working copy {run_folder(URL)}, [\d,]+ GiB free"
    assert re.fullmatch(says, doctor._run_directory(config.out))
    assert not cloud.objects  # what it wrote to see whether it can is gone


@pytest.mark.parametrize("verb", ["put", "rm"])
def test_doctor_notices_a_bucket_that_can_only_be_read(inputs, cloud, verb):
    def refuse(asked: str, path: str) -> None:
        if asked == verb:
            raise PermissionError("Denied")

    cloud.before = refuse
    with pytest.raises(UserError, match=f"{URL} cannot be used .* permissions .list, read, write and delete"):
        doctor._run_directory(remote_config(inputs).out)
