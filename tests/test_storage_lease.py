"""Leases of run directories in buckets: one process works there at a time, or shards together."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from typing import Any

import pytest
from cloud import (
    PLACE,
    URL,
    Died,
    bucket_in_memory,  # noqa: F401
    finished,
    folder_of,
    machine,
)

from ntk_jax.errors import TryAgain, UserError
from ntk_jax.parallel import hosts
from ntk_jax.storage import atomic, bucket, lease, mirror
from ntk_jax.storage.bucket import opened, push_all, starting
from ntk_jax.storage.lease import STARTING, WHOLE, held
from ntk_jax.storage.mirror import push
from ntk_jax.storage.run import begin, shards_asked


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path, cloud, monkeypatch, capsys):
    with opened(URL):
        with pytest.raises(UserError, match=rf"in use by another process \(id {os.getpid()}\)"), opened(URL):
            pass  # on this machine, by the working copy
        machine(monkeypatch, tmp_path, 2)
        says = (
            rf"^{URL} is in use by run \(process id {os.getpid()} on \S+\); wait until it ends, or give another --out$"
        )
        for shard in ("", "score-0-of-2"):
            with pytest.raises(TryAgain, match=says), opened(URL, shard):
                pass
    capsys.readouterr()
    for _ in range(2):
        with opened(URL):
            assert capsys.readouterr().err == ""  # at once
    assert cloud.names(PLACE) == set() and len(cloud.objects) == 1  # of the lease its number


def test_one_that_is_about_to_end_is_waited_for(cloud, monkeypatch, capsys):
    """A machine that is taken away: its process renews its lease until the last push is done."""
    monkeypatch.setattr(lease, "GRACE_SECONDS", 5.0)
    with contextlib.ExitStack() as first:
        first.enter_context(held(cloud, PLACE, URL, WHOLE, lambda: None))
        threading.Timer(0.8, first.close).start()  # sixteen renewals later
        with held(cloud, PLACE, URL, WHOLE, lambda: None):
            pass
    assert re.search("is held by run .*; waiting for up to 6 s until it ends", capsys.readouterr().err)


def test_a_dead_process_is_found_dead(tmp_path, cloud, monkeypatch, capsys):
    with opened(URL):
        mine = dict(cloud.objects)
    cloud.objects = dict(mine)
    machine(monkeypatch, tmp_path, 2)
    with opened(URL):
        pass
    says = rf"{URL} is held by run \(process id \d+ on .*\); waiting for up to"
    assert re.search(says, capsys.readouterr().err)


def test_a_process_that_slept_finds_its_lease_taken_and_ends(cloud, monkeypatch):
    """However late it wakes up, and whatever it writes then: also behind one that came and went meanwhile."""
    ended, asleep = threading.Event(), threading.Event()
    monkeypatch.setattr(lease, "RENEW_SECONDS", 60.0)
    with held(cloud, PLACE, URL, WHOLE, ended.set) as is_held:
        assert is_held()
        mine = dict(cloud.objects)
        monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
        with held(cloud, PLACE, URL, WHOLE, asleep.set):
            assert not is_held()
        cloud.objects.update(mine)  # it had looked at its lease just before it slept, and now writes it
        assert not is_held()
        with held(cloud, PLACE, URL, WHOLE, asleep.set) as other:
            assert other() and not is_held()
    assert not asleep.is_set()


def test_a_number_that_was_used_and_deleted_since_it_was_listed_is_no_lease(cloud, monkeypatch):
    real, listings = lease._leases, 0

    def leases(fs: Any, root: str) -> Any:
        nonlocal listings
        listings += 1
        found = real(fs, root)
        if listings == 1:  # two others come before this one goes on; the second stays
            monkeypatch.setattr(lease, "_leases", real)
            with held(cloud, PLACE, URL, WHOLE, lambda: None):
                pass
            others.enter_context(held(cloud, PLACE, URL, WHOLE, lambda: None))
            monkeypatch.setattr(lease, "_leases", leases)
        return found

    with contextlib.ExitStack() as others:
        monkeypatch.setattr(lease, "_leases", leases)
        with pytest.raises(TryAgain, match="is in use by run"), held(cloud, PLACE, URL, WHOLE, lambda: None):
            pass
    assert listings > 1


def test_a_process_whose_lease_was_taken_ends(cloud, monkeypatch):
    noticed = threading.Event()
    monkeypatch.setattr(bucket, "_lost", lambda url: noticed.set())
    with opened(URL):
        cloud.objects.clear()
        assert noticed.wait(5)


def test_shards_and_whole_runs_exclude_each_other(tmp_path, cloud, monkeypatch):
    with opened(URL, "score-0-of-4"), opened(URL, "score-1-of-4"):
        machine(monkeypatch, tmp_path, 2)
        with pytest.raises(TryAgain, match=r"in use by score-0-of-4 \(process id .*\); wait"), opened(URL):
            pass
        with pytest.raises(TryAgain, match=r"in use by score-1-of-4 \("), opened(URL, "score-1-of-4"):
            pass
        with opened(URL, "score-3-of-4"):
            pass
    for shard in ("score-1-of-3", "sketch-0-of-2"):
        with opened(URL, shard):
            pass
    machine(monkeypatch, tmp_path, 3)
    with opened(URL) as copy:  # every machine knows how many shards were asked for last
        assert shards_asked(copy.folder, "score") == 3 and shards_asked(copy.folder, "sketch") == 2


@pytest.mark.parametrize("name", [WHOLE, STARTING, "a run and shards"])
def test_of_many_that_come_together_one_gets_it(cloud, monkeypatch, name):
    """Those that wait for a lease come one after the other."""
    monkeypatch.setattr(lease, "GRACE_SECONDS", 10.0)
    inside: list[str] = []
    together: list[set[str]] = []

    def come(number: int) -> None:
        own = name if name != "a run and shards" else WHOLE if number % 2 else f"score-{number}-of-6"
        with held(cloud, PLACE, URL, own, lambda: None, wait=name == STARTING):
            inside.append(own)
            together.append(set(inside))
            time.sleep(0.02)
            assert name == "a run and shards" or inside == [own]
            inside.remove(own)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 6 and not any(WHOLE in names and len(names) > 1 for names in together)


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
