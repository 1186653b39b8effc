"""Held-out loss on the page and in the terminal: every arm's, the paired differences, and the verdict by them.

Lower is better everywhere here, so a difference is good news for its first arm where it is negative.
"""

from __future__ import annotations

from typing import Any

from ntk_jax.evaluation.loss import KINDS
from ntk_jax.pipelines.select.report.findings import (
    Difference,
    against_controls,
    bracket,
    differences,
    leading_arm,
    size,
)
from ntk_jax.pipelines.select.report.run import SelectRun
from ntk_jax.report.amounts import NOTHING, count, finite, general, nats, percent
from ntk_jax.report.figures import Mark, WhiskerRow, whiskers
from ntk_jax.report.layout import Cell, Figure, Table
from ntk_jax.report.reading import mapping
from ntk_jax.report.text import label

WORDS = {"by_example": "mean over examples", "by_token": "mean over tokens"}
WHAT = (
    "Held-out loss in nats a token of the response: lower is better. Mean over examples: of each example's own mean; "
    "mean over tokens: all nats divided by all tokens, of which perplexity is the exponential."
)


def loss_differences(run: SelectRun) -> list[Difference]:
    """As `differences`, of losses."""
    return differences(run, run.losses.get("paired"), KINDS, "nats a token")


def loss_verdict(run: SelectRun) -> list[str]:
    """One sentence for all controls, then one for each; nothing where no losses were taken."""
    leading, compared = leading_arm(run), against_controls(run, loss_differences(run))
    if not compared or leading is None:
        return []
    words = {1: "lower than", -1: "higher than", 0: "cannot tell it from"}
    short = [f"{words[d.sign]} that of “{run.title(d.b)}”" for d in (next(iter(by.values())) for by in compared)]
    lines = [_against(run, by_kind) for by_kind in compared]
    if len(lines) > 1:
        lines.insert(0, f"Held-out loss of “{leading.title}” (lower is better): {'; '.join(short)}.")
    return lines


def _against(run: SelectRun, by_kind: dict[str, Difference]) -> str:
    d, *others = by_kind.values()
    a, b = run.title(d.a), run.title(d.b)
    if d.sign:
        text = f"“{a}” has a {_way(d)} held-out loss than “{b}” by {size(d)}, {WORDS.get(d.kind, d.kind)}"
    else:
        text = f"Cannot tell the held-out loss of “{a}” from that of “{b}”: {bracket(d)}, {WORDS.get(d.kind, d.kind)}"
    for other in others:
        agrees = "agrees" if other.sign == d.sign else f"disagrees: {_way(other) if other.sign else 'cannot tell'}"
        text += f". The {WORDS.get(other.kind, other.kind)} {agrees} ({bracket(other)})"
    return f"{text}."


def _way(d: Difference) -> str:
    return "lower" if d.sign > 0 else "higher"


def shown_loss(entry: Any) -> str:
    """1.234 [1.200, 1.270], or a dash."""
    found = mapping(entry)
    if finite(found.get("loss")) is None:
        return "-"
    value, low, high = (f"{finite(found.get(key)) or 0.0:.3f}" for key in ("loss", "low", "high"))
    return f"{value} [{low}, {high}]"


def loss_rows(run: SelectRun) -> list[list[str]]:
    """For the terminal: of each task, and their average where there are several, both means of every arm and the
    perplexity; four columns before the arms' (task, examples, tokens, left out)."""
    arms, rows = run.evaluated, []
    for name, about, results in _named(run):
        entries = [mapping(results.get(arm.name)) for arm in arms]
        for kind in KINDS:
            first = [f"{name}, {WORDS[kind]}", *(about if kind == KINDS[0] else ("", "", ""))]
            rows.append([*first, *(shown_loss(entry.get(kind)) for entry in entries)])
        rows.append(["  perplexity", "", "", "", *(_perplexity(entry, "-") for entry in entries)])
    return rows


def _named(run: SelectRun) -> list[tuple[str, tuple[str, str, str], dict[str, Any]]]:
    """(name, (examples, tokens, left out), {arm: entry}) of each task; the average first, where it says more."""
    found = []
    for task in run.loss_tasks:
        out = sum(finite(n) or 0.0 for n in mapping(task.get("dropped")).values())
        about = (count(task.get("examples")), count(task.get("tokens")), count(out))
        found.append((label(task.get("name", "task")), about, mapping(task.get("results"))))
    average = mapping(run.losses.get("average"))
    return [*([("average", ("", "", ""), average)] if average and len(found) > 1 else []), *found]


def _perplexity(entry: dict[str, Any], nothing: str = NOTHING) -> str:
    value = finite(entry.get("perplexity"))
    return nothing if value is None else general(value)


def loss_table(run: SelectRun) -> Table | None:
    """The table of the page."""
    rows: list[list[object]] = []
    for name, (examples, tokens, out), results in _named(run):
        notes = [f"{examples} examples, {tokens} response tokens"] if examples else []
        notes += [f"{out} left out"] if out not in ("", "0") else []
        for kind in KINDS:
            joined = kind != KINDS[-1]
            cells = [_cell(mapping(results.get(arm.name)), kind, joined) for arm in run.evaluated]
            heading = Cell(WORDS[kind], scope="row", class_="kind joined" if joined else "kind")
            first = [Cell(name, tuple(notes), scope="rowgroup", rowspan=len(KINDS))] if kind == KINDS[0] else []
            rows.append([*first, heading, *cells])
    if not rows:
        return None
    confidence = percent(run.results.get("confidence"), 0)
    resamples = count(run.results.get("bootstrap"))
    caption = f"{WHAT} With {confidence} bootstrap intervals ({resamples} resamples of the examples)"
    return Table(["Task", "Loss", *(arm.title for arm in run.evaluated)], rows, caption, text_columns=2)


def _cell(entry: dict[str, Any], kind: str, joined: bool) -> Cell:
    found = mapping(entry.get(kind))
    value, low, high = (finite(found.get(key)) for key in ("loss", "low", "high"))
    lines = [] if low is None or high is None else [f"{low:.3f} to {high:.3f}"]
    if kind == "by_token" and finite(entry.get("perplexity")) is not None:
        lines.append(f"perplexity {_perplexity(entry)}")
    text = NOTHING if value is None else f"{value:.3f}"
    return Cell(text, tuple(lines), big=True, class_="number joined" if joined else "number")


def loss_pairs(run: SelectRun) -> Table | None:
    """Every paired difference, both means."""
    found = loss_differences(run)
    rows: list[list[object]] = []
    for a, b in dict.fromkeys((d.a, d.b) for d in found):
        of = {d.kind: bracket(d) for d in found if (d.a, d.b) == (a, b)}
        rows.append([f"{run.title(a)} minus {run.title(b)}", *(of.get(kind, NOTHING) for kind in KINDS)])
    if not rows:
        return None
    caption = (
        "Paired differences of the average held-out loss, with "
        f"{percent(run.results.get('confidence'), 0)} intervals; below zero, the first arm is better"
    )
    return Table(["Arms", *(WORDS[kind][0].upper() + WORDS[kind][1:] for kind in KINDS)], rows, caption)


def loss_figure(run: SelectRun) -> Figure | None:
    """The paired differences of the leading mean, drawn."""
    arms = {arm.name: arm for arm in run.arms}
    rows = [
        WhiskerRow(
            f"{arms[d.a].folder} − {arms[d.b].folder}",
            arms[d.a].color,
            (Mark("normalized", d.value, d.low, d.high, nats(d.value)),),
        )
        for d in loss_differences(run)
        if d.kind == KINDS[0] and d.a in arms and d.b in arms
    ]
    if not rows:
        return None
    drawing = whiskers(
        rows,
        title="difference of held-out loss, nats a token; left of the line is better",
        reference=(0.0, "no difference"),
        description="Paired differences of held-out loss with intervals; the table below holds the numbers.",
    )
    text = (
        "Mean over examples. Both arms read the same examples; where the interval reaches the dashed line, this run "
        "does not show a difference. A lower loss is better, so the first arm is ahead left of the line."
    )
    return Figure("Paired differences of held-out loss", drawing, text)
