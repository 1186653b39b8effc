"""What an evaluation found of its arms, on the page: accuracy, loss and generated answers, and the differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ntk_jax.pipelines.common.shots import shot_lines
from ntk_jax.report.amounts import count, finite, general, nats, percent, points
from ntk_jax.report.balanced import balanced_pairs, balanced_table
from ntk_jax.report.layout import Cell, Table
from ntk_jax.report.reading import mapping, records
from ntk_jax.report.shown import Shown


def titles_of(found: Mapping[str, Any]) -> dict[str, str]:
    """{arm: its name for people} of all arms of results.json."""
    return {str(arm.get("name")): str(arm.get("title") or arm.get("name")) for arm in records(found.get("arms"))}


def evaluated(found: Mapping[str, Any], titles: Mapping[str, str] | None = None, *, average: bool = True) -> Shown:
    """Accuracy, loss and generated answers of every arm, averaged over the tasks and for each. titles: {arm: its name
    for people} of the arms that are shown, None for all. average: False where the tasks have no average of meaning, and
    arms are compared on each."""
    titles = titles_of(found) if titles is None else titles
    tables = []
    if accuracy := _by_task(found, average):
        tables.append(_scores(accuracy, titles, "accuracy", ("normalized", "raw"), "Accuracy by likelihood"))
    if loss := _by_task(mapping(found.get("loss")), average):
        tables.append(
            _scores(loss, titles, "loss", ("by_example", "by_token"), "Held-out loss, nats a token: lower is better")
        )
    if answers := records(mapping(found.get("generated")).get("tasks")):
        tables.append(_answers(answers, titles))
    if balanced := balanced_table(found, list(titles.items())):
        tables.append(balanced)
    missing = () if tables else ("Neither accuracy, loss nor generated answers were recorded.",)
    folds = []
    for task in [None] if average else names_of(found):
        rows = [
            [pair.what, titles[pair.a], titles[pair.b], pair.text, pair.says]
            for pair in evaluated_pairs(found, task=task)
            if pair.a in titles and pair.b in titles
        ]
        over = "averaged over the tasks" if task is None else f"of {task}"
        caption = f"First arm minus the second, on the same questions, {over}"
        pairs = Table(["Measure", "Arm", "Against", "Difference", "Found"], rows, caption, text_columns=3)
        where = "" if task is None else f", {task}"
        folds += [(f"Differences between arms, question by question{where}", pairs)] if rows else []
    if differences := balanced_pairs(found, list(titles.items())):
        folds.append(("Differences of balanced accuracy between arms", differences))
    return Shown(missing=missing, leads=shot_lines(found), tables=tables, folds=folds)


def names_of(found: Mapping[str, Any]) -> list[str]:
    """The tasks of an evaluation, by whatever measure."""
    parts = (found, mapping(found.get("loss")), mapping(found.get("generated")))
    return list(dict.fromkeys(str(task.get("name")) for part in parts for task in records(part.get("tasks"))))


def _by_task(part: Mapping[str, Any], average: bool) -> dict[str, dict[str, Any]]:
    """{task: its results by arm}, their average first."""
    found = {"average": mapping(part.get("average"))} if average and part.get("average") else {}
    return found | {str(task.get("name")): mapping(task.get("results")) for task in records(part.get("tasks"))}


@dataclass(frozen=True)
class EvaluatedPair:
    """A paired difference, of arm a minus arm b, with its interval. higher: whether more is better."""

    what: str
    a: str
    b: str
    value: float
    low: float
    high: float
    higher: bool

    @property
    def text(self) -> str:
        """With unit and interval."""
        write, unit = (points, "points") if self.higher else (nats, "nats a token")
        return f"{write(self.value)} {unit}, {write(self.low)} to {write(self.high)}"

    @property
    def says(self) -> str:
        """Whether a is better, worse, or nobody can tell."""
        low, high = (-self.high, -self.low) if self.higher else (self.low, self.high)
        return says({"low": low, "high": high})

    @property
    def turned(self) -> EvaluatedPair:
        """The same of b minus a."""
        return EvaluatedPair(self.what, self.b, self.a, -self.value, -self.high, -self.low, self.higher)


def evaluated_pairs(
    found: Mapping[str, Any], leading: str | None = None, task: str | None = None
) -> list[EvaluatedPair]:
    """Those of accuracy by normalized likelihood, of loss by example and of generated answers; those of the leading arm
    alone, where one is given, turned so that it is a. task: those on one task, None: of the averages over the tasks."""
    parts = (
        ("accuracy by likelihood", found, "normalized", True),
        ("held-out loss", mapping(found.get("loss")), "by_example", False),
        ("generated answers", mapping(found.get("generated")), None, True),
    )
    pairs = []
    for what, part, kind, higher in parts:
        if task is not None:
            part = next((one for one in records(part.get("tasks")) if one.get("name") == task), {})
        for pair in records(part.get("paired")):
            one = pair_of(what, pair, higher) if pair.get("kind") == kind else None
            if one is not None and leading in (None, one.a, one.b):
                pairs.append(one.turned if leading is not None and one.b == leading else one)
    return pairs


def pair_of(what: str, pair: dict[str, Any], higher: bool) -> EvaluatedPair | None:
    """A difference as results.json has it; None where it is not whole."""
    value, low, high = (finite(pair.get(key)) for key in ("difference", "low", "high"))
    if value is None or low is None or high is None:
        return None
    return EvaluatedPair(what, str(pair.get("a")), str(pair.get("b")), value, low, high, higher)


def says(pair: dict[str, Any]) -> str:
    """better, worse or cannot tell: the first arm of a difference of losses, against the second."""
    low, high = finite(pair.get("low")), finite(pair.get("high"))
    if low is None or high is None or low <= 0 <= high:
        return "cannot tell"
    return "better" if high < 0 else "worse"


def _answers(tasks: list[dict[str, Any]], titles: Mapping[str, str]) -> Table:
    """A generated answer is right or wrong, of one kind; how many gave none stands beside."""
    rows = []
    for task in tasks:
        results = {arm: mapping(mapping(task.get("results")).get(arm)) for arm in titles}
        unread = [f"{titles[arm]} {count(n)}" for arm, entry in results.items() if (n := finite(entry.get("unread")))]
        first = Cell(str(task.get("name")), f"{count(task.get('questions'))} questions")
        rows.append([first, ", ".join(unread) or "none", *(_score(entry, "accuracy") for entry in results.values())])
    return Table(["Task", "No answer", *titles.values()], rows, "Accuracy of generated answers", text_columns=2)


def _scores(
    tasks: dict[str, dict[str, Any]], titles: Mapping[str, str], key: str, kinds: tuple[str, ...], caption: str
) -> Table:
    rows = []
    for task, results in tasks.items():
        for kind in kinds:
            cells = [_score(mapping(mapping(results.get(arm)).get(kind)), key) for arm in titles]
            rows.append([task, kind.replace("_", " "), *cells])
    return Table(["Task", "Kind", *titles.values()], rows, caption, text_columns=2)


def _score(entry: dict[str, Any], key: str) -> Cell:
    write = percent if key == "accuracy" else general
    low, high = finite(entry.get("low")), finite(entry.get("high"))
    lines = () if low is None or high is None else (f"{write(low)} to {write(high)}",)
    return Cell(write(entry.get(key)), lines, big=True, class_="number")
