"""Generated answers on the page and in the terminal: how many of each arm's are right, and how far arms differ."""

from __future__ import annotations

from typing import Any

from ntk_jax.pipelines.select.report.findings import (
    Difference,
    against_controls,
    bracket,
    confidence,
    differences,
    size,
)
from ntk_jax.pipelines.select.report.run import SelectRun
from ntk_jax.report.amounts import NOTHING, count, finite, percent
from ntk_jax.report.layout import Cell, Table
from ntk_jax.report.reading import mapping, records
from ntk_jax.report.text import label

KIND = "generated"  # of a difference: there is one
WHAT = (
    "Answers that the models wrote, greedily: the share that is right. Unread: replies in which no answer was found; "
    "cut: those that ended at evaluate.answer_tokens."
)


def generated_rows(run: SelectRun) -> list[list[str]]:
    """A row a task of the terminal's table: name, questions, left out, and a cell an arm."""
    rows = []
    for task in records(run.generated.get("tasks")):
        results = mapping(task.get("results"))
        about = [label(task.get("name", "task")), count(task.get("questions")), count(task.get("dropped"))]
        rows.append([*about, *(" ".join(_words(mapping(results.get(arm.name)))) for arm in run.evaluated)])
    return rows


def generated_table(run: SelectRun) -> Table | None:
    """The table of the page."""
    rows: list[list[object]] = []
    for task in records(run.generated.get("tasks")):
        results = mapping(task.get("results"))
        out = finite(task.get("dropped")) or 0.0
        notes = [f"{count(task.get('questions'))} questions", *([f"{count(out)} left out"] if out else [])]
        cells = []
        for arm in run.evaluated:
            text, *lines = _words(mapping(results.get(arm.name)))
            cells.append(Cell(text, tuple(lines), big=True, class_="number"))
        rows.append([Cell(label(task.get("name", "task")), tuple(notes), scope="row"), *cells])
    if not rows:
        return None
    caption = f"{WHAT} With {percent(run.results.get('confidence'), 0)} bootstrap intervals."
    return Table(["Task", *(arm.title for arm in run.evaluated)], rows, caption, text_columns=1)


def generated_differences(run: SelectRun) -> list[Difference]:
    """The differences of the arms' average accuracies."""
    pairs = [{**pair, "kind": KIND} for pair in records(run.generated.get("paired"))]
    return differences(run, pairs, (KIND,), "points")


def generated_pairs(run: SelectRun) -> Table | None:
    """Every paired difference."""
    found = generated_differences(run)
    if not found:
        return None
    rows: list[list[object]] = [[f"{run.title(d.a)} minus {run.title(d.b)}", bracket(d)] for d in found]
    caption = f"Paired differences of the average accuracy of generated answers, with {confidence(run)} intervals"
    return Table(["Arms", "Difference"], rows, caption)


def generated_verdict(run: SelectRun) -> list[str]:
    """One sentence for every control that the leading arm is compared with."""
    lines = []
    for by_kind in against_controls(run, generated_differences(run)):
        d = by_kind[KIND]
        a, b = run.title(d.a), run.title(d.b)
        if d.sign:
            way = "more" if d.sign > 0 else "fewer"
            lines.append(f"“{a}” writes {way} right answers than “{b}” by {size(d)}.")
        else:
            lines.append(f"Cannot tell the generated answers of “{a}” from those of “{b}”: {bracket(d)}.")
    return lines


def _words(entry: dict[str, Any]) -> list[str]:
    """The accuracy, its interval, and what became of replies that gave no answer."""
    value, low, high = (finite(entry.get(key)) for key in ("accuracy", "low", "high"))
    if value is None:
        return [NOTHING]
    spread = [] if low is None or high is None else [f"[{percent(low)} to {percent(high)}]"]
    unread, cut = (finite(entry.get(key)) or 0.0 for key in ("unread", "cut"))
    more = [f"{count(number)} {word}" for number, word in ((unread, "unread"), (cut, "cut")) if number]
    return [percent(value), *spread, *more]
