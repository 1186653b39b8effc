"""What page and terminal say of held-out loss: the words follow the interval, and lower is better."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import synthetic_run
from report_page import edit, page_of

from ntk_jax.pipelines.select.report.losses import loss_differences, loss_verdict
from ntk_jax.pipelines.select.report.run import SelectRun, select_run
from ntk_jax.pipelines.select.report.verdict import verdict
from ntk_jax.pipelines.select.terminal import terminal
from ntk_jax.report.reading import read_run
from ntk_jax.report.text import plain

K, D, R, B = "“domain + kernel”", "“domain only”", "“domain + random”", "“base model”"
NATS, MEAN, TELL = "nats a token", "mean over examples", f"Cannot tell the held-out loss of {K} from that of"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run.make(tmp_path_factory.mktemp("run") / "full")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def read(folder: Path) -> SelectRun:
    return select_run(read_run(folder))


def entry(loss: float) -> dict[str, Any]:
    mean = {"loss": loss, "low": loss - 0.1, "high": loss + 0.1}
    return {"by_example": mean, "by_token": {**mean, "loss": loss + 0.5}, "perplexity": 12.3}


def pair(a: str, b: str, kind: str, difference: float, low: float, high: float) -> dict[str, Any]:
    return {"a": a, "b": b, "kind": kind, "difference": difference, "low": low, "high": high}


def with_losses(folder: Path, *pairs: dict[str, Any], alone: bool = False) -> None:
    """Adds losses to results.json; alone: without any accuracies."""
    arms = dict(zip(("base", "domain", "random", "kernel"), map(entry, (3.0, 2.5, 2.4, 2.25)), strict=True))
    task = {"name": "notes", "examples": 1200, "tokens": 34_567, "dropped": {"too long": 7}, "truncated": 0}
    found = {"tasks": [{**task, "results": arms}], "average": arms, "paired": list(pairs)}

    def change(results: dict[str, Any]) -> None:
        results["loss"] = found
        if alone:
            results.update(tasks=[], average={}, paired=[])

    edit(folder / "evaluate/results.json", change)


@pytest.mark.parametrize(
    ("low", "difference", "high", "words"),
    [
        (-0.20, -0.15, -0.10, f"{K} has a lower held-out loss than {R} by 0.1500 {NATS} [0.1000, 0.2000], {MEAN}."),
        (0.10, 0.15, 0.20, f"{K} has a higher held-out loss than {R} by 0.1500 {NATS} [0.1000, 0.2000], {MEAN}."),
        (-0.01, 0.15, 0.20, f"{TELL} {R}: +0.1500 {NATS} [−0.0100, +0.2000], {MEAN}."),
        (0.0, 0.15, 0.20, f"{TELL} {R}: +0.1500 {NATS} [0.0000, +0.2000], {MEAN}."),
    ],
)
def test_the_words_follow_the_interval(run: Path, low: float, difference: float, high: float, words: str) -> None:
    for found in (
        pair("kernel", "random", "by_example", difference, low, high),
        pair("random", "kernel", "by_example", -difference, -high, -low),
    ):
        with_losses(run, found)
        assert loss_verdict(read(run)) == [words]
        text, page = " ".join(terminal(run).split()), page_of(run)[1].text
        assert plain(words) in text and words in page


def test_every_control_and_both_means(run: Path) -> None:
    with_losses(
        run,
        pair("domain", "kernel", "by_example", 0.25, 0.2, 0.3),
        pair("domain", "kernel", "by_token", 0.25, 0.2, 0.3),
        pair("kernel", "random", "by_token", 0.1, 0.05, 0.15),
        pair("kernel", "random", "by_example", 0.0, -0.1, 0.1),
        pair("kernel", "base", "by_example", 0.2, 0.1, 0.3),
        pair("kernel", "base", "by_token", 0.0, -0.1, 0.1),
    )
    assert loss_verdict(read(run)) == [
        f"Held-out loss of {K} (lower is better): lower than that of {D}; cannot tell it from that of {R}; higher than "
        f"that of {B}.",
        f"{K} has a lower held-out loss than {D} by 0.2500 {NATS} [0.2000, 0.3000], {MEAN}. The mean over tokens "
        f"agrees (−0.2500 {NATS} [−0.3000, −0.2000]).",
        f"{TELL} {R}: 0.0000 {NATS} [−0.1000, +0.1000], {MEAN}. The mean over tokens disagrees: higher (+0.1000 {NATS} "
        "[+0.0500, +0.1500]).",
        f"{K} has a higher held-out loss than {B} by 0.2000 {NATS} [0.1000, 0.3000], {MEAN}. The mean over tokens "
        f"disagrees: cannot tell (0.0000 {NATS} [−0.1000, +0.1000]).",
    ]
    lines = verdict(read(run))
    assert "accuracy" not in lines[0] and "likelihood" in lines[0], "accuracy leads where it is known"
    assert "over the choice of questions and examples, not" in " ".join(lines)
    first = loss_differences(read(run))[0]
    assert (first.a, first.b, first.value, first.sign) == ("kernel", "domain", -0.25, 1)


def test_tables_hold_the_numbers(run: Path) -> None:
    with_losses(run, pair("kernel", "base", "by_example", -0.75, -0.9, -0.6))
    text, page = terminal(run), page_of(run)[1].text
    row = next(line for line in text.splitlines() if line.startswith("notes, mean over examples"))
    assert row.split()[4:7] == ["1,200", "34,567", "7"] and "2.250 [2.150, 2.350]" in row
    assert "notes, mean over tokens" in text and "2.750 [2.150, 2.350]" in text
    assert "domain + kernel minus base model, held-out loss, paired: mean over examples -0.7500 nats a token" in text
    assert "Held-out loss: lower is better" in page and "1,200 examples, 34,567 response tokens" in page
    assert "2.250 2.150 to 2.350" in page and "perplexity 12.3" in page
    assert "Accuracy in %" in text and text.count("training examples") == 1


def test_losses_alone(run: Path) -> None:
    with_losses(run, pair("kernel", "base", "by_example", -0.75, -0.9, -0.6), alone=True)
    text, page = terminal(run), page_of(run)[1].text
    for said in ("Accuracy in %", "likelihood"):
        assert said not in text and said not in page
    assert text.count("training examples") == 1
    assert "over the choice of examples, not over training seeds" in text
    assert verdict(read(run))[0].startswith("“domain + kernel” has a lower held-out loss than “base model”")
    with_losses(run, alone=True)
    assert verdict(read(run))[0] == "The arms were evaluated, but no paired difference was computed."


def test_generated_answers_are_compared(run: Path) -> None:
    """By pairs in a table, and in the verdict, whichever arm of a pair comes first."""
    results = json.loads((run / "evaluate" / "results.json").read_text())
    pairs = [
        {"a": "kernel", "b": "base", "difference": 0.1, "low": 0.05, "high": 0.15},
        {"a": "random", "b": "kernel", "difference": 0.02, "low": -0.1, "high": 0.14},
    ]
    results = {key: value for key, value in results.items() if key not in ("tasks", "average", "paired", "loss")}
    (run / "evaluate" / "results.json").write_text(json.dumps({**results, "generated": {"tasks": [], "paired": pairs}}))
    lines, text, page = verdict(read(run)), " ".join(terminal(run).split()), page_of(run)[1].text
    assert lines[:2] == [
        f"Cannot tell the generated answers of {K} from those of {R}: −2.0 points [−14.0, +10.0].",
        f"{K} writes more right answers than {B} by 10.0 points [5.0, 15.0].",
    ]
    assert all(line in page and plain(line) in text for line in lines[:2])
    assert "domain + kernel minus base model, generated answers, paired: +10.0 points [+5.0, +15.0]" in text


@pytest.mark.parametrize(
    "spoilt",
    [
        {"tasks": [{}]},
        {"tasks": 3, "paired": [{}]},
        [],
        {"average": {"kernel": 1}},
        {"tasks": [{"name": "n", "results": {"kernel": {"by_example": {"loss": None}}}}]},
    ],
)
def test_damaged_numbers_reach_no_page(run: Path, spoilt: Any) -> None:
    edit(run / "evaluate/results.json", lambda results: results.update(loss=spoilt))
    text, page = terminal(run), page_of(run)[1].text
    assert "nan" not in text.split() and "None" not in text and "None" not in page
