"""A select run on the page: true to the numbers, and worded so that a loss or a collapse cannot pass for a gain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import synthetic_run
from report_page import edit, page_of

from ntk_jax.data.templates import REWRITTEN, SPACE_MOVED, SPELLS_CONTROL
from ntk_jax.pipelines.select.report.findings import Collapse, accuracy_differences, collapses
from ntk_jax.pipelines.select.report.run import SelectRun, scores_and_lengths, select_run
from ntk_jax.pipelines.select.report.verdict import verdict
from ntk_jax.pipelines.select.report.warnings import warnings
from ntk_jax.pipelines.select.terminal import terminal
from ntk_jax.report import amounts
from ntk_jax.report.layout import Notice
from ntk_jax.report.reading import read_run
from ntk_jax.report.text import plain


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run.make(tmp_path_factory.mktemp("run") / "full")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def read(folder: Path) -> SelectRun:
    return select_run(read_run(folder))


def warned(folder: Path, title: str) -> Notice | None:
    return next((w for w in warnings(read(folder)) if title in w.title), None)


def everywhere(folder: Path, *words: str) -> None:
    """Asserts that both the page and the terminal say it."""
    page, text = page_of(folder)[1].text, " ".join(terminal(folder).split())
    for said in words:
        assert said in page, said
        assert plain(said) in text, said


def pair(a: str, b: str, kind: str, difference: float, low: float, high: float) -> dict[str, Any]:
    return {"a": a, "b": b, "kind": kind, "difference": difference, "low": low, "high": high}


def paired(folder: Path, *pairs: dict[str, Any]) -> None:
    edit(folder / "evaluate/results.json", lambda r: r.update(paired=list(pairs)))


def no_collapse(folder: Path) -> None:
    def level(results: dict[str, Any]) -> None:
        for task in results["tasks"]:
            for kinds in task["results"].values():
                for entry in kinds.values():
                    entry["predicted"] = dict(task["truth"])

    edit(folder / "evaluate/results.json", level)


def predict(folder: Path, arm: str, label: str, count: int, rest: str, kinds: tuple[str, ...]) -> None:
    """Makes an arm answer one label `count` times on the first task, and another one for the other questions."""

    def change(results: dict[str, Any]) -> None:
        task = results["tasks"][0]
        for kind in kinds:
            task["results"][arm][kind]["predicted"] = {label: count, rest: task["questions"] - count}

    edit(folder / "evaluate/results.json", change)


def test_page_shows_the_numbers_that_matter(finished: Path) -> None:
    _, page = page_of(finished)
    results = json.loads((finished / "evaluate/results.json").read_text())
    for task in results["tasks"]:
        assert f"{task['name']} {task['questions']} questions" in page.text
        for kinds in task["results"].values():
            for entry in kinds.values():
                low, high = (amounts.percent(entry[k]).rstrip("%") for k in ("low", "high"))
                label, n = max(sorted(entry["predicted"].items()), key=lambda item: item[1])
                most = f"most: “{label}” {amounts.percent(n / task['questions'], 0)}"
                assert f"{amounts.percent(entry['accuracy'])} {low} to {high} {most}" in page.text
    for found in results["paired"]:
        assert amounts.points(abs(found["difference"])).lstrip("+") in page.text
    for arm in results["arms"]:
        assert amounts.count(arm["tokens"]) in page.text and amounts.metric(arm["flops"], "FLOP") in page.text
    selection = json.loads((finished / "select/summary.json").read_text())
    pool = sum(f["pool"] for f in selection["families"])
    for family in selection["families"]:
        picked = family["selected"]["kernel"]
        lift = (picked / selection["count"]) / (family["pool"] / pool)
        row = f"{amounts.count(picked)} {amounts.percent(picked / selection['count'])}"
        row += f"{amounts.count(family['pool'])} {amounts.percent(family['pool'] / pool)}{amounts.times(lift)}"
        assert row + amounts.count(family["selected"]["random"]) in page.text
    threshold = amounts.general(selection["by_method"]["kernel"]["threshold"])
    for said in (
        "900 selected",
        f"the lowest selected score is {threshold}",
        "−0.81 with the response length (strong)",
        "1,200 too long",
        "layers/down_proj/b0.51040.0%",  # parameter, norm, share
        "goemotions_ekman with llama-7m",
        "Rank 20",
        "all 8,000 characters",
    ):
        assert said in page.text, said
    assert "A very long prompt. " * 400 in "".join(page.words)


def test_only_scored_examples_are_drawn(finished: Path) -> None:
    scores = scores_and_lengths(read(finished))
    assert scores is not None and scores.what == "response"
    assert len(scores.score) == len(scores.length) == synthetic_run.POOL - synthetic_run.DROPPED


def test_every_method_has_its_line(run: Path) -> None:
    everywhere(run, "NTK kernel score")
    _, page = page_of(run)
    assert "NTK kernel score ntk:sum_logits900" in page.text and "random random900" in page.text
    # Selected at random first: no scores, and that is no gap in the run.
    edit(run / "plan.json", lambda p: p["pipelines"]["select"]["facts"]["methods"].reverse())
    _, page = page_of(run)
    assert "No score histogram: “random” recorded no scores." in page.text
    assert scores_and_lengths(read(run)) is None
    assert "“domain + random” is worse than “domain + kernel” by 6.5 points" in page.text


def test_colours_follow_the_place_of_an_arm(run: Path) -> None:
    colours = [arm.color for arm in read(run).arms]
    assert colours == ["c-grey", "c-green", "c-blue", "c-orange"]

    def many(plan: dict[str, Any]) -> None:
        plan["pipelines"]["select"]["facts"]["arms"] += [{"name": f"m{i}"} for i in range(9)]

    edit(run / "plan.json", many)
    found = [arm.color for arm in read(run).arms]
    assert found[:4] == colours and found.count("c-grey") == 1 and found[7] == "c-green"
    page_of(run)


def test_an_arm_that_is_a_file_has_its_own_folder(run: Path) -> None:
    text = (run / "evaluate/results.json").read_text().replace('"random"', '"file:data/my picks.jsonl"')
    (run / "evaluate/results.json").write_text(text)
    text = (run / "plan.json").read_text().replace('{"name": "random", "title": "domain + random"}', "%s")
    (run / "plan.json").write_text(text % '{"name": "file:data/my picks.jsonl", "title": "domain + my picks"}')
    shutil.move(run / "finetune/random", run / "finetune/file-my picks")
    arm = read(run).arms[3]
    assert arm.folder == "file-my picks" and read(run).trained[arm.name]["final_loss"] == 2.9
    everywhere(run, "domain + my picks")


# -- a collapse is no gain -----------------------------------------------------------------------------------------


def test_a_collapse_is_never_called_a_gain(run: Path) -> None:
    no_collapse(run)
    both = ("normalized", "raw")
    predict(run, "kernel", "joy", 700, "anger", both)
    predict(run, "domain", "fear", 628, "anger", both)
    paired(run, *(pair("kernel", "domain", kind, 0.122, 0.072, 0.175) for kind in both))
    everywhere(
        run,
        "No gain of “domain + kernel” over “domain only” is shown, though the numbers differ by +12.2 points "
        "[+7.2, +17.5], normalized; COLLAPSED: “domain + kernel” answers “joy” to 100% of goemotions_ekman",
        "“domain only” answers “fear” to 90% of goemotions_ekman",
        "Raw shows none either (+12.2 points [+7.2, +17.5]); COLLAPSED too.",
        "Predictions collapsed onto one label",
        "is what “domain only” answers to 90% (normalized) and 90% (raw) of the questions.",
    )
    assert "better" not in " ".join(verdict(read(run)))
    for line in terminal(run).splitlines():
        if "minus domain only, paired" in line:
            assert line.count("(COLLAPSED: domain + kernel, domain only)") == 2
    assert "[+7.2, +17.5] ⚠ collapsed: domain + kernel, domain only" in page_of(run)[1].text
    marked = [line for line in terminal(run).splitlines() if line.startswith("  answers most")][0]
    assert "joy 100% !" in marked and "fear 90% !" in marked


def test_a_loss_stays_a_loss_when_an_arm_collapsed(run: Path) -> None:
    no_collapse(run)
    predict(run, "kernel", "joy", 700, "anger", ("normalized",))
    paired(
        run,
        pair("kernel", "domain", "normalized", -0.2, -0.25, -0.15),
        pair("kernel", "domain", "raw", 0.05, 0.01, 0.09),
    )
    (line, *_) = verdict(read(run))
    assert line.startswith("“domain + kernel” is worse than “domain only” by 20.0 points [15.0, 25.0], normalized")
    assert "COLLAPSED: “domain + kernel” answers “joy” to 100%" in line
    assert line.endswith("Raw disagrees: better by 5.0 points [1.0, 9.0].")


def test_raw_without_a_collapse_has_its_own_verdict(finished: Path) -> None:
    line = next(line for line in verdict(read(finished)) if line.startswith("No gain"))
    assert "“domain only” answers “surprise” to 95% of goemotions_ekman" in line
    assert "By raw likelihood neither has collapsed: better by 12.9 points" in line


def test_a_collapse_in_raw_alone_is_not_hidden(run: Path) -> None:
    no_collapse(run)
    predict(run, "kernel", "joy", 700, "anger", ("raw",))
    paired(run, pair("kernel", "domain", "normalized", 0.0, -0.1, 0.1), pair("kernel", "domain", "raw", 0.2, 0.1, 0.3))
    line = verdict(read(run))[0]
    assert "Raw disagrees, but shows no gain either: +20.0 points [+10.0, +30.0]; COLLAPSED" in line


def test_collapse_is_seen_only_where_truth_disagrees(run: Path) -> None:
    (found,) = collapses(read(run))
    assert (found.arm, found.task, found.kind, found.label) == ("domain", "goemotions_ekman", "normalized", "surprise")
    assert "⚠ collapsed" in page_of(run)[1].text

    def skew(results: dict[str, Any]) -> None:
        results["tasks"][0]["truth"] = {"surprise": 650, "joy": 50}

    edit(run / "evaluate/results.json", skew)  # now nearly everything truly is a surprise
    assert collapses(read(run)) == []
    assert "ollapsed" not in page_of(run)[1].text.replace("an arm has collapsed, see the table below", "")
    # Every answer the same is a collapse even where most answers truly are that.
    predict(run, "kernel", "surprise", 700, "joy", ("raw",))
    assert collapses(read(run)) == [Collapse("kernel", "goemotions_ekman", "raw", "surprise", 1.0, 650 / 700)]


# -- the verdict is against every control --------------------------------------------------------------------------


def test_a_loss_against_the_domain_leads(run: Path) -> None:
    no_collapse(run)
    paired(
        run,
        *(pair("random", "kernel", kind, 0.01, -0.03, 0.05) for kind in ("raw", "normalized")),  # turned round
        *(pair("kernel", "base", kind, 0.1, 0.05, 0.15) for kind in ("raw", "normalized")),
        *(pair("kernel", "domain", kind, -0.192, -0.245, -0.137) for kind in ("raw", "normalized")),
    )
    first, *lines = verdict(read(run))
    assert first == (
        "“domain + kernel” by normalized likelihood: worse than “domain only”; cannot tell it from “domain + random”; "
        "better than “base model”."
    )
    assert lines[:3] == [
        "“domain + kernel” is worse than “domain only” by 19.2 points [13.7, 24.5], normalized. "
        "Raw agrees (−19.2 points [−24.5, −13.7]).",
        "Cannot tell “domain + kernel” from “domain + random”: −1.0 points [−5.0, +3.0], normalized. "
        "Raw agrees (−1.0 points [−5.0, +3.0]).",
        "“domain + kernel” is better than “base model” by 10.0 points [5.0, 15.0], normalized. "
        "Raw agrees (+10.0 points [+5.0, +15.0]).",
    ]
    everywhere(run, first, *lines)


@pytest.mark.parametrize(
    ("low", "difference", "high", "words"),
    [
        (0.011, 0.034, 0.057, "“domain + kernel” is better than “domain + random” by 3.4 points [1.1, 5.7]"),
        (-0.006, 0.018, 0.041, "Cannot tell “domain + kernel” from “domain + random”: +1.8 points [−0.6, +4.1]"),
        (0.0, 0.018, 0.041, "Cannot tell “domain + kernel” from “domain + random”: +1.8 points [0.0, +4.1]"),
        (-0.052, -0.031, -0.008, "“domain + kernel” is worse than “domain + random” by 3.1 points [0.8, 5.2]"),
    ],
)
def test_the_words_follow_the_interval(run: Path, low: float, difference: float, high: float, words: str) -> None:
    no_collapse(run)
    for found in (
        pair("kernel", "random", "normalized", difference, low, high),
        pair("random", "kernel", "normalized", -difference, -high, -low),
    ):
        paired(run, found)
        assert verdict(read(run))[0].startswith(words)


def test_raw_says_so_when_it_disagrees(run: Path) -> None:
    no_collapse(run)
    good = pair("kernel", "random", "normalized", 0.05, 0.02, 0.08)
    for raw, words in (
        ((0.01, -0.02, 0.04), "Raw disagrees: cannot tell, +1.0 points [−2.0, +4.0]."),
        ((-0.05, -0.08, -0.02), "Raw disagrees: worse by 5.0 points [2.0, 8.0]."),
        ((0.05, 0.01, 0.09), "Raw agrees (+5.0 points [+1.0, +9.0])."),
    ):
        paired(run, pair("kernel", "random", "raw", *raw), good)
        assert verdict(read(run))[0].endswith(words)
        everywhere(run, words)
    assert any("not over training seeds" in line for line in verdict(read(run)))


def test_controls_come_in_order(finished: Path) -> None:
    found = [(d.a, d.b, d.kind) for d in accuracy_differences(read(finished))]
    assert found[:3] == [
        ("kernel", "domain", "normalized"),
        ("kernel", "domain", "raw"),
        ("kernel", "random", "normalized"),
    ]
    assert found[4][:2] == ("kernel", "base") and len(found) == 12


# -- random is no equal control ------------------------------------------------------------------------------------


def test_unequal_label_tokens_are_warned_of(run: Path) -> None:
    everywhere(
        run,
        "The arms learnt from unequal numbers of label tokens",
        "“domain + kernel”: 3,940 label tokens, 49% of them the domain's.",
        "“domain + random”: 26,424 label tokens (×6.71), 7% of them the domain's.",
        "(`length_matched`), is not among the arms",
    )
    header = "Tokens Label tokens Domain's share Compute Time, all starts"
    assert header.replace(" ", "") in page_of(run)[1].text.replace(" ", "")
    text = terminal(run)
    shares = next(line for line in text.splitlines() if line.startswith("domain's share"))
    assert shares.split()[-4:] == ["-", "100%", "49%", "7%"]
    assert "training label tokens" in text

    def equal(results: dict[str, Any]) -> None:
        results["arms"][3].update(label_tokens=4_000)

    edit(run / "evaluate/results.json", equal)
    assert warned(run, "unequal numbers") is None
    # Input tokens are not what the loss is a mean over.
    edit(run / "evaluate/results.json", lambda r: r["arms"][3].update(tokens=10**9))
    assert warned(run, "unequal numbers") is None
    # As many label tokens, but other shares of the domain.
    edit(run / "evaluate/results.json", lambda r: r["arms"][3].update(domain_label_tokens=400))
    notice = warned(run, "unequal numbers")
    assert notice is not None and "10% of them the domain's" in notice.cases[1]


def test_it_is_said_where_an_arm_was_not_trained_on_all_that_it_was_given(run: Path) -> None:
    title = "Arms were not trained on all that they were given"
    assert warned(run, title) is None, "nothing was left out, or an older run did not say"
    edit(run / "evaluate/results.json", lambda r: r["arms"][2].update(dropped={"too long": 1_018}))
    notice = warned(run, title)
    assert notice is not None and len(notice.cases) == 1
    assert notice.cases[0].startswith("“domain + kernel”: without 1,018 too long; ")


def test_a_mean_over_examples_has_no_unequal_lessons(run: Path) -> None:
    edit(
        run / "plan.json",
        lambda p: p["pipelines"]["select"]["config"].setdefault("finetune", {}).update(loss="example_mean"),
    )
    assert warned(run, "unequal numbers") is None


def test_it_is_said_where_the_domain_alone_wins(run: Path) -> None:
    no_collapse(run)
    paired(run, pair("kernel", "domain", "normalized", 0.05, 0.02, 0.08))
    assert warned(run, "domain alone wins") is None
    paired(
        run,
        pair("kernel", "domain", "normalized", -0.05, -0.08, -0.02),
        pair("domain", "random", "raw", 0.04, 0.01, 0.07),
        pair("base", "domain", "raw", -0.2, -0.3, -0.1),
    )
    everywhere(
        run,
        "The domain alone wins",
        "“domain + kernel” minus “domain only”: accuracy, normalized, −5.0 points [−8.0, −2.0].",
        "“domain + random” minus “domain only”: accuracy, raw, −4.0 points [−7.0, −1.0].",
    )
    notice = warned(run, "domain alone wins")
    assert notice is not None and len(notice.cases) == 2  # the base model is no arm that anything was added to


def test_a_domain_that_collapsed_has_won_nothing(run: Path) -> None:
    no_collapse(run)
    paired(run, *(pair("kernel", "domain", kind, -0.05, -0.08, -0.02) for kind in ("normalized", "raw")))
    predict(run, "domain", "fear", 628, "anger", ("normalized",))
    notice = warned(run, "domain alone wins")
    assert notice is not None and len(notice.cases) == 1
    assert notice.cases[0] == "“domain + kernel” minus “domain only”: accuracy, raw, −5.0 points [−8.0, −2.0]."
    predict(run, "domain", "fear", 628, "anger", ("normalized", "raw"))
    assert warned(run, "domain alone wins") is None


def test_generated_answers_say_too_where_the_domain_alone_wins(run: Path) -> None:
    no_collapse(run)
    paired(run)
    found = {"a": "kernel", "b": "domain", "difference": -0.05, "low": -0.08, "high": -0.02}
    edit(run / "evaluate/results.json", lambda r: r.update(generated={"tasks": [], "average": {}, "paired": [found]}))
    everywhere(run, "minus “domain only”: generated answers, −5.0 points [−8.0, −2.0].")


def test_the_equal_control_is_named(run: Path) -> None:
    arm = {"name": "length_matched", "title": "domain + random of equal length"}
    edit(run / "plan.json", lambda p: p["pipelines"]["select"]["facts"]["arms"].append(arm))
    notice = warned(run, "unequal numbers")
    assert notice is not None and notice.text.endswith(
        "The equal control is “domain + random of equal length”, which has not been evaluated."
    )
    everywhere(run, "Not evaluated, so not compared: “domain + random of equal length”.")
    edit(run / "evaluate/results.json", lambda r: r["arms"].append(arm))
    notice = warned(run, "unequal numbers")
    assert notice is not None and notice.text.endswith("The equal control is “domain + random of equal length”.")

    # Matched to the lengths of another selection it is none.
    def other(plan: dict[str, Any]) -> None:
        plan["pipelines"]["select"]["config"].setdefault("select", {})["length_matched"] = {"to": "random"}

    edit(run / "plan.json", other)
    notice = warned(run, "unequal numbers")
    assert notice is not None and notice.text.endswith("(`length_matched`), is not among the arms.")


# -- statements that must be true ----------------------------------------------------------------------------------


def test_a_sampled_pool_is_not_the_whole_pool(run: Path) -> None:
    edit(run / "select/summary.json", lambda s: s.update(pool=3_950, pool_records=4_000, pool_total=216_926))
    everywhere(run, "a seeded sample of 4,000 of 216,926 records")
    assert "whole pool is scored" not in page_of(run)[1].text
    edit(run / "select/summary.json", lambda s: s.update(pool_total=4_000))
    everywhere(run, "all 4,000 records")
    assert "sample of" not in terminal(run)


def test_a_repeat_says_that_it_is_one(run: Path) -> None:
    assert "of random selections and training" not in page_of(run)[1].text
    edit(run / "plan.json", lambda plan: plan["pipelines"]["select"]["config"].update(repeat_seed=7))
    assert "7 of random selections and training" in page_of(run)[1].text


def test_times_are_of_all_starts_and_have_a_total(run: Path) -> None:
    _, page = page_of(run)
    for said in ("1 min 02 s", "40.0 s", "13 min 32 s", "Total11,179,296496 TFLOP20 min 14 s"):
        assert said in page.text, said
    assert "Finding the selection took 20 min 14 s, all starts together" in terminal(run)
    edit(run / "warmup/summary.json", lambda s: s.update(seconds=None))
    _, page = page_of(run)
    assert "Total11,179,296496 TFLOPat least 19 min 12 s" in page.text
    assert "at least 19 min 12 s, all starts together" in terminal(run)


def test_truncation_is_said_first(run: Path) -> None:
    everywhere(run, "dreaddit_stress: 134 of its 414 questions (32.4%).")
    assert "mmlu_psychological: 2 of its" not in terminal(run)  # not above 1%
    for path, kept in (("warmup/data.json", 998), ("score/data.json", 24_000)):
        edit(run / path, lambda d, kept=kept: d.update(truncated=kept // 50))
    everywhere(run, "19 of 998 domain examples (1.9%).", "480 of 24,000 pool examples (2.0%).")
    page = page_of(run)[1].text
    assert page.index("480 of 24,000 pool examples") < page.index("Did it help?")
    edit(run / "score/data.json", lambda d: d.update(truncated=240))
    assert "240 of 24,000 pool" not in terminal(run)


def test_what_became_of_the_words_is_said(run: Path) -> None:
    example = {"id": "r-7", "before": "<|user|>How?<|assistant|>", "counted": "So.<|end|>"}
    notes = {SPACE_MOVED: 7, SPELLS_CONTROL: 3, REWRITTEN: 5}
    edit(run / "score/data.json", lambda d: d.update(notes=notes, example=example))
    everywhere(run, "The chat template changed responses", "5 of the pool.")
    html, page = page_of(run)
    assert f"7 {SPACE_MOVED}" in page.text and f"3 {SPELLS_CONTROL}" in page.text
    assert "Texts spell control tokens" not in terminal(run)
    assert "&lt;|assistant|&gt;<mark>So.&lt;|end|&gt;</mark>" in html
    edit(run / "plan.json", lambda p: p["pipelines"]["select"]["config"]["model"].update(control_tokens="keep"))
    everywhere(run, "Texts spell control tokens, which were kept", "3 of the pool.")


def test_useful_shares_of_every_method(run: Path) -> None:
    found = json.loads((run / "select/summary.json").read_text())
    share = {name: amounts.percent(entry["useful_share"]) for name, entry in found["by_method"].items()}
    everywhere(run, f"{share['kernel']} of “NTK kernel score”", f"{share['random']} of “random”")
    edit(run / "select/summary.json", lambda s: s.update(useful_share_pool=None, useful=[]))
    assert "Useful families" not in terminal(run) and "badge" not in page_of(run)[0].split("</style>")[1]


@pytest.mark.parametrize(
    ("objective", "rho", "seen"),
    [("sum_logits", 3812.0, True), ("sum_logits", 1.3, False), ("sum_logits", 1e-9, True), ("probe", 3812.0, False)],
)
def test_rho_warning_only_where_rho_matters(run: Path, objective: str, rho: float, seen: bool) -> None:
    edit(run / "gradient/summary.json", lambda s: s.update(objective=objective, rho=rho))
    edit(run / "score/summary.json", lambda s: s.update(rho=rho))
    notice = warned(run, "far from 1")
    assert (notice is not None) == seen
    if notice is not None:
        assert notice.text.startswith("“NTK kernel score”: ")
        everywhere(run, notice.title, notice.text)


def test_length_warning_names_its_method(run: Path) -> None:
    everywhere(run, "The ranking of “NTK kernel score” follows length", "is −0.81: short responses score high")
    change = {"kernel": -0.2, "random": 0.6}

    def follow(summary: dict[str, Any]) -> None:
        for name, value in change.items():
            summary["by_method"][name]["spearman_span_length"] = value

    edit(run / "select/summary.json", follow)
    everywhere(run, "The ranking of “random” follows length", "is +0.60: long responses score high")
    assert "“NTK kernel score” follows length" not in page_of(run)[1].text
