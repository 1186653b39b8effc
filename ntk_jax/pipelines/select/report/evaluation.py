"""The evaluation: paired differences, accuracies with intervals, and which labels were answered."""

from __future__ import annotations

from typing import Any

from ntk_jax.pipelines.common.shots import shot_lines
from ntk_jax.pipelines.select.report.findings import (
    Collapse,
    accuracy_differences,
    bracket,
    collapsed_in,
    collapses,
    confidence,
    counts,
    most_common,
)
from ntk_jax.pipelines.select.report.generated import generated_pairs, generated_table
from ntk_jax.pipelines.select.report.layout import section
from ntk_jax.pipelines.select.report.losses import loss_figure, loss_pairs, loss_table
from ntk_jax.pipelines.select.report.run import KINDS, Arm, SelectRun
from ntk_jax.report.amounts import NOTHING, count, finite, general, percent, points
from ntk_jax.report.balanced import balanced_pairs, balanced_table
from ntk_jax.report.figures import Mark, WhiskerRow, whiskers
from ntk_jax.report.layout import Cell, Figure, Section, Table
from ntk_jax.report.reading import mapping
from ntk_jax.report.text import label


def evaluation(run: SelectRun) -> Section:
    """The section with the figures and tables of accuracy, and of held-out loss."""
    missing, broken = None, collapses(run)
    if not run.results or not run.evaluated:
        missing = run.directory.missing("evaluate", "evaluation")
    overview = [_paired_figure(run, broken), _average_figure(run)] if not missing and run.tasks else []
    loss_drawn = loss_figure(run)
    arms = [(arm.name, arm.title) for arm in run.evaluated]
    panels = [_task_figure(run, task) for task in run.tasks] if len(run.tasks) > 1 else []
    return section(
        "evaluation",
        "Evaluation",
        missing=missing,
        shots=shot_lines(run.results),
        overview=[figure for figure in overview if figure is not None],
        accuracies=_accuracy_table(run, broken) if not missing and run.tasks else None,
        paired=_paired_table(run, broken),
        balanced=balanced_table(run.results, arms),
        balanced_pairs=balanced_pairs(run.results, arms),
        losses=loss_table(run),
        generated=generated_table(run),
        generated_pairs=generated_pairs(run),
        loss_pairs=loss_pairs(run),
        loss_figures=[loss_drawn] if loss_drawn else [],
        panels=[panel for panel in panels if panel is not None],
        predicted=[found for task in run.tasks if (found := _predicted(run, task, broken)) is not None],
    )


def _marks(kinds: Any) -> tuple[Mark, ...]:
    marks = []
    for kind in KINDS:
        entry = mapping(mapping(kinds).get(kind))
        value = finite(entry.get("accuracy"))
        if value is not None:
            marks.append(Mark(kind, value, finite(entry.get("low")), finite(entry.get("high")), percent(value)))
    return tuple(marks)


def _rows(run: SelectRun, results: Any, short: bool = False) -> list[WhiskerRow]:
    rows = [
        WhiskerRow(_short(arm) if short else arm.title, arm.color, _marks(mapping(results).get(arm.name)))
        for arm in run.evaluated
    ]
    return [row for row in rows if row.marks]


def _short(arm: Arm) -> str:
    """A short arm name for narrow figures: the title would be cut."""
    return arm.folder


def _average_figure(run: SelectRun) -> Figure | None:
    rows, tasks = _rows(run, run.results.get("average")), run.tasks
    if not rows:
        return None
    chances = [c for c in (finite(t.get("chance")) for t in tasks) if c is not None]
    chance = (sum(chances) / len(chances), "chance") if chances and len(chances) == len(tasks) else None
    drawing = whiskers(
        rows,
        title="accuracy, %" if len(tasks) == 1 else "average accuracy, %",
        reference=chance,
        scale_by=100,
        description="Average accuracy of each arm with intervals; the table below holds the numbers.",
    )
    mean = f", the mean over {count(len(tasks))} tasks" if len(tasks) != 1 else ""
    text = (
        f"A dot is the accuracy{mean}, its whisker the {confidence(run)} bootstrap interval, the dashed line guessing; "
        "overlapping whiskers do not settle a comparison, the paired differences do."
    )
    return Figure("Average accuracy" if len(tasks) != 1 else f"Accuracy on {tasks[0].get('name')}", drawing, text)


def _task_figure(run: SelectRun, task: dict[str, Any]) -> tuple[str, str, Any] | None:
    """(name, note, drawing)."""
    rows = _rows(run, task.get("results"), short=True)
    if not rows:
        return None
    chance, name = finite(task.get("chance")), str(task.get("name", "task"))
    drawing = whiskers(
        rows,
        title="accuracy, %",
        reference=None if chance is None else (chance, "chance"),
        scale_by=100,
        width=380,
        description=f"Accuracy of each arm on {name}; the table above holds the numbers.",
    )
    return name, f"{count(task.get('questions'))} questions, {_choices(task)}", drawing


def _choices(task: dict[str, Any]) -> str:
    """The number of choices, or whatever says that it varies."""
    number = finite(task.get("choices"))
    if number is None:
        return f"{task.get('choices') or NOTHING} choices"
    return f"{count(number)} choices" if number == round(number) else f"{general(number)} choices on average"


def _paired_figure(run: SelectRun, broken: list[Collapse]) -> Figure | None:
    found, arms = accuracy_differences(run), {arm.name: arm for arm in run.arms}
    rows = []
    for a, b in dict.fromkeys((d.a, d.b) for d in found if d.a in arms and d.b in arms):
        marks = tuple(
            Mark(kind, d.value, d.low, d.high, points(d.value))
            for kind in KINDS
            for d in found
            if (d.a, d.b, d.kind) == (a, b, kind)
        )
        if marks:
            hit = any(collapsed_in(d, broken) for d in found if (d.a, d.b) == (a, b))
            name = f"{_short(arms[a])} − {_short(arms[b])}"
            rows.append(WhiskerRow(f"⚠ {name}" if hit else name, arms[a].color, marks))
    if not rows:
        return None
    drawing = whiskers(
        rows,
        title="difference of average accuracy, points",
        reference=(0.0, "no difference"),
        scale_by=100,
        description="Paired differences between arms with intervals; the table below holds the numbers.",
    )
    text = (
        f"Both arms answered the same questions; where the {confidence(run)} interval reaches the dashed line, "
        "this run does not show a difference. ⚠: an arm has collapsed, see the table below."
    )
    return Figure("Paired differences", drawing, text)


def _paired_table(run: SelectRun, broken: list[Collapse]) -> Table | None:
    """Every difference, with a mark where one of its arms has collapsed."""
    found = accuracy_differences(run)
    rows: list[list[object]] = []
    for a, b in dict.fromkeys((d.a, d.b) for d in found):
        cells = []
        for kind in KINDS:
            d = next((d for d in found if (d.a, d.b, d.kind) == (a, b, kind)), None)
            hit = dict.fromkeys(run.title(c.arm) for c in collapsed_in(d, broken)) if d else {}
            flag = f"⚠ collapsed: {', '.join(hit)}" if hit else None
            cells.append(Cell(bracket(d) if d else NOTHING, flag=flag))
        rows.append([f"{run.title(a)} minus {run.title(b)}", *cells])
    if not rows:
        return None
    caption = f"Paired differences of the average accuracy, with {confidence(run)} intervals"
    return Table(["Arms", "Normalized", "Raw"], rows, caption)


def _cell(entry: Any, broken: Collapse | None, joined: bool) -> Cell:
    values = mapping(entry)
    accuracy, low, high = (finite(values.get(k)) for k in ("accuracy", "low", "high"))
    lines = []
    if low is not None and high is not None:
        lines.append(f"{percent(low).rstrip('%')} to {percent(high).rstrip('%')}")
    most = most_common(values.get("predicted"))
    if most is not None:
        lines.append(f"most: “{label(most[0])}” {percent(most[1], 0)}")
    flag = "⚠ collapsed" if broken else None
    # No rule between the two rows of a task.
    return Cell(percent(accuracy), tuple(lines), flag, big=True, class_="number joined" if joined else "number")


def _accuracy_table(run: SelectRun, broken: list[Collapse]) -> Table:
    by_place = {(c.task, c.arm, c.kind): c for c in broken}
    rows: list[list[object]] = []
    average = mapping(run.results.get("average"))
    named: list[tuple[str, tuple[str, ...], dict[str, Any], str]] = []
    if average and len(run.tasks) != 1:
        named.append(("Average", (f"of {count(len(run.tasks))} tasks", *_mean_majority(run)), average, ""))
    named += [
        (str(t.get("name")), _about(t), mapping(t.get("results")), str(t.get("name"))) for t in run.tasks
    ]  # fmt: skip
    for title, notes, results, key in named:
        kinds = [kind for kind in KINDS if any(mapping(mapping(results.get(a.name)).get(kind)) for a in run.evaluated)]
        for kind in kinds:
            joined = kind != kinds[-1]
            cells = [
                _cell(mapping(results.get(a.name)).get(kind), by_place.get((key, a.name, kind)), joined)
                for a in run.evaluated
            ]
            heading = Cell(kind, scope="row", class_="kind joined" if joined else "kind")
            first = [Cell(title, notes, scope="rowgroup", rowspan=len(kinds))] if kind == kinds[0] else []
            rows.append([*first, heading, *cells])
    header = ["Task", "Likelihood", *(arm.title for arm in run.evaluated)]
    resamples = count(run.results.get("bootstrap"))
    drawn = "documents" if any(task.get("resampled") == "documents" for task in run.tasks) else "questions"
    caption = (
        f"Accuracy in % with {confidence(run)} bootstrap intervals ({resamples} resamples of the {drawn}), and the "
        "label that each arm answered most. Normalized: choices by likelihood per token; raw: by whole likelihood"
    )
    return Table(header, rows, caption, text_columns=2)


def _about(task: dict[str, Any]) -> tuple[str, ...]:
    lines = [f"{count(task.get('questions'))} questions, chance {percent(task.get('chance'))}"]
    most = most_common(task.get("truth"))
    if most is not None:
        lines.append(f"always “{label(most[0])}”: {percent(most[1])}")
    lines += [f"{count(n)} left out ({reason})" for reason, n in mapping(task.get("dropped")).items()]
    truncated = finite(task.get("truncated"))
    lines += [f"{count(truncated)} with the start of the prompt cut"] if truncated else []
    return (*lines, *(f"{count(n)} with {note}" for note, n in mapping(task.get("notes")).items()))


def _mean_majority(run: SelectRun) -> tuple[str, ...]:
    found = [most_common(task.get("truth")) for task in run.tasks]
    known = [most[1] for most in found if most is not None]
    return (f"always the majority label: {percent(sum(known) / len(known))}",) if len(known) == len(found) > 0 else ()


def _predicted(run: SelectRun, task: dict[str, Any], broken: list[Collapse]) -> dict[str, Any] | None:
    """Which labels each arm predicted, against the true ones: what makes a collapse visible."""
    name, truth, results = str(task.get("name")), counts(task.get("truth")), mapping(task.get("results"))
    columns = [
        (arm, kind, counts(mapping(mapping(results.get(arm.name)).get(kind)).get("predicted")))
        for arm in run.evaluated
        for kind in KINDS
    ]
    columns = [column for column in columns if column[2]]
    labels = list(dict.fromkeys([*truth, *(key for *_, predicted in columns for key in predicted)]))
    if not labels:
        return None
    marked = {(c.arm, c.kind) for c in broken if c.task == name}

    def share(found: dict[str, float], key: str, flagged: bool = False) -> Cell:
        total, n = sum(found.values()), found.get(key, 0.0)
        part = n / total if total else 0.0
        tint = "number heat hot" if flagged and part > 0.5 else "number heat"
        return Cell(count(n), percent(part, 0), class_=tint, style=f"--share:{part * 50:.0f}%")

    rows = [
        [
            key,
            share(truth, key),
            *(share(predicted, key, (arm.name, kind) in marked) for arm, kind, predicted in columns),
        ]
        for key in labels
    ]
    groups = [("", 2)]
    for arm in dict.fromkeys(a for a, *_ in columns):
        groups.append((arm.title, sum(1 for a, *_ in columns if a == arm)))
    table = Table(
        ["Label", "True", *(kind for _, kind, _ in columns)],
        rows,
        f"How often each label of {name} was true and was chosen",
        groups=groups,
    )
    collapsed = [arm.title for arm in run.evaluated if any(a == arm.name for a, _ in marked)]
    return {
        "title": f"Predicted labels on {name}",
        "flag": f"⚠ collapsed: {', '.join(collapsed)}" if collapsed else "",
        "table": table,
    }
