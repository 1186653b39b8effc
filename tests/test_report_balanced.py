"""Balanced accuracy on the pages and in the terminals of runs that have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import synthetic_mine
import synthetic_run
from report_page import edit, page_of

from ntk_jax.evaluation.accuracy import compare
from ntk_jax.evaluation.generated import compare_generated
from ntk_jax.pipelines.mine.report_arms import evaluation
from ntk_jax.pipelines.mine.terminal import terminal as mine_terminal
from ntk_jax.pipelines.select.terminal import terminal
from ntk_jax.report.balanced import balanced_lines, balanced_pairs, balanced_table
from ntk_jax.report.reading import read_run
from ntk_jax.report.text import plain

TRUTH = [0] * 15 + [1] * 5
ARMS = {"base": [0] * 20, "domain": [0] * 12 + [1] * 8, "kernel": TRUTH, "random": [1] * 20}


def clauses(groups: bool = True, arms: Any = ARMS) -> dict[str, Any]:
    """Yes or no of twenty questions on four contracts: three quarters are No."""

    def lines(given: list[int]) -> list[dict[str, Any]]:
        return [
            {"id": f"q{i}", "choices": ["No", "Yes"], "answer": truth, "raw": answer, "normalized": answer}
            | {"correct": truth == answer, "found": "A", "finish": "stop"}
            | ({"group": f"contract {i % 4}"} if groups else {})
            for i, (truth, answer) in enumerate(zip(TRUTH, given, strict=True))
        ]

    by_arm = {arm: {"clauses": lines(given)} for arm, given in arms.items()}
    return compare(by_arm, bootstrap=50) | {"generated": compare_generated(by_arm, bootstrap=50)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = synthetic_run.make(tmp_path_factory.mktemp("run") / "full")
    edit(folder / "evaluate/results.json", lambda results: results.update(clauses()))
    return folder


def test_the_page_and_the_terminal_of_a_selection(run: Path) -> None:
    page, text = page_of(run)[1].text, " ".join(terminal(run).split())
    for said in ("always “No”", "accuracy 75.0%", "of 4 documents, which are resampled", "One answer"):
        assert said in page, said
    assert "50 resamples of the documents" in page
    assert "Paired differences of balanced accuracy" in page
    assert "50.0% (No, accuracy 75.0%)" in text and "clauses, generated" in text
    results = json.loads((run / "evaluate/results.json").read_text())
    for arm in ARMS:
        entry = results["tasks"][0]["results"][arm]["raw"]
        low, high = (f"{100 * entry['balanced'][key]:.1f}%" for key in ("low", "high"))
        words = f"{100 * entry['balanced']['accuracy']:.1f}% [{low} to {high}] accuracy {100 * entry['accuracy']:.1f}%"
        assert words in page and plain(words) in text


def test_the_page_and_the_terminal_of_mining(tmp_path: Path) -> None:
    folder = synthetic_mine.make(tmp_path / "run")
    names = list(synthetic_mine.ARMS)
    found = clauses(groups=False, arms={name: ARMS["domain"] if name == "dopamine" else TRUTH for name in names})
    edit(folder / "evaluate/results.json", lambda results: results.update(found))
    shown = evaluation(read_run(folder))
    table = next(table for table in shown.tables if "Balanced accuracy" in table.caption)
    assert table.header[3:] == list(synthetic_mine.ARMS.values())
    assert [row[1] for row in table.rows] == ["normalized", "raw", "generated"]
    assert any("balanced" in title for title, _ in shown.folds)
    for path in folder.glob("*/summary.json"):  # their names are no text, and a damaged file is refused
        path.unlink()
    assert "50.0% (No, accuracy 75.0%)" in mine_terminal(folder)


def test_of_several_classifications_the_average_leads() -> None:
    lines = [{"id": f"q{i}", "choices": ["No", "Yes"], "answer": i, "raw": 0, "normalized": i} for i in range(2)]
    right = [{**line, "raw": line["answer"]} for line in lines]
    found = compare({"base": {"a": lines, "b": lines}, "more": {"a": right, "b": lines}}, bootstrap=5)
    pairs = balanced_pairs(found, [("base", "base"), ("more", "trained")])
    assert pairs is not None
    assert [row[0] for row in pairs.rows] == ["average of 2"] * 2 + ["a"] * 2 + ["b"] * 2
    assert [row[2] for row in pairs.rows[:1]] == ["trained minus base"]
    assert [pairs.rows[0][3].text.split()[0], pairs.rows[2][3].text.split()[0]] == ["+25.0", "+50.0"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "results",
    [
        {},
        {"tasks": [{"name": "t", "results": {"base": {"raw": {"accuracy": 0.5}}}}]},
        {"tasks": "many", "generated": 3},
    ],
)
def test_nothing_is_shown_where_there_is_none(results: dict[str, Any]) -> None:
    arms = [("base", "base")]
    assert (balanced_table(results, arms), balanced_pairs(results, arms), balanced_lines(results, arms)) == (
        None,
        None,
        [],
    )


def test_damaged_numbers_print_as_nothing() -> None:
    task = {"name": 7, "constant": {"label": None}, "results": {"base": {"raw": {"balanced": {"accuracy": "x"}}}}}
    found = {"tasks": [task | {"paired_balanced": [{"a": "base", "difference": float("nan")}]}], "confidence": "high"}
    table, pairs = (make(found, [("base", "base")]) for make in (balanced_table, balanced_pairs))
    assert table is not None and pairs is not None
    assert table.rows[1][3].text == "–" and pairs.rows[0][3].text == "–"  # type: ignore[attr-defined]
    assert "nan" not in "".join(balanced_lines(found, [("base", "base")]))
