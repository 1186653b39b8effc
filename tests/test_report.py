"""The report: true to the numbers, safe with any text, whole without a network, and never stopped by a missing file."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import synthetic_run
from hypothesis import given
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.report import amounts
from ntk_jax.report.findings import collapses, headline, pairs, warnings
from ntk_jax.report.markup import Html, clean, tag
from ntk_jax.report.page import CONTENTS, write_report
from ntk_jax.report.reading import read_run

VOID = {"meta", "br", "hr", "link", "img"}


class Page(HTMLParser):
    """Checks that elements nest, and gathers elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, name: str, key: str) -> list[str]:
        return [a[key] or "" for n, a in self.elements if n == name and key in a]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run.make(tmp_path_factory.mktemp("run") / "full")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def page_of(folder: Path) -> tuple[str, Page]:
    text = write_report(folder).read_text(encoding="utf8")
    return text, Page(text)


def test_page_is_sound_html_with_every_section(finished: Path) -> None:
    text, page = page_of(finished)
    assert text.startswith("<!doctype html>")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {anchor for anchor, _ in CONTENTS} - {"diagnosis"} <= set(ids)  # which is no stage of a run
    assert {href for href in page.all("a", "href")} <= {f"#{i}" for i in ids}
    assert page.all("html", "lang") == ["en"]
    assert len([1 for n, _ in page.elements if n == "figcaption"]) >= 9
    for name, attributes in page.elements:
        if name == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
    assert not re.search(r"\b(nan|inf|None|null)\b", page.text.split("Configuration (config.yaml)")[0], re.IGNORECASE)


def test_page_shows_the_numbers_that_matter(finished: Path) -> None:
    _, page = page_of(finished)
    results = json.loads((finished / "evaluate/results.json").read_text())
    for task in results["tasks"]:
        assert f"{task['name']}{task['questions']} questions" in page.text
        for kinds in task["results"].values():
            for entry in kinds.values():
                low, high = (amounts.percent(entry[k]).rstrip("%") for k in ("low", "high"))
                assert f"{amounts.percent(entry['accuracy'])}{low} to {high}" in page.text
                for n in entry["predicted"].values():
                    assert amounts.count(n) in page.text
    for pair in results["paired"]:
        assert amounts.points(pair["difference"]) in page.text
    for arm in results["arms"]:
        assert amounts.count(arm["tokens"]) in page.text and amounts.metric(arm["flops"], "FLOP") in page.text
    selection = json.loads((finished / "select/summary.json").read_text())
    assert len(selection["families"]) == synthetic_run.FAMILIES
    pool = sum(f["pool"] for f in selection["families"])
    for family in selection["families"]:
        lift = (family["selected"] / selection["count"]) / (family["pool"] / pool)
        row = f"{amounts.count(family['selected'])} {amounts.percent(family['selected'] / selection['count'])}"
        row += f"{amounts.count(family['pool'])} {amounts.percent(family['pool'] / pool)}{amounts.times(lift)}"
        assert row in page.text
    for said in (
        "900 selected",
        f"the lowest selected score is {amounts.general(selection['threshold'])}",
        f"{amounts.percent(selection['useful_share_selected'])} of the selection",
        "−0.81 with the response length (strong)",
        "ρ of the head is 3,812, far from 1",
        "1,200 too long",
        "layers/down_proj/b0.51040.0%",  # parameter, norm, share
        "goemotions_ekman with llama-7m",
        "Rank 20",
        "24,000 of them scored",
        "216,300",  # tokens of the warm-up
    ):
        assert said in page.text, said
    assert clean((finished / "config.yaml").read_text()) in "".join(page.words)


def test_hostile_text_stays_text(finished: Path) -> None:
    text, page = page_of(finished)
    names = {name for name, _ in page.elements}
    assert not names & {"script", "img", "link", "iframe", "object", "base", "form"}
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert clean(synthetic_run.HOSTILE) in "".join(page.words)
    assert "\x00" not in text and "<script" not in text


def test_page_needs_nothing_from_outside(finished: Path) -> None:
    text, page = page_of(finished)
    for _, attributes in page.elements:
        assert not {"src", "srcset", "data", "action", "poster", "xlink:href"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"@import|url\(|https?:", text[text.index("<style") : text.index("</style>")])
    assert ["default-src 'none'" in c for c in page.all("meta", "content") if "src" in c] == [True]


def test_only_scored_examples_are_drawn(finished: Path) -> None:
    scores = read_run(finished).scores
    assert scores is not None and scores.what == "response"
    assert len(scores.score) == len(scores.length) == synthetic_run.POOL - synthetic_run.DROPPED


def test_long_texts_are_cut_and_whole_on_demand(finished: Path) -> None:
    _, page = page_of(finished)
    assert "all 8,000 characters" in page.text
    assert "A very long prompt. " * 400 in "".join(page.words)


def test_same_inputs_give_the_same_bytes(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    edit(run / "score/summary.json", lambda s: s.update(spearman_span_length=0.12))
    assert write_report(run).read_bytes() != first


@pytest.mark.parametrize("kept", range(8))
def test_half_finished_runs_say_what_is_missing(run: Path, kept: int) -> None:
    stages = ["warmup", "gradient", "preselect", "score", "select", "finetune", "evaluate"]
    for stage in stages[kept:]:
        shutil.rmtree(run / stage)
    if kept:
        (run / stages[kept - 1] / "manifest.json").unlink()  # killed in the middle of this one
    _, page = page_of(run)
    assert page.text.count("✗ not run") == 7 - kept
    assert page.text.count("… unfinished") == (1 if kept else 0)
    assert ("Nothing has been evaluated yet" in page.text) == (kept < 7)
    assert ("No selection yet: the stage “Selection” has not run." in page.text) == (kept < 5)
    assert ("No direction yet: the stage “Domain gradient” has not run." in page.text) == (kept < 2)
    assert not re.search(r"\b(nan|None)\b", page.text.split("Configuration (config.yaml)")[0])


def test_damaged_files_are_named_and_the_rest_is_shown(run: Path) -> None:
    (run / "evaluate/results.json").write_text('{"arms": [')
    (run / "select/examples.json").write_text("{}")
    (run / "gradient/summary.json").write_text("[1]")
    with (run / "finetune/random/history.jsonl").open("a") as file:
        file.write('{"step": 451, "lo')
    next(p for p in sorted((run / "score/scores.zarr/score/c").rglob("*")) if p.is_file()).write_bytes(b"rubbish")
    _, page = page_of(run)
    for said in (
        "evaluate/results.json cannot be read",
        "select/examples.json holds a dict, not a list",
        "gradient/summary.json holds a list, not a dict",
        "finetune/random/history.jsonl: 1 line(s) could not be read",
        "score/scores.zarr cannot be read",
        "Files that could not be read",
        "the stage “Evaluation” is done but did not record it",
        "Score by example length",  # the sample in select/summary.json stands in for the store
    ):
        assert said in page.text, said


def test_odd_values_never_reach_the_page(run: Path) -> None:
    def spoil(results: dict[str, Any]) -> None:
        results["average"]["selected"]["raw"]["accuracy"] = float("nan")
        results["average"]["random"] = None
        results["tasks"][0]["results"]["base"]["raw"] = {"accuracy": "high", "low": None, "predicted": [1]}
        results["tasks"][1]["truth"] = None
        results["paired"][0]["low"] = float("-inf")
        results["paired"].append("nonsense")
        results["arms"].append({"title": "no name"})

    edit(run / "evaluate/results.json", spoil)
    edit(run / "select/summary.json", lambda s: s.update(families=None, histogram={"edges": [1], "pool": "x"}))
    edit(run / "gradient/summary.json", lambda s: s.update(rho=float("nan"), leaf_norms=[1]))
    edit(run / "score/data.json", lambda s: s.update(dropped=None, kept="many", lengths={"50": None, "max": 3}))
    _, page = page_of(run)
    assert not re.search(r"\b(nan|inf)\b", page.text, re.IGNORECASE)


def test_a_folder_that_is_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: no such run directory; give the --out folder of a run"):
        write_report(tmp_path / "absent")
    with pytest.raises(
        UserError, match=r"not a run directory \(no config.yaml in it\); give the --out folder of a run"
    ):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("low", "difference", "high", "words"),
    [
        (0.011, 0.034, 0.057, "“Domain + selected” beats “Domain + random”"),
        (-0.006, 0.018, 0.041, "No difference between “Domain + selected” and “Domain + random” is shown"),
        (0.0, 0.018, 0.041, "No difference between “Domain + selected” and “Domain + random” is shown"),
        (-0.052, -0.031, -0.008, "“Domain + selected” is worse than “Domain + random”"),
    ],
)
def test_headline_follows_the_interval(run: Path, low: float, difference: float, high: float, words: str) -> None:
    entry = {"difference": difference, "low": low, "high": high, "kind": "normalized"}
    turned = {"difference": -difference, "low": -high, "high": -low, "kind": "normalized"}
    for pair in ({**entry, "a": "selected", "b": "random"}, {**turned, "a": "random", "b": "selected"}):
        edit(run / "evaluate/results.json", lambda r, pair=pair: r.update(paired=[pair]))
        sentence = headline(read_run(run))[0]
        assert words in sentence
        assert amounts.points(difference) + " points (95% interval" in sentence
        assert ("includes zero" in sentence) == (low <= 0 <= high)


def test_headline_owns_up_to_a_different_verdict(run: Path) -> None:
    same = {"a": "selected", "b": "random"}
    good = {**same, "difference": 0.05, "low": 0.02, "high": 0.08, "kind": "normalized"}
    unclear = {**same, "difference": 0.01, "low": -0.02, "high": 0.04, "kind": "raw"}
    edit(run / "evaluate/results.json", lambda r: r.update(paired=[unclear, good]))
    sentences = " ".join(headline(read_run(run)))
    assert "By raw likelihood the difference is +1.0 points (−2.0 to +4.0), which is a different verdict." in sentences
    assert "not another training seed" in sentences


def test_the_selection_comes_first_among_the_pairs(finished: Path) -> None:
    found = [(p["a"], p["b"]) for p in pairs(read_run(finished))]
    assert found[::2][:3] == [("selected", "random"), ("selected", "domain"), ("selected", "base")]
    assert len(found) == 12


def test_collapse_is_seen_only_where_truth_disagrees(run: Path) -> None:
    found = collapses(read_run(run))
    assert [(c.arm, c.task, c.kind, c.label) for c in found] == [
        ("domain", "goemotions_ekman", "normalized", "surprise")
    ]
    assert "⚠ 95% “surprise”" in page_of(run)[1].text

    def skew(results: dict[str, Any]) -> None:
        task = results["tasks"][0]
        task["truth"] = {"surprise": 650, "joy": 50}

    edit(run / "evaluate/results.json", skew)  # now nearly everything truly is a surprise
    assert collapses(read_run(run)) == []
    assert "collapsed" not in page_of(run)[1].text


def test_headline_leads_with_the_likelihood_that_did_not_collapse(run: Path) -> None:
    def collapse(results: dict[str, Any], kinds: tuple[str, ...]) -> None:
        for task in results["tasks"]:
            first = next(iter(task["truth"]))
            for arm in ("random", "selected"):
                for kind in kinds:
                    task["results"][arm][kind]["predicted"] = {first: task["questions"]}

    edit(run / "evaluate/results.json", lambda r: collapse(r, ("normalized",)))
    assert "average accuracy, raw): " in headline(read_run(run))[0]
    edit(run / "evaluate/results.json", lambda r: collapse(r, ("normalized", "raw")))
    assert headline(read_run(run))[0].startswith("This run cannot tell the arms apart")
    cases = warnings(read_run(run))[0].cases
    assert any("dreaddit_stress, raw: “no”" in c and "“Domain + selected” (100%)" in c for c in cases)


@pytest.mark.parametrize(
    ("objective", "rho", "warned"),
    [("sum_logits", 3812.0, True), ("sum_logits", 1.3, False), ("sum_logits", 1e-9, True), ("probe", 3812.0, False)],
)
def test_rho_warning_only_where_rho_matters(run: Path, objective: str, rho: float, warned: bool) -> None:
    edit(run / "gradient/summary.json", lambda s: s.update(objective=objective, rho=rho))
    edit(run / "score/summary.json", lambda s: s.update(rho=rho))
    assert any("far from 1" in w.title for w in warnings(read_run(run))) == warned


def test_warnings_of_length_and_budget_come_and_go(run: Path) -> None:
    anchors = [w.anchor for w in warnings(read_run(run))]
    assert "length" in anchors and "cost" in anchors
    edit(run / "score/summary.json", lambda s: s.update(spearman_span_length=-0.2))
    edit(run / "finetune/selected/summary.json", lambda s: s.update(tokens=5_000_000))
    anchors = [w.anchor for w in warnings(read_run(run))]
    assert "length" not in anchors and "cost" not in anchors


@given(st.text())
def test_any_text_survives_as_text(text: str) -> None:
    made = tag("p", text, title=text)
    made.encode("utf8")
    page = Page(made)
    assert "".join(page.words) == clean(text)
    assert page.all("p", "title") == [clean(text)]
    assert tag("p", Html("<b></b>")) == "<p><b></b></p>"
