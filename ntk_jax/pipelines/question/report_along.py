"""Curves on the page: what the arms could do along their training, and what training on the questions of each round
brought."""

from __future__ import annotations

from typing import Any

from ntk_jax.pipelines.question.report_arms import (
    BASE,
    GENERAL,
    OTHER,
    OWN,
    ROUND,
    TRAINED,
    UNSEEN,
    measures,
    place_of,
    results,
    tasks_at,
    titles,
    value_text,
)
from ntk_jax.report.amounts import finite
from ntk_jax.report.figures import Curve, curves
from ntk_jax.report.figures_bars import color_of, token_curves
from ntk_jax.report.layout import Cell, Figure, Table
from ntk_jax.report.reading import RunDirectory, mapping, records
from ntk_jax.report.shown import Shown

_WORTH = {
    TRAINED: "what was learned",
    UNSEEN: "what carries over",
    GENERAL: "what is forgotten",
    OTHER: "what it brought",
}


def tokens_along(run: RunDirectory) -> dict[str, list[tuple[float, str]]]:
    """{arm: [(tokens, its name in results.json after so many), ...]} from the base to the end; none where no arm was
    measured on its way."""
    found: dict[str, list[tuple[float, str]]] = {}
    arms = {str(arm.get("name")): arm for arm in records(results(run).get("arms"))}
    for name, arm in arms.items():
        tokens = finite(arm.get("tokens"))
        if arm.get("arm") and tokens is not None:
            found.setdefault(str(arm["arm"]), []).append((tokens, name))
    for name in [name for name in titles(run) if name != BASE] if found else ():
        points = found.setdefault(name, [])
        end = finite(mapping(arms.get(name)).get("tokens"))
        points += [(end, name)] if end is not None else []
        points += [(0.0, BASE)] if BASE in arms else []
        points.sort()
    return found


def along(run: RunDirectory) -> Shown:
    """Accuracy and loss over training tokens, a figure for each task and measure."""
    named, points = titles(run), tokens_along(run)
    figures = []
    for task, measure, by_arm, key, higher in _every(run):
        drawn = {}
        for number, (arm, title) in enumerate(named.items()):
            values = [
                (tokens, 100 * value if higher else value)
                for tokens, name in points.get(arm, ())
                if (value := finite(mapping(by_arm.get(name)).get(key))) is not None
            ]
            if len(values) > 1:
                drawn[title] = (color_of(number - (BASE in named)), values)
        if drawn:
            what = f"{measure}, %" if higher else "loss, nats a token"
            title = f"{measure.capitalize()} of {task}"
            figures.append(
                Figure(
                    title,
                    token_curves(drawn, what=what, description=f"{title} over training tokens"),
                    f"After so many tokens of training, the base at nought: {_WORTH[place_of(run, task)]}. Without "
                    "intervals, which the tables have.",
                )
            )
    return Shown(figures=figures)


def by_round(run: RunDirectory) -> Shown:
    """Accuracy and loss of the arms of each round, the kept questions last."""
    arms = round_arms(run)
    figures, rows = [], []
    for task, measure, by_arm, key, higher in _every(run):
        values = [finite(mapping(by_arm.get(name)).get(key)) for name in arms]
        known = [(number, value) for number, value in enumerate(values) if value is not None]
        if len(known) > 1:
            scale = 100 if higher else 1
            line = Curve(task, color_of(0), [n for n, _ in known], [scale * value for _, value in known])
            title = f"{measure.capitalize()} of {task} by round"
            what = f"{measure}, %" if higher else "loss, nats a token"
            drawing = curves([line], y_title=what, x_title="rounds of rewriting before training", description=title)
            how = "An arm a round: trained on the questions as they stood after it; the last on those that are kept."
            figures.append(Figure(title, drawing, how))
        cells = [_cell(mapping(by_arm.get(name)), key, higher) for name in (BASE, *arms)]
        rows.append([task, measure, *cells])
    header = ["Task", "Measure", "Base", *(_round_title(name) for name in arms)]
    caption = "Trained on the questions as they stood after each round, with the intervals of the evaluation"
    lead = "Whether rewriting pays: the same number of tokens, of questions that went through more rounds."
    return Shown(leads=[lead], figures=figures, tables=[Table(header, rows, caption, text_columns=2)])


def round_arms(run: RunDirectory) -> list[str]:
    """round-0, round-1, ... and the arm of the kept questions; none where no arm is of a round."""
    names = [str(arm.get("name")) for arm in records(results(run).get("arms"))]
    numbers = [name[len(ROUND) :] for name in names if name.startswith(ROUND) and "@" not in name]
    found = [f"{ROUND}{number}" for number in sorted(int(number) for number in numbers if number.isdecimal())]
    return [*found, *([OWN] if OWN in names else [])] if found else []


def _round_title(name: str) -> str:
    return "As kept" if name == OWN else f"After round {name[len(ROUND) :]}"


def _cell(entry: dict[str, Any], key: str, higher: bool) -> Cell:
    low, high = finite(entry.get("low")), finite(entry.get("high"))
    lines = () if low is None or high is None else (f"{value_text(low, higher)} to {value_text(high, higher)}",)
    return Cell(value_text(entry.get(key), higher), lines, big=True, class_="number")


def _every(run: RunDirectory) -> list[tuple[str, str, dict[str, Any], str, bool]]:
    """(task, measure, {arm: entry}, key of the value, whether more is better), unseen documents first."""
    return [
        (task, measure, *about)
        for place in (UNSEEN, TRAINED, OTHER, GENERAL)
        for task in tasks_at(run, place)
        for measure, about in measures(results(run), task).items()
    ]
