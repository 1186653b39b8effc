"""The text that a run ends with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import synthetic_run
from report_page import edit

from ntk_jax.pipelines.select.terminal import terminal
from ntk_jax.report.text import align, label, plain


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run.make(tmp_path_factory.mktemp("run") / "full")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def lines_of(folder: Path) -> dict[str, list[str]]:
    """The words of every line, by what stands before the first wide gap."""
    return {line.split("  ")[0]: line.split() for line in terminal(folder).splitlines() if line}


def test_a_whole_run_directory(run: Path) -> None:
    (run / "report").mkdir(exist_ok=True)
    (run / "report" / "index.html").write_text("")
    text = terminal(run)
    parts = [text.index(said) for said in ("Accuracy in %", "Read this first:", "Verdict:", " minus ", "Selected 900")]
    assert parts == sorted(parts)
    assert text.endswith(f"Report: {run / 'report' / 'index.html'}")


def test_every_task_has_both_likelihoods_majority_and_answers(run: Path) -> None:
    results = json.loads((run / "evaluate/results.json").read_text())
    lines = lines_of(run)
    for task in results["tasks"]:
        label, most = max(sorted(task["truth"].items()), key=lambda item: item[1])
        words = lines[f"{task['name']}, normalized"]
        assert words[2:5] == [
            f"{task['questions']}",
            f"{100 * task['chance']:.1f}",
            f"{100 * most / task['questions']:.1f}",
        ]
        for kind in ("normalized", "raw"):
            cell = task["results"]["kernel"][kind]
            shown = f"{100 * cell['accuracy']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
            assert shown in " ".join(lines[f"{task['name']}, {kind}"])
        assert label in terminal(run)
    assert terminal(run).count("  answers most") == 2 * len(results["tasks"])
    assert lines["average, raw"] and lines["average, normalized"]
    assert lines["training examples"][2:] == ["-", "1,000", "1,900", "1,900"]
    assert lines["training FLOPs"][-1] == "2.08e+14"
    assert lines["time, all starts"][3] == "-"


def test_one_task_needs_no_average(run: Path) -> None:
    edit(run / "evaluate/results.json", lambda r: r.update(tasks=r["tasks"][:1]))
    assert "average, " not in terminal(run)


def test_selection_lines(run: Path) -> None:
    text = terminal(run)
    start = "Selected 900 of 24,000 usable pool examples (a seeded sample of 25,207 of 216,926 records)"
    assert start in text
    families = json.loads((run / "select/summary.json").read_text())["families"]
    first = max(families, key=lambda f: f["selected"]["kernel"])
    row = next(line for line in text.splitlines() if line.startswith(f"{first['name']}  ")).split()
    assert row[-4:-2] == [str(first["selected"]["kernel"]), str(first["selected"]["random"])]
    assert next(line for line in text.splitlines() if line.startswith("NTK kernel score ")).split()[3:5] == ["900", "1"]


def test_what_is_not_there_is_left_out(run: Path) -> None:
    for stage in ("evaluate", "select", "score", "gradient", "warmup", "preselect"):
        shutil.rmtree(run / stage)
    text = terminal(run)
    assert "Selected" not in text and "Accuracy" not in text and "Verdict" not in text
    shutil.rmtree(run / "finetune")
    assert terminal(run) == ""


def test_columns_stand_under_each_other(run: Path) -> None:
    names = ("task ", "goemotions_ekman,", "average,", "training FLOPs")
    table = [line for line in terminal(run).splitlines() if line.startswith(names) and not line.endswith("!")]
    assert len(table) > 5 and len({len(line) for line in table}) == 1
    rows = [["a", "1"], ["long", "22"], ["b", "3"]]
    assert align(rows, {1}) == ["a      1", "----  --", "long  22", "b      3"]


def test_hostile_labels_cannot_steer_the_terminal(run: Path) -> None:
    odd = "\x1b[31mred\r\n" + "x" * 50

    def spoil(results: dict[str, Any]) -> None:
        for task in results["tasks"]:
            task["truth"] = {odd: 10}
            task["name"] = odd + task["name"]
            for kinds in task["results"].values():
                kinds["raw"]["predicted"] = {odd: 700}

    edit(run / "evaluate/results.json", spoil)
    text = terminal(run)
    assert "\x1b" not in text and "\r" not in text and "x" * 51 not in text


def test_plain_signs() -> None:
    assert plain("“a” −1.0 ×2 ρ – ⚠") == '"a" -1.0 x2 rho - !'
    assert plain("\x1b[0m") == "␛[0m"
    assert label("a\n b", 3) == "a b" and label("abcdef", 4) == "abc…"
