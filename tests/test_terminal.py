"""The table that a run ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import synthetic_run

from ntk_jax.storage.atomic import write_json
from ntk_jax.summary import evaluation_table, selection_lines, summarize


def result(accuracy: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05, "predicted": {}}


def results() -> dict[str, Any]:
    arms = [
        {"name": "base", "title": "base", "examples": 0, "steps": 0, "tokens": 0, "flops": 0},
        {
            "name": "selected",
            "title": "domain + selected",
            "examples": 1200,
            "steps": 30,
            "tokens": 50_000,
            "flops": 2e13,
        },
    ]
    both = {
        "base": {"raw": result(0.3), "normalized": result(0.4)},
        "selected": {"raw": result(0.5), "normalized": result(0.625)},
    }
    return {
        "arms": arms,
        "tasks": [
            {
                "name": "grading",
                "questions": 1500,
                "dropped": {},
                "truncated": 0,
                "choices": 4,
                "chance": 0.25,
                "results": both,
                "truth": {},
            }
        ],  # fmt: skip
        "average": both,
        "paired": [{"a": "selected", "b": "base", "difference": 0.225, "low": 0.1, "high": 0.3, "kind": "normalized"}],
        "confidence": 0.95,
        "bootstrap": 1000,
    }


def test_what_was_cut_or_left_out_is_said() -> None:
    table = results()
    assert "prompt" not in evaluation_table(table)
    table["tasks"][0] |= {"dropped": {"too long": 12}, "truncated": 1001}
    text = evaluation_table(table)
    assert "grading: 1,001 of its 1,500 questions lost the start of their prompt to model.max_length" in text
    assert "grading: 12 more questions are left out (too long)" in text


def test_evaluation_table() -> None:
    text = evaluation_table(results())
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["grading"].split() == [
        "grading",
        "1,500",
        "25.0",
        "40.0",
        "[35.0,",
        "45.0]",
        "62.5",
        "[57.5,",
        "67.5]",
    ]
    assert "50.0 [45.0, 55.0]" in lines["average, raw"]
    assert lines["training examples"].split() == ["training", "examples", "-", "1,200"]
    assert lines["training FLOPs"].split()[-1] == "2.00e+13"
    assert "95% bootstrap" in text
    assert "domain + selected minus base, paired, normalized: +22.5 [+10.0, +30.0] points" in text


def test_selection_lines() -> None:
    summary: dict[str, Any] = {
        "count": 40,
        "families": [{"name": "a", "pool": 50, "selected": 30}, {"name": "b", "pool": 150, "selected": 10}],
        "useful_share_selected": 0.75,
        "useful_share_pool": 0.25,
    }
    text = selection_lines(summary)
    assert text.startswith("Selected 40 of 200 pool examples; 75.0% are of useful families, 25.0% of the pool are")
    assert text.splitlines()[3].split() == ["a", "30", "75.0%", "25.0%"]
    assert "useful" not in selection_lines({**summary, "useful_share_selected": None})


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert summarize(tmp_path) == ""
    (tmp_path / "evaluate").mkdir()
    write_json(tmp_path / "evaluate" / "results.json", results())
    assert "Selected" not in summarize(tmp_path) and "grading" in summarize(tmp_path)


def test_a_whole_run_directory(tmp_path: Path) -> None:
    folder = synthetic_run.make(tmp_path)
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "index.html").write_text("")
    text = summarize(folder)
    assert str(folder / "report" / "index.html") in text
    assert "minus" in text and "Selected 900" in text


@pytest.mark.parametrize("width", [200])
def test_columns_stand_under_each_other(tmp_path: Path, width: int) -> None:
    table = [
        line for line in evaluation_table(results()).splitlines() if line.startswith(("task", "grading", "average"))
    ]
    assert len({len(line) for line in table}) == 1 and len(table[0]) < width
