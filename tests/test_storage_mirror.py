"""Working copies of run directories in buckets: whatever cut a push or a pull short, a run goes on from there."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from cloud import (
    FINGERPRINT,
    PLACE,
    Cloud,
    Died,
    bucket_in_memory,  # noqa: F401
    contents,
    finished,
    folder_of,
    no_fault,
    steps,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.storage import arrays, atomic, mirror
from ntk_jax.storage.mirror import pull, push
from ntk_jax.storage.run import begin, commit, look, verify


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pushed=st.sets(st.integers(0, 13)), writes=st.integers(0, 40), again=st.booleans())
def test_from_wherever_a_push_ended_a_run_goes_on(tmp_path_factory, pushed, writes, again):
    """The machine dies after any number of changes to the bucket, and with it the working copy, unless `again`."""
    place, cloud = tmp_path_factory.mktemp("copies"), Cloud()
    expected = finished(place / "whole")
    first = folder_of(cloud, place / "first")
    cloud.die_after(writes)
    with contextlib.suppress(Died):
        for number, _ in enumerate(steps(first.folder)):
            if number in pushed:
                push(first)
        push(first)
    cloud.before = no_fault

    second = folder_of(cloud, place / ("first" if again else "second"))
    stage = second.folder / "score"
    if (stage / "manifest.json").exists():
        verify(stage)
    if arrays.is_store(stage / "scores.zarr"):
        store = arrays.open_store(stage / "scores.zarr")
        marks = {int(path.name) for path in (stage / "scores.zarr" / "done" / "c").glob("*")}
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
            write(folder, "score/late.zarr/done/c/0", "")
        return found

    monkeypatch.setattr(mirror, "_files", files)
    push(copy)
    assert "score/late.zarr/done/c/0" not in cloud.names(PLACE)
    push(copy)
    assert "score/late.zarr/done/c/0" in cloud.names(PLACE)


def test_temporaries_stay_here_and_only_own_checkpoints_are_deleted_there(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    temporary = (".lock", "a/.x.json.tmp", "a/c/0.__lock", "a/checkpoints/4.orbax-checkpoint-tmp/d/1")
    for name in (*temporary, "a/checkpoints/1/data", "a/x"):
        write(copy.folder, name, "x")
    push(copy)
    assert cloud.names(PLACE) == {"a/checkpoints/1/data", "a/x"}
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
            cloud.before = no_fault
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
    for place, copied in (("copy", False), ("other", True), ("other", False)):
        cloud.log.clear()
        folder_of(cloud, tmp_path / place)
        assert any(verb in ("get", "put") for verb, _ in cloud.log) == copied


@pytest.mark.parametrize("there", [{"seed": 0}, {"seed": 1}])
def test_what_was_never_pushed_goes_where_another_began_or_closed_a_stage(tmp_path, cloud, there):
    """The bucket was away when stages began here; one has begun elsewhere with these settings or with others."""
    copy = folder_of(cloud, tmp_path / "copy")
    begin(copy.folder / "warmup", FINGERPRINT)
    write(copy.folder, "warmup/history", "1")
    push(copy)
    write(copy.folder, "warmup/history", "2")
    for stage in ("score", "select"):
        begin(copy.folder / stage, {"seed": 0})
        write(copy.folder, f"{stage}/mine", "0")
    other = folder_of(cloud, tmp_path / "other")
    begin(other.folder / "score", there)
    write(other.folder, "score/theirs", "1")
    push(other)
    cloud.pipe_file(f"{PLACE}/config.yaml", b"written by every shard")
    again = folder_of(cloud, tmp_path / "copy")
    found, same = contents(again.folder), there == {"seed": 0}
    mine = {"score/mine", "select/mine", "select/fingerprint.json"} if same else set()
    theirs = {"warmup/fingerprint.json", "warmup/history", "score/fingerprint.json", "score/theirs", "config.yaml"}
    assert set(found) == theirs | mine and found["warmup/history"] == (b"2" if same else b"1")
    assert look(again.folder / "score", there) == "resume"

    if same:  # closed there, in another way
        commit(again.folder / "score", there, {"by": "me"})
        commit(other.folder / "score", there, {"by": "them"})
        push(other)
        again, other = folder_of(cloud, tmp_path / "copy"), folder_of(cloud, tmp_path / "other")
        assert contents(again.folder) == contents(other.folder)


def test_what_another_machine_changed_is_fetched(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    write(copy.folder, "a/x", "1")
    push(copy)
    write(copy.folder, "a/x", "2")
    cloud.pipe_file(f"{PLACE}/a/x", b"3")
    assert contents(folder_of(cloud, tmp_path / "copy").folder) == {"a/x": b"3"}


def test_a_stage_deleted_in_the_bucket_begins_anew(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    finished(copy.folder)
    push(copy)
    write(copy.folder, "score/never pushed", "x")
    for path in [path for path in cloud.objects if "/score/" in path]:
        del cloud.objects[path]
    assert set(contents(folder_of(cloud, tmp_path / "copy").folder)) == {"config.yaml"}
    assert look(copy.folder / "score", {"seed": 1}) == "new"


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("step", range(8))
def test_a_pull_that_is_cut_short_comes_to_the_same_the_next_time(tmp_path, cloud, monkeypatch, step, deleted):
    """What was never pushed has to go, for a stage was begun or deleted there; the machine dies at any step of that."""
    copy = folder_of(cloud, tmp_path / "copy")
    begin(copy.folder / "a", FINGERPRINT)
    write(copy.folder, "a/x", "1")
    push(copy)
    begin(copy.folder / "b", FINGERPRINT)
    write(copy.folder, "a/y", "never pushed")
    if deleted:
        cloud.objects.clear()
    else:
        cloud.pipe_file(f"{PLACE}/b/fingerprint.json", b"another")
        cloud.pipe_file(f"{PLACE}/b/z", b"z")
    expected = contents(folder_of(cloud, tmp_path / "new").folder)
    left, unlink, get = iter(range(step)), Path.unlink, cloud.get_file

    def dying(do: Any) -> Any:
        def step_or_die(*args: Any) -> Any:
            if next(left, None) is None:
                raise Died
            return do(*args)

        return step_or_die

    with contextlib.suppress(Died), monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying(unlink))
        patch.setattr(cloud, "get_file", dying(get))
        folder_of(cloud, tmp_path / "copy")
    assert contents(folder_of(cloud, tmp_path / "copy").folder) == expected


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


# -- databases, which are changed in place ---------------------------------------------------------------------------


def rows_of(path: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row[0] for row in connection.execute("SELECT n FROM t ORDER BY n")]


def test_a_database_goes_up_as_it_was_at_one_moment_though_it_is_written_to(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "c #py?")
    path = copy.folder / "llm" / "calls.sqlite"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (n INTEGER)")
        for first in (0, 100):
            connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(first, first + 100)])
            connection.execute("BEGIN")
            connection.execute("INSERT INTO t VALUES (-1)")  # not committed
            push(copy)
            connection.execute("ROLLBACK")
            assert cloud.names(PLACE) == {"llm/calls.sqlite"}  # nothing of what lies beside it
            other = folder_of(cloud, tmp_path / f"other-{first}")
            assert rows_of(other.folder / "llm" / "calls.sqlite") == list(range(first + 100))
    push(copy)  # closed: one file now
    cloud.log.clear()
    push(copy)
    assert not any(verb == "put" for verb, _ in cloud.log)


def test_a_database_that_is_fetched_forgets_what_lay_beside_an_older_one(tmp_path, cloud):
    one, other = folder_of(cloud, tmp_path / "one"), tmp_path / "other"
    for place, numbers in ((one.folder, range(5)), (other, range(50))):
        (place / "llm").mkdir(parents=True)
        with contextlib.closing(sqlite3.connect(place / "llm" / "calls.sqlite", isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE t (n INTEGER)")
            connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in numbers])
            if place == other:  # as a process leaves it that is killed
                for path in list((other / "llm").iterdir()):
                    path.with_name(f"left-{path.name}").write_bytes(path.read_bytes())
    push(one)
    for path in (other / "llm").glob("left-*"):
        path.rename(path.with_name(path.name.removeprefix("left-")))
    assert {path.name for path in (other / "llm").iterdir()} >= {"calls.sqlite", "calls.sqlite-wal"}
    pulled = folder_of(cloud, other)
    assert rows_of(pulled.folder / "llm" / "calls.sqlite") == list(range(5))


def test_a_damaged_database_is_one_line(tmp_path, cloud):
    copy = folder_of(cloud, tmp_path / "copy")
    (copy.folder / "calls.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"calls\.sqlite is damaged"):
        push(copy)
