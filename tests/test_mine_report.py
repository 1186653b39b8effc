"""Mining's part of the page: of a whole run, of a run at any moment, and of damaged files."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import synthetic_mine
from hypothesis import given, settings
from hypothesis import strategies as st
from report_page import Page, edit

from ntk_jax.pipelines.mine.figures import (
    MOST_POINTS,
    PrecisionRecall,
    cell_map,
    precision_recall_curves,
    rootogram,
)
from ntk_jax.pipelines.mine.report import part
from ntk_jax.pipelines.mine.terminal import terminal
from ntk_jax.report.figures_bars import Bar, bars, token_curves
from ntk_jax.report.page import write_report

SECTIONS = ("mined", "seeds", "corpus", "embed", "label", "classify", "audit", "pretrain", "evaluate", "cost")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_mine.make(tmp_path_factory.mktemp("mine"))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def page_of(folder: Path) -> tuple[str, Page]:
    text = write_report(folder, {"mine": part}).read_text(encoding="utf8")
    return text, Page(text)


def elements(drawing: str, name: str) -> list[dict[str, Any]]:
    return [dict(re.findall(r'([\w-]+)="([^"]*)"', inside)) for inside in re.findall(f"<{name} ([^>]*)>", drawing)]


def test_a_whole_run_says_everything(whole: Path) -> None:
    text, page = page_of(whole)
    assert [id_ for id_ in page.all("section", "id") if id_.startswith("mine-")] == [
        f"mine-{name}" for name in SECTIONS
    ]
    for words in (
        "Text of medicine and law out of a corpus",
        "Taken from 18,840 chunks: medicine 2,310 (12.3%) at a precision of 91.0% (88.0% to 94.0%) on held-out labels",
        "The judge agrees with 64.0% (57.0% to 70.0%) of the labels, and accepts 32.0% (21.0% to 46.0%)",
        "Learned: after “DoPAMine” held-out medicine has perplexity 17.6",
        "better against “random documents” (−0.1328 nats a token, −0.1528 to −0.1128)",
        "General text, what is forgotten: after “DoPAMine” held-out web has perplexity 18.2; cannot tell",
        "Generated answers of “DoPAMine”: better against “base model” (+6.0 points, +2.0 to +10.0)",
        "Accuracy by likelihood of “DoPAMine”: cannot tell against “random documents” (+5.0 points, −1.0 to +11.0)",
        "Held-out loss of “DoPAMine”: worse against “DSIR” (+0.2000 nats a token, +0.1000 to +0.3000)",
        "−0.2000 nats a token, −0.3000 to −0.1000",
        "medicine lacks 7",
        "The judge is lenient",
        "It agrees with 40 (40.0%) of 100 labels of law",
        "228 were asked of the language model, in 410 replies (format json); 21 parsed",
        "86 different topics; no contract.",
        "31,200 documents were read and 9,870 kept, 18,840 chunks",
        "2 × a damaged member",
        "all-MiniLM-L6-v2 (384 numbers, 256 tokens at once) read 18,840 chunks in 21,004 windows",
        "The threshold 0.420 keeps",
        "at most 20% of what it keeps is expected from the scores below the mode",
        "610 positive, 900 hard negative",
        "82.3% of it comes from MedQuAD, which is 16.5% of the corpus",
        "probability medicine 0.970, law 0.710",
        "nearest seed medicine-00001, cosine 0.550",
        "Of seeds, which stand for their domain, it accepts 90.0%",
        "base model 7, general text only 7, random documents 7",
        "asked 431 times: 140,211 tokens in, 301,877 out, 0.734 spent",
    ):
        assert words in page.text, words
    assert not re.search(r"\b(nan|None|inf)\b|\{\{|\bUndefined\b", page.text)
    assert "<script" not in text and "cannot be shown" not in page.text
    assert {"img", "iframe", "link"}.isdisjoint(name for name, _ in page.elements)
    assert text == page_of(whole)[0], "the same bytes again"


def test_before_anything_ran_every_stage_is_named(run: Path) -> None:
    for name, _ in synthetic_mine.STAGES:
        shutil.rmtree(run / name)
    _, page = page_of(run)
    for stage in (
        "Seeds",
        "Corpus",
        "Embedding",
        "Labels",
        "Classifier",
        "Audit",
        "Continual pre-training",
        "Evaluation",
    ):
        assert f"the stage “{stage}” has not run" in page.text, stage
    assert "No stage has recorded what it cost" in page.text and "Read this first" not in page.text


@pytest.mark.parametrize("file", synthetic_mine.FILES)
def test_without_any_one_file_the_rest_is_there(run: Path, file: str) -> None:
    (run / file).unlink()
    _, page = page_of(run)
    assert "cannot be shown" not in page.text
    assert len([id_ for id_ in page.all("section", "id") if id_.startswith("mine-")]) == len(SECTIONS)


def test_stages_that_a_run_has_not_are_not_shown(run: Path) -> None:
    edit(run / "plan.json", lambda plan: plan["pipelines"]["mine"].update(stages=[{"name": "seeds", "title": "Seeds"}]))
    _, page = page_of(run)
    assert not {"mine-audit", "mine-pretrain", "mine-evaluate"} & set(page.all("section", "id"))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_damaged_file_never_costs_the_page(whole: Path, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Any value of any file becomes something else."""
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / "run")
    path = folder / data.draw(st.sampled_from(synthetic_mine.FILES))
    value = json.loads(path.read_text())
    at, steps = value, data.draw(st.integers(1, 6))
    for step in range(steps):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if step == steps - 1 or not isinstance(at[key], (dict, list)):
            at[key] = data.draw(st.sampled_from([None, "text", [], {}, -1, 1e400, [None], {"a": 3}, True]))
            break
        at = at[key]
    path.write_text(json.dumps(value))
    _, page = page_of(folder)
    assert len([id_ for id_ in page.all("section", "id") if id_.startswith("mine-")]) == len(SECTIONS)
    shutil.rmtree(folder)


def test_what_speaks_against_the_numbers_is_said(run: Path) -> None:
    edit(run / "embed/summary.json", lambda s: s.update(note="no encoder: mean hidden state of builtin:model"))
    edit(run / "classify/summary.json", lambda s: s["domains"]["law"].update(average_precision=0.3, base_rate=0.2))
    edit(run / "audit/summary.json", lambda s: s.update(false_accept={"value": None, "low": 0.0, "high": 1.0}))
    edit(run / "pretrain/summary.json", lambda s: s["arms"][-1]["sources"]["dopamine"].update(passes=6.25))
    edit(run / "label/summary.json", lambda s: s["domains"]["law"].update(doubtful=True))
    edit(run / "classify/summary.json", lambda s: s["domains"]["medicine"].update(positives=4))
    _, page = page_of(run)
    assert "No part of the corpus stands out for law" in page.text and "stands out for medicine" not in page.text
    assert "Little text for the arm “DoPAMine”" in page.text and "read 6.2 times over" in page.text
    assert page.text.count("Little text") == 1
    assert "The threshold of medicine rests on few labels" in page.text and "threshold of law rests" not in page.text
    assert "no encoder: mean hidden state of builtin:model" in page.text
    assert "Its average precision for law is 0.300, where chance has 0.200" in page.text
    assert "The judge was not judged" in page.text and "The judge is lenient" not in page.text


# -- the figures -------------------------------------------------------------------------------------------------------


def test_bars_of_a_rootogram_have_the_height_of_the_root() -> None:
    drawing = rootogram([0.0, 0.5, 1.0], [100, 25], threshold=0.5, x_title="x", description="d")
    grey, blue = elements(drawing, "rect")
    assert (grey["class"], blue["class"]) == ("fill-pool", "fill-selected")
    assert float(blue["height"]) / float(grey["height"]) == pytest.approx(0.5, abs=0.01)
    assert "threshold 0.500" in drawing
    assert "threshold" not in rootogram([0.0, 1.0], [0], threshold=None, x_title="x", description="d")


def test_a_curve_ends_where_its_numbers_do_and_is_thinned() -> None:
    n = 5000
    recall = [(i + 1) / n for i in range(n)]
    drawing = precision_recall_curves(
        [PrecisionRecall("a", recall, [1 - r / 2 for r in recall], chosen=(0.5, 0.75), base_rate=0.5)], description="d"
    )
    steps = elements(drawing, "path")[0]["d"].split("L")
    assert len(steps) <= 2 * MOST_POINTS + 4
    (dot,) = elements(drawing, "circle")
    whole = PrecisionRecall("a", [0.5, 1.0], [0.75, 0.5], chosen=(1.0, 0.5))
    end = elements(precision_recall_curves([whole], description="d"), "circle")[0]
    assert float(dot["cx"]) < float(end["cx"]) and float(dot["cy"]) < float(end["cy"])
    assert steps[-1] == f"{end['cx']} {end['cy']}"


def test_bars_are_as_long_as_their_values() -> None:
    rows = [Bar("a", (10.0, 5.0), ("10", "5")), Bar("b", (0.0, 2.5), ("0", "2.5"))]
    drawing = bars(rows, [("one", "fill-pool"), ("two", "fill-selected")], title="n", description="d")
    lengths = [float(item["width"]) for item in elements(drawing, "rect")[2:]]  # behind the key
    assert lengths[1] / lengths[0] == pytest.approx(0.5, abs=0.01) and lengths[3] / lengths[0] == pytest.approx(
        0.25, abs=0.01
    )
    assert lengths[2] < 1


def test_a_map_has_a_cell_for_each_pair() -> None:
    drawing = cell_map([[0, 2], [1, 0], [0, 0]], ["a", "b", "c"], ["x", "y"], description="d")
    cells = elements(drawing, "rect")
    assert len(cells) == 6
    assert [cell["fill-opacity"] for cell in cells] == ["0.00", "0.85", "0.42", "0.00", "0.00", "0.00"]
    assert "b, x: 1" in drawing


@pytest.mark.parametrize(
    ("most", "unit"), [(900, ""), (250_000, ", thousands"), (3e9, ", millions"), (1e11, ", billions")]
)
def test_tokens_have_a_fitting_unit(most: float, unit: str) -> None:
    drawing = token_curves({"arm": ("c-blue", [(0, 20.0), (most, 10.0)])}, what="perplexity of w", description="d")
    assert f">training tokens{unit}<" in drawing


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 10**7), min_size=1, max_size=40),
    st.floats(-1, 1),
    st.floats(1e-3, 2),
)
def test_any_counts_can_be_drawn(counts: list[int], start: float, size: float) -> None:
    edges = [start + size * i for i in range(len(counts) + 1)]
    drawing = rootogram(edges, counts, threshold=start, x_title="x", description="d")
    numbers = [float(v) for item in elements(drawing, "rect") for k, v in item.items() if k in ("x", "y", "height")]
    assert all(math.isfinite(v) and v >= -1e-6 for v in numbers)


def test_the_terminal_says_nothing_of_what_was_not_judged(tmp_path: Path) -> None:
    one = {"judged": 4, "agreed": 3, "planted": 0, "accepted": 0, "precision_at_least": None}
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "summary.json").write_text(json.dumps({"judge": "j", "domains": {"law": one}}))
    (tmp_path / "audit" / "manifest.json").write_text("{}")
    row = terminal(tmp_path).splitlines()[-1]
    assert row.split() == ["law", "0.750", "4", "0"]


def test_a_sample_is_compared_with_itself(run: Path) -> None:
    def sampled(corpus: dict[str, Any]) -> None:
        corpus["sampled"] = 1000
        for source, one in corpus["sources"].items():
            one["sampled"] = 1000 if source == "MedQuAD" else 0

    edit(run / "corpus/summary.json", sampled)
    text = page_of(run)[1].text
    assert "1,000 chunks of these are mined" in text and "comes from MedQuAD, which is 100.0% of the corpus" in text


def test_a_domain_that_nothing_was_kept_of_has_no_precision(tmp_path: Path) -> None:
    one = {"threshold": 0.9, "taken": 3, "precision": {"value": None, "low": 0.0, "high": 1.0}}
    found = {"taken": 3, "chunks": 9, "words": 30, "domains": {"law": one}}
    (tmp_path / "classify").mkdir()
    (tmp_path / "classify" / "summary.json").write_text(json.dumps(found))
    (tmp_path / "classify" / "manifest.json").write_text("{}")
    assert terminal(tmp_path).splitlines()[-1].split() == ["law", "0.900", "3"]
