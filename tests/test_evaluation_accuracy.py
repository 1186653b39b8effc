"""Predictions, accuracies and the comparison of arms, on likelihoods whose table can be written by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_reference import tiny_model
from small_tokenizers import byte_tokenizer

from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import compare, evaluate_records, predict, task_files
from ntk_jax.evaluation.tasks import read_tasks

LABELS = ["joy", "anger"]


def question(name: str, answer: int, choices: list[str] | None = None) -> dict[str, Any]:
    return {"id": name, "answer": answer, "choices": choices or LABELS}


def arm(*raw: int, normalized: tuple[int, ...] | None = None, answers: tuple[int, ...] = (0, 1, 0, 1)) -> list[Any]:
    kinds = zip(raw, normalized or raw, answers, strict=True)
    return [question(f"q{i}", answer) | {"raw": r, "normalized": n} for i, (r, n, answer) in enumerate(kinds)]


def test_prediction_raw_and_normalized() -> None:
    row = predict(question("q", 1), np.asarray([-3.0, -4.0]), np.asarray([1, 2]))
    assert row == {
        "id": "q", "answer": 1, "choices": LABELS, "log_likelihoods": [-3.0, -4.0], "lengths": [1, 2],
        "raw": 0, "normalized": 1,
    }  # fmt: skip
    assert json.loads(json.dumps(row)) == row
    assert predict(question("q", 1), np.asarray([-1.0, -1.0]), np.asarray([1, 1]))["raw"] == 0  # ties: the first


def test_comparison_of_two_arms() -> None:
    arms = {
        "base": {"feelings": arm(0, 0, 0, 0), "more": arm(0, 1, 1, 1)},
        "selected": {"feelings": arm(0, 1, 0, 0, normalized=(1, 1, 1, 1)), "more": arm(0, 1, 0, 1)},
    }
    result = compare(arms, bootstrap=500, confidence=0.9, seed=3)
    feelings, more = result["tasks"]
    assert (feelings["name"], feelings["questions"], feelings["choices"], feelings["chance"]) == ("feelings", 4, 2, 0.5)
    assert feelings["truth"] == {"anger": 2, "joy": 2}
    base, selected = feelings["results"]["base"], feelings["results"]["selected"]
    assert base["raw"]["accuracy"] == 0.5 and base["raw"]["predicted"] == {"anger": 0, "joy": 4}  # a collapse shows
    assert selected["raw"]["accuracy"] == 0.75
    assert selected["normalized"] == {
        "accuracy": 0.5, "low": selected["normalized"]["low"], "high": selected["normalized"]["high"],
        "predicted": {"anger": 4, "joy": 0}, "balanced": selected["normalized"]["balanced"],
    }  # fmt: skip
    assert base["raw"]["low"] <= 0.5 <= base["raw"]["high"]
    assert more["results"]["selected"]["raw"] == {
        "accuracy": 1.0, "low": 1.0, "high": 1.0, "predicted": {"anger": 2, "joy": 2},
        "balanced": {"accuracy": 1.0, "low": 1.0, "high": 1.0},
    }  # fmt: skip
    assert result["average"]["base"]["raw"]["accuracy"] == (0.5 + 0.75) / 2
    assert result["average"]["selected"]["raw"]["accuracy"] == (0.75 + 1.0) / 2
    raw, normalized = result["paired"]
    assert (raw["a"], raw["b"], raw["kind"], raw["difference"]) == ("selected", "base", "raw", 0.25)
    assert 0.0 <= raw["low"] < raw["difference"] < raw["high"]  # never worse on any question
    assert normalized["kind"] == "normalized" and normalized["difference"] == (0.5 + 1.0) / 2 - (0.5 + 0.75) / 2
    own = [pair["difference"] for task in result["tasks"] for pair in task["paired"]]
    assert own[0] == own[2] == 0.25 and (own[1] + own[3]) / 2 == normalized["difference"]
    assert (result["confidence"], result["bootstrap"]) == (0.9, 500)
    assert json.loads(json.dumps(result)) == result
    assert result == compare(arms, bootstrap=500, confidence=0.9, seed=3)
    assert result["paired"] != compare(arms, bootstrap=500, confidence=0.9, seed=4)["paired"]


def test_every_pair_of_arms_is_compared() -> None:
    arms = {name: {"t": arm(0, 1, 1, 1)} for name in ("base", "domain", "random", "selected")}
    paired = compare(arms, bootstrap=10)["paired"]
    assert [(p["a"], p["b"]) for p in paired if p["kind"] == "raw"] == [
        ("domain", "base"), ("random", "base"), ("selected", "base"),
        ("random", "domain"), ("selected", "domain"), ("selected", "random"),
    ]  # fmt: skip
    assert all(p["difference"] == p["low"] == p["high"] == 0.0 for p in paired)


def test_labels_by_position_where_texts_differ() -> None:
    rows = [
        question("q0", 2, ["x", "y", "z"]) | {"raw": 2, "normalized": 0},
        question("q1", 0, ["u", "v", "w", "t"]) | {"raw": 1, "normalized": 1},
    ]
    (task,) = compare({"base": {"t": rows}}, bootstrap=10)["tasks"]
    assert task["results"]["base"]["raw"]["predicted"] == {"A": 0, "B": 1, "C": 1, "D": 0}
    assert task["truth"] == {"A": 1, "B": 0, "C": 1, "D": 0}
    assert task["chance"] == pytest.approx((1 / 3 + 1 / 4) / 2) and task["choices"] == 3.5


def test_shuffled_choices_of_one_label_set_count_by_text() -> None:
    rows = [
        question("q0", 0, ["joy", "anger"]) | {"raw": 1, "normalized": 1},
        question("q1", 0, ["anger", "joy"]) | {"raw": 0, "normalized": 0},
    ]
    (task,) = compare({"base": {"t": rows}}, bootstrap=10)["tasks"]
    assert task["results"]["base"]["raw"]["predicted"] == {"anger": 2, "joy": 0}


def test_dropped_questions() -> None:
    rows = [*arm(0, 1, 1, 1), {"id": "long", "dropped": "too long"}]
    (task,) = compare({"base": {"t": rows}}, bootstrap=10)["tasks"]
    assert (task["questions"], task["dropped"], task["truncated"]) == (4, {"too long": 1}, 0)
    with pytest.raises(UserError, match=r"no question of t can be used \(too long\); raise"):
        compare({"base": {"t": rows[-1:]}})
    with pytest.raises(UserError, match="arms base and other answered other questions of t"):
        compare({"base": {"t": rows}, "other": {"t": rows[1:]}})
    with pytest.raises(UserError, match="no arms"):
        compare({})


def evaluate(model: Any, files: list[str], *, limit: int | None = None, seed: int = 0, **options: Any) -> Any:
    progress = options.pop("progress", None)
    return {
        task.name: evaluate_records(
            model, task.records, where=task.where, progress=progress and progress(task.name), **options
        )
        for task in read_tasks(files, ["accuracy"], limit=limit, seed=seed)
    }


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_evaluate_files(tmp_path: Path) -> None:
    model = replace(tiny_model(vocab_size=300), tokenizer=byte_tokenizer())
    records = [
        {"id": f"q{i}", "prompt": f"Question {i}?", "choices": ["yes", "certainly not"], "answer": i % 2}
        for i in range(9)
    ]
    records.append({"id": "long", "prompt": "x" * 80, "choices": ["yes", "certainly not"], "answer": 0})
    write(tmp_path / "one" / "exam.jsonl", records)
    write(tmp_path / "two" / "exam.jsonl", records[:4])
    notes: list[str] = []
    results = evaluate(
        model,
        [str(tmp_path / "*" / "exam.jsonl")],
        max_length=40,
        batch_tokens=256,
        progress=lambda task: lambda done, total: notes.append(f"{task} {done}/{total}"),
    )
    assert list(results) == ["one-exam", "two-exam"]
    one, two = results["one-exam"], results["two-exam"]
    assert [p["id"] for p in one["predictions"]] == [r["id"] for r in records]
    assert one["predictions"][-1] == {"id": "long", "dropped": "too long"} and one["dropped"] == {"too long": 1}
    assert one["tokens"] > two["tokens"] > 0 and one["flops"] > two["flops"] > 0
    for a, b in zip(one["predictions"], two["predictions"], strict=False):
        np.testing.assert_allclose(a["log_likelihoods"], b["log_likelihoods"], rtol=1e-5)
    assert all(p["raw"] == 0 for p in two["predictions"])  # 3 tokens against 13 of a random model
    assert {note.split()[0] for note in notes} == {"one-exam", "two-exam"} and notes[-1] == "two-exam 4/4"
    table = compare({"base": {name: result["predictions"] for name, result in results.items()}}, bootstrap=20)
    assert table["tasks"][0]["results"]["base"]["raw"]["predicted"] == {"certainly not": 0, "yes": 9}

    few = evaluate(model, [str(tmp_path / "one" / "exam.jsonl")], max_length=40, limit=3, seed=5)
    ids = [p["id"] for p in few["exam"]["predictions"]]
    assert len(ids) == 3 and set(ids) < {r["id"] for r in records}

    file = write(tmp_path / "mixed.jsonl", [*records[:2], {"id": "plain", "prompt": "a", "response": "b"}])
    with pytest.raises(UserError, match=r"mixed.jsonl: record 'plain' has no choices"):
        evaluate(model, [file], max_length=40)


def test_task_names() -> None:
    assert task_files(["a/medqa.jsonl.gz", "tfds:boolq/validation"]) == {
        "medqa": "a/medqa.jsonl.gz",
        "boolq-validation": "tfds:boolq/validation",
    }
    assert task_files(["builtin:exam.jsonl"]) == {"exam": "builtin:exam.jsonl"}
    assert task_files(["x/exam.jsonl", "y/exam.jsonl"]) == {"x-exam": "x/exam.jsonl", "y-exam": "y/exam.jsonl"}
    for files, message in (
        ([], "no files to evaluate on"),
        (["nowhere/*.jsonl"], r"nowhere/\*.jsonl matches no file"),
        (["a.jsonl", "a.jsonl"], "a.jsonl is given twice"),
        (["x/a.jsonl", "x/a.parquet"], "would both be called x-a"),
    ):
        with pytest.raises(UserError, match=message):
            task_files(files)
