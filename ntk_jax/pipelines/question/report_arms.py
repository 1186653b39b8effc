"""What training on the questions brought, on the page: the arms side by side on documents that were asked about, on
unseen ones and on other subjects, where a model forgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ntk_jax.evaluation.tasks import OF_TRAINED, OF_UNSEEN
from ntk_jax.pipelines.common.evaluated import EvaluatedPair, evaluated, evaluated_pairs, names_of, pair_of
from ntk_jax.report.amounts import NOTHING, count, duration, finite, general, metric, percent
from ntk_jax.report.layout import Cell, Table
from ntk_jax.report.reading import RunDirectory, mapping, records
from ntk_jax.report.shown import Shown

TRAIN, RESULTS = "train/summary.json", "evaluate/results.json"
BASE, OWN, ROUND = "base", "adversarial", "round-"
TRAINED, UNSEEN, GENERAL, OTHER = "trained", "unseen", "general", "other"
_ENDS = {OF_TRAINED: TRAINED, OF_UNSEEN: UNSEEN}
BALANCED = "balanced accuracy"
KIND = "normalized"  # of likelihoods, in tables of one number an arm


def results(run: RunDirectory) -> dict[str, Any]:
    """What the evaluation found."""
    found: dict[str, Any] = run.json(RESULTS)
    return found


def titles(run: RunDirectory) -> dict[str, str]:
    """{arm: its name for people} of the arms at their ends, in the order of the page: the base, the questions' own arm,
    then the others."""
    found = {
        str(arm.get("name")): str(arm.get("title") or arm.get("name"))
        for arm in records(results(run).get("arms"))
        if not arm.get("arm") and not str(arm.get("name")).startswith(ROUND)
    }
    first = [name for name in (BASE, OWN) if name in found]
    return {name: found[name] for name in [*first, *(name for name in found if name not in first)]}


def place_of(run: RunDirectory, task: str) -> str:
    """Whether a task is about documents that were asked about, unseen ones, other subjects, or nobody knows."""
    general = results(run).get("general")
    if isinstance(general, list) and task in general:
        return GENERAL
    return next((place for end, place in _ENDS.items() if task.endswith(end)), OTHER)


def tasks_at(run: RunDirectory, place: str) -> list[str]:
    """The tasks there."""
    return [name for name in names_of(results(run)) if place_of(run, name) == place]


def only(found: Mapping[str, Any], tasks: Sequence[str], arms: Mapping[str, str]) -> dict[str, Any]:
    """An evaluation of these tasks and arms alone, without what was averaged over others."""

    def task_of(task: dict[str, Any]) -> dict[str, Any]:
        pairs = {key: records(task.get(key)) for key in ("paired", "paired_balanced")}
        return task | {
            key: [pair for pair in every if pair.get("a") in arms and pair.get("b") in arms]
            for key, every in pairs.items()
        }

    def part(value: Any) -> dict[str, Any]:
        kept = [task_of(task) for task in records(mapping(value).get("tasks")) if task.get("name") in tasks]
        return {**mapping(value), "tasks": kept, "average": {}, "paired": [], "balanced": {}}

    return {**part(found), **{key: part(found[key]) for key in ("loss", "generated") if found.get(key)}}


def measures(found: Mapping[str, Any], task: str) -> dict[str, tuple[dict[str, Any], str, bool]]:
    """{measure: ({arm: its entry}, the entry's key of the value, whether more is better)} of a task: balanced accuracy
    instead of accuracy where it is a classification."""

    def entry(part: Any) -> dict[str, Any]:
        return next((one for one in records(mapping(part).get("tasks")) if one.get("name") == task), {})

    shown: dict[str, tuple[dict[str, Any], str, bool]] = {}
    for part, kind, name in ((entry(found), KIND, ""), (entry(found.get("generated")), None, "of generated answers")):
        by_arm = {str(arm): mapping(one) for arm, one in mapping(part.get("results")).items()}
        by_arm = by_arm if kind is None else {arm: mapping(one.get(kind)) for arm, one in by_arm.items()}
        if by_arm and part.get("constant"):
            balanced = {arm: mapping(one.get("balanced")) for arm, one in by_arm.items()}
            shown[f"{BALANCED} {name}".strip()] = balanced, "accuracy", True
        elif by_arm:
            shown[f"accuracy {name}".strip()] = by_arm, "accuracy", True
    losses = {str(arm): mapping(one) for arm, one in mapping(entry(found.get("loss")).get("results")).items()}
    if losses:
        shown["loss"] = {arm: mapping(one.get("by_example")) for arm, one in losses.items()}, "loss", False
    return shown


def pairs_of(found: Mapping[str, Any], leading: str, task: str) -> dict[str, dict[str, EvaluatedPair]]:
    """{measure: {arm: the leading one minus it}}, by the names of `measures`."""
    named = {"accuracy by likelihood": "accuracy", "held-out loss": "loss"}
    named |= {"generated answers": "accuracy of generated answers"}
    by: dict[str, dict[str, EvaluatedPair]] = {}
    for pair in evaluated_pairs(found, leading, task):
        by.setdefault(named[pair.what], {})[pair.b] = pair
    for part, name in ((found, BALANCED), (mapping(found.get("generated")), f"{BALANCED} of generated answers")):
        own = next((one for one in records(part.get("tasks")) if one.get("name") == task), {})
        for item in records(own.get("paired_balanced")):
            one = pair_of(name, item, True) if item.get("kind") in (None, KIND) else None
            if one is not None and leading in (one.a, one.b):
                one = one if one.a == leading else one.turned
                by.setdefault(name, {})[one.b] = one
    return by


def value_text(value: Any, higher: bool) -> str:
    """A share in percent, a loss as it is."""
    return percent(value) if higher else general(value)


def training(run: RunDirectory) -> Shown:
    """What every arm was trained on."""
    found = run.json(TRAIN)
    rows = []
    for arm in records(found.get("arms")):
        numbers = [count(arm.get(key)) for key in ("examples", "examples_seen", "steps", "tokens", "label_tokens")]
        cost = [duration(arm.get("seconds")), metric(arm.get("flops"), "FLOP")]
        rows.append([str(arm.get("title") or arm.get("name")), *numbers, general(arm.get("final_loss")), *cost])
    changed = "all the weights" if found.get("parameters") == "all" else "an adapter"
    lead = (
        f"Every arm was trained on {count(found.get('tokens'))} tokens, to within a step. "
        f"Training changed {changed}. Label tokens are what the loss is taken of: of a question with its answer the "
        "answer alone, of a free text all of it."
    )
    header = [
        "Arm",
        "Records",
        "Seen",
        "Steps",
        "Tokens",
        "Label tokens",
        "Loss of the last step",
        "Time",
        "Operations",
    ]
    return Shown(leads=[lead], tables=[Table(header, rows, "What every arm was trained on")])


def overview(run: RunDirectory) -> Shown:
    """Every arm in one table: its measures on each task, and what it forgot of other subjects."""
    found, named = results(run), titles(run)
    tokens = {str(arm.get("name")): arm.get("tokens") for arm in records(found.get("arms"))}
    columns = _columns(run)
    groups: list[tuple[str, int]] = []
    for _, task, _, _ in columns:
        if not groups or groups[-1][0] != task:
            groups.append((task, 0))
        groups[-1] = (task, groups[-1][1] + 1)
    rows: list[list[object]] = []
    for arm, title in named.items():
        row: list[object] = [title, count(tokens.get(arm)) if arm != BASE else NOTHING]
        rows.append([*row, *(_cell(found, arm, column) for column in columns)])
    if not columns:
        return Shown(missing=("No task was evaluated.",))
    level = percent(found.get("confidence"), 0)
    caption = (
        f"All arms, each task's main measure with its {level} interval, and what the arm's difference from the "
        f"{named.get(OWN, OWN)} says of these. Forgotten: the base minus the arm on a file of another subject, paired"
    )
    header = ["Arm", "Tokens", *(name for _, _, name, _ in columns)]
    lead = (
        "The arms differ in what they were trained on, and in nothing else. Intervals are of the records or documents "
        "that were evaluated, not of trainings with other seeds; two that overlap may still differ, for the "
        "differences are paired. “cannot tell”: the interval of the difference holds zero."
    )
    table = Table(header, rows, caption, groups=[("", 2), *groups])
    return Shown(leads=[lead], tables=[table])


_Column = tuple[str, str, str, str]  # (place, task, its heading, measure)


def _columns(run: RunDirectory) -> list[_Column]:
    found, columns = results(run), []
    for place in (UNSEEN, TRAINED, OTHER, GENERAL):
        for task in tasks_at(run, place):
            for measure in measures(found, task):
                columns.append((place, task, measure, measure))
                if place == GENERAL:
                    columns.append((place, task, f"{measure}, forgotten", measure))
    return columns


def _cell(found: Mapping[str, Any], arm: str, column: _Column) -> Cell:
    place, task, heading, measure = column
    by_arm, key, higher = measures(found, task)[measure]
    if heading != measure:
        return _forgotten(pairs_of(found, BASE, task).get(measure, {}).get(arm))
    entry = mapping(by_arm.get(arm))
    low, high = finite(entry.get("low")), finite(entry.get("high"))
    lines = [] if low is None or high is None else [f"{value_text(low, higher)} to {value_text(high, higher)}"]
    pair = pairs_of(found, OWN, task).get(measure, {}).get(arm)
    if pair is not None and place != GENERAL:
        lines.append(pair.turned.says)
    return Cell(value_text(entry.get(key), higher), tuple(lines), big=True, class_="number")


def _forgotten(pair: EvaluatedPair | None) -> Cell:
    if pair is None:
        return Cell(NOTHING, class_="number")
    says = {"better": "forgets", "worse": "gains"}.get(pair.says, pair.says)
    value, between = pair.text.split(", ", 1)
    return Cell(value, (between, says), class_="number")


def details(run: RunDirectory, place: str) -> Shown:
    """All measures of the tasks there, and the differences between arms."""
    leads = {
        TRAINED: "Items on documents that questions were asked about: what training on them taught.",
        UNSEEN: "Items on documents that nobody was asked about: what carries over from the others.",
        GENERAL: "Files of other subjects: what a model forgets shows there.",
        OTHER: "Files whose items are not split by their documents.",
    }
    named = titles(run)
    found = evaluated(only(results(run), tasks_at(run, place), named), named, average=False)
    forgotten = [_forgetting(run)] if place == GENERAL else []
    return Shown(
        missing=found.missing,
        leads=[leads[place], *found.leads],
        tables=[*forgotten, *found.tables],
        folds=found.folds,
    )


def _forgetting(run: RunDirectory) -> Table:
    found, named, rows = results(run), titles(run), []
    for task in tasks_at(run, GENERAL):
        for measure, by_arm in pairs_of(found, BASE, task).items():
            for arm, pair in by_arm.items():
                if arm in named:
                    value, between = pair.text.split(", ", 1)
                    says = {"better": "forgets", "worse": "gains"}.get(pair.says, pair.says)
                    rows.append([named[arm], task, measure, value, between, says])
    caption = "What was forgotten: the base minus the arm, on the same records"
    return Table(["Arm", "Task", "Measure", "Base minus arm", "Interval", "Found"], rows, caption, text_columns=3)
