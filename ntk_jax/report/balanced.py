"""Balanced accuracy on the page and in the terminal, with the accuracy and the best constant answer beside it.

It reads what `evaluation.balanced.add_balanced` puts into results.json, and shows nothing where no task of a run is a
classification.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ntk_jax.report.amounts import NOTHING, count, finite, percent, points
from ntk_jax.report.layout import Cell, Table
from ntk_jax.report.reading import mapping, records
from ntk_jax.report.text import align, label

KINDS = ("normalized", "raw")  # of likelihoods; generated answers are of one kind
GENERATED = "generated"
WHAT = (
    "Balanced accuracy: the mean over the true labels of the share of each that is right. Always giving one answer "
    "gets the share of that label as its accuracy, and 1 / C of C labels as its balanced accuracy."
)

Arms = Sequence[tuple[str, str]]  # (name in results.json, title)


def balanced_table(results: Mapping[str, Any], arms: Arms) -> Table | None:
    """A row a classification and kind of answer: the constant answer, then a column an arm."""
    rows: list[list[object]] = []
    for task, kind, entries in _entries(results):
        constant = mapping(task.get("constant"))
        always = (f"always “{label(constant.get('label', NOTHING))}”", f"accuracy {percent(constant.get('accuracy'))}")
        cells = [_cell(mapping(entries.get(name))) for name, _ in arms]
        first = Cell(label(task.get("name", "task")), _about(task))
        rows.append([first, kind, Cell(percent(constant.get("balanced")), always, class_="number"), *cells])
    if not rows:
        return None
    caption = f"{WHAT} In brackets {percent(results.get('confidence'), 0)} bootstrap intervals"
    return Table(["Task", "Answers", "One answer", *(title for _, title in arms)], rows, caption, text_columns=2)


def balanced_pairs(results: Mapping[str, Any], arms: Arms) -> Table | None:
    """The paired differences on every classification, and of their means over several."""
    titles = dict(arms)
    rows: list[list[object]] = []
    for place, pairs in _pairs(results):
        for pair in pairs:
            a, b = (titles.get(str(pair.get(key)), str(pair.get(key))) for key in ("a", "b"))
            kind = str(pair.get("kind") or GENERATED)
            rows.append([place, kind, f"{a} minus {b}", Cell(_difference(pair), class_="number")])
    if not rows:
        return None
    caption = f"Paired differences of balanced accuracy, points, with {percent(results.get('confidence'), 0)} intervals"
    return Table(["Task", "Answers", "Arms", "Difference"], rows, caption, text_columns=3)


def balanced_lines(results: Mapping[str, Any], arms: Arms) -> list[str]:
    """The table for a terminal; no lines where there is nothing to show."""
    rows = [["task", "always one answer", *(label(title) for _, title in arms)]]
    for task, kind, entries in _entries(results):
        constant = mapping(task.get("constant"))
        share, balanced = percent(constant.get("accuracy")), percent(constant.get("balanced"))
        always = f"{balanced} ({label(constant.get('label', NOTHING), 16)}, accuracy {share})"
        cells = [" ".join((text, *lines)) for text, lines in (_words(mapping(entries.get(name))) for name, _ in arms)]
        rows.append([f"{label(task.get('name', 'task'))}, {kind}", always, *cells])
    return align(rows, rules_before={1}) if len(rows) > 1 else []


def _entries(results: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    """(task, kind of answer, {arm: its accuracy and balanced accuracy}) of every classification."""
    for task in records(results.get("tasks")):
        by_arm = {str(arm): mapping(entry) for arm, entry in mapping(task.get("results")).items()}
        for kind in KINDS if task.get("constant") else ():
            yield task, kind, {arm: mapping(entry.get(kind)) for arm, entry in by_arm.items()}
    for task in records(mapping(results.get("generated")).get("tasks")):
        if task.get("constant"):
            yield task, GENERATED, mapping(task.get("results"))


def _pairs(results: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for part in (results, mapping(results.get(GENERATED))):
        found = [task for task in records(part.get("tasks")) if task.get("paired_balanced")]
        if len(found) > 1:
            yield f"average of {count(len(found))}", records(mapping(part.get("balanced")).get("paired"))
        for task in found:
            yield label(task.get("name", "task")), records(task.get("paired_balanced"))


def _about(task: Mapping[str, Any]) -> tuple[str, ...]:
    lines = [f"{count(task.get('questions'))} questions"]
    if task.get("resampled") == "documents":
        lines.append(f"of {count(task.get('documents'))} documents, which are resampled")
    return tuple(lines)


def _cell(entry: Mapping[str, Any]) -> Cell:
    text, lines = _words(entry)
    return Cell(text, lines, big=True, class_="number")


def _words(entry: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The balanced accuracy; its interval, and the accuracy."""
    found = mapping(entry.get("balanced"))
    value, low, high = (finite(found.get(key)) for key in ("accuracy", "low", "high"))
    if value is None:
        return NOTHING, ()
    spread = () if low is None or high is None else (f"[{percent(low)} to {percent(high)}]",)
    return percent(value), (*spread, f"accuracy {percent(entry.get('accuracy'))}")


def _difference(pair: Mapping[str, Any]) -> str:
    value, low, high = (finite(pair.get(key)) for key in ("difference", "low", "high"))
    if value is None:
        return NOTHING
    return points(value) if low is None or high is None else f"{points(value)} [{points(low)} to {points(high)}]"
