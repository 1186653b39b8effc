"""What training on mined text brought, on the page: perplexity of every arm along the way and at the end, what the
evaluation found, and what all of it cost."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ntk_jax.pipelines.common.shots import shot_lines
from ntk_jax.pipelines.mine.figures import color_of, perplexity_curves
from ntk_jax.pipelines.mine.report_layout import Shown
from ntk_jax.report.amounts import NOTHING, count, duration, finite, general, metric, nats, percent
from ntk_jax.report.figures import Mark, WhiskerRow, whiskers
from ntk_jax.report.layout import Cell, Figure, Table
from ntk_jax.report.reading import RunDirectory, mapping, records

COMPARISON = "pretrain/comparison.json"
BASE = "base"
MINED = ("dopamine", "mined", "classifier")  # what the arm of the mined text may be called; the first that is there
_NAME = re.compile(r"[\w.+ -]{1,100}")  # an arm's folder; a damaged plan must not lead out of the run directory


def arms(run: RunDirectory) -> list[str]:
    """Every arm in the order of the page: of the comparison, then of the config."""
    sets = records(run.json(COMPARISON).get("sets"))
    compared = list(mapping(sets[0].get("results"))) if sets else []
    asked = run.pipelines["mine"].setting("pretrain", "arms")
    names = [*compared, *(asked if isinstance(asked, (list, dict)) else ())]
    return [name for name in dict.fromkeys(map(str, names)) if _NAME.fullmatch(name) and name.strip(".")]


def summary(run: RunDirectory, arm: str) -> dict[str, Any]:
    """What an arm's training recorded; empty where it was not trained."""
    found: dict[str, Any] = run.json(f"pretrain/{arm}/summary.json")
    return found


def trained(run: RunDirectory) -> list[str]:
    """The arms that have been trained."""
    return [name for name in arms(run) if summary(run, name)]


def title(run: RunDirectory, arm: str) -> str:
    """An arm's name for people."""
    return str(summary(run, arm).get("title") or ("base model" if arm == BASE else arm))


def leading(run: RunDirectory) -> str | None:
    """The arm of the mined text: the one that all others are controls of."""
    names = arms(run)
    return next((name for wanted in MINED for name in names if name == wanted), None)


def pretraining(run: RunDirectory) -> Shown:
    """Perplexity of each held-out set along the way and at the end, for every arm, and what each read."""
    names = trained(run)
    comparison = run.json(COMPARISON)
    sets = records(comparison.get("sets"))
    if not names and not sets:
        return Shown(missing=(run.missing("pretrain", "continual pre-training"),))
    missing = [] if sets else [run.missing("pretrain", "comparison of the arms")]
    curves = [figure for name in _set_names(run) if (figure := _curves(run, name, comparison)) is not None]
    ends = [_ends(run, item) for item in sets]
    leads = [
        "Every arm reads the same number of tokens; what differs is where its text comes from. Lower perplexity is "
        "better: on the domain it says what was learned, on general text what was forgotten."
    ]
    tables = [_tokens(run, names)] if names else []
    tables += [_table(run, sets, comparison)] if sets else []
    folds = [("Differences of the losses between arms, document by document", _pairs(run, sets))] if sets else []
    return Shown(missing=missing, leads=leads, figures=[*curves, *ends], tables=tables, folds=folds)


def _set_names(run: RunDirectory) -> list[str]:
    points = [point for arm in trained(run) for point in records(summary(run, arm).get("points"))]
    return list(dict.fromkeys(name for point in points for name in mapping(point.get("perplexity"))))


def _is_general(comparison: dict[str, Any], name: str) -> bool:
    general_sets = comparison.get("general")
    return isinstance(general_sets, list) and name in general_sets


def _curves(run: RunDirectory, name: str, comparison: dict[str, Any]) -> Figure | None:
    found = {}
    for number, arm in enumerate(arms(run)):
        points = [
            (finite(point.get("tokens")), finite(mapping(point.get("perplexity")).get(name)))
            for point in records(summary(run, arm).get("points"))
        ]
        known = sorted((tokens, value) for tokens, value in points if tokens is not None and value is not None)
        if known:
            found[title(run, arm)] = (color_of(number), known)
    if not found:
        return None
    what = "what is forgotten" if _is_general(comparison, name) else "what is learned"
    return Figure(
        f"{name} along the way",
        perplexity_curves(found, what=name, description=f"Perplexity of {name} over training tokens"),
        f"Perplexity of held-out text of {name} after so many tokens of training: {what}.",
    )


def _ends(run: RunDirectory, item: dict[str, Any]) -> Figure:
    results = mapping(item.get("results"))
    rows = []
    for number, arm in enumerate(arms(run)):
        entry = mapping(mapping(results.get(arm)).get("perplexity"))
        value, low, high = (finite(entry.get(key)) for key in ("value", "low", "high"))
        if value is not None:
            mark = Mark("normalized", value, low, high, general(value))
            rows.append(WhiskerRow(title(run, arm), color_of(number), (mark,)))
    if not rows:
        raise ValueError(f"no perplexity of {item.get('name')}")
    base = finite(mapping(mapping(results.get(BASE)).get("perplexity")).get("value"))
    name = str(item.get("name"))
    return Figure(
        f"{name} at the end",
        whiskers(
            rows,
            title="perplexity",
            reference=None if base is None else (base, "before training"),
            description=f"Perplexity of {name} by arm",
        ),
        f"{count(item.get('documents'))} held-out documents of {name}, {count(item.get('tokens'))} tokens; intervals "
        "from a bootstrap over documents. Two that overlap may still differ: the table of differences pairs them.",
    )


def _tokens(run: RunDirectory, names: Iterable[str]) -> Table:
    rows = []
    for arm in names:
        found = summary(run, arm)
        read, distinct = finite(found.get("mined_tokens")), finite(found.get("distinct_tokens"))
        passes = NOTHING if not read or not distinct else f"{read / distinct:.2f}"
        row = [title(run, arm), count(found.get("tokens")), count(read), count(found.get("general_tokens")), passes]
        rows.append([*row, count(found.get("steps")), count(found.get("parameters"))])
    header = ["Arm", "Tokens", "Of its own text", "Of general text", "Passes", "Steps", "Parameters trained"]
    return Table(header, rows, "What every arm read; passes are how often its own text was read over")


def _table(run: RunDirectory, sets: list[dict[str, Any]], comparison: dict[str, Any]) -> Table:
    rows = []
    for item in sets:
        name, results = str(item.get("name")), mapping(item.get("results"))
        for i, (key, words) in enumerate((("perplexity", "perplexity"), ("bits_per_byte", "bits a byte"))):
            note = "general" if _is_general(comparison, name) else "domain"
            first = [Cell(name, note, scope="rowgroup", rowspan=2)] if i == 0 else []
            cells = [_interval(mapping(results.get(arm)).get(key)) for arm in arms(run)]
            rows.append([*first, Cell(words, scope="row", class_="kind"), *cells])
    caption = (
        f"Held-out text after the training, with {percent(comparison.get('confidence'), 0)} intervals over documents"
    )
    return Table(["Text", "", *(title(run, arm) for arm in arms(run))], rows, caption, text_columns=2)


def _interval(entry: Any) -> Cell:
    found = mapping(entry)
    low, high = finite(found.get("low")), finite(found.get("high"))
    lines = () if low is None or high is None else (f"{general(low)} to {general(high)}",)
    return Cell(general(found.get("value")), lines, big=True)


def _pairs(run: RunDirectory, sets: list[dict[str, Any]]) -> Table:
    rows = []
    for item in sets:
        for pair in records(item.get("paired")):
            low, high = finite(pair.get("low")), finite(pair.get("high"))
            a, b = (title(run, str(pair.get(key))) for key in ("a", "b"))
            rows.append(
                [str(item.get("name")), a, b, nats(pair.get("difference")), f"{nats(low)} to {nats(high)}", says(pair)]
            )
    header = ["Text", "Arm", "Against", "Difference", "Interval", "Found"]
    return Table(header, rows, "Loss of the first arm minus that of the second, nats a token", text_columns=3)


def says(pair: dict[str, Any]) -> str:
    """better, worse or cannot tell: the first arm of a difference of losses, against the second."""
    low, high = finite(pair.get("low")), finite(pair.get("high"))
    if low is None or high is None or low <= 0 <= high:
        return "cannot tell"
    return "better" if high < 0 else "worse"


def evaluation(run: RunDirectory) -> Shown:
    """Accuracy and loss of every arm, averaged over the tasks and for each."""
    found = run.json("evaluate/results.json")
    if not found:
        return Shown(missing=(run.missing("evaluate", "evaluation"),))
    titles = {str(arm.get("name")): str(arm.get("title") or arm.get("name")) for arm in records(found.get("arms"))}
    tables = []
    accuracy = {"average": mapping(found.get("average"))} if found.get("average") else {}
    accuracy |= {str(task.get("name")): mapping(task.get("results")) for task in records(found.get("tasks"))}
    if accuracy:
        tables.append(_scores(accuracy, titles, "accuracy", ("normalized", "raw"), "Accuracy by likelihood"))
    losses = mapping(found.get("loss"))
    loss = {"average": mapping(losses.get("average"))} if losses.get("average") else {}
    loss |= {str(task.get("name")): mapping(task.get("results")) for task in records(losses.get("tasks"))}
    if loss:
        tables.append(
            _scores(loss, titles, "loss", ("by_example", "by_token"), "Held-out loss, nats a token: lower is better")
        )
    generated = {
        str(task.get("name")): {arm: {"greedy": entry} for arm, entry in mapping(task.get("results")).items()}
        for task in records(mapping(found.get("generated")).get("tasks"))
    }
    if generated:
        tables.append(_scores(generated, titles, "accuracy", ("greedy",), "Generated answers: the share that is right"))
    missing = () if tables else (run.missing("evaluate", "accuracy or loss"),)
    return Shown(missing=missing, leads=shot_lines(found), tables=tables)


def _scores(
    tasks: dict[str, dict[str, Any]], titles: dict[str, str], key: str, kinds: tuple[str, ...], caption: str
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
    return Cell(write(entry.get(key)), lines)


def cost(run: RunDirectory) -> Shown:
    """Time, tokens, operations and money of every stage."""
    items = [(stage.title, run.json(f"{stage.name}/summary.json")) for stage in run.pipelines["mine"].stages]
    items += [(f"Training: {title(run, arm)}", summary(run, arm)) for arm in trained(run)]
    items = [(name, found) for name, found in items if any(key in found for key in ("seconds", "llm", "flops"))]
    if not items:
        return Shown(missing=("No stage has recorded what it cost.",))
    rows = [_cost_row(name, found) for name, found in items]
    if len(items) > 1:
        rows.append(_cost_row("All together", _sums([found for _, found in items])))
    header = [
        "Stage",
        "Time",
        "Tokens read",
        "Operations",
        "Calls",
        "Not paid twice",
        "Tokens in",
        "Tokens out",
        "Spent",
    ]
    groups = [("", 1), ("on this machine", 3), ("language model", 5)]
    return Shown(tables=[Table(header, rows, "Cost by stage", groups=groups, total=len(items) > 1)])


def _cost_row(name: str, found: dict[str, Any]) -> list[object]:
    asked = mapping(found.get("llm"))
    here = [duration(found.get("seconds")), count(found.get("tokens")), metric(found.get("flops"), "FLOP")]
    calls = [count(asked.get(key)) for key in ("calls", "cached", "prompt_tokens", "completion_tokens")]
    return [name, *here, *calls, general(asked.get("spent"))]


def _sums(items: list[dict[str, Any]]) -> dict[str, Any]:
    def total(values: list[Any]) -> float | None:
        known = [number for value in values if (number := finite(value)) is not None]
        return sum(known) if known else None

    asked = [mapping(item.get("llm")) for item in items]
    keys = ("calls", "cached", "prompt_tokens", "completion_tokens", "spent")
    return {
        **{key: total([item.get(key) for item in items]) for key in ("seconds", "tokens", "flops")},
        "llm": {key: total([item.get(key) for item in asked]) for key in keys},
    }
