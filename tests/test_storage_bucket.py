"""Run directories in buckets: from what is there at any moment a run goes on, and one process works at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cloud import Cloud, Died
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_pipeline import run
from test_shards import BLOCKS, bytes_of
from tiny_run import tiny_run_config, write_config, write_inputs

from ntk_jax import cli, doctor
from ntk_jax.errors import TryAgain, UserError
from ntk_jax.parallel import hosts
from ntk_jax.parallel.hosts import Hosts
from ntk_jax.storage import arrays, atomic, bucket, lease, mirror
from ntk_jax.storage.bucket import opened, push_all, run_folder, starting
from ntk_jax.storage.lease import WHOLE, Lease, held
from ntk_jax.storage.mirror import pull, push, recall
from ntk_jax.storage.run import begin, commit, look, shards_asked, verify

ROOT = Path(__file__).resolve().parent.parent
URL = "gs://bucket/run"
PLACE = "bucket/run"
FINGERPRINT = {"seed": 0}


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A bucket in memory behind gs://, an own folder for working copies, and time that passes quickly."""
    found = Cloud()
    monkeypatch.setattr(bucket, "file_system", lambda url: (found, url.partition("://")[2]))
    monkeypatch.setenv("NTK_JAX_SCRATCH", str(tmp_path / "scratch"))
    hurry(monkeypatch)
    return found


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(bucket, "PUSH_SECONDS", 0.05)


def folder_of(cloud: Cloud, place: Path) -> mirror.Mirror:
    """A pulled copy of the bucket."""
    place.mkdir(parents=True, exist_ok=True)
    made = recall(URL, place, cloud, PLACE)
    pull(made)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """All results; a checkpoint may be left over, as after a kill between the last file of a stage and its deletion."""
    return {name: (folder / name).read_bytes() for name in mirror._files(folder) if "/checkpoints/" not in name}


# -- a push that ends anywhere -------------------------------------------------------------------------------------


def steps(folder: Path) -> Iterator[None]:
    """A stage like those of `stages/`: goes on from what is there, and yields wherever a push may strike."""
    stage = folder / "score"
    if begin(stage, FINGERPRINT) == "done":
        verify(stage)
        return
    yield
    atomic.write_text(folder / "config.yaml", "seed: 0\n")
    store = arrays.create(stage / "scores.zarr", {"x": ((2,), np.float32)}, 10, 2, {"seed": 0})
    yield
    for block in sorted(set(range(5)) - arrays.done_blocks(store)):
        start, stop = store.block_range(block)
        arrays.write_block(store, block, {"x": np.arange(2 * start, 2 * stop, dtype=np.float32).reshape(-1, 2)})
        yield
    place = atomic.make_folder(stage / "arm")
    if not (place / "summary.json").exists():  # as `arms.finetune` does
        for step in (1, 2):
            for name in ("data", "_CHECKPOINT_METADATA"):
                atomic.write_text(atomic.make_folder(stage / "checkpoints" / f"{step}") / name, f"{step}")
            if step == 2:
                for name in ("_CHECKPOINT_METADATA", "data"):
                    (stage / "checkpoints" / "1" / name).unlink(missing_ok=True)
            yield
        atomic.write_bytes(place / "weights", b"w" * 100)
        yield
        atomic.write_json(place / "summary.json", {"bytes": 100})
        yield
    assert (place / "weights").stat().st_size == json.loads((place / "summary.json").read_text())["bytes"]
    atomic.write_bytes(stage / "result", arrays.read(store, "x").tobytes())
    for path in sorted((stage / "checkpoints").glob("*/*")):
        path.unlink()
    yield
    commit(stage, FINGERPRINT, {"rows": 10})
    yield


def finished(folder: Path) -> dict[str, bytes]:
    for _ in steps(folder):
        pass
    return contents(folder)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pushed=st.sets(st.integers(0, 13)), writes=st.integers(0, 40), md5=st.booleans(), again=st.booleans())
def test_from_wherever_a_push_ended_a_run_goes_on(tmp_path_factory, pushed, writes, md5, again):
    """The machine dies after any number of changes to the bucket, and with it the working copy, unless `again`."""
    place, cloud = tmp_path_factory.mktemp("copies"), Cloud(md5)
    expected = finished(place / "whole")
    first = folder_of(cloud, place / "first")
    cloud.die_after(writes)
    with contextlib.suppress(Died):
        for number, _ in enumerate(steps(first.folder)):
            if number in pushed:
                push(first)
        push(first)
    cloud.before = lambda verb, path: None

    second = folder_of(cloud, place / ("first" if again else "second"))
    stage = second.folder / "score"
    if (stage / "manifest.json").exists():
        verify(stage)
    if arrays.is_store(stage / "scores.zarr"):
        store = arrays.open_store(stage / "scores.zarr")
        marks = {int(path.name) for path in (stage / "scores.zarr" / "done").glob("*")}
        assert marks == arrays.done_blocks(store)  # no marker without its chunk
    for description in second.folder.glob("score/checkpoints/*/_CHECKPOINT_METADATA"):
        assert (description.parent / "data").exists()
    assert finished(second.folder) == expected
    push(second)
    third = folder_of(cloud, place / "third")
    assert contents(third.folder) == expected


def test_what_says_done_comes_last_and_not_before_its_time(tmp_path, cloud, monkeypatch):
    copy = folder_of(cloud, tmp_path / "copy")
    finished(copy.folder)
    push(copy)
    order = [path.removeprefix(PLACE + "/") for verb, path in cloud.log if verb == "put"]
    ranks = [mirror._rank(name) for name in order]
    assert ranks == sorted(ranks) and order[0] == "score/fingerprint.json"
    assert order[-2:] == ["score/SHA256SUMS", "score/manifest.json"]

    # A marker that comes into being while the folder is listed waits for the next push.
    real, count = mirror._files, []

    def files(folder: Path) -> dict[str, Any]:
        count.append(1)
        found = real(folder)
        if len(count) == 1:
            atomic.write_bytes(atomic.make_folder(folder / "score" / "late.zarr" / "done") / "0", b"")
        return found

    monkeypatch.setattr(mirror, "_files", files)
    push(copy)
    assert "score/late.zarr/done/0" not in cloud.names(PLACE)
    push(copy)
    assert "score/late.zarr/done/0" in cloud.names(PLACE)


def test_temporaries_and_locks_stay_here(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    for name in (".lock", "a/.x.json.tmp", "a/c/0.__lock", "a/checkpoints/4.orbax-checkpoint-tmp/d/1", "a/x"):
        atomic.make_folder((copy.folder / name).parent)
        (copy.folder / name).write_text("x")
    push(copy)
    assert cloud.names(PLACE) == {"a/x"}


def test_only_checkpoints_are_deleted_in_the_bucket_and_only_its_own(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    for name in ("a/checkpoints/1/data", "a/x"):
        atomic.make_folder((copy.folder / name).parent)
        (copy.folder / name).write_text("x")
    push(copy)
    cloud.pipe_file(f"{PLACE}/b/checkpoints/9/data", b"of another process")
    for name in ("a/checkpoints/1/data", "a/x"):
        (copy.folder / name).unlink()
    push(copy)
    assert cloud.names(PLACE) == {"a/x", "b/checkpoints/9/data"}
    pull(copy)
    assert (copy.folder / "a/x").exists()  # what was deleted here by mistake comes back


def test_a_file_that_changes_while_it_goes_up_goes_up_again(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    atomic.write_text(copy.folder / "history.jsonl", "old")

    def change(verb: str, path: str) -> None:  # the old bytes are read by then
        if verb == "put":
            cloud.before = lambda verb, path: None
            atomic.write_text(copy.folder / "history.jsonl", "new")

    cloud.before = change
    push(copy)
    assert cloud.objects[f"{PLACE}/history.jsonl"][0] == b"old"
    push(copy)
    assert cloud.objects[f"{PLACE}/history.jsonl"][0] == b"new"


# -- a pull onto what is there -------------------------------------------------------------------------------------


def test_nothing_is_copied_twice(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    finished(copy.folder)
    push(copy)
    for place in ("copy", "other", "other"):
        cloud.log.clear()
        folder_of(cloud, tmp_path / place)
        gets = [path for verb, path in cloud.log if verb in ("get", "put")]
        assert bool(gets) == (place == "other" and not (tmp_path / "seen").exists())
        if place == "other":
            (tmp_path / "seen").touch()
    (tmp_path / "other" / ".synced.json").unlink()  # by their MD5
    cloud.log.clear()
    folder_of(cloud, tmp_path / "other")
    assert not [path for verb, path in cloud.log if verb == "get"]


def test_what_was_never_pushed_stays_if_nobody_changed_the_results(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    atomic.write_text(atomic.make_folder(copy.folder / "a") / "x", "1")
    push(copy)
    atomic.write_text(copy.folder / "a" / "x", "2")
    atomic.write_text(copy.folder / "a" / "y", "2")
    again = folder_of(cloud, tmp_path / "copy")
    assert contents(again.folder) == {"a/x": b"2", "a/y": b"2"}

    cloud.pipe_file(f"{PLACE}/b/z", b"of another shard")
    cloud.pipe_file(f"{PLACE}/config.yaml", b"written by every shard")
    again = folder_of(cloud, tmp_path / "copy")
    assert {name: data[:2] for name, data in contents(again.folder).items()} == {
        "a/x": b"2", "a/y": b"2", "b/z": b"of", "config.yaml": b"wr"
    }  # fmt: skip

    cloud.pipe_file(f"{PLACE}/a/x", b"3")  # another machine went on
    again = folder_of(cloud, tmp_path / "copy")
    assert set(contents(again.folder)) == {"a/x", "b/z", "config.yaml"} and contents(again.folder)["a/x"] == b"3"


@pytest.mark.parametrize("md5", [True, False])
@pytest.mark.parametrize("there", [{"seed": 0}, {"seed": 1}])
def test_what_was_never_pushed_of_a_stage_goes_where_another_began_it(tmp_path, cloud, there, md5):
    """The bucket was away when the stage began here; it has begun elsewhere with these settings or with others."""
    cloud.md5 = md5
    copy = folder_of(cloud, tmp_path / "copy")
    begin(copy.folder / "warmup", FINGERPRINT)
    push(copy)
    for stage in ("score", "select"):
        begin(copy.folder / stage, {"seed": 0})
        atomic.write_text(copy.folder / stage / "mine", "0")
    other = folder_of(cloud, tmp_path / "other")
    begin(other.folder / "score", there)
    atomic.write_text(other.folder / "score" / "theirs", "1")
    push(other)
    again = folder_of(cloud, tmp_path / "copy")
    mine = {"score/mine", "select/mine", "select/fingerprint.json"} if there == {"seed": 0} else set()
    assert set(contents(again.folder)) == {"warmup/fingerprint.json", "score/fingerprint.json", "score/theirs"} | mine
    assert look(again.folder / "score", there) == "resume"

    if mine:  # closed there, in another way
        commit(again.folder / "score", there, {"by": "me"})
        commit(other.folder / "score", there, {"by": "them"})
        push(other)
        again = folder_of(cloud, tmp_path / "copy")
        assert contents(again.folder) == contents(other.folder)


def test_a_directory_deleted_in_the_bucket_begins_anew(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    finished(copy.folder)
    push(copy)
    atomic.write_text(copy.folder / "score" / "never pushed", "x")
    cloud.objects.clear()
    assert contents(folder_of(cloud, tmp_path / "copy").folder) == {}
    assert look(copy.folder / "score", {"seed": 1}) == "new"
    assert not (copy.folder / "score").exists()


def test_a_pull_that_is_cut_short_trusts_nothing_the_next_time(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    atomic.write_text(atomic.make_folder(copy.folder / "a") / "x", "1")
    push(copy)
    atomic.write_text(copy.folder / "a" / "never pushed", "1")
    cloud.pipe_file(f"{PLACE}/a/x", b"2")
    with pytest.raises(Died), pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "_sweep", lambda folder: (_ for _ in ()).throw(Died()))
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        folder_of(cloud, tmp_path / "copy")
    assert contents(copy.folder)["a/x"] == b"2" and (copy.folder / "a" / "never pushed").exists()
    assert contents(folder_of(cloud, tmp_path / "copy").folder) == {"a/x": b"2"}


def test_a_finished_stage_is_as_in_the_bucket(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    whole = finished(copy.folder)
    push(copy)
    (copy.folder / "score" / "result").write_bytes(b"edited here")
    assert contents(folder_of(cloud, tmp_path / "copy").folder) == whole


def test_an_object_outside_is_refused(tmp_path, cloud):
    cloud.pipe_file(f"{PLACE}/../../etc/passwd", b"")
    with pytest.raises(UserError, match="is no path in a run directory"):
        folder_of(cloud, tmp_path / "copy")


# -- who works there -----------------------------------------------------------------------------------------------


def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int) -> None:
    """From now on this is another machine: with another disk."""
    monkeypatch.setenv("NTK_JAX_SCRATCH", str(tmp_path / f"scratch {number}"))


def test_a_second_machine_is_refused_until_the_first_has_ended(tmp_path, cloud, monkeypatch, capsys):
    with opened(URL):
        machine(monkeypatch, tmp_path, 2)
        with pytest.raises(TryAgain) as error, opened(URL):
            pass
        assert re.fullmatch(
            rf"{URL} is in use by another process \(process id {os.getpid()} on \S+\); wait until it ends, or give "
            "another folder",
            str(error.value),
        )
        with pytest.raises(TryAgain, match="is in use by another process"), opened(URL, "score-0-of-2"):
            pass
    capsys.readouterr()
    with opened(URL):
        assert cloud.names(PLACE) and capsys.readouterr().err == ""  # at once
    assert cloud.names(PLACE) == set()


def test_one_that_is_about_to_end_is_waited_for(tmp_path, cloud, monkeypatch, capsys):
    """A machine that is taken away: its process renews its lease until the last push is done."""
    monkeypatch.setattr(lease, "GRACE_SECONDS", 5.0)
    released, before = threading.Event(), {}

    def run_until_told() -> None:
        with held(cloud, PLACE, URL, Lease(WHOLE, "before"), lambda: None):
            before["holds"] = True
            released.wait(10)

    thread = threading.Thread(target=run_until_told)
    thread.start()
    while not before:
        time.sleep(0.01)
    threading.Timer(0.4, released.set).start()  # eight renewals later
    with opened(URL):
        assert released.is_set()
    thread.join()
    assert re.search("is held by another process .*; waiting for up to 6 s until it ends", capsys.readouterr().err)


def test_of_two_that_hold_it_the_one_that_came_first_ends(cloud, monkeypatch):
    """It slept between reading its lease and writing it anew, until the other had found it dead."""
    ended = []

    def take(fs: Any, root: str, url: str, wanted: Lease, wait: bool) -> str:
        token = {"a": "000000.f", "b": "000001.0"}[wanted.identity]
        lease._write(fs, root, wanted, token)
        return token

    monkeypatch.setattr(lease, "_take", take)
    first, second = (Lease(WHOLE, name) for name in "ab")
    with (
        held(cloud, PLACE, URL, first, lambda: ended.append("a")),
        held(cloud, PLACE, URL, second, lambda: ended.append("b")),
    ):
        time.sleep(0.5)
    assert ended == ["a"]


def test_a_second_process_on_the_same_machine_is_refused_by_the_working_copy(cloud):
    with (
        opened(URL),
        pytest.raises(UserError, match=rf"^{URL} is in use by another process \(id {os.getpid()}\); .*working copy"),
        opened(URL),
    ):
        pass


def test_a_dead_process_is_found_dead(tmp_path, cloud, monkeypatch, capsys):
    """On another machine after STALE_SECONDS, on the same one at once: its working copy is its identity."""
    with opened(URL) as copy:
        identity, mine = copy.identity, dict(cloud.objects)
    cloud.objects.update(mine)
    begun = time.monotonic()
    with opened(URL) as copy:
        assert copy.identity == identity
    assert time.monotonic() - begun < 0.5 and capsys.readouterr().err == ""

    cloud.objects.update(mine)
    machine(monkeypatch, tmp_path, 2)
    with opened(URL):
        pass
    assert re.search(
        rf"{URL} is held by another process \(process id \d+ on .*\); waiting for up to", capsys.readouterr().err
    )


def test_a_copied_working_copy_is_not_the_same_holder(tmp_path, cloud, monkeypatch):
    """The image of a disk, or a home that several machines see."""
    with opened(URL):
        pass
    shutil.copytree(tmp_path / "scratch", tmp_path / "scratch 2")
    with opened(URL) as copy:
        machine(monkeypatch, tmp_path, 2)
        assert recall(URL, run_folder(URL), cloud, PLACE).identity == copy.identity
        with pytest.raises(TryAgain, match="is in use by another process"), opened(URL):
            pass
    here = lease.holder("x", copy.folder / ".lock")
    assert here == lease.holder("x", copy.folder / ".lock") != lease.holder("x", run_folder(URL) / ".lock")
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="another"))
    assert lease.holder("x", copy.folder / ".lock") != here


def test_shards_and_whole_runs_exclude_each_other(tmp_path, cloud, monkeypatch):
    with opened(URL, "score-0-of-4"), opened(URL, "score-1-of-4"):
        machine(monkeypatch, tmp_path, 2)
        whole = r"in use by shard 0/4 of score \(process id .*\) and 1 more; wait until they end"
        with pytest.raises(TryAgain, match=whole), opened(URL):
            pass
        same = r"shard 1/4 of score is at work already in gs.*; wait until it ends, or start another shard"
        with pytest.raises(TryAgain, match=same), opened(URL, "score-1-of-4"):
            pass
        with opened(URL, "score-3-of-4"):
            pass
    with opened(URL) as copy:
        assert shards_asked(copy.folder, "score") == 4


def test_the_shards_last_asked_for_are_known_to_every_machine(tmp_path, cloud, monkeypatch):
    for shard in ("score-0-of-4", "score-1-of-3", "sketch-0-of-2"):
        with opened(URL, shard):
            pass
    machine(monkeypatch, tmp_path, 2)
    with opened(URL) as copy:
        assert shards_asked(copy.folder, "score") == 3
        assert shards_asked(copy.folder, "sketch") == 2


def test_of_many_that_come_together_one_gets_it(cloud):
    inside, most, refused = [], [], []

    def come(number: int) -> None:
        try:
            with held(cloud, PLACE, URL, Lease(WHOLE, f"{number}"), lambda: None):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.4)
                inside.remove(number)
        except TryAgain:
            refused.append(number)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) <= {1} and len(most) + len(refused) == 6


def test_those_that_wait_come_one_after_the_other(cloud):
    inside, most = [], []

    def come(number: int) -> None:
        with held(cloud, PLACE, URL, Lease(lease.STARTING, f"{number}"), lambda: None, wait=True):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


@pytest.mark.parametrize("how", ["gone", "another's"])
def test_a_process_whose_lease_was_taken_ends(cloud, monkeypatch, how):
    said = threading.Event()
    monkeypatch.setattr(bucket, "_lost", lambda url: said.set())
    with opened(URL):
        (path,) = cloud.objects
        if how == "gone":
            del cloud.objects[path]
        else:
            cloud.pipe_file(path, json.dumps({"token": "x"}).encode())
        assert said.wait(5)


def test_nothing_is_written_with_a_lost_lease(cloud, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 60.0)
    monkeypatch.setattr(bucket, "PUSH_SECONDS", 60.0)

    class Ended(BaseException):
        """Nothing catches the end of a process."""

    def end_now(line: str) -> None:
        raise Ended(line)

    monkeypatch.setattr(hosts, "end_now", end_now)
    with pytest.raises(Ended, match="was taken over by another process"), opened(URL) as copy:
        cloud.objects.clear()
        atomic.write_text(copy.folder / "x", "x")
        push_all(copy)
    assert not cloud.objects


def test_a_lease_lost_in_the_middle_of_a_push_ends_it(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    finished(copy.folder)

    def check() -> None:
        if f"{PLACE}/score/arm/weights" in cloud.objects:
            raise Died

    copy.check = check
    with pytest.raises(Died):
        push(copy)
    assert not [name for name in cloud.names(PLACE) if mirror._rank(name) > mirror.DATA]


def test_the_second_of_two_shards_with_other_settings_is_refused(tmp_path, cloud, monkeypatch):
    """They start at once on two machines: both have found the stage new before either has begun it."""
    with opened(URL, "score-0-of-2") as first:
        machine(monkeypatch, tmp_path, 2)
        with opened(URL, "score-1-of-2") as second:
            with starting(first, "score"):
                begin(first.folder / "score", {"seed": 0})
            assert not (second.folder / "score").exists()
            with pytest.raises(UserError, match="seed was 0, is now 1"), starting(second, "score"):
                begin(second.folder / "score", {"seed": 1})
    assert json.loads(cloud.objects[f"{PLACE}/score/fingerprint.json"][0])["fingerprint"] == {"seed": 0}


# -- a bucket that fails -------------------------------------------------------------------------------------------


def test_an_outage_is_told_once_and_nothing_is_lost(cloud, capsys):
    with opened(URL) as copy:

        def away(verb: str, path: str) -> None:
            raise TimeoutError("the network is away")

        cloud.before = away
        atomic.write_text(copy.folder / "x", "x")
        time.sleep(0.6)
        assert capsys.readouterr().err == (
            f"ntk-jax: {URL} cannot be written (TimeoutError: the network is away); the run goes on, and tries again\n"
        )
        cloud.before = lambda verb, path: None
        time.sleep(1.0)
        assert "can be written again" in capsys.readouterr().err
    assert cloud.objects[f"{PLACE}/x"][0] == b"x"


def test_the_end_of_a_stage_waits_and_gives_up(cloud, monkeypatch, capsys):
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 1.5)

    def away(verb: str, path: str) -> None:
        if verb == "put" and "/.leases/" not in path:
            raise TimeoutError("the network is away")

    with pytest.raises(TryAgain) as error, opened(URL) as copy:
        cloud.before = away
        atomic.write_text(atomic.make_folder(copy.folder / "a") / "x", "x")
        push_all(copy)
    assert str(error.value) == (
        f"{URL} cannot be written (TimeoutError: the network is away); the working copy {run_folder(URL)} keeps "
        "everything, and the same command on this machine goes on from there"
    )
    cloud.before = lambda verb, path: None
    with opened(URL) as copy:
        assert (copy.folder / "a" / "x").exists()
    assert f"{PLACE}/a/x" in cloud.objects


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (PermissionError("Denied"), UserError, "cannot be used (PermissionError: Denied); correct the bucket's name"),
        (FileNotFoundError("no such bucket"), UserError, "cannot be used (FileNotFoundError: no such bucket)"),
        (OSError("Forbidden: b/x"), UserError, "cannot be used"),
        (TimeoutError(), TryAgain, "cannot be reached (TimeoutError); the same command again goes on"),
    ],
)
def test_a_bucket_that_refuses(cloud, error, raised, says):
    def refuse(verb: str, path: str) -> None:
        raise error

    cloud.before = refuse
    with pytest.raises(raised, match=f"^{URL} ") as found, opened(URL):
        pass
    assert says in str(found.value)


def test_an_interruption_and_an_error_push_what_there_is(cloud, monkeypatch):
    monkeypatch.setattr(bucket, "PUSH_SECONDS", 60.0)
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error), opened(URL) as copy:
            atomic.write_text(copy.folder / error.__name__, "x")
            raise error
        assert f"{PLACE}/{error.__name__}" in cloud.objects
    with pytest.raises(SystemExit), opened(URL) as copy:
        atomic.write_text(copy.folder / "term", "x")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert f"{PLACE}/term" in cloud.objects


def test_a_working_copy_deleted_meanwhile_deletes_nothing_in_the_bucket(cloud, monkeypatch):
    monkeypatch.setattr(bucket, "PUSH_SECONDS", 60.0)
    with pytest.raises(UserError, match="was deleted while it was in use"), opened(URL) as copy:
        atomic.write_text(atomic.make_folder(copy.folder / "a" / "checkpoints") / "x", "x")
        push(copy)
        shutil.rmtree(copy.folder)
        push(copy)
    assert f"{PLACE}/a/checkpoints/x" in cloud.objects


def test_several_processes_with_one_mesh_are_refused(cloud, monkeypatch):
    monkeypatch.setattr(hosts, "_here", Hosts(0, 2, "there:1"))
    says = "on a file system that all of them see; give such an --out, or run shards"
    with pytest.raises(UserError, match=says), opened(URL):
        pass


def test_messages_of_stages_name_the_bucket(cloud):
    says = rf"{URL}/score was made from something else: .* \(working copy: {run_folder(URL)}\)"
    with pytest.raises(UserError, match=says), opened(URL) as copy:
        begin(copy.folder / "score", FINGERPRINT)
        begin(copy.folder / "score", {"seed": 1})


def test_a_damaged_working_copy_is_to_be_deleted_not_the_bucket(cloud):
    with opened(URL) as copy:
        finished(copy.folder)
    path = copy.folder / "score" / "result"
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(bytes(len(data)))  # a bit flips: neither the size nor the time tells
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError) as error, opened(URL) as copy:
        verify(copy.folder / "score")
    assert str(error.value) == (
        f"{URL}/score/result is not as its stage wrote it (checksum); delete the working copy {copy.folder}, for the "
        f"bucket may be intact; if it is damaged there too, delete the folder {URL}/score to compute the stage anew"
    )
    shutil.rmtree(copy.folder)
    with opened(URL) as copy:
        verify(copy.folder / "score")


@pytest.mark.parametrize("what", ["pull", "push"])
def test_a_disk_that_fails_is_not_the_bucket(cloud, monkeypatch, what):
    with opened(URL) as copy:
        atomic.write_text(atomic.make_folder(copy.folder / "a") / "x", "1")
    what = r"\(a/x: Permission denied\); correct its permissions or its disk"
    says = rf"^the working copy {copy.folder} cannot be used {what}"

    def refuse(local: str, *rest: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", local)

    if what == "push":
        monkeypatch.setattr(bucket, "PUSH_SECONDS", 60.0)
        monkeypatch.setattr(cloud, "put_file", refuse)
        with pytest.raises(UserError, match=says), opened(URL) as copy:
            atomic.write_text(copy.folder / "a" / "x", "2")
    else:
        cloud.pipe_file(f"{PLACE}/a/x", b"3")
        monkeypatch.setattr(cloud, "get_file", lambda path, local: refuse(str(copy.folder / "a" / "x")))
        with pytest.raises(UserError, match=says), opened(URL):
            pass


@pytest.mark.parametrize("out", ["gs://", "http://a/b", "s3:///"])
def test_an_address_that_is_none(out):
    with pytest.raises(UserError, match="is no run directory; give a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"):
        run_folder(out)


def test_a_slash_at_the_end_changes_nothing(cloud):
    with opened(URL) as first:
        begin(first.folder / "score", FINGERPRINT)
    atomic.write_text(first.folder / "score" / "never pushed", "x")
    with opened(f"{URL}//") as copy:
        assert (copy.folder / "score" / "never pushed").exists() and copy.identity == first.identity
    assert cloud.names(PLACE) == {"score/fingerprint.json", "score/never pushed"}
    assert bucket.look_at(f"{URL}/") == 2


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://a/b needs the package gcsfs; pip install 'ntk_jax\[buckets\]'"):
        bucket.file_system("gs://a/b")


def test_working_copies_do_not_meet():
    folders = {run_folder(*a) for a in [("gs://a/b",), ("s3://a/b",), ("gs://a-b",), ("gs://a/b", "score-0-of-2")]}
    assert len(folders) == 4
    assert run_folder("gs://a/b/") == run_folder("gs://a/b") and run_folder("runs/a") == Path("runs/a")


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
        with pytest.raises(TryAgain, match="cannot be written"):
            run(config, until="select")
        cloud.before = lambda verb, path: None
    machine(monkeypatch, tmp_path, 3)
    folder = run(config, until="select")
    assert folder == run_folder(URL) and cloud.names(PLACE) == set(mirror._files(folder))
    for stage in ("score", "select"):
        assert bytes_of(folder / stage) == bytes_of(whole / stage)
    machine(monkeypatch, tmp_path, 4)
    run(config, only="report")
    assert "report/index.html" in cloud.names(PLACE)
    other = remote_config(inputs, seed=1)
    with pytest.raises(UserError, match=rf"{URL}/warmup was made from something else: seed was 0, is now 1"):
        run(other, until="select")


def test_shards_on_several_machines(inputs, whole, tmp_path, cloud, monkeypatch, capsys):
    config = remote_config(inputs)
    run(config, until="preselect")
    path = write_config(tmp_path, config)
    for number in (1, 0):
        machine(monkeypatch, tmp_path, number)
        assert cli.main(["score", str(path), "--shard", f"{number}/2"]) == 0
        assert capsys.readouterr().out == f"score: this share is in {URL}; close the stage with --merge when all are\n"
        if number:
            machine(monkeypatch, tmp_path, 2)
            assert cli.main(["score", str(path), "--merge"]) == 2
            says = f"{URL}/score cannot be closed: scores.zarr lacks 3 of its 6 blocks (0, 2, 4); run --shard 0 of 2"
            assert says in capsys.readouterr().err
    machine(monkeypatch, tmp_path, 3)
    assert cli.main(["score", str(path), "--merge"]) == 0
    assert cli.main(["select", str(path)]) == 0
    assert f"The run directory is {URL}; its working copy here is {run_folder(URL)}" in capsys.readouterr().out
    for stage in ("score", "select"):
        assert bytes_of(run_folder(URL) / stage) == bytes_of(whole / stage)
    stages = json.loads(cloud.objects[f"{PLACE}/provenance.json"][0])["stages"]
    assert list(stages) == ["warmup", "gradient", "preselect", "score", "select"]


def test_doctor_and_estimate_take_an_address(inputs, tmp_path, cloud, capsys):
    config = remote_config(inputs)
    assert cli.main(["estimate", str(write_config(tmp_path, config))]) == 0
    says = rf"{URL} \(new\), working copy {run_folder(URL)}, [\d,]+ GiB free"
    assert re.fullmatch(says, doctor._run_directory(config))
    assert not cloud.objects  # what it wrote to see whether it can is gone


@pytest.mark.parametrize("verb", ["put", "rm"])
def test_doctor_tells_a_bucket_that_can_only_be_read(inputs, cloud, verb):
    def refuse(asked: str, path: str) -> None:
        if asked == verb:
            raise PermissionError("Denied")

    cloud.before = refuse
    with pytest.raises(UserError, match=f"{URL} cannot be used .* permissions .list, read, write and delete"):
        doctor._run_directory(remote_config(inputs))
