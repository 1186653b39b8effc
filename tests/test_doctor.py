"""`ntk-jax doctor`: what it prints for a sound machine, and that it notices an unsound one."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from kernel_reference import flatten, reference_gradients

from ntk_jax import cli, pipelines
from ntk_jax.engine import doctor
from ntk_jax.engine.config import build
from ntk_jax.errors import UserError
from ntk_jax.kernels import reference, selftest
from ntk_jax.kernels.objectives import Objective
from ntk_jax.models.hub import resolve
from ntk_jax.pipelines.common.doctor import numerics
from ntk_jax.pipelines.select.config import SelectConfig


def examine(config: SelectConfig | None = None) -> None:
    """As the command line calls it."""
    doctor.examine(numerics, pipelines.pipeline("select") if config else None, config)


def test_a_sound_machine(capsys: pytest.CaptureFixture[str]) -> None:
    examine()
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok") for line in lines)
    for name, found in (
        ("mean gradient", "agrees with differences of the same model in float64"),
        ("score, sum of logits", "agrees with differences of the same model in float64"),
        ("score, cross-entropy", "agrees with differences of the same model in float64"),
        ("gradient of the head", "agrees with softmax minus target, in float64"),
        ("packing", "agrees with every example by itself"),
        ("centred head", "of the sum-of-logits score is left"),
        ("several devices", "agrees with one device, from 8"),
    ):
        assert any(line.startswith(f"ok    {name} ") and found in line for line in lines), name


def test_the_reference_is_what_jax_differentiates() -> None:
    """Its differences against reverse mode through the decoder of the package, for one example of each objective."""
    model, [row, *_] = selftest.small_model(), selftest.small_rows(1)
    rng = np.random.default_rng(3)
    along = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), model.lora)
    for objective in ("sum_logits", "cross_entropy"):
        [gradient] = reference_gradients(model, [row], Objective(objective))
        [slow] = reference.derivatives(model, along, [row], objective)
        assert slow == pytest.approx(float(gradient[0] @ flatten(along, 1)[0]), rel=2e-5)


def test_every_part_of_the_reference_is_seen_by_a_check() -> None:
    """A change of any parameter, or of the order of the tokens, moves what the checks compare by far more than they
    forgive."""
    model, rows = selftest.small_model(), selftest.small_rows(4)
    along = jax.tree.map(np.ones_like, model.lora)
    before = reference.derivatives(model, along, rows, "cross_entropy")
    for path, leaf in jax.tree_util.tree_flatten_with_path(model.base)[0]:
        base = jax.tree_util.tree_map_with_path(lambda p, x, path=path: 1.01 * x if p == path else x, model.base)
        after = reference.derivatives(dataclasses.replace(model, base=base), along, rows, "cross_entropy")
        assert selftest.difference(after, before) > 1e-4, f"{jax.tree_util.keystr(path)} {leaf.shape} is not seen"
    turned = [dataclasses.replace(row, ids=row.ids[::-1].copy()) for row in rows]
    assert selftest.difference(reference.derivatives(model, along, turned, "sum_logits"), before) > 1e-2


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores without a model, so that only the doctor itself is under test."""
    monkeypatch.setattr(selftest, "direction", lambda *_, **__: None)
    monkeypatch.setattr(selftest, "score", lambda model, *_, **__: np.full(10, 1.0 if model else 0.0))
    monkeypatch.setattr(selftest, "score_alone", lambda *_: np.ones(10))
    monkeypatch.setattr(selftest, "reference_score", lambda *_: np.ones(10))
    monkeypatch.setattr(selftest, "projections", lambda *_: (np.ones(6), np.ones(6)))
    monkeypatch.setattr(selftest, "head_gradients", lambda *_: (np.ones(6), np.ones(6)))
    monkeypatch.setattr(selftest, "centred", lambda _: None)


@pytest.mark.parametrize("wrong", [1.001, np.nan])
def test_wrong_numbers_fail(
    quick: None, wrong: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selftest, "reference_score", lambda *_: np.full(10, wrong))
    assert cli.main(["doctor"]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("FAIL") == 2 and "do not trust this device" in captured.out
    assert captured.err == "ntk-jax: error: 2 checks failed; see the lines marked FAIL\n"


def test_a_head_that_does_not_vanish_fails(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selftest, "centred", lambda model: model)
    with pytest.raises(UserError, match="1 check failed"):
        examine()
    assert "sum-of-logits scores should vanish" in capsys.readouterr().out


def test_a_missing_package_fails(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError, match="1 check failed"):
        examine()
    assert "jax is not installed" in capsys.readouterr().out


def config(tmp_path: Path, **sections: Any) -> SelectConfig:
    tree: dict[str, Any] = {
        "out": str(tmp_path / "out"),
        "model": {"path": "builtin:model", "max_length": 256},
        "data": {"domain": "builtin:gloves.train.jsonl", "pool": "builtin:pool.jsonl"},
        "evaluate": {"files": "builtin:gloves.test.jsonl"},
        "select": {"count": 10},
    }
    found: SelectConfig = build(SelectConfig, {**tree, **sections}, "test")
    return found


def test_quantized_weights_are_checked_and_counted(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examine(config(tmp_path, model={"path": "builtin:model", "max_length": 256, "quantization": "int8"}))
    text = capsys.readouterr().out
    assert "FAIL" not in text and "agrees with plain products of the same int8 weights" in text
    assert "in float32, the layers' matrices in int8 (" in text


def test_keys_ignored_at_the_users_word_are_named(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(resolve("builtin:model"), tmp_path / "model")
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, "brand_new_norm": True}))
    model = {"path": str(folder), "max_length": 256}
    with pytest.raises(UserError, match="1 check failed"):
        examine(config(tmp_path, model=model))
    assert "unknown key brand_new_norm = True" in found_of("weights", capsys.readouterr().out)
    examine(config(tmp_path, model={**model, "ignore_config_keys": ["brand_new_norm", "not_there"]}))
    line = found_of("config.json keys", capsys.readouterr().out)
    assert line.startswith("LOOK") and line.endswith("ignored at your word: brand_new_norm")


def test_a_sound_config(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examine(config(tmp_path))
    text = capsys.readouterr().out
    assert "FAIL" not in text
    for name in ("run directory", "weights", "tokenizer", "data.domain", "data.pool", "select.count", "evaluate.files"):
        assert f"ok    {name}" in text


def write(path: Path, prompts: list[str], **more: Any) -> str:
    lines = [
        {"id": f"{path.stem}-{i}", "source": "s", "prompt": p, "response": "warm", **more}
        for i, p in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


SHORT, LONG = "the wool is", "the wool is " * 100


def found_of(name: str, text: str) -> str:
    [line] = [line for line in text.splitlines() if line[6:].startswith(name)]
    return line


@pytest.mark.parametrize(
    ("metrics", "choices", "said"),
    [
        (None, {}, "64 examples, by their loss; of 64 sampled: 1 dropped, 0 truncated"),
        (None, {"choices": ["warm", "cold"], "answer": 0}, "64 questions, 2 choices; of 64 sampled: 1 dropped"),
        (
            ["accuracy", "loss"],
            {"choices": ["warm", "cold"], "answer": 0},
            "64 questions, 2 choices, by their loss; of",
        ),
        (["loss"], {"choices": ["warm", "cold"], "answer": 0}, "64 examples, by their loss; of 64"),
    ],
)
def test_files_to_evaluate_on_are_questions_or_examples(
    metrics: Any, choices: Any, said: str, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = write(tmp_path / "held_out.jsonl", [SHORT] * 63 + [LONG], **choices)
    model = {"path": "builtin:model", "max_length": 64}
    examine(config(tmp_path, model=model, evaluate={"files": held_out, "metrics": metrics}))
    assert f"held_out.jsonl: {said}" in found_of("evaluate.files", capsys.readouterr().out)


@pytest.mark.parametrize(("overflow", "lost"), [("drop", "dropped"), ("truncate", "truncated")])
def test_all_files_of_a_set_are_looked_at(
    overflow: str, lost: str, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first file would fill the sample, and only the second is too long."""
    files = [write(tmp_path / "a.jsonl", [SHORT] * 300), write(tmp_path / "b.jsonl", [LONG] * 300)]
    model = {"path": "builtin:model", "max_length": 64, "overflow": overflow}
    examine(config(tmp_path, data={"domain": "builtin:gloves.train.jsonl", "pool": files}, model=model))
    line = found_of("data.pool", capsys.readouterr().out)
    assert line.startswith("LOOK  data.pool") and "600 records; of 64 sampled over all files:" in line
    [count] = re.findall(rf"(\d+) {lost}", line)
    assert 16 < int(count) < 48 and "is much: raise model.max_length" in line


@pytest.mark.parametrize(("long", "word"), [(0, "ok"), (3, "ok"), (4, "LOOK")])
def test_more_than_a_twentieth_lost_is_marked(
    long: int, word: str, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = write(tmp_path / "pool.jsonl", [SHORT] * (64 - long) + [LONG] * long)
    questions = write(
        tmp_path / "asked.jsonl", [SHORT] * (64 - long) + [LONG] * long, choices=["warm", "cold"], answer=0
    )
    model = {"path": "builtin:model", "max_length": 64}
    data = {"domain": "builtin:gloves.train.jsonl", "pool": pool}
    examine(config(tmp_path, data=data, model=model, evaluate={"files": questions}))
    text = capsys.readouterr().out
    for name in ("data.pool", "evaluate.files"):
        line = found_of(name, text)
        assert line.startswith(word) and f" {long} dropped, 0 truncated" in line
        assert ("is much" in line) == (word == "LOOK")


def test_a_model_that_is_not_there_is_one_failure(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="^1 check failed"):
        examine(config(tmp_path, model={"path": "no/such/folder/here"}))
    text = capsys.readouterr().out
    assert found_of("weights", text).startswith("FAIL")
    assert found_of("tokenizer", text) == "LOOK  tokenizer                not looked at: the model cannot be loaded"
    assert "5,980 records; their tokens are not counted" in found_of("data.pool", text)
    assert "questions; their tokens are not counted" in found_of("evaluate.files", text)


def test_what_is_left_aside_of_a_checkpoint_is_to_be_looked_at(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(resolve("builtin:model"), tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    examine(config(tmp_path, model={"path": str(folder), "max_length": 64}))
    line = found_of("weights", capsys.readouterr().out)
    assert line.startswith("LOOK") and f"{folder}: the adapter beside the weights (adapter_config.json) is left" in line
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="^1 check failed"):
        examine(config(tmp_path, model={"path": str(folder), "max_length": 64}))
    line = found_of("weights", capsys.readouterr().out)
    assert "is a PEFT adapter: set model.adapter to it, and model.path to owner/name" in line


def test_a_sample_that_a_run_takes_is_stated(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"domain": "builtin:gloves.train.jsonl", "pool": "builtin:pool.jsonl", "pool_limit": 100}
    examine(config(tmp_path, data=data, select={"count": 100}))
    text = capsys.readouterr().out
    assert "records, a sample of 100 used; of 64 sampled" in found_of("data.pool", text)
    assert "100 of 100 (100.0%)" in found_of("select.count", text)


def test_the_pipeline_of_a_config_says_what_is_checked(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    tree = {"out": str(tmp_path / "out"), "model": {"path": "builtin:model"}, "pipeline": "kernel"}
    path.write_text(json.dumps({**tree, "kernel": {"a": "builtin:gloves.train.jsonl"}}))
    assert cli.main(["doctor", str(path)]) == 0
    text = capsys.readouterr().out
    assert "a run has the stages kernel" in found_of("settings", text) and "select.count" not in text


@pytest.mark.parametrize(
    ("sections", "failures", "message"),
    [
        ({"select": {"count": 10**6}}, 1, "select.count = 1,000,000 of a pool of"),
        ({"data": {"domain": "nowhere.jsonl", "pool": "builtin:pool.jsonl"}}, 1, "nowhere.jsonl"),
        ({"data": {"domain": "builtin:gloves.train.jsonl"}}, 3, "data.pool is empty; give at least one file"),
        (
            {"evaluate": {"files": "builtin:pool.jsonl", "metrics": ["accuracy"]}},
            1,
            "has no choices, and accuracy needs",
        ),
        ({"evaluate": {"files": "builtin:pool.jsonl", "metrics": ["f1"]}}, 1, "metrics: 'f1' is not one of accuracy"),
        (
            {"model": {"path": "builtin:model", "max_length": 2}},
            3,
            "sampled examples is usable; check model.max_length",
        ),
        ({"model": {"path": "no/such/folder/here"}}, 1, "no/such/folder/here"),
        ({"model": {}}, 2, "model.path is empty"),
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
        examine(config(tmp_path, **sections))
    assert any(message in line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL"))
