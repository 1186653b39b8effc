"""The part of the page of questions, and what a run ends with in the terminal: of a whole run, of a run at any moment,
and of damaged files."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import synthetic_question
from hypothesis import given, settings
from hypothesis import strategies as st
from report_page import Page, edit

from ntk_jax.pipelines.question.figures import MOST_DOTS, before_and_after, gaps_by_round
from ntk_jax.pipelines.question.report import part
from ntk_jax.pipelines.question.report_along import round_arms, tokens_along
from ntk_jax.pipelines.question.report_arms import pairs_of, tasks_at, titles
from ntk_jax.pipelines.question.report_questions import spread
from ntk_jax.pipelines.question.terminal import terminal
from ntk_jax.report.page import write_report
from ntk_jax.report.reading import read_run

SECTIONS = (
    *("roles", "chunk", "outcomes", "rounds", "questions", "coverage", "judge", "methods", "train"),
    *("evaluate", "along", "by-round", "unseen", "trained", "forgetting"),
)
OF = {"chunk": 1, "ask": 6, "train": 1, "evaluate": 5}  # sections of each stage besides that of the roles


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_question.make(tmp_path_factory.mktemp("question"))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def page_of(folder: Path) -> tuple[str, Page]:
    text = write_report(folder, {"question": part}).read_text(encoding="utf8")
    return text, Page(text)


def sections(page: Page) -> list[str]:
    return [name.removeprefix("question-") for name in page.all("section", "id") if name.startswith("question-")]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tables(text: str) -> dict[str, list[list[str]]]:
    """{caption: rows of the texts of cells}."""
    found = {}
    for caption, body in re.findall(r"<table[^>]*><caption>(.*?)</caption>(.*?)</table>", text, re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        found[caption] = [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in row] for row in cells]
    return found


def table(text: str, begins: str) -> list[list[str]]:
    return next(rows for caption, rows in tables(text).items() if caption.startswith(begins))


def test_a_whole_run_has_every_section_and_nothing_of_the_models_is_markup(whole: Path) -> None:
    text, page = page_of(whole)
    assert sections(page) == list(SECTIONS)
    assert "<script" not in text and "cannot be shown" not in page.text
    assert {"img", "iframe", "link"}.isdisjoint(name for name, _ in page.elements)
    assert not re.search(r"\b(nan|None|inf)\b|\{\{|\bUndefined\b", page.text)
    assert text == page_of(whole)[0], "the same bytes again"
    for words in (
        "Balanced accuracy of test (unseen documents): “adversarial questions” has 75.0%: better against “base model” "
        "(+25.0 points",
        "Loss of general, another subject: forgetting shows in “Questions without feedback”; the base minus "
        "“adversarial questions”: 0.0000 nats a token",
        "2 are missing; the reasons are counted there.",
        "Relations of entities brought nothing: no record of entities came of 5 calls",
        "9 documents were read and 6 of them used: questions are asked about 4, 2 are kept unseen",
        "Every arm was trained on 5,000 tokens, to within a step.",
        "✓ done",
    ):
        assert words in page.text, words
    assert "Target and expert are one model" not in page.text


def test_numbers_of_the_loop_are_those_of_the_run(whole: Path) -> None:
    text, page = page_of(whole)
    (one,) = json.loads((whole / "ask/summary.json").read_text())["generations"]
    kept = lines(whole / "ask/questions.jsonl")
    assert f"{len(kept)} ({len(kept) / one['slots']:.1%}) of {one['slots']} questions that were looked for" in page.text
    rows = table(text, "Gaps that each round measured")
    assert [row[:4] for row in rows[1:]] == [
        [str(part_[key]) for key in ("round", "tried", "accepted")] + [str(part_["gaps"]["n"])]
        for part_ in one["rounds"]
    ]
    assert [float(row[4].replace("−", "-")) for row in rows[1:]] == pytest.approx(
        [part_["gaps"]["mean"] for part_ in one["rounds"]], rel=0.01
    )
    before, after = (sum(pair[n] for pair in one["gains"]) / len(one["gains"]) for n in (0, 1))
    assert f"their mean gap went from {before:#.3g} to {after:#.3g} (nats a token)" in page.text
    grew = sum(b > a for a, b in one["gains"])
    assert f"The gap of {grew} ({grew / len(kept):.1%}) of {len(kept)} grew" in page.text
    asked = table(text, "What each was asked")
    expert = next(row for row in asked if row[0] == "expert")
    account = one["voices"]["expert"]
    assert expert[2:6] == ["json", *(f"{account[k]:,}" for k in ("calls", "prompt_tokens", "completion_tokens"))]
    assert ["expert", "3", "the model declined"] in table(text, "Replies that could not be used, by role")
    about = one["calibrations"][0]
    assert f"takes {about['false_accept']:.1%} (" in page.text and "of wrong or vague answers for right" in page.text


def test_rounds_stand_side_by_side(run: Path) -> None:
    text, _ = page_of(run)
    kept = lines(run / "ask/questions.jsonl")
    places = spread(len(kept), 4)
    shown = re.findall(r'<table class="rounds">(.*?)</table>', text, re.DOTALL)
    others = lines(run / "ask/traces.jsonl")
    assert len(shown) == 4 + min(len(others), 2)
    for body, place in zip(shown, places, strict=False):
        record, rounds = kept[place], kept[place]["trace"]["rounds"]
        heads = [" ".join(re.sub("<[^>]*>", " ", h).split()) for h in re.findall(r'<th scope="col">(.*?)</th>', body)]
        marks = [("kept" if v["round"] == record["round"] else "accepted") if v["accepted"] else "" for v in rounds]
        assert heads == [f"Round {v['round']} {mark}".strip() for v, mark in zip(rounds, marks, strict=True)]
        row = re.search(r'<tr><th scope="row">Question</th>(.*?)</tr>', body, re.DOTALL)
        assert row is not None
        cells = re.findall(r"<td>(.*?)</td>", row[1], re.DOTALL)
        texts = [re.sub("<[^>]*>", "", cell).strip() for cell in cells]
        assert texts == [v["question"] for v in rounds]
        for fault in (v["fault"] for v in rounds if v["fault"]):
            assert fault in body
        verdicts = [v["verdicts"]["verdict"] for v in rounds if "verdict" in v["prompts"]]  # what the judge wrote
        assert verdicts and all(f"verdict: {one}" in html.unescape(body) for one in verdicts)
    assert "all of it" in shown[0]  # a long text opens on demand
    edit(run / "plan.json", lambda plan: plan["pipelines"]["question"]["config"]["report"].update(examples=0))
    text, page = page_of(run)
    assert 'class="rounds"' not in text and "Raise report.examples" in page.text


def test_arms_are_compared_task_by_task(whole: Path) -> None:
    text, _ = page_of(whole)
    rows = table(text, "All arms, each task")
    by_arm = {row[0]: row for row in rows}
    assert by_arm["Arm"][:4] == ["Arm", "Tokens", "balanced accuracy", "balanced accuracy"]
    assert by_arm["adversarial questions"][1:4] == ["5,120", "75.0% 75.0% to 75.0%", "83.3% 75.0% to 100.0%"]
    assert by_arm["base model"][2] == "50.0% 50.0% to 50.0% worse"
    assert by_arm["Questions without feedback"][5].endswith("forgets")
    assert by_arm["Questions without feedback"][5].startswith("−0.1000 nats a token")
    assert by_arm["adversarial questions"][5] == "0.0000 nats a token 0.0000 to 0.0000 cannot tell"
    forgotten = table(text, "What was forgotten")
    named = {(row[0], row[2]): row[3:] for row in forgotten[1:]}
    assert named["Questions without feedback", "loss"][0] == "−0.1000 nats a token"
    rounds = table(text, "Trained on the questions as they stood")
    assert rounds[0][2:] == ["Base", "After round 0", "After round 1", "As kept"]
    assert [cell.split()[0] for cell in rounds[1][2:]] == ["50.0%", "50.0%", "58.3%", "75.0%"]
    for caption, found in tables(text).items():
        if not caption.startswith("What every arm was trained on"):
            assert not re.search(r"\w@\d|round-\d", str(found)), caption


def test_curves_go_from_the_base_over_the_points_to_the_end(whole: Path) -> None:
    directory = read_run(whole)
    points = tokens_along(directory)
    assert points == {
        "adversarial": [(0.0, "base"), (2_010.0, "adversarial@2"), (5_120.0, "adversarial")],
        "static": [(0.0, "base"), (2_080.0, "static@2"), (5_230.0, "static")],
    }
    assert round_arms(directory) == ["round-0", "round-1", "adversarial"]
    assert list(titles(directory)) == ["base", "adversarial", "static"]
    assert tasks_at(directory, "unseen") == ["test (unseen documents)"] and tasks_at(directory, "general") == [
        "general"
    ]
    found = directory.json("evaluate/results.json")
    pairs = pairs_of(found, "adversarial", "test (unseen documents)")
    assert {name: pair.value for name, pair in pairs["balanced accuracy"].items() if "@" not in name} == pytest.approx(
        {"base": 0.25, "static": 0.25, "round-0": 0.25, "round-1": 9 / 12 - 7 / 12}
    )
    titled = re.findall(r"<h3>([^<]*)</h3>", page_of(whole)[0])
    assert "Balanced accuracy of test (unseen documents)" in titled and "Loss of general by round" in titled


def test_intervals_that_hold_zero_are_said_to_say_nothing(run: Path) -> None:
    right = {"base": 6, "adversarial": 7, "static": 6, "round-0": 6, "round-1": 6}

    def mixed(found: dict[str, Any]) -> None:
        found.clear()
        found.update(synthetic_question.results(right))
        for task in found["tasks"]:
            for pair in (*task["paired"], *task["paired_balanced"]):
                pair.update(low=pair["difference"] - 0.2, high=pair["difference"] + 0.2)

    edit(run / "evaluate/results.json", mixed)
    text = page_of(run)[1].text
    said = "“adversarial questions” has 58.3%: cannot tell against “base model” (+8.3 points, −11.7 to +28.3)"
    assert f"Balanced accuracy of test (unseen documents): {said}" in text
    assert "better against" not in text.split("Read this first")[0]


def test_one_model_in_both_roles_and_judges_that_say_nothing_are_named(run: Path) -> None:
    edit(run / "plan.json", lambda plan: plan["pipelines"]["question"]["facts"].update(same=True))

    def void(found: dict[str, Any]) -> None:
        for about in found["generations"][0]["calibrations"][::2]:
            about.update(
                false_accept=None, false_reject=1.0, informedness=None, void=True, judge=synthetic_question.HOSTILE
            )

    edit(run / "ask/summary.json", void)
    agreeing = [
        {**one, "trace": {**one["trace"], "rounds": [{**v, "fault": None} for v in one["trace"]["rounds"]] * 3}}
        for one in lines(run / "ask/questions.jsonl")
    ]
    synthetic_question.write_lines(run / "ask/questions.jsonl", agreeing)
    synthetic_question.write_lines(run / "ask/traces.jsonl", [])
    text, page = page_of(run)
    assert "⚠ Target and expert are one model" in page.text and "<script" not in text
    assert (
        "The judge of the gap says nothing" in page.text and "It says nothing: whatever rests on its word" in page.text
    )
    assert "The second judge of answers says nothing" in page.text and "The judge of answers says" not in page.text
    assert re.search(r"It found all \d+ answers that were put before it right", page.text)


def test_documents_that_hold_items_and_intervals_over_few_documents_are_named(run: Path) -> None:
    few = "test (unseen documents): 3 documents"
    assert few in page_of(run)[1].text and "The documents hold evaluation items" not in page_of(run)[1].text
    edit(run / "ask/summary.json", lambda found: found.update(chunks_with_items=3))

    def many(found: dict[str, Any]) -> None:
        for task in found["tasks"]:
            task["documents"] = 10

    edit(run / "evaluate/results.json", many)
    text = page_of(run)[1].text
    assert "⚠ The documents hold evaluation items" in text and "3 chunks share a run of words" in text
    assert few not in text and "Few documents" not in text


@pytest.mark.parametrize("last", ["nothing", "chunk", "ask", "train"])
def test_a_stage_that_is_not_there_yet_has_no_section(run: Path, last: str) -> None:
    names = [name for name, _ in synthetic_question.STAGES]
    done = names[: names.index(last) + 1] if last in names else []
    for name in names:
        if name not in done:
            shutil.rmtree(run / name)
    _, page = page_of(run)
    assert len(sections(page)) == 1 + sum(OF[name] for name in done)
    assert page.text.count("✓ done") == len(done) and "cannot be shown" not in page.text
    said = terminal(cleaned(run))
    assert [word for word in ("Documents:", "Questions:", "Training,", "Evaluation:") if word in said] == [
        {"chunk": "Documents:", "ask": "Questions:", "train": "Training,"}[name] for name in done
    ]


def test_without_evaluation_files_or_methods_or_gaps(run: Path) -> None:
    def bare(found: dict[str, Any]) -> None:
        found["methods"] = {}
        one = found["generations"][0]
        one.update(measure=None, gap_before={"n": 0}, gap_after={"n": 0}, gap_kept={"n": 0}, gains=[], calibrations=[])
        for each in one["rounds"]:
            each["gaps"] = {"n": 0}

    edit(run / "ask/summary.json", bare)
    edit(run / "evaluate/results.json", lambda found: found.update(tasks=[], loss={}, arms=found["arms"][:2]))
    text, page = page_of(run)
    assert "methods" not in sections(page) and "judge" not in sections(page) and "along" not in sections(page)
    assert "No task was evaluated." in page.text and "cannot be shown" not in page.text
    assert not re.search(r"\b(nan|None|inf)\b", page.text)
    assert "mean gap (none) of the kept questions: none as first measured, none as kept" in terminal(cleaned(run))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_damaged_file_never_costs_the_page(whole: Path, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Any value of any file becomes something else."""
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / "run")
    path = folder / data.draw(st.sampled_from(synthetic_question.FILES))
    value = json.loads(path.read_text())
    at, steps = value, data.draw(st.integers(1, 6))
    for step in range(steps):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if step == steps - 1 or not isinstance(at[key], (dict, list)):
            at[key] = data.draw(st.sampled_from([None, "<b>", -1, float("nan"), [], {}, [None], {"a": [1]}, True]))
            break
        at = at[key]
    path.write_text(json.dumps(value))
    text, page = page_of(folder)
    assert "<script" not in text and "<b>x" not in text and "Adversarial questions" in page.text


def cleaned(run: Path) -> Path:
    """The same run without what no program writes into JSON."""
    for path in run.rglob("*.json"):
        path.write_text(path.read_text().replace("\\ud800", "?"))
    return run


def test_the_terminal_has_what_there_is_of_each_stage(run: Path) -> None:
    said = terminal(cleaned(run)).splitlines()
    kept = len(lines(run / "ask/questions.jsonl"))
    for line in (
        "Documents: 6 of 9 used; 4 are asked about, 2 kept unseen",
        "Chunks: 4 of 31, 2,410 words",
        "Dropped: 2 x empty; 1 x mostly symbols",
        f"Questions: {kept} kept: {run / 'questions.jsonl'}",
        "  2 are missing of those that were asked for",
        *(
            f"  the {who} takes 0% of planted wrong or vague answers for right, 0% of right ones for wrong"
            for who in ("judge of the gap", "judge of answers", "second judge of answers")
        ),
        "Spent on expert: 0.734 for 431 attempts, 140,211 tokens in and 301,877 out",
        "Training, 5,000 tokens an arm to within a step:",
        "Evaluation:",
        "Balanced accuracy:",
    ):
        assert line in said, line
    gains = json.loads((run / "ask/summary.json").read_text())["generations"][0]["gains"]
    first, last = (sum(pair[n] for pair in gains) / len(gains) for n in (0, 1))
    (gap,) = (line for line in said if line.startswith("  mean gap (nll) of the kept questions: "))
    assert f": {first:.3f} as first measured, {last:.3f} as kept; " in gap
    assert any(line.split() == ["adversarial", "questions", "11", "4", "5,120", "2,300"] for line in said)
    assert any(line.startswith("Relations of entities brought nothing: no record") for line in said)
    head = said[said.index("Evaluation:") + 1]
    assert "base model" in head and "round-0" not in head and "@" not in head
    assert "\x1b" not in "".join(said) and "×" not in "".join(said)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=40))
def test_any_gaps_can_be_drawn(pairs: list[tuple[float, float]]) -> None:
    drawing = before_and_after(pairs, unit="nats", description="d")
    assert drawing.count("<circle") == len(pairs)
    numbers = [float(value) for value in re.findall(r'c[xy]="([^"]*)"', drawing)]
    assert all(math.isfinite(value) and value >= 0 for value in numbers)


def test_many_dots_are_thinned_and_rounds_without_gaps_have_no_figure() -> None:
    drawing = before_and_after([(0.1 * n, 0.1 * n + n % 2) for n in range(2_000)], unit="nats", description="d")
    assert 0 < drawing.count("<circle") <= MOST_DOTS
    assert gaps_by_round([{"round": 0, "gaps": {"n": 0}}], unit="nats", description="d") is None


@given(st.integers(0, 500), st.integers(0, 40))
def test_examples_are_spread_over_the_ranks(total: int, most: int) -> None:
    found = spread(total, most)
    assert found == sorted(set(found)) and len(found) == min(total, most)
    if len(found) > 1:
        assert (found[0], found[-1]) == (0, total - 1)
