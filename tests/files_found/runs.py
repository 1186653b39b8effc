"""Configs and the files of run directories, as people and disks leave them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from files_found.case import Case
from ntk_jax.engine.config import load_config
from ntk_jax.errors import LONGEST, UserError
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.storage.arrays import create, open_store
from ntk_jax.storage.atomic import read_json
from ntk_jax.storage.run import begin, commit, verify

TITLE = "Configs and run directories"


def refused(read: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read()
    assert len(str(caught.value)) <= LONGEST and str(caught.value).isprintable()


def config(text: str | bytes, message: str, folder: Path) -> None:
    """A config of this text."""
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(lambda: load_config(path, SelectConfig), message)


def override(words: str, message: str, folder: Path) -> None:
    """An override of the command line."""
    (folder / "run.yaml").write_text("seed: 1\n")
    refused(lambda: load_config(folder / "run.yaml", SelectConfig, [words]), message)


def sums(content: bytes, message: str, folder: Path) -> None:
    """A finished stage whose SHA256SUMS is this."""
    begin(folder, {"seed": 1})
    (folder / "a.txt").write_text("a")
    commit(folder, {"seed": 1}, {})
    verify(folder)
    (folder / "SHA256SUMS").write_bytes(content)
    refused(lambda: verify(folder), message)


def manifest(content: bytes, message: str, folder: Path) -> None:
    """A file of JSON in a run directory."""
    (folder / "summary.json").write_bytes(content)
    refused(lambda: read_json(folder / "summary.json", dict)["seconds"], message)


def store(change: Callable[[dict], object], folder: Path) -> None:
    """An array store whose description was changed."""
    create(folder, {"score": ((), np.float32)}, 10, 4)
    path = folder / "zarr.json"
    described = json.loads(path.read_text())
    change(described["attributes"]["layout"])
    path.write_text(json.dumps(described))
    refused(lambda: open_store(folder), "zarr.json is damaged.*delete the store and run the stage again")


def folder_for_a_file(folder: Path) -> None:
    refused(lambda: load_config(folder, SelectConfig), "cannot read .*: Is a directory")


def case(found: str, happens: str, check: Callable[..., None], *arguments: object) -> Case:
    return Case(found, happens, functools.partial(check, *arguments))


CASES = [
    case("a config with a tag that does not fit its value, `!!int x`", "refused, saying why", config,
         "seed: !!int x\n", "run.yaml: not valid YAML .*invalid literal"),
    case("a text that YAML takes for a date and that is none, `2026-13-45`", "refused, saying why; quote it", config,
         "out: 2026-13-45\n", "run.yaml: not valid YAML .month must be in 1..12"),
    case("a mapping whose key is a list", "refused, the line is named", config,
         "seed: 1\n? [a, b]\n: c\n", "run.yaml, line 2: not valid YAML"),
    case("a merge (`<<`) of what is no mapping", "refused, the line is named", config,
         "score: {<<: 3}\n", "run.yaml, line 1: not valid YAML"),
    case("brackets nested thousands of times", "refused", config, "a: " + "[" * 5000, "nested too deeply"),
    case("a number beyond 64 bits", "refused, the key is named", config,
         f"select: {{count: {10**30}}}\n", r"select\.count = 10{30} is beyond 64 bits"),
    case("`.inf`, `.nan` or `1e400` for a number", "refused, the key is named", config,
         "warmup: {learning_rate: 1e400}\n", r"warmup\.learning_rate = inf must be"),
    case("a path with a NUL", "refused, the key is named", config,
         'model: {path: "a\\0b"}\n', r"model\.path = 'a\\x00b' holds a character"),
    case("a wrong value of 100 kB", "refused; the message has its beginning and its end, 300 characters in all", config,
         f"seed: {'y' * 100_000}\n", "seed must be int, got 'yyy+"),
    case("control characters in a key or value", "refused; the message shows them escaped", config,
         'seed: "a\\nb\\e[31m"\n', r"seed must be int, got 'a\\nb\\x1b\[31m'"),
    case("a config that is not UTF-8", "refused, the byte is named", config, b"seed: \xff\n", "not UTF-8 text .byte 6"),
    case("a folder where a config is asked for", "refused", folder_for_a_file),
    case("any of these values in an override", "refused, the override is named", override,
         "--seed=!!int x", "override '--seed=!!int x': the value: not valid YAML"),
    case("SHA256SUMS that is not UTF-8", "refused, naming it", sums,
         b"\xff\xfe", "SHA256SUMS is damaged, it is not UTF-8"),
    case("a line of SHA256SUMS that is no checksum of a file in its folder", "refused, the line is named", sums,
         f"{'0' * 64}  ../a.txt\n".encode(), "SHA256SUMS is damaged, line 1"),
    case("an empty line in SHA256SUMS", "the same", sums, b"\n", "SHA256SUMS is damaged, line 1 .*delete the folder"),
    case("a JSON file of a run, nested thousands of times", "refused, naming the file to delete", manifest,
         b"[" * 100_000, "summary.json is damaged, it is nested too deeply; delete the folder"),
    case("one that is cut short", "the same", manifest, b'{"seconds"', "summary.json is damaged, it is not JSON"),
    case("one that lacks a key", "the same", manifest, b"{}", "summary.json is damaged, it lacks seconds"),
    case("one that holds a list or a number", "the same", manifest, b"3", "summary.json is damaged, it must hold"),
    case("a store whose zarr.json has other types than it was written with", "refused; delete the store", store,
         lambda layout: layout.update(rows="10")),
    case("the same of an array's shape", "the same", store,
         lambda layout: layout["arrays"].update(score=[["x"], "f4"])),
]  # fmt: skip
