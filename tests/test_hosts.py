"""Several processes, one mesh: on loopback, with simulated devices, as they would run on several hosts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_run import tiny_run_config, write_config, write_inputs

from ntk_jax import cli
from ntk_jax.errors import UserError
from ntk_jax.parallel import hosts
from ntk_jax.parallel.hosts import Hosts
from ntk_jax.storage import arrays, atomic

ROOT = Path(__file__).resolve().parent.parent
LOST = "another process of this run ended or cannot be reached"
LOST_BY_JAX = "JAX distributed service detected fatal errors"  # it ends the process itself, by SIGABRT


# -- one process ---------------------------------------------------------------------------------------------------


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process believes that it is process 1 of 2, and that process 0 is always where it is."""
    monkeypatch.setattr(hosts, "_here", Hosts(1, 2, "there:1"))
    monkeypatch.setattr(hosts, "barrier", lambda name: None)


def test_alone_everything_is_as_it_was(tmp_path: Path) -> None:
    assert hosts.is_primary() and not hosts.is_distributed()
    assert hosts.broadcast(lambda: {1, 2}) == {1, 2}  # not even JSON is asked for
    hosts.barrier("nobody")
    assert (
        hosts.lost_process_line(jax.errors.JaxRuntimeError("Gloo AllGather failed: Connection closed by peer")) is None
    )
    np.testing.assert_array_equal(hosts.on_host(jax.numpy.arange(3)), [0, 1, 2])


def test_a_host_of_a_slice_that_does_not_know_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts.refuse_unjoined()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    config = tmp_path / "c.yaml"
    config.write_text(f"out: {tmp_path}/out\nmodel: {{path: builtin:model}}\n")
    assert cli.main(["score", str(config)]) == 2
    assert "this is host 0 of a slice of 4; start all of them with --coordinator" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_process_0_writes(tmp_path: Path, second: None) -> None:
    atomic.write_json(tmp_path / "x.json", {"a": 1})
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="holds no array store"):  # process 0 has not made it
        arrays.create(tmp_path / "s", {"x": ((), np.float32)}, 4, 2)


def test_blocks_are_written_by_process_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout: dict[str, Any] = {"x": ((), np.float32)}
    store = arrays.create(tmp_path, layout, 4, 2)
    monkeypatch.setattr(hosts, "barrier", lambda name: None)
    monkeypatch.setattr(hosts, "_here", Hosts(1, 2, "there:1"))
    arrays.write_block(arrays.create(tmp_path, layout, 4, 2), 0, {"x": np.ones(2)})
    assert arrays.done_blocks(store) == set()
    monkeypatch.setattr(hosts, "_here", Hosts(0, 2, "there:1"))
    arrays.write_block(arrays.create(tmp_path, layout, 4, 2), 0, {"x": np.ones(2)})
    assert arrays.done_blocks(store) == {0}


def test_values_go_where_they_are_placed(second: None) -> None:
    """The way of several processes, on the devices of one."""
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", "b"))
    value = np.arange(32.0).reshape(8, 4)
    placed = hosts.place({"x": value, "y": jax.numpy.asarray(value)}, {"x": split, "y": split})
    for leaf in placed.values():
        assert leaf.sharding == split
        np.testing.assert_array_equal(hosts.on_host(leaf), value)
    assert hosts.place([value], split)[0].sharding == split


def test_errors_of_a_lost_process_have_a_line_of_their_own(second: None) -> None:
    gone = hosts.lost_process_line(
        jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
    )
    assert gone == f"process 1 of 2: {LOST} (coordinator there:1); start all 2 again, what is written is kept"
    assert (
        hosts.lost_process_line(ValueError("UNKNOWN: Gloo AllGather failed: Read error: Connection reset by peer"))
        == gone
    )
    assert hosts.lost_process_line(jax.errors.JaxRuntimeError("INTERNAL: something else")) is None
    assert hosts.lost_process_line(ValueError("gloo")) is None


def test_a_run_directory_that_is_not_shared(tmp_path: Path, second: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "VISIBLE_SECONDS", 0.0)
    (tmp_path / "there").touch()
    hosts.wait_until_visible(tmp_path / "there")
    with pytest.raises(UserError, match="process 1 does not see .*file system that all processes share"):
        hosts.wait_until_visible(tmp_path / "gone")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, True),
    ],
)
def test_launchers_are_noticed(variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hosts.detected() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes=2"], "--processes and --process need --coordinator host:port"),
        (["--coordinator=here", "--processes=2", "--process=0"], "--coordinator here: give host:port"),
        (["--coordinator=a:1"], "--coordinator needs --processes n and --process i with i from 0 to n-1, got"),
        (["--coordinator=a:1", "--processes=2", "--process=2"], "got --processes 2 and --process 2"),
    ],
)
def test_options_that_are_no_cluster(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"out: {tmp_path}/out\nmodel: {{path: builtin:model}}\n")
    assert cli.main(["score", str(config), *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


# -- real processes ------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(config: Path, devices: int, *arguments: str) -> subprocess.Popen[str]:
    """`ntk-jax`, with so many simulated devices of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "ntk_jax", arguments[0], str(config), *arguments[1:]]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def group(
    config: Path, *arguments: str, started: int = 2, devices: int = 2, count: int | None = None, wait: int = 120
) -> list[subprocess.Popen[str]]:
    """So many processes with so many devices each; count: how many each expects, if not those."""
    port = free_port()
    common = [f"--coordinator=127.0.0.1:{port}", f"--processes={count or started}", f"--wait={wait}", "--heartbeat=10"]
    return [start(config, devices, *arguments, *common, f"--process={index}") for index in range(started)]


def ends(processes: list[subprocess.Popen[str]], timeout: float = 600) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each; nothing may hang."""
    until, found = time.monotonic() + timeout, []
    for process in processes:
        try:
            out, err = process.communicate(timeout=max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
        found.append((process.returncode, out, err))
    return found


def noticed_a_loss(code: int, err: str) -> bool:
    """A process that lost another: it may be started again (neither 0 nor 2), and says why it ended."""
    return (code == 1 and LOST in err) or (code == -signal.SIGABRT and LOST_BY_JAX in err)


def until(reached: Callable[[], bool], processes: list[subprocess.Popen[str]], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end and all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.02)


def selection(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "select" / "selection.jsonl").read_text().splitlines()]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    sections = {"score": {"batch_tokens": 512, "block_examples": 4}, "sketch": {"dim": 64, "block_examples": 8}}
    return write_config(tmp_path, tiny_run_config(tmp_path, "run", **sections))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mesh", [{"data": 4, "fsdp": 1}, {"data": 1, "fsdp": 4}], ids=["data", "fsdp"])
def test_two_processes_select_as_one(config: Path, tmp_path: Path, mesh: dict[str, int]) -> None:
    """From the warm-up to the selection, on four devices in one process and in two. What has no sum over devices has
    the same bytes; the sums themselves (gradients) are added up in another order, so scores agree to rounding."""
    sizes = [f"--mesh.{name}={size}" for name, size in mesh.items()]
    one, two = tmp_path / "one", tmp_path / "two"
    assert ends([start(config, 4, "run", "--until=select", f"--out={one}", *sizes)])[0][0] == 0
    for code, _, err in ends(group(config, "run", "--until=select", f"--out={two}", *sizes)):
        assert code == 0, err
    first, second = selection(one), selection(two)
    assert [record["id"] for record in first] == [record["id"] for record in second]
    np.testing.assert_allclose([r["score"] for r in first], [r["score"] for r in second], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_process_ends_the_other_and_both_go_on(config: Path, tmp_path: Path) -> None:
    """Each of the two is killed once, while blocks are written; the same commands then come to the same bytes."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert [code for code, _, _ in ends(group(config, "run", "--until=select", f"--out={whole}"))] == [0, 0]
    marks = broken / "score" / "scores.zarr" / "done"
    for victim, blocks in ((1, 1), (0, 3)):
        processes = group(config, "run", "--until=select", f"--out={broken}")
        until(lambda blocks=blocks: len(list(marks.glob("*"))) >= blocks, processes)  # type: ignore[misc]
        processes[victim].send_signal(signal.SIGKILL)
        code, _, err = ends(processes, timeout=60)[1 - victim]
        assert noticed_a_loss(code, err), (code, err)
        assert "this is a bug" not in err and "Traceback" not in err
        assert not (broken / "score" / "manifest.json").exists(), "killed too late to show anything"
    assert [code for code, _, _ in ends(group(config, "run", "--until=select", f"--out={broken}"))] == [0, 0]
    for name in ("select/selection.jsonl", *(f"score/scores.zarr/score/c/{block}" for block in range(11))):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("started", "devices"), [(2, 2), (4, 1)])
def test_processes_run_to_the_report(config: Path, tmp_path: Path, started: int, devices: int) -> None:
    """All stages over several processes, on four devices in all; and again, one process killed in the warm-up, one
    between two blocks of the scores, one in a fine-tuning and one before the evaluation: the same bytes. One process
    with four devices selects the same examples and comes to the same answers."""
    alone, whole, broken = (tmp_path / name for name in ("alone", "whole", "broken"))
    shape = {"started": started, "devices": devices}
    assert ends([start(config, 4, "run", f"--out={alone}")])[0][0] == 0
    for code, _, err in ends(group(config, "run", f"--out={whole}", **shape)):
        assert code == 0, err
    assert "selected" in (whole / "report" / "index.html").read_text()
    for number, reached in enumerate(
        (
            "warmup/history.jsonl",
            "score/scores.zarr/done/c/*",
            "finetune/random/history.jsonl",
            "evaluate/fingerprint.json",
        )
    ):
        processes = group(config, "run", f"--out={broken}", **shape)
        until(lambda reached=reached: any(path.stat().st_size or path.parent.name == "done"  # type: ignore[misc]
                                          for path in broken.glob(reached)), processes)  # fmt: skip
        victim = started - 1 - number % started
        processes[victim].send_signal(signal.SIGKILL)
        for index, (code, _, err) in enumerate(ends(processes, timeout=120)):
            assert index == victim or noticed_a_loss(code, err), (reached, index, code, err)
        stage = reached.partition("/")[0]
        assert not (broken / stage / "manifest.json").exists(), f"killed too late to show anything of {stage}"
    assert [code for code, _, _ in ends(group(config, "run", f"--out={broken}", **shape))] == [0] * started
    adapters = sorted(path.relative_to(whole) for path in whole.glob("*/**/adapter_model.safetensors"))
    assert len(adapters) == 4  # of the warm-up and of three arms
    for name in (*adapters, "select/selection.jsonl", "evaluate/results.json"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    assert [record["id"] for record in selection(alone)] == [record["id"] for record in selection(whole)]
    np.testing.assert_allclose(
        [record["score"] for record in selection(alone)], [record["score"] for record in selection(whole)], rtol=1e-4
    )


def sleep_joined(port: int, index: int) -> None:
    """What a process does that computes for long without the others: nothing fails but the heartbeat."""
    hosts.start(f"127.0.0.1:{port}", 2, index, wait=60, heartbeat=10)
    print("joined", flush=True)
    time.sleep(120)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_waits_for_nobody_ends_within_the_heartbeat(victim: int) -> None:
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import test_hosts; test_hosts.sleep_joined({port}, {index})"],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and any(line == "joined\n" for line in process.stdout)
    processes[victim].send_signal(signal.SIGKILL)
    code, _, err = ends(processes, timeout=40)[1 - victim]
    assert noticed_a_loss(code, err), (code, err)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_host_that_never_joins(config: Path, tmp_path: Path) -> None:
    """Two of three come, and one whose coordinator is not there: all say what was expected before JAX ends them, and
    nothing is written."""
    alone = f"--coordinator=127.0.0.1:{free_port()}", "--processes=3", "--process=1", "--wait=5"
    for code, out, err in ends(
        [*group(config, "score", count=3, wait=5), start(config, 2, "score", *alone)], timeout=120
    ):
        assert code not in (0, 2) and out == ""
        assert err.startswith("ntk-jax: waiting up to 5 s for all of 3 processes (coordinator 127.0.0.1:"), err
        assert "start all of them with the same --coordinator and --processes and each with its own --process" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_refused_is_refused_by_all(config: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for arguments, message in (
        (["diagnose"], "diagnose runs in one process"),
        (["report"], "report runs in one process"),
        (["score", "--shard=0/2"], "score --shard runs in one process"),
        (["score"], "stage score needs stage warmup, which is not done"),
        (["warmup", "--mesh.data=2"], "over several processes the mesh takes all of them"),
    ):
        for code, _, err in ends(group(config, *arguments), timeout=200):
            assert code == 2 and message in err, (arguments, err)
