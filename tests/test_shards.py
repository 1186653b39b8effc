"""Job arrays: several processes fill a stage, and it has the bytes that one process would have written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_run import run, tiny_run_config, write_config, write_inputs

from ntk_jax import cli
from ntk_jax.engine import blocks, plan
from ntk_jax.engine.shards import Shard, parse_shard, ranges, refuse_missing
from ntk_jax.errors import UserError
from ntk_jax.storage import arrays
from ntk_jax.storage.run import begin, lock, lock_shard, shards_asked

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = {
    "score": {"batch_tokens": 512, "block_examples": 8, "probes": 2},
    "sketch": {"dim": 64, "block_examples": 6},
    "report": {"examples": 0, "useful": []},
}
VOTES = {"method": "votes", "keep": 12, "neighbours": 4}


def bytes_of(stage: Path) -> dict[str, bytes]:
    """The files of a stage that must not depend on who wrote them: the summary has a duration."""
    return {
        str(path.relative_to(stage)): path.read_bytes()
        for path in stage.rglob("*")
        if path.is_file() and path.name not in ("summary.json", "SHA256SUMS") and not path.name.endswith(".__lock")
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def whole(inputs) -> dict[str, Path]:
    """Single-process runs: one that scores, one that votes and sketches."""
    scored = run(tiny_run_config(inputs, "scored", **BLOCKS), until="select")
    copy_before(scored, inputs / "voted", ("warmup",))
    voted = tiny_run_config(inputs, "voted", **BLOCKS, preselect=VOTES, select={"methods": ["sketch", "random"]})
    return {"scored": scored, "voted": run(voted, until="select")}


def copy_before(finished: Path, out: Path, stages: tuple[str, ...]) -> None:
    for stage in stages:
        shutil.copytree(finished / stage, out / stage)


def test_three_shards_in_any_order_score_as_one_process(inputs, whole):
    config = tiny_run_config(inputs, "three", **BLOCKS)
    copy_before(whole["scored"], inputs / "three", ("warmup", "gradient"))
    seen = []

    def progress(stage, total, unit):
        return lambda done, total=None, note="": seen.append((stage, done, total))

    for index in (2, 0, 1):
        seen.clear()
        run(config, only="score", shard=Shard(index, 3), progress=progress)
        own = [8 * len(range(index, 6, 3)) - (5 if index == 2 else 0)]  # 43 examples: the sixth block has 3
        assert {total for stage, _, total in seen if stage == "score"} == set(own)
        assert max(done for stage, done, _ in seen if stage == "score") == own[0]
        assert not (inputs / "three" / "score" / "manifest.json").exists()
    run(config, only="score", merge=True)
    run(config, only="select")
    assert bytes_of(inputs / "three" / "score") == bytes_of(whole["scored"] / "score")
    assert bytes_of(inputs / "three" / "select") == bytes_of(whole["scored"] / "select")


def test_votes_and_sketches_of_two_shards_then_of_three(inputs, whole):
    """A shard that dies after its first block, another n, and a merge."""
    config = tiny_run_config(inputs, "two", **BLOCKS, preselect=VOTES, select={"methods": ["sketch", "random"]})
    copy_before(whole["voted"], inputs / "two", ("warmup",))
    for stage in ("preselect", "sketch"):
        with pytest.MonkeyPatch.context() as patch:
            die_at_block(patch, 2)
            with contextlib.suppress(KeyboardInterrupt):
                run(config, only=stage, shard=Shard(1, 2))
        for index in range(3):
            run(config, only=stage, shard=Shard(index, 3))
        run(config, only=stage, merge=True)
        assert bytes_of(inputs / "two" / stage) == bytes_of(whole["voted"] / stage)
    run(config, only="select")
    assert bytes_of(inputs / "two" / "select") == bytes_of(whole["voted"] / "select")


def die_at_block(patch: pytest.MonkeyPatch, number: int) -> None:
    """The process is interrupted when its n-th block is computed and not yet written."""
    written = 0

    def dying(store, block, values):
        nonlocal written
        written += 1
        if written == number:
            raise KeyboardInterrupt
        arrays.write_block(store, block, values)

    patch.setattr(blocks, "write_block", dying)


def test_a_merge_names_what_is_missing(inputs, whole, capsys):
    path = str(write_config(inputs, tiny_run_config(inputs, "missing", **BLOCKS)))
    out = inputs / "missing"
    copy_before(whole["scored"], out, ("warmup", "gradient"))

    def command(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["score", path, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    code, _, err = command("--merge")
    assert code == 2 and err.endswith(
        f"error: {out}/score cannot be closed: scores.zarr is not begun; run its shards, or the command without "
        "--merge\n"
    )
    assert not (out / "score").exists()
    assert command("--shard", "1/4")[:2] == (
        0,
        "score: 2 of 6 blocks of scores.zarr are there; close the stage with --merge\n",
    )
    command("--shard", "3/4")
    code, stdout, err = command("--merge")
    assert (code, stdout) == (2, "")
    assert err.endswith(
        f"error: {out}/score cannot be closed: scores.zarr lacks 3 of its 6 blocks (0, 2, 4); run --shard 0, 2 of 4 "
        "(again), or the command without --shard\n"
    )
    before = bytes_of(out / "score")
    assert not any(name.startswith("manifest") for name in before)
    assert "6 of 6 blocks of scores.zarr are there; close the stage with --merge" in command("--shard", "0/1")[1]
    assert not (out / "score" / "manifest.json").exists()
    assert command("--merge")[0] == 0
    assert bytes_of(out / "score") == bytes_of(whole["scored"] / "score")
    assert "6 of 6 blocks of scores.zarr are there; the stage is closed" in command("--shard", "0/2")[1]
    assert command("--merge")[0] == 0  # done before


def test_a_plain_command_computes_what_shards_left(inputs, whole):
    config = tiny_run_config(inputs, "plain", **BLOCKS)
    copy_before(whole["scored"], inputs / "plain", ("warmup", "gradient"))
    run(config, only="score", shard=Shard(0, 4))
    run(config, until="select")
    assert bytes_of(inputs / "plain" / "select") == bytes_of(whole["scored"] / "select")


def test_a_stage_that_the_config_has_no_use_for(inputs, whole, capsys):
    """So that a script may name all stages whatever the config."""
    path = str(write_config(inputs, tiny_run_config(inputs, "none", **BLOCKS)))
    copy_before(whole["scored"], inputs / "none", ("warmup",))
    for option in (["--shard", "0/2"], ["--merge"], []):
        assert cli.main(["preselect", path, *option]) == 0
        assert "preselect: this config has no use for it; its stages are warmup, gradient" in capsys.readouterr().out
    assert not (inputs / "none" / "preselect").exists()


@pytest.mark.parametrize("text", ["4/4", "1", "-1/3", "a/b", "1/0", "", "1/2/3"])
def test_a_shard_that_cannot_be(text, inputs, capsys):
    path = str(write_config(inputs, tiny_run_config(inputs, "odd")))
    assert cli.main(["score", path, f"--shard={text}"]) == 2
    assert f"--shard {text}: give i/n, where n processes have the numbers i from 0 to n-1" in capsys.readouterr().err


def test_shard_and_merge_exclude_each_other(inputs, capsys):
    path = str(write_config(inputs, tiny_run_config(inputs, "odd")))
    assert cli.main(["score", path, "--shard", "0/2", "--merge"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_every_block_has_one_owner():
    assert parse_shard("3/7") == Shard(3, 7) and str(Shard(3, 7)) == "3/7"
    owners = [[index for index in range(7) if Shard(index, 7).owns(block)] for block in range(30)]
    assert owners == [[block % 7] for block in range(30)]


def test_ranges_are_short():
    assert ranges([7, 3, 4, 5, 0]) == "0, 3-5, 7"
    assert ranges([]) == ""
    assert ranges(range(0, 100, 2)).endswith("20, 22, ...")


# -- locks -------------------------------------------------------------------------------------------------------


def test_the_same_shard_twice_is_refused(tmp_path):
    with lock_shard(tmp_path, "score", 1, 4):
        with (
            pytest.raises(UserError, match=rf"shard 1/4 of score is at work already in .* \(process id {os.getpid()} "),
            lock_shard(tmp_path, "score", 1, 4),
        ):
            pass
        with lock_shard(tmp_path, "score", 2, 4), lock_shard(tmp_path, "score", 1, 3), lock_shard(tmp_path, "s", 1, 4):
            assert shards_asked(tmp_path, "score") in (3, 4)
    with lock_shard(tmp_path, "score", 1, 4):
        pass


def test_shards_and_ordinary_commands_exclude_each_other(tmp_path):
    with lock_shard(tmp_path, "score", 1, 4), lock_shard(tmp_path, "score", 3, 4):
        with pytest.raises(UserError) as error, lock(tmp_path):
            pass
        assert re.search(
            rf"is in use by shard 1/4 of score \(process id {os.getpid()} on \S+\) and 1 more; wait until they end",
            str(error.value),
        )
    with (
        lock(tmp_path),
        pytest.raises(UserError, match=rf"in use by another process \(id {os.getpid()}\)"),
        lock_shard(tmp_path, "score", 1, 4),
    ):
        pass
    with lock(tmp_path):
        pass


def test_a_look_at_who_holds_the_directory_stops_no_shard(tmp_path):
    """Refused commands look into the locks of shards while shards start and end."""
    stop, refused = threading.Event(), []

    def ordinary() -> None:
        while not stop.is_set():
            with contextlib.suppress(UserError), lock(tmp_path):
                raise AssertionError("the directory was given away while a shard held it")
            refused.append(1)

    with lock_shard(tmp_path, "score", 0, 4):
        thread = threading.Thread(target=ordinary)
        thread.start()
        for _ in range(200):
            with lock_shard(tmp_path, "score", 1, 4):
                pass
        stop.set()
        thread.join()
    assert refused


def test_stores_made_in_the_same_moment_are_one(tmp_path):
    """Whoever is first makes it; those that wanted the same use it, those that wanted another are refused."""
    for attempt in range(10):
        folder, barrier, made = tmp_path / str(attempt), threading.Barrier(8), []

        def make(number: int, folder: Path = folder, barrier=barrier, made=made) -> None:
            width, facts = (3, {"seed": 0}) if number % 2 else (4, {"seed": 1})
            barrier.wait()
            try:
                store = arrays.create(folder, {"x": ((width,), np.float32)}, 16, 2, facts)
                arrays.write_block(store, number, {"x": np.full((2, width), number)})
                made.append(number)
            except UserError as error:
                assert "seed" in str(error) and "give another folder" in str(error)

        threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store = arrays.open_store(folder)
        assert sorted(made) == sorted(arrays.done_blocks(store))
        assert sorted(made) == list(range(store.facts["seed"] == 0, 8, 2))


def test_shards_that_start_together_on_an_empty_stage(inputs, whole):
    """Four threads, as four processes would: each has its own handles, and locks are of handles."""
    config = tiny_run_config(inputs, "together", **BLOCKS)
    out = inputs / "together"
    copy_before(whole["scored"], out, ("warmup", "gradient"))
    barrier, failures = threading.Barrier(4), []

    def shard(index: int) -> None:
        barrier.wait()
        try:
            run(config, only="score", shard=Shard(index, 4))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=shard, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    run(config, only="score", merge=True)
    assert bytes_of(out / "score") == bytes_of(whole["scored"] / "score")
    assert json.loads((out / "provenance.json").read_text())["stages"]["score"]


def test_a_changed_setting_is_refused_by_a_shard(inputs, whole, monkeypatch):
    config = tiny_run_config(inputs, "changed", **BLOCKS)
    copy_before(whole["scored"], inputs / "changed", ("warmup", "gradient"))
    run(config, only="score", shard=Shard(0, 2))
    other = tiny_run_config(inputs, "changed", **{**BLOCKS, "score": {**BLOCKS["score"], "block_examples": 4}})
    with pytest.raises(UserError, match="score.block_examples was 8, is now 4"):
        run(other, only="score", shard=Shard(1, 2))

    # Both looked before either had begun: the second is refused all the same, and has written nothing.
    files = [inputs / "changed" / name for name in ("config.yaml", "provenance.json")]
    before = [path.read_bytes() for path in files]
    monkeypatch.setattr(plan, "look", lambda folder, *_: "new" if folder.name == "score" else "done")
    with pytest.raises(UserError, match="score.block_examples was 8, is now 4"):
        run(other, only="score", shard=Shard(1, 2))
    assert [path.read_bytes() for path in files] == before


def test_a_store_whose_making_was_cut_short_is_not_begun(tmp_path):
    store = tmp_path / "scores.zarr"
    arrays.create(store, {"score": ((), np.float32), "status": ((), np.uint8)}, 8, 4)
    assert arrays.is_store(store)
    shutil.rmtree(store / "status")
    with pytest.raises(UserError, match="scores.zarr is not begun; run --shard 0-1 of 2"):
        refuse_missing(tmp_path, ["scores.zarr"], 2)


def test_a_fingerprint_is_never_overwritten(tmp_path):
    begin(tmp_path, {"seed": 0})
    with pytest.raises(UserError, match="seed was 0, is now 1"):
        begin(tmp_path, {"seed": 1})


# -- real processes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_processes_one_of_them_killed(tmp_path):
    write_inputs(tmp_path)
    sections = {**BLOCKS, "score": {**BLOCKS["score"], "block_examples": 2}, "sketch": {"dim": 64, "block_examples": 2}}
    config = str(write_config(tmp_path, tiny_run_config(tmp_path, "run", **sections, preselect={**VOTES, "keep": 40})))
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    methods = "--select.methods=[sketch, random]"

    def start(stage: str, out: Path, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ntk_jax", stage, config, "--out", str(out), *arguments]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(process: subprocess.Popen[str]) -> None:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err

    finish(start("run", whole, "--until", "select"))
    finish(start("sketch", whole, methods))
    copy_before(whole, shared, ("warmup", "gradient"))
    for stage in ("preselect", "score", "sketch"):
        own = (methods,) if stage == "sketch" else ()
        shards = [start(stage, shared, "--shard", f"{index}/4", *own) for index in range(4)]
        victim, until = shards[2], time.monotonic() + 200
        while time.monotonic() < until and victim.poll() is None:
            if list((shared / stage).glob("*.zarr/done/c/*")):  # somewhere in the middle
                break
            time.sleep(0.005)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        assert victim.returncode == -signal.SIGKILL, "it was done before it could be killed"
        shards[2] = start(stage, shared, "--shard", "2/4", *own)
        for shard in shards:
            finish(shard)
        finish(start(stage, shared, "--merge", *own))
        assert bytes_of(shared / stage) == bytes_of(whole / stage), stage
    finish(start("select", shared))
    assert bytes_of(shared / "select") == bytes_of(whole / "select")
