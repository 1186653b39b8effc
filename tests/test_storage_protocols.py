"""Run directories in buckets over the protocols of S3 and Google Cloud Storage, spoken by servers on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from test_storage_bucket import contents, finished, hurry, machine

from ntk_jax.errors import TryAgain, UserError
from ntk_jax.storage import atomic, bucket, lease
from ntk_jax.storage.bucket import opened
from ntk_jax.storage.run import shards_asked


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[str]:
    """An S3 of our own over HTTP, with the bucket `bucket`; its address is in the environment."""
    pytest.importorskip("s3fs", reason="pip install 'ntk_jax[buckets]'")
    pytest.importorskip("moto", reason="pip install 'moto[s3]' flask flask-cors")
    pytest.importorskip("flask_cors", reason="pip install 'moto[s3]' flask flask-cors")
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


def test_s3_copies_and_leases(s3, tmp_path, monkeypatch):
    hurry(monkeypatch)
    monkeypatch.setattr(lease, "STALE_SECONDS", 3.0)
    machine(monkeypatch, tmp_path, 1)
    url = f"{s3}/copies"
    with opened(url) as copy:
        whole = finished(copy.folder)
        atomic.write_bytes(copy.folder / "large", b"x" * (12 << 20))
        machine(monkeypatch, tmp_path, 2)
        says = rf"{url} is in use by another process \(process id {os.getpid()} on"
        with pytest.raises(UserError, match=says), opened(url):
            pass
    assert bucket.look_at(url) == len(whole) + 1
    with opened(url) as copy:
        assert contents(copy.folder) == whole | {"large": b"x" * (12 << 20)}
        first = {name: (copy.folder / name).stat().st_ino for name in whole}
    (copy.folder / ".synced.json").unlink()
    with opened(url) as copy:
        assert {name: (copy.folder / name).stat().st_ino for name in whole} == first  # known by their MD5
    with opened(url, "score-1-of-3"), opened(url, "score-0-of-3"):
        pass
    with opened(url) as copy:
        assert shards_asked(copy.folder, "score") == 3


def test_s3_refuses_in_one_line(s3, monkeypatch):
    with pytest.raises(UserError, match="s3://nowhere/run cannot be used .*mend the bucket's name"):
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
