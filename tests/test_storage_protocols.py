"""Run directories in buckets over the protocols of S3 and Google Cloud Storage, spoken by servers on this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud import contents, finished, machine
from test_shards import BLOCKS
from tiny_run import tiny_run_config, write_config, write_inputs

from ntk_jax.errors import TryAgain, UserError
from ntk_jax.storage import atomic, bucket, lease
from ntk_jax.storage.bucket import opened
from ntk_jax.storage.run import shards_asked

ROOT = Path(__file__).resolve().parent.parent
INSTALL = "pip install 'ntk_jax[test-buckets]'"


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[str]:
    """An S3 of our own over HTTP, with the bucket `bucket`; its address is in the environment."""
    for name in ("s3fs", "moto", "flask_cors"):
        pytest.importorskip(name, reason=INSTALL)
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as server,
    ):
        assert server.stderr is not None
        found = next(m for line in server.stderr if (m := re.search(r"http://127\.0\.0\.1:\d+", line)))
        threading.Thread(target=server.stderr.read, daemon=True).start()
        for key, value in {
            "AWS_ENDPOINT_URL": found[0],
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(key, value)
        fs, _ = bucket.file_system("s3://bucket/run")
        fs.mkdir("bucket")
        yield "s3://bucket"
        server.terminate()


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    """A Google Cloud Storage of our own, likewise."""
    server = pytest.importorskip("gcp_storage_emulator.server", reason=INSTALL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    running.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
            patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # as `bucket.file_system`, and before the import
            pytest.importorskip("gcsfs", reason=INSTALL)
            import fsspec

            patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
            yield "gs://bucket"
    finally:
        running.stop()


@pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning")  # by gcsfs
@pytest.mark.parametrize("store", ["s3", "gs"])
def test_copies_and_leases(store, request, tmp_path, monkeypatch):
    for name, seconds in (
        ("RENEW_SECONDS", 0.5),
        ("STALE_SECONDS", 10.0),
        ("GRACE_SECONDS", 0.0),
        ("LOOK_SECONDS", 0.2),
    ):
        monkeypatch.setattr(lease, name, seconds)
    machine(monkeypatch, tmp_path, 1)
    url = f"{request.getfixturevalue(store)}/copies"
    large = b"x" * (12 << 20)  # goes up in parts
    with opened(url) as copy:
        whole = finished(copy.folder)
        atomic.write_bytes(copy.folder / "large", large)
        machine(monkeypatch, tmp_path, 2)
        says = rf"{url} is in use by run \(process id {os.getpid()} on"
        with pytest.raises(TryAgain, match=says), opened(url):
            pass
    assert bucket.look_at(url) == len(whole) + 1
    with opened(url) as copy:
        assert contents(copy.folder) == whole | {"large": large}
        first = {name: (copy.folder / name).stat().st_ino for name in whole}
    with opened(url) as copy:
        assert {name: (copy.folder / name).stat().st_ino for name in whole} == first  # nothing is copied twice
    with opened(url, "score-1-of-3"), opened(url, "score-0-of-3"):
        pass
    with opened(url) as copy:
        assert shards_asked(copy.folder, "score") == 3


def test_s3_creates_a_lease_once(s3):
    """The server for Google Cloud Storage ignores the condition, so that only S3 shows it."""
    fs, root = bucket.file_system(f"{s3}/once")
    assert lease._create(fs, root, "run", 1, b"a") and not lease._create(fs, root, "run", 1, b"b")
    assert fs.cat_file(f"{root}/.leases/run.1") == b"a"


def test_s3_refuses_in_one_line(s3, monkeypatch):
    with pytest.raises(UserError, match="s3://nowhere/run cannot be used .*check the bucket's name"):
        bucket.look_at("s3://nowhere/run")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(TryAgain, match="s3://bucket/run cannot be reached"):
        bucket.look_at("s3://bucket/run")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match="cannot be used .NoCredentialsError"):
        bucket.look_at("s3://bucket/run")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_run_goes_on_without_its_working_copy_and_shards_from_several_machines(s3, tmp_path):
    """Real processes: SIGKILL in the middle of scoring, the machine's disk lost with it; then shards and a merge."""
    write_inputs(tmp_path)
    sections = {**BLOCKS, "score": {**BLOCKS["score"], "block_examples": 2}}
    config = str(write_config(tmp_path, tiny_run_config(tmp_path, "run", **sections)))
    count = iter(range(100))

    def start(command: str, out: str, *arguments: str) -> subprocess.Popen[str]:
        """Each on a machine of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "ntk_jax", command, config, "--out", out, *arguments],
            cwd=ROOT,
            env={**os.environ, "NTK_JAX_SCRATCH": str(tmp_path / f"scratch {next(count)}")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(process: subprocess.Popen[str]) -> str:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        return out + err

    def stored(url: str, name: str) -> bytes:
        fs, root = bucket.file_system(url)
        return fs.cat_file(f"{root}/{name}")

    finish(start("run", str(tmp_path / "whole")))
    selection = (tmp_path / "whole" / "select" / "selection.jsonl").read_bytes()

    victim, fs = start("run", f"{s3}/killed"), bucket.file_system(s3)[0]
    while victim.poll() is None and not fs.find("bucket/killed/score/scores.zarr/done/c"):
        fs.invalidate_cache()
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL, "it was done before it could be killed"
    said = finish(start("run", f"{s3}/killed"))
    assert "waiting for up to 75 s until it ends or is found dead" in said  # its lease was left behind
    assert stored(f"{s3}/killed", "select/selection.jsonl") == selection
    assert re.search(rf"The run directory is {s3}/killed; its working copy here is \S+", said), said

    for command in ("warmup", "gradient", "preselect"):
        finish(start(command, f"{s3}/shared"))
    shards = [start("score", f"{s3}/shared", "--shard", f"{index}/2") for index in range(2)]
    for shard in shards:
        assert f"is in {s3}/shared; close the stage with --merge" in finish(shard)
    finish(start("score", f"{s3}/shared", "--merge"))
    finish(start("select", f"{s3}/shared"))
    assert stored(f"{s3}/shared", "select/selection.jsonl") == selection
