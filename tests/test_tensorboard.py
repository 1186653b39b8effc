"""Metrics as TensorBoard's events: read back by TensorBoard itself, whole and without duplicates after a kill."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import training_child
from tiny_run import tiny_run_config

from ntk_jax.engine.plan import check_settings
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import compare
from ntk_jax.evaluation.tasks import comparison
from ntk_jax.pipelines import pipeline
from ntk_jax.pipelines.common import tensorboard
from ntk_jax.report.tensorboard import FILE, write_scalars

Scalars = dict[str, list[tuple[int, float]]]


def scalars(folder: Path) -> Scalars:
    """{tag: [(step, value)]} as TensorBoard reads a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(item.step, item.value) for item in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def rows(count: int) -> list[tuple[int, dict[str, float]]]:
    return [(step, {"loss": 1 / step, "tokens": 10.0 * step}) for step in range(1, count + 1)]


def expected(count: int) -> Scalars:
    return {
        "loss": [(step, pytest.approx(1 / step)) for step in range(1, count + 1)],
        "tokens": [(step, 10.0 * step) for step in range(1, count + 1)],
    }


def test_rows_are_appended_and_a_damaged_end_is_cut_off(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    path = tmp_path / FILE
    write_scalars(tmp_path, rows(3))
    first = path.read_bytes()
    write_scalars(tmp_path, rows(3))
    assert path.read_bytes() == first, "what agrees is left alone"
    write_scalars(tmp_path, rows(5))
    assert path.read_bytes().startswith(first), "TensorBoard may be reading: what is there stays"
    assert scalars(tmp_path) == expected(5)
    whole = path.read_bytes()
    for damaged in (whole[:-7], whole + b"\x20\0", whole[:40] + b"x" + whole[41:], whole[:5], b""):
        path.write_bytes(damaged)
        write_scalars(tmp_path, rows(6))
        assert scalars(tmp_path) == expected(6)
    write_scalars(tmp_path, rows(2))  # a training that went back
    assert scalars(tmp_path) == expected(2)


def test_a_training_that_was_cut_short_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(tensorboard, "SECONDS", 0.0)
    config = tiny_run_config(tmp_path, report={"tensorboard": True})
    events = tmp_path / "tensorboard" / "warmup"

    def stop(done: int, total: int, note: str) -> None:
        if done == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training_child.run(tmp_path / "warmup", tensorboard.followed(config, tmp_path, "warmup", stop))
    assert [step for step, _ in scalars(events)["loss"]] == [*range(1, 13)], "as far as the history goes"
    with (events / FILE).open("ab") as file:
        file.write(b"half a record")
    training_child.run(tmp_path / "warmup", tensorboard.followed(config, tmp_path, "warmup", lambda *_: None))
    tensorboard.write_events(config, tmp_path)
    history = [json.loads(line) for line in (tmp_path / "warmup" / "history.jsonl").read_text().splitlines()]
    found = scalars(events)
    assert set(found) == {"loss", "learning_rate", "grad_norm", "tokens", "label_tokens"}
    for tag, values in found.items():
        assert values == [(entry["step"], pytest.approx(entry[tag])) for entry in history]


def test_accuracies_of_every_arm_with_their_intervals(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    def answers(right: int) -> list[dict[str, Any]]:
        return [{"id": str(i), "answer": 0, "choices": ["a", "b"], "raw": int(i >= right), "normalized": 0}
                for i in range(8)]  # fmt: skip

    results = compare({"base": {"jars": answers(2)}, "kernel": {"jars": answers(6)}}, bootstrap=20)
    results["arms"] = [{"name": "base", "steps": 0}, {"name": "kernel", "steps": 30}]
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "results.json").write_text(json.dumps(results))
    tensorboard.write_events(tiny_run_config(tmp_path), tmp_path)
    assert not (tmp_path / "tensorboard").exists(), "only where the config asks for it"
    tensorboard.write_events(tiny_run_config(tmp_path, report={"tensorboard": True}), tmp_path)
    for arm, step, accuracy in (("base", 0, 0.25), ("kernel", 30, 0.75)):
        found = scalars(tmp_path / "tensorboard" / "evaluate" / arm)
        assert found["jars/raw/accuracy"] == found["average/raw/accuracy"] == [(step, accuracy)]
        assert found["jars/raw/low"][0][1] <= accuracy <= found["jars/raw/high"][0][1]
        assert found["jars/normalized/accuracy"] == [(step, 1.0)]


def test_held_out_losses_of_every_arm_with_or_without_accuracies(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    def losses(first: float) -> list[dict[str, Any]]:
        return [{"id": "a", "loss": first, "tokens": 1}, {"id": "b", "loss": 1.0, "tokens": 3}]

    answers = [{"id": "0", "answer": 0, "choices": ["a", "b"], "raw": 0, "normalized": 0}]
    (tmp_path / "evaluate").mkdir()
    for accuracy in ({"base": {}, "kernel": {}}, {"base": {"jars": answers}, "kernel": {"jars": answers}}):
        results = comparison(
            accuracy, {"base": {"notes": losses(3.0)}, "kernel": {"notes": losses(2.0)}},
            bootstrap=20, confidence=0.9, seed=0,
        )  # fmt: skip
        results["arms"] = [{"name": "base", "steps": 0}, {"name": "kernel", "steps": 30}]
        (tmp_path / "evaluate" / "results.json").write_text(json.dumps(results))
        tensorboard.write_events(tiny_run_config(tmp_path, report={"tensorboard": True}), tmp_path)
        for arm, step, by_example, by_token in (("base", 0, 2.0, 1.5), ("kernel", 30, 1.5, 1.25)):
            found = scalars(tmp_path / "tensorboard" / "evaluate" / arm)
            assert found["notes/by_example/loss"] == found["average/by_example/loss"] == [(step, by_example)]
            assert found["notes/by_token/loss"] == [(step, by_token)]
            assert found["notes/by_token/low"][0][1] <= by_token <= found["notes/by_token/high"][0][1]
            assert ("jars/raw/accuracy" in found) == ("average/raw/accuracy" in found) == bool(accuracy["base"])


def test_without_the_package_a_run_is_refused_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = tiny_run_config(tmp_path, report={"tensorboard": True})
    with pytest.raises(UserError, match=r"report\.tensorboard needs .* pip install 'ntk_jax\[tensorboard\]'"):
        check_settings(pipeline("select"), config, ())


def test_a_history_of_other_things(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = tiny_run_config(tmp_path, report={"tensorboard": True})
    (tmp_path / "warmup").mkdir()
    for line in ("[1]", '{"step": "x", "loss": 1}', '{"step": 1, "loss": {}}', '{"loss": 1}', '{"step": 1, "loss": "'):
        (tmp_path / "warmup" / "history.jsonl").write_text(f"{line}\n")
        with pytest.raises(UserError, match="history.jsonl.* is damaged"):
            tensorboard.write_events(config, tmp_path)
