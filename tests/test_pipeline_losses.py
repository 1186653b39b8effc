"""A run that is evaluated on questions and on examples without choices: what it writes, resumes, costs and says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_page import page_of
from tiny_run import run, tiny_run_config, write_inputs

import ntk_jax as nj
from ntk_jax.engine.estimate import estimate_run
from ntk_jax.models.model import load_model
from ntk_jax.pipelines.common import evaluate as stage
from ntk_jax.pipelines.select.stages import PIPELINE
from ntk_jax.pipelines.select.terminal import terminal
from ntk_jax.storage.atomic import read_json

ARMS = ("base", "domain", "random")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("losses")
    write_inputs(folder)
    notes = [
        {
            "id": f"n{i}",
            "source": "notes",
            "prompt": f"box {i} is red. Colour?",
            "response": "red" + " indeed" * (i % 3),
        }
        for i in range(10)
    ]
    notes.append({"id": "long", "source": "notes", "prompt": "x" * 100, "response": "y"})
    (folder / "notes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in notes))
    return folder


def config(folder: Path, **evaluate: Any) -> Any:
    files = [str(folder / "test.jsonl"), str(folder / "notes.jsonl")]
    return tiny_run_config(
        folder,
        select={"methods": ["random"], "count": 6},
        evaluate={"files": files, "arms": list(ARMS), **evaluate},
        report={"examples": 0},
    )


@pytest.fixture(scope="module")
def finished(inputs: Path) -> Path:
    return run(config(inputs))


def test_both_kinds_of_file_are_evaluated(finished: Path, inputs: Path) -> None:
    results = read_json(finished / "evaluate/results.json")
    assert [task["name"] for task in results["tasks"]] == ["test"]
    (task,) = results["loss"]["tasks"]
    assert (task["name"], task["examples"], task["dropped"], task["truncated"]) == ("notes", 10, {"too long": 1}, 0)
    assert set(task["results"]) == set(ARMS)
    adapter = str(finished / "finetune/random/adapter")
    again = nj.evaluate(
        {"base": load_model(str(inputs / "model"), lora=nj.LoRAConfig(rank=2, alpha=4.0)),
         "random": load_model(str(inputs / "model"), adapter=adapter)},
        str(inputs / "notes.jsonl"), max_length=64, bootstrap=50,
    )  # fmt: skip
    for arm in ("base", "random"):
        lines = [
            json.loads(line) for line in (finished / f"evaluate/losses/{arm}/notes.jsonl").read_text().splitlines()
        ]
        expected = again["losses"][arm]["notes"]
        assert [line["id"] for line in lines] == [line["id"] for line in expected]
        for line, other in zip(lines[:-1], expected[:-1], strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-4) and line["tokens"] == other["tokens"]
        assert lines[-1] == {"id": "long", "dropped": "too long"}
        mean = np.mean([line["loss"] for line in lines[:-1]])
        assert task["results"][arm]["by_example"]["loss"] == pytest.approx(mean)
        assert again["loss"]["average"][arm]["by_token"]["low"] == pytest.approx(
            results["loss"]["average"][arm]["by_token"]["low"], rel=1e-4
        )
    pairs = {(pair["a"], pair["b"], pair["kind"]) for pair in results["loss"]["paired"]}
    assert len(pairs) == 6 and ("random", "base", "by_example") in pairs


def test_terminal_and_page_say_what_is_better(finished: Path) -> None:
    results = read_json(finished / "evaluate/results.json")["loss"]
    text, page = terminal(finished), page_of(finished)[1].text
    for said in ("lower is better", "mean over examples", "mean over tokens", "perplexity"):
        assert said in text and said in page
    entry = results["average"]["random"]["by_example"]
    assert f"{entry['loss']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]" in text
    assert f"{entry['loss']:.3f} {entry['low']:.3f} to {entry['high']:.3f}" in page
    assert "notes: 1 of 11 examples (1 too long)." in text and "Examples were left out" in page
    assert "over the choice of questions and examples, not over training seeds" in text


def test_other_metrics_are_taken_without_repeating_any(
    finished: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in (finished / "evaluate").rglob("*.jsonl")}
    made: list[tuple[str, str]] = []

    def counted(name: str) -> None:
        original = getattr(stage, name)

        def call(model: Any, records: Any, **options: Any) -> Any:
            made.append((name, Path(options["where"]).stem))
            return original(model, records, **options)

        monkeypatch.setattr(stage, name, call)

    for name in ("evaluate_records", "held_out_losses"):
        counted(name)
    run(config(inputs, metrics=["accuracy", "loss"]))
    assert made == [("held_out_losses", "test")] * 3
    results = read_json(finished / "evaluate/results.json")
    assert [task["name"] for task in results["loss"]["tasks"]] == ["test", "notes"]
    made.clear()
    run(config(inputs, metrics=["loss"]))
    results = read_json(finished / "evaluate/results.json")
    assert made == [] and results["tasks"] == [] and results["average"] == {}
    text, page = terminal(finished), page_of(finished)[1].text
    assert "Accuracy in %" not in text and "Accuracy in %" not in page and "training examples" in text
    assert "average, mean over tokens" in text and "Verdict:\n- Held-out loss of " in text
    run(config(inputs))
    assert made == [] and all(path.read_bytes() == content for path, content in before.items())
    assert "loss" in read_json(finished / "evaluate/results.json")


def test_a_run_that_was_cut_short_repeats_no_task_and_ends_in_the_same_bytes(
    finished: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, done = stage.held_out_losses, []

    def fatal(*arguments: Any, **options: Any) -> Any:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(original(*arguments, **options))
        return done[-1]

    cut = tiny_run_config(
        inputs, "cut", select={"methods": ["random"], "count": 6}, report={"examples": 0},
        evaluate={"files": [str(inputs / "test.jsonl"), str(inputs / "notes.jsonl")], "arms": list(ARMS)},
    )  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(stage, "held_out_losses", fatal)
        with pytest.raises(KeyboardInterrupt):
            run(cut)
    folder = inputs / "cut" / "evaluate"
    assert (folder / "losses/base/tasks.json").exists() and not (folder / "losses/domain/tasks.json").exists()
    calls: list[str] = []
    monkeypatch.setattr(stage, "held_out_losses", lambda *a, **o: calls.append(o["where"]) or original(*a, **o))
    run(cut)
    assert len(calls) == 2
    for path in (finished / "evaluate").rglob("*.jsonl"):
        if path.relative_to(finished).parts[-1] != "test.jsonl" or "predictions" in path.parts:
            assert (inputs / "cut" / path.relative_to(finished)).read_bytes() == path.read_bytes()


def test_an_estimate_counts_both(finished: Path, inputs: Path) -> None:
    found = estimate_run(PIPELINE, config(inputs))
    stages = {(row["stage"], row["part"]): row for row in found["stages"]}
    for folder, part in (("predictions", "accuracy"), ("losses", "loss")):
        task = {"predictions": "test", "losses": "notes"}[folder]
        read = [read_json(finished / f"evaluate/{folder}/{arm}/tasks.json")[task] for arm in ARMS]
        for key in ("tokens", "flops"):
            assert stages["evaluate", part][key] == pytest.approx(sum(entry[key] for entry in read), rel=1e-6)
    # Without the files, of the numbers that are stated.
    stated = {"questions": 100, "tokens_per_question": 20.0, "response_share": 0.25}
    away = tiny_run_config(
        inputs, select={"methods": ["random"], "count": 6}, estimate=stated,
        evaluate={"files": ["away.jsonl"], "arms": list(ARMS), "metrics": ["loss"]},
    )  # fmt: skip
    (row,) = [row for row in estimate_run(PIPELINE, away)["stages"] if row["stage"] == "evaluate"]
    assert (row["part"], row["examples"], row["tokens"]) == (None, 300, 6000)
