"""The evaluation: paired differences, accuracies with intervals, what was predicted, and what each arm cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ntk_jax.report.amounts import NOTHING, count, duration, finite, general, metric, percent, points
from ntk_jax.report.blocks import color, figure, grid, missing, section
from ntk_jax.report.figures import KIND_NAMES, Mark, WhiskerRow, whiskers
from ntk_jax.report.findings import Collapse, collapses, confidence, pairs
from ntk_jax.report.markup import Html, fold, join, table, tag
from ntk_jax.report.reading import ARM_TITLES, STAGES, Run, mapping, records

TITLE = "Did it help?"


def evaluation(run: Run) -> Html:
    """The section with the accuracy figures and tables."""
    arms, tasks = arm_names(run), records(run.results.get("tasks"))
    if not run.results or not arms:
        return section("evaluation", TITLE, missing(run, "evaluate", "evaluation"))
    parts: list[Html] = []
    overview = [_paired_figure(run), _average_figure(run, arms, tasks)]
    parts += [grid(*(f for f in overview if f is not None))]
    broken = collapses(run)
    parts += [_accuracy_table(run, arms, tasks, broken)]
    panels = [_task_figure(run, arms, task) for task in tasks] if len(tasks) > 1 else []
    if any(panels):
        parts += [tag("h3", "Each task"), grid(*(p for p in panels if p is not None), columns="three")]
        text = (
            "Each panel has its own axis. A dot is an arm's accuracy on the task, its whisker the interval, and the "
            "dashed line what guessing gives."
        )
        parts += [tag("p", tag("b", "How to read: "), text, class_="caption")]
    parts += [_predicted(run, arms, task, broken) for task in tasks]
    return section("evaluation", TITLE, *parts)


def arm_names(run: Run) -> list[str]:
    """The arms with results, in the order they were evaluated."""
    named = [str(a["name"]) for a in records(run.results.get("arms")) if a.get("name")]
    seen = list(mapping(run.results.get("average")))
    seen += [arm for task in records(run.results.get("tasks")) for arm in mapping(task.get("results"))]
    return list(dict.fromkeys([*named, *seen]))


def _marks(kinds: Any) -> tuple[Mark, ...]:
    marks = []
    for kind in KIND_NAMES:
        entry = mapping(mapping(kinds).get(kind))
        value = finite(entry.get("accuracy"))
        if value is not None:
            marks.append(Mark(kind, value, finite(entry.get("low")), finite(entry.get("high")), percent(value)))
    return tuple(marks)


def _rows(run: Run, arms: Sequence[str], results: Any, short: bool = False) -> list[WhiskerRow]:
    name = _short if short else Run.arm_title
    rows = [WhiskerRow(name(run, arm), color(arm), _marks(mapping(results).get(arm))) for arm in arms]
    return [row for row in rows if row.marks]


def _average_figure(run: Run, arms: Sequence[str], tasks: list[dict[str, Any]]) -> Html | None:
    rows = _rows(run, arms, run.results.get("average"))
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
    return figure(drawing, "Average accuracy" if len(tasks) != 1 else f"Accuracy on {tasks[0].get('name')}", text)


def _task_figure(run: Run, arms: Sequence[str], task: dict[str, Any]) -> Html | None:
    rows = _rows(run, arms, task.get("results"), short=True)
    if not rows:
        return None
    chance = finite(task.get("chance"))
    name = str(task.get("name", "task"))
    drawing = whiskers(
        rows,
        title="accuracy, %",
        reference=None if chance is None else (chance, "chance"),
        scale_by=100,
        width=380,
        description=f"Accuracy of each arm on {name}; the table above holds the numbers.",
    )
    note = f"{count(task.get('questions'))} questions, {_choices(task)}"
    return tag("figure", tag("h4", name, " ", tag("small", note)), drawing)


def _choices(task: dict[str, Any]) -> str:
    """The number of choices, or whatever says that it varies."""
    number = finite(task.get("choices"))
    if number is None:
        return f"{task.get('choices') or NOTHING} choices"
    return f"{count(number)} choices" if number == round(number) else f"{general(number)} choices on average"


def _paired_figure(run: Run) -> Html | None:
    found = pairs(run)
    names = list(dict.fromkeys((str(p.get("a")), str(p.get("b"))) for p in found))
    rows = []
    for a, b in names:
        marks = tuple(
            Mark(kind, p["difference"], p["low"], p["high"], points(p["difference"]))
            for kind in KIND_NAMES
            for p in found
            if (str(p.get("a")), str(p.get("b")), p.get("kind")) == (a, b, kind)
        )
        if marks:
            rows.append(WhiskerRow(f"{_short(run, a)} − {_short(run, b)}", color(a), marks))
    if not rows:
        return None
    drawing = whiskers(
        rows,
        title="difference of average accuracy, points",
        reference=(0.0, "no difference"),
        scale_by=100,
        description="Paired differences between arms with intervals.",
    )
    text = (
        f"Both arms answered the same questions; where the {confidence(run)} interval reaches the dashed line, "
        "this run does not show a difference."
    )
    return figure(drawing, "Paired differences", text)


def _short(run: Run, arm: str) -> str:
    """A short arm name for figure rows: the title would be cut."""
    return arm if arm in ARM_TITLES else run.arm_title(arm)


def _cell(entry: Any, broken: Collapse | None, last: bool) -> Html:
    values = mapping(entry)
    accuracy, low, high = (finite(values.get(k)) for k in ("accuracy", "low", "high"))
    interval = None
    if low is not None and high is not None:
        interval = tag("small", f"{percent(low).rstrip('%')} to {percent(high).rstrip('%')}")
    end = "" if last else " joined"  # no rule between the two rows of a task
    flag = None
    if broken:
        flag = tag("span", f"⚠ {percent(broken.predicted, 0)} “{broken.label}”", class_="flag")
    return tag("td", tag("span", percent(accuracy), class_="big"), interval, flag, class_="number" + end)


def _accuracy_table(run: Run, arms: Sequence[str], tasks: list[dict[str, Any]], broken: list[Collapse]) -> Html:
    by_place = {(c.task, c.arm, c.kind): c for c in broken}
    rows: list[list[object]] = []
    average = mapping(run.results.get("average"))
    several = average and len(tasks) != 1
    named = [("Average", f"of {count(len(tasks))} tasks", average, "")] if several else []
    for task in tasks:
        name = str(task.get("name"))
        about = f"{count(task.get('questions'))} questions, chance {percent(task.get('chance'))}"
        about += "".join(f", {count(n)} left out ({reason})" for reason, n in mapping(task.get("dropped")).items())
        about += f", {count(task['truncated'])} with the start of the prompt cut" if task.get("truncated") else ""
        named.append((name, about, mapping(task.get("results")), name))
    for title, note, results, key in named:
        kinds = [kind for kind in KIND_NAMES if any(mapping(mapping(results.get(a)).get(kind)) for a in arms)]
        for kind in kinds:
            last = kind == kinds[-1]
            cells = [_cell(mapping(results.get(a)).get(kind), by_place.get((key, a, kind)), last) for a in arms]
            name = tag("th", KIND_NAMES[kind], scope="row", class_="kind" if last else "kind joined")
            if kind == kinds[0]:  # the task's own cells span its kinds
                n = len(kinds)
                rows.append([tag("th", title, tag("small", note), scope="rowgroup", rowspan=n), name, *cells])
            else:
                rows.append([name, *cells])
    header = ["Task", "Likelihood", *(run.arm_title(arm) for arm in arms)]
    resamples = count(run.results.get("bootstrap"))
    caption = f"Accuracy in % with {confidence(run)} bootstrap intervals ({resamples} resamples of the questions)"
    return table(header, rows, caption=caption, text_columns=2)


def _predicted(run: Run, arms: Sequence[str], task: dict[str, Any], broken: list[Collapse]) -> Html:
    """Which labels each arm predicted, against the true ones: what makes a collapse visible."""
    name, truth, results = str(task.get("name")), mapping(task.get("truth")), mapping(task.get("results"))
    columns = [
        (arm, kind, mapping(mapping(mapping(results.get(arm)).get(kind)).get("predicted")))
        for arm in arms
        for kind in KIND_NAMES
    ]
    columns = [c for c in columns if c[2]]
    labels = list(dict.fromkeys([*truth, *(k for *_, predicted in columns for k in predicted)]))
    if not labels:
        return Html("")
    marked = {(c.arm, c.kind) for c in broken if c.task == name}

    def shares(counts: dict[str, Any], key: str, flagged: bool = False) -> Html:
        total = sum(finite(v) or 0.0 for v in counts.values())
        n = finite(counts.get(key)) or 0.0
        share = n / total if total else 0.0
        tint = "number heat hot" if flagged and share > 0.5 else "number heat"
        cell = join([count(n), tag("small", percent(share, 0))], " ")
        return tag("td", cell, class_=tint, style=f"--share:{share * 50:.0f}%")

    rows = [
        [key, shares(truth, key), *(shares(predicted, key, (arm, kind) in marked) for arm, kind, predicted in columns)]
        for key in labels
    ]
    header = ["Label", "True", *(KIND_NAMES[kind] for _, kind, _ in columns)]
    groups: list[tuple[object, int]] = [(None, 2)]
    for arm in dict.fromkeys(a for a, *_ in columns):
        groups.append((run.arm_title(arm), sum(1 for a, *_ in columns if a == arm)))
    title = f"Predicted labels on {name}"
    flag = (
        tag(
            "span",
            " ⚠ collapsed: " + ", ".join(run.arm_title(a) for a in arms if any(a == arm for arm, _ in marked)),
            class_="flag",
        )
        if marked
        else None
    )
    return fold(
        join([title, flag]),
        table(header, rows, caption="How often each label was true and was chosen", groups=groups),
        open_=bool(marked),
    )


def cost(run: Run) -> Html:
    """The section with what every arm, and the selection itself, consumed."""
    facts = {str(a.get("name")): a for a in records(run.results.get("arms"))}
    names = list(dict.fromkeys([*facts, *run.arms]))
    rows: list[list[object]] = []
    for name in names:
        known = {**mapping(run.arms.get(name)), **{k: v for k, v in mapping(facts.get(name)).items() if v is not None}}
        rows.append(
            [
                run.arm_title(name) + ("" if known else ", unfinished"),
                *(count(known.get(key)) for key in ("examples", "steps", "tokens", "label_tokens")),
                metric(known.get("flops"), "FLOP"),
                duration(known.get("seconds")),
                general(known.get("final_loss")),
            ]
        )
    header = ["Arm", "Examples", "Steps", "Tokens", "Label tokens", "Compute", "Time", "Final loss"]
    arms = table(header, rows, caption="Training of each arm") if rows else missing(run, "finetune", "training cost")
    score, votes = run.score, run.preselect
    stages = [
        ("Warm-up on the domain", run.warmup),
        ("Domain gradient", run.gradient if finite(run.gradient.get("flops")) else {}),
        ("Pre-selection", votes if votes.get("method") != "none" else {}),
        (f"{STAGES[run.scoring]} {count(score.get('scored'))} examples", score),
    ]
    before = [
        [
            name,
            count(s.get("steps")),
            count(s.get("tokens")),
            metric(s.get("flops"), "FLOP"),
            duration(s.get("seconds")),
        ]
        for name, s in stages
        if s
    ]
    selection = (
        table(["Stage", "Steps", "Tokens", "Compute", "Time"], before, caption="Finding the selection")
        if before
        else missing(run, run.scoring, "selection cost")
    )
    return section("cost", "What it cost", arms, selection)
