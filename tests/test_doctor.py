"""`ntk-jax doctor`: what it prints for a sound machine, and that it notices an unsound one."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntk_jax import cli, doctor, selftest
from ntk_jax.config import Config, build
from ntk_jax.errors import UserError


def test_a_sound_machine(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.examine(None)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok") for line in lines)
    assert any("agrees with explicit per-example gradients" in line for line in lines)
    assert any("agrees with one device, from 8" in line for line in lines)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores without a model, so that only the doctor itself is under test."""
    monkeypatch.setattr(selftest, "score", lambda model, *_, **__: np.full(10, 1.0 if model else 0.0))
    monkeypatch.setattr(selftest, "explicit_score", lambda *_: np.ones(10))
    monkeypatch.setattr(selftest, "centred", lambda _: None)


@pytest.mark.parametrize("wrong", [1.001, np.nan])
def test_wrong_numbers_fail(
    quick: None, wrong: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selftest, "explicit_score", lambda *_: np.full(10, wrong))
    assert cli.main(["doctor"]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("FAIL") == 2 and "do not trust this device" in captured.out
    assert captured.err == "ntk-jax: error: 2 checks failed; see the lines marked FAIL\n"


def test_a_head_that_does_not_vanish_fails(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selftest, "centred", lambda model: model)
    with pytest.raises(UserError, match="1 check failed"):
        doctor.examine(None)
    assert "sum-of-logits scores should vanish" in capsys.readouterr().out


def test_a_missing_package_fails(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError, match="1 check failed"):
        doctor.examine(None)
    assert "jax is not installed" in capsys.readouterr().out


def config(tmp_path: Path, **sections: Any) -> Config:
    tree: dict[str, Any] = {
        "out": str(tmp_path / "out"),
        "model": {"path": "builtin:model", "max_length": 256},
        "data": {"domain": "builtin:gloves.train.jsonl", "pool": "builtin:pool.jsonl"},
        "evaluate": {"files": "builtin:gloves.test.jsonl"},
        "select": {"count": 10},
    }
    return build(Config, {**tree, **sections}, "test")


def test_quantized_weights_are_checked_and_counted(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor.examine(config(tmp_path, model={"path": "builtin:model", "max_length": 256, "quantization": "int8"}))
    text = capsys.readouterr().out
    assert "FAIL" not in text and "agrees with plain products of the same int8 weights" in text
    assert "in float32, the layers' matrices in int8 (" in text


def test_a_sound_config(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.examine(config(tmp_path))
    text = capsys.readouterr().out
    assert "FAIL" not in text
    for name in ("run directory", "weights", "tokenizer", "data.domain", "data.pool", "select.count", "evaluate.files"):
        assert f"ok    {name}" in text


@pytest.mark.parametrize(
    ("sections", "failures", "message"),
    [
        ({"select": {"count": 10**6}}, 1, "select.count = 1,000,000 of a pool of"),
        ({"data": {"domain": "nowhere.jsonl", "pool": "builtin:pool.jsonl"}}, 1, "nowhere.jsonl"),
        ({"data": {"domain": "builtin:gloves.train.jsonl"}}, 2, "data.pool is empty; give at least one file"),
        ({"evaluate": {"files": "builtin:pool.jsonl"}}, 1, "choices"),
        ({"model": {"path": "builtin:model", "max_length": 2}}, 3, "none of the first 64 examples is usable"),
        ({"model": {"path": "no/such/folder/here"}}, 1, "no/such/folder/here"),
        ({"model": {}}, 1, "model.path is empty"),
        ({"lora": {"targets": ["z_proj"]}}, 1, "z_proj"),
        ({"out": ""}, 1, "none: give --out DIR"),
        ({"out": __file__}, 1, "is a file; give another --out"),
    ],
)
def test_what_does_not_fit_fails(
    quick: None,
    sections: dict[str, Any],
    failures: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match=f"^{failures} check"):
        doctor.examine(config(tmp_path, **sections))
    assert any(message in line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL"))
