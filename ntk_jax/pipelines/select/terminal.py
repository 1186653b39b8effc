"""The text that a run ends with: accuracies and losses, what limits them, the verdict against every control, the
selection.

It says what the page says, from the same findings; what is not there yet is left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ntk_jax.pipelines.common.shots import shot_lines
from ntk_jax.pipelines.select.report.cost import stage_costs, total_time
from ntk_jax.pipelines.select.report.findings import (
    Collapse,
    accuracy_differences,
    bracket,
    collapsed_in,
    collapses,
    confidence,
    most_common,
    pool_sentence,
)
from ntk_jax.pipelines.select.report.generated import WHAT as GENERATED
from ntk_jax.pipelines.select.report.generated import generated_differences, generated_rows
from ntk_jax.pipelines.select.report.losses import WHAT, WORDS, loss_differences, loss_rows
from ntk_jax.pipelines.select.report.refined import left_out_line
from ntk_jax.pipelines.select.report.run import KINDS, NAME, Arm, SelectRun, select_run
from ntk_jax.pipelines.select.report.selection import chosen, family_rows, family_shares
from ntk_jax.pipelines.select.report.verdict import verdict
from ntk_jax.pipelines.select.report.warnings import domain_share, warnings
from ntk_jax.report.amounts import count, duration, finite, percent, signed
from ntk_jax.report.balanced import WHAT as BALANCED
from ntk_jax.report.balanced import balanced_lines
from ntk_jax.report.layout import Notice
from ntk_jax.report.reading import mapping, read_run
from ntk_jax.report.text import align, label, plain

WIDTH = 116
SHOWN_FAMILIES = 8


def terminal(folder: str | Path) -> str:
    """The closing text of a run, from the files of its run directory."""
    folder = Path(folder)
    directory = read_run(folder)
    if NAME not in directory.pipelines:  # a damaged plan
        return ""
    run = select_run(directory)
    parts = []
    if run.tasks:
        parts.append(accuracy_table(run))
    if run.loss_tasks:
        parts.append(losses_table(run))
    if run.generated:
        parts.append(generated_answers_table(run))
    if balanced := balanced_lines(run.results, [(arm.name, arm.title) for arm in run.evaluated]):
        parts.append("\n".join([*textwrap.wrap(BALANCED, WIDTH), *balanced]))
    if shots := shot_lines(run.results):
        parts.append("\n".join(line for text in shots for line in textwrap.wrap(text, WIDTH)))
    noticed = warnings(run)
    if noticed:
        parts.append(_wrapped("Read this first", [line for w in noticed for line in _notice(w)]))
    if run.results:
        parts.append(_wrapped("Verdict", [(line, "- ") for line in verdict(run)]))
        parts.append(paired_lines(run))
    if run.summary:
        parts.append(selection_lines(run))
    parts = [plain(part) for part in parts if part]
    if (folder / "report" / "index.html").exists():
        parts.append(f"Report: {folder / 'report' / 'index.html'}")  # a path stays as it is
    return "\n\n".join(parts)


def _notice(w: Notice) -> list[tuple[str, str]]:
    """(text, what it is set off with)."""
    return [(f"{w.title}. {w.text}", "- "), *((case, "  * ") for case in w.cases)]


def _wrapped(title: str, lines: Sequence[tuple[str, str]]) -> str:
    found = [f"{title}:"]
    for text, start in lines:
        found += textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
    return "\n".join(found)


def accuracy_table(run: SelectRun) -> str:
    """A row a task and kind of likelihood, a column an arm, what each answered most; then what each was trained on."""
    arms, broken = run.evaluated, collapses(run)
    rows = [["task", "questions", "chance", "majority", *(label(arm.title) for arm in arms)]]
    rules = {1}
    for task in run.tasks:
        rows += _task_rows(task, arms, broken)
        rules.add(len(rows))
    average = mapping(run.results.get("average"))
    if len(run.tasks) != 1:
        for kind in KINDS:
            hit = {c.arm for c in broken if c.kind == kind}
            cells = [
                _accuracy(mapping(average.get(arm.name)).get(kind)) + (" !" if arm.name in hit else "") for arm in arms
            ]
            rows.append([f"average, {kind}", "", "", "", *cells])
        rules.add(len(rows))
    rows += _training_rows(run, arms)
    text = (
        f"Accuracy in % [{confidence(run)} bootstrap interval], and the label that each arm answers most. Normalized: "
        "choices by likelihood per token; raw: by whole likelihood. Majority: what always answering the most common "
        "true label gets." + (" !: the arm collapsed onto one label, in an average on some task." if broken else "")
    )
    return "\n".join([*textwrap.wrap(text, WIDTH), *align(rows, rules)])


def losses_table(run: SelectRun) -> str:
    """Both means of the held-out loss a task and arm, and the perplexity; what each was trained on, unless the table of
    accuracies says it."""
    rows = [["task", "examples", "tokens", "left out", *(label(arm.title) for arm in run.evaluated)], *loss_rows(run)]
    rules = {1}
    if not run.tasks:
        rules.add(len(rows))
        rows += _training_rows(run, run.evaluated)
    text = f"{WHAT} In brackets {confidence(run)} bootstrap intervals over examples."
    return "\n".join([*textwrap.wrap(text, WIDTH), *align(rows, rules)])


def generated_answers_table(run: SelectRun) -> str:
    """The share of right answers a task and arm."""
    heading = ["task", "questions", "left out", *(label(arm.title) for arm in run.evaluated)]
    rows = [heading, *generated_rows(run)]
    text = f"{GENERATED} In brackets {confidence(run)} bootstrap intervals over questions."
    return "\n".join([*textwrap.wrap(text, WIDTH), *align(rows, {1})])


def _task_rows(task: dict[str, Any], arms: Sequence[Arm], broken: Sequence[Collapse]) -> list[list[str]]:
    results, name = mapping(task.get("results")), label(task.get("name"))
    majority = most_common(task.get("truth"))
    about = [count(task.get("questions")), _percent(task.get("chance")), _percent(majority[1]) if majority else "-"]
    rows = []
    for kind in KINDS:
        entries = [mapping(mapping(results.get(arm.name)).get(kind)) for arm in arms]
        rows.append([f"{name}, {kind}", *(about if kind == KINDS[0] else ["", "", ""]), *map(_accuracy, entries)])
        answers = []
        for arm, entry in zip(arms, entries, strict=True):
            hit = any((c.arm, c.task, c.kind) == (arm.name, str(task.get("name")), kind) for c in broken)
            answers.append(_most(entry) + (" !" if hit else ""))
        rows.append(["  answers most", "", "", label(majority[0], 16) if majority else "", *answers])
    return rows


def _training_rows(run: SelectRun, arms: Sequence[Arm]) -> list[list[str]]:
    """What each arm was trained on, and for how long."""
    trained = [run.trained.get(arm.name, {}) for arm in arms]

    def row(name: str, cells: Sequence[str]) -> list[str]:
        return [name, "", "", "", *cells]

    rows = [
        row(f"training {key.replace('_', ' ')}", [_known(known.get(key), count) for known in trained])
        for key in ("examples", "steps", "tokens", "label_tokens")
    ]
    shares = [domain_share(known) for known in trained]
    rows.append(row("domain's share of these", [_known(share, lambda s: percent(s, 0)) for share in shares]))
    rows.append(row("training FLOPs", [_known(known.get("flops"), lambda f: f"{f:.2e}") for known in trained]))
    rows.append(row("time, all starts", [_known(known.get("seconds"), duration) for known in trained]))
    return rows


def _known(value: Any, words: Any) -> str:
    return str(words(value)) if finite(value) else "-"


def _percent(value: Any) -> str:
    number = finite(value)
    return "-" if number is None else f"{100 * number:.1f}"


def _accuracy(entry: Any) -> str:
    found = mapping(entry)
    if finite(found.get("accuracy")) is None:
        return "-"
    return f"{_percent(found['accuracy'])} [{_percent(found.get('low'))}, {_percent(found.get('high'))}]"


def _most(entry: Any) -> str:
    found = most_common(mapping(entry).get("predicted"))
    return f"{label(found[0], 16)} {percent(found[1], 0)}" if found else "-"


def paired_lines(run: SelectRun) -> str:
    """Every pair of arms on a line of its own, both kinds of likelihood, with a mark where an arm has collapsed; then
    likewise of losses."""
    broken = collapses(run)
    found: dict[tuple[str, str], list[str]] = {}
    for d in accuracy_differences(run):
        hit = dict.fromkeys(run.title(c.arm) for c in collapsed_in(d, broken))
        mark = f" (COLLAPSED: {', '.join(hit)})" if hit else ""
        found.setdefault((d.a, d.b), []).append(f"{d.kind} {bracket(d)}{mark}")
    lines = [f"{run.title(a)} minus {run.title(b)}, paired: {'; '.join(kinds)}" for (a, b), kinds in found.items()]
    losses: dict[tuple[str, str], list[str]] = {}
    for d in loss_differences(run):
        losses.setdefault((d.a, d.b), []).append(f"{WORDS[d.kind]} {bracket(d)}")
    lines += [
        f"{run.title(a)} minus {run.title(b)}, held-out loss, paired: {'; '.join(kinds)}"
        for (a, b), kinds in losses.items()
    ]
    lines += [
        f"{run.title(d.a)} minus {run.title(d.b)}, generated answers, paired: {bracket(d)}"
        for d in generated_differences(run)
    ]
    return "\n".join(lines)


def selection_lines(run: SelectRun) -> str:
    """What was selected from what, every method in a line, the largest families, and the time it took."""
    summary, methods = run.summary, run.methods
    looked = pool_sentence(run)
    of = f" ({looked})" if looked else ""
    lines = [f"Selected {count(summary.get('count'))} of {count(summary.get('pool'))} usable pool examples{of}"]
    if proxy := run.setting("proxy", "path"):
        lines.append(
            f"by {label(proxy)}, in whose tokens lengths are; {label(run.setting('model', 'path'))} is trained"
        )
    useful = finite(summary.get("useful_share_pool")) is not None
    rows = [["method", "N", "median response", "length rank corr.", *(["useful"] if useful else [])]]
    span, share = summary.get("median_span_pool"), summary.get("useful_share_pool")
    rows.append(["whole pool", count(summary.get("pool")), count(span), "", *([percent(share)] if useful else [])])
    for method in methods:
        f = method.found
        row = [label(method.title), count(f.get("count")), count(f.get("median_span"))]
        rows.append(
            [*row, signed(f.get("spearman_span_length")), *([percent(f.get("useful_share"))] if useful else [])]
        )
    lines += align(rows, rules_before={1})
    if left := left_out_line(run):
        lines += textwrap.wrap(left, WIDTH)
    lines += ["", *_family_lines(run)]
    costs = [found for _, found in stage_costs(run)]
    if costs:
        lines.append(f"Finding the selection took {total_time(costs)}, all starts together")
    return "\n".join(lines)


def _family_lines(run: SelectRun) -> list[str]:
    families = family_rows(run)
    shares = family_shares(run, families)
    first = run.first.name if run.first else ""
    order = sorted(range(len(families)), key=lambda i: (-shares[i][1], str(families[i]["name"])))
    rows = [["family", *(label(method.title, 24) for method in run.methods), "share", "share of the pool"]]
    for i in [i for i in order if chosen(families[i], first)][:SHOWN_FAMILIES]:
        picked = [count(chosen(families[i], method.name)) for method in run.methods]
        rows.append([label(families[i]["name"]), *picked, percent(shares[i][1]), percent(shares[i][0])])
    return align(rows, rules_before={1}) if len(rows) > 1 else []
