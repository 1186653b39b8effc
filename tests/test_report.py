"""The page: sound HTML, safe with any text, whole without a network, and never stopped by a missing or damaged file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest
import synthetic_run
from hypothesis import given
from hypothesis import strategies as st
from report_page import PARTS, Page, edit, page_of

from ntk_jax.errors import UserError
from ntk_jax.report.layout import Cell, Fact, Figure, Notice, Part, Section, Table, render
from ntk_jax.report.markup import Html, clean, tag
from ntk_jax.report.page import render_page, write_report
from ntk_jax.report.reading import read_run

STAGES = [name for name, _ in synthetic_run.STAGES]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run.make(tmp_path_factory.mktemp("run") / "full")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_page_is_sound_html(finished: Path) -> None:
    text, page = page_of(finished)
    assert text.startswith("<!doctype html>")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {href for href in page.all("a", "href")} <= {f"#{i}" for i in ids}
    assert page.all("html", "lang") == ["en"]
    assert len([1 for n, _ in page.elements if n == "figcaption"]) >= 9
    for name, attributes in page.elements:
        if name == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
    assert not re.search(r"\b(nan|inf|None|null)\b", page.text.split("Configuration (config.yaml)")[0], re.IGNORECASE)
    assert clean((finished / "config.yaml").read_text()) in "".join(page.words)


def test_hostile_text_stays_text(finished: Path) -> None:
    text, page = page_of(finished)
    names = {name for name, _ in page.elements}
    assert not names & {"script", "img", "link", "iframe", "object", "base", "form"}
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert clean(synthetic_run.HOSTILE) in "".join(page.words)
    assert "\x00" not in text and "<script" not in text


def test_titles_of_the_plan_are_only_text(run: Path) -> None:
    def spoil(plan: dict[str, Any]) -> None:
        entry = plan["pipelines"]["select"]
        entry["title"] = entry["stages"][0]["title"] = synthetic_run.HOSTILE
        for kind in ("arms", "methods"):
            entry["facts"][kind][1]["title"] = synthetic_run.HOSTILE
        plan["pipelines"]["other"] = {"title": synthetic_run.HOSTILE}

    edit(run / "plan.json", spoil)
    text, page = page_of(run)
    assert "<script" not in text and "\x00" not in text
    assert "".join(page.words).count(clean(synthetic_run.HOSTILE)) > 5


def test_page_needs_nothing_from_outside(finished: Path) -> None:
    text, page = page_of(finished)
    for _, attributes in page.elements:
        assert not {"src", "srcset", "data", "action", "poster", "xlink:href"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"@import|url\(|https?:", text[text.index("<style") : text.index("</style>")])
    assert ["default-src 'none'" in c for c in page.all("meta", "content") if "src" in c] == [True]


def test_same_inputs_give_the_same_bytes(run: Path) -> None:
    first = write_report(run, PARTS).read_bytes()
    assert write_report(run, PARTS).read_bytes() == first
    edit(run / "gradient/summary.json", lambda s: s.update(norm=0.12))
    assert write_report(run, PARTS).read_bytes() != first


@pytest.mark.parametrize("kept", range(len(STAGES) + 1))
def test_half_finished_runs_say_what_is_missing(run: Path, kept: int) -> None:
    for stage in STAGES[kept:]:
        shutil.rmtree(run / stage)
    if kept:
        (run / STAGES[kept - 1] / "manifest.json").unlink()  # killed in the middle of this one
    _, page = page_of(run)
    assert page.text.count("✗ not run") == len(STAGES) - kept
    assert page.text.count("… unfinished") == (1 if kept else 0)
    assert ("Nothing has been evaluated yet" in page.text) == (kept < len(STAGES))
    missing = "No selection yet: the stage “Selection” has not run."
    assert (missing in page.text) == (kept <= STAGES.index("select"))
    assert ("No direction yet: the stage “Domain gradient” has not run." in page.text) == (kept < 2)
    assert not re.search(r"\b(nan|None)\b", page.text.split("Configuration (config.yaml)")[0])


def test_damaged_files_are_named_and_the_rest_is_shown(run: Path) -> None:
    (run / "evaluate/results.json").write_text('{"arms": [')
    (run / "align/examples.json").write_text("{}")
    (run / "gradient/summary.json").write_text("[1]")
    with (run / "finetune/random/history.jsonl").open("a") as file:
        file.write('{"step": 451, "lo')
    next(p for p in sorted((run / "score/scores.zarr/score/c").rglob("*")) if p.is_file()).write_bytes(b"rubbish")
    _, page = page_of(run)
    for said in (
        "evaluate/results.json cannot be read",
        "align/examples.json holds a dict, not a list",
        "gradient/summary.json holds a list, not a dict",
        "finetune/random/history.jsonl: 1 line(s) could not be read",
        "score/scores.zarr cannot be read",
        "Files that could not be read",
        "the stage “Evaluation” is done but did not record it",
        "Score by example length",  # the sample in select/summary.json stands in for the store
    ):
        assert said in page.text, said
    assert page.text.index("Files that could not be read") < page.text.index("Did it help?")


def test_odd_values_never_reach_the_page(run: Path) -> None:
    def spoil(results: dict[str, Any]) -> None:
        results["average"]["kernel"]["raw"]["accuracy"] = float("nan")
        results["average"]["random"] = None
        results["tasks"][0]["results"]["base"]["raw"] = {"accuracy": "high", "low": None, "predicted": [1]}
        results["tasks"][1]["truth"] = None
        results["paired"][0]["low"] = float("-inf")
        results["paired"].append("nonsense")
        results["arms"].append({"title": "no name"})

    edit(run / "evaluate/results.json", spoil)
    edit(run / "select/summary.json", lambda s: s["by_method"]["kernel"].update(histogram={"edges": [1], "pool": "x"}))
    edit(run / "select/summary.json", lambda s: s.update(families=None, by_method={"kernel": [1], "odd": None}))
    edit(run / "gradient/summary.json", lambda s: s.update(rho=float("nan"), leaf_norms=[1]))
    edit(run / "score/data.json", lambda s: s.update(dropped=None, kept="many", lengths={"50": None, "max": 3}))
    edit(run / "plan.json", lambda p: p["pipelines"]["select"].update(facts={"arms": 3, "methods": [{"name": 4}]}))
    _, page = page_of(run)
    assert not re.search(r"\b(nan|inf)\b", page.text, re.IGNORECASE)


@pytest.mark.parametrize(
    "plan",
    ["{", "[]", '{"schema": 1}', '{"schema": 1, "pipelines": {"select": 3}}']
    + [json.dumps({"schema": 1, "pipelines": {"select": {"stages": [{"name": "../x"}, {"title": "y"}, 4]}}})],
)
def test_a_damaged_plan_still_gives_a_page(run: Path, plan: str) -> None:
    (run / "plan.json").write_text(plan)
    _, page = page_of(run)
    assert "Configuration and provenance" in page.text and "../x" not in page.text.split("Did it help?")[0]


def test_a_folder_that_is_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: no such run directory; give the --out folder of a run"):
        write_report(tmp_path / "absent", PARTS)
    with pytest.raises(UserError, match=r"not a run directory \(no plan.json in it\); give the --out folder of a run"):
        write_report(tmp_path, PARTS)
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_of_another_version_is_refused(run: Path) -> None:
    (run / "plan.json").unlink()
    with pytest.raises(UserError, match="made by an earlier version") as caught:
        write_report(run, PARTS)
    assert "make the run anew in another folder" in str(caught.value) and "\n" not in str(caught.value)
    (run / "plan.json").write_text('{"schema": 2, "pipelines": {}}')
    with pytest.raises(UserError, match="plan.json has schema 2, this version reads 1"):
        write_report(run, PARTS)


def test_the_page_knows_no_pipeline_by_name(run: Path) -> None:
    """What a part is made of is all that the page needs to know."""

    def part(found: Any) -> Part:
        return Part(
            kicker="Anything",
            title="A title",
            facts=[Fact("Fact", 3, "with a note")],
            verdict=["First line.", "Second line."],
            warnings=[Notice("there", "Careful", "For a reason.", ("here", "there"))],
            sections=[Section("there", "There", Html('<section id="there"></section>'))],
        )

    stages = [{"name": "finetune", "title": "Tuning"}, {"name": "never", "title": "Never"}]
    plan = {"schema": 1, "pipelines": {"new": {"title": "N", "stages": stages}, "unknown": {"title": "Unheard of"}}}
    (run / "plan.json").write_text(json.dumps(plan))
    page = Page(render_page(read_run(run), {"new": part, "select": PARTS["select"]}))
    for said in (
        "Anything",
        "A title",
        "with a note",
        "Second line.",
        "Tuning ✓ done",
        "Never ✗ not run",
        "Careful.",
        "holds “Unheard of”, which this page does not show",
    ):
        assert said in page.text, said
    assert page.all("a", "href") == ["#there", "#there", "#provenance"]


def test_templates_escape_and_misspelt_names_are_errors() -> None:
    table = Table(["<a>", "n"], [["<b>", Cell("<c>", "<d>", flag="<e>", badge="<f>")]], "<g>", groups=[("<h>", 2)])
    figure = Figure("<i>", Html("<svg></svg>"), "<j>", "<k>")
    made = _from_text(
        "{% import 'macros.html' as m %}{{ m.table(t) }}{{ m.figure(f) }}{{ x }}", t=table, f=figure, x=None
    )
    for letter in "abcdefghijk":
        assert f"&lt;{letter}&gt;" in made and f"<{letter}>" not in made.replace("<b>How to read", "").replace(
            "<b>Found", ""
        )
    assert "<svg></svg>" in made and "None" not in made
    with pytest.raises(jinja2.UndefinedError):
        render("configuration.html", anchor="x", facts=[])


def _from_text(text: str, **values: Any) -> str:
    from ntk_jax.report import layout

    return layout._environment(layout.TEMPLATES).from_string(text).render(**values)


@given(st.text())
def test_any_text_survives_as_text(text: str) -> None:
    made = tag("p", text, title=text)
    made.encode("utf8")
    page = Page(made)
    assert "".join(page.words) == clean(text)
    assert page.all("p", "title") == [clean(text)]
    assert tag("p", Html("<b></b>")) == "<p><b></b></p>"
    written = Page(_from_text('<p title="{{ x }}">{{ x }}</p>', x=text))
    assert "".join(written.words) == clean(text) and written.all("p", "title") == [clean(text)]
