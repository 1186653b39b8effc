"""What training on mined text brought, on the page: perplexity of every arm along the way and at the end, what the
evaluation found, and what all of it cost."""

from __future__ import annotations

from typing import Any

from ntk_jax.pipelines.common.evaluated import evaluated, says
from ntk_jax.report.amounts import NOTHING, count, duration, finite, general, metric, nats, percent
from ntk_jax.report.figures import Mark, WhiskerRow, whiskers
from ntk_jax.report.figures_bars import color_of, token_curves
from ntk_jax.report.layout import Cell, Figure, Table
from ntk_jax.report.reading import RunDirectory, mapping, records
from ntk_jax.report.shown import Shown

PRETRAIN = "pretrain/summary.json"
BASE = "base"
GENERAL = "general"  # the replayed text among the sources of an arm
MINED = "dopamine"  # the arm of the mined text; all others are its controls


def arms(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """{name: what its training recorded} of every arm in the order of the page."""
    return {str(arm["name"]): arm for arm in records(run.json(PRETRAIN).get("arms")) if arm.get("name")}


def title(run: RunDirectory, arm: str) -> str:
    """An arm's name for people."""
    return str(arms(run).get(arm, {}).get("title") or arm)


def leading(run: RunDirectory) -> str | None:
    """The arm of the mined text; of several shares the one that comes first."""
    return next((name for name in arms(run) if name == MINED or name.startswith(f"{MINED}-")), None)


def pretraining(run: RunDirectory) -> Shown:
    """Perplexity of each held-out set along the way and at the end, for every arm, and what each read."""
    found = run.json(PRETRAIN)
    if not found:
        return Shown(missing=(run.missing("pretrain", "continual pre-training"),))
    sets = records(found.get("sets"))
    missing = [] if sets else ["No perplexity: no held-out text was given."]
    curves = [figure for item in sets if (figure := _curves(run, str(item.get("name")))) is not None]
    leads = [
        "Every arm reads the same number of tokens; what differs is where its text comes from. Lower perplexity is "
        "better: on the domain it says what was learned, on general text what was forgotten."
    ]
    tables = [_tokens(run), *([_table(run, sets)] if sets else [])]
    folds = [("Differences of the losses between arms, document by document", _pairs(run, sets))] if sets else []
    return Shown(
        missing=missing,
        leads=leads,
        figures=[*curves, *(_ends(run, item) for item in sets)],
        tables=tables,
        folds=folds,
    )


def is_general(run: RunDirectory, name: str) -> bool:
    """Whether a held-out set is of general text, and not of the domain."""
    names = run.json(PRETRAIN).get("general")
    return isinstance(names, list) and name in names


def _curves(run: RunDirectory, name: str) -> Figure | None:
    found = {}
    for number, (arm, facts) in enumerate(arms(run).items()):
        points = [
            (finite(point.get("tokens")), finite(mapping(mapping(point.get("perplexity")).get(name)).get("value")))
            for point in records(facts.get("curve"))
        ]
        known = sorted((tokens, value) for tokens, value in points if tokens is not None and value is not None)
        if known:
            found[title(run, arm)] = (color_of(number), known)
    if not found:
        return None
    what = "what is forgotten" if is_general(run, name) else "what is learned"
    return Figure(
        f"{name} along the way",
        token_curves(found, what=f"perplexity of {name}", description=f"Perplexity of {name} over training tokens"),
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


def own_text(facts: dict[str, Any]) -> dict[str, Any]:
    """What an arm read of its own text; nothing for general text only."""
    sources = mapping(facts.get("sources"))
    return next((mapping(item) for name, item in sources.items() if name != GENERAL), {})


def _tokens(run: RunDirectory) -> Table:
    rows = []
    for arm, facts in arms(run).items():
        if arm == BASE:
            continue
        sources, own = mapping(facts.get("sources")), own_text(facts)
        general_text = mapping(sources.get(GENERAL))
        passes = finite(own.get("passes"))
        left = sum(finite(mapping(item).get("left_out")) or 0.0 for item in sources.values())
        rows.append(
            [
                title(run, arm),
                count(facts.get("tokens")),
                count(own.get("tokens", 0)),
                count(general_text.get("tokens", 0)),
                NOTHING if passes is None else f"{passes:.2f}",
                count(left),
                count(facts.get("steps")),
            ]
        )
    header = ["Arm", "Tokens", "Of its own text", "Of general text", "Passes", "Left out", "Steps"]
    caption = (
        "What every arm read; passes are how often its own text was read over, left out are documents that hold a run "
        "of words of held-out text"
    )
    return Table(header, rows, caption)


def _table(run: RunDirectory, sets: list[dict[str, Any]]) -> Table:
    rows = []
    for item in sets:
        name, results = str(item.get("name")), mapping(item.get("results"))
        for i, (key, words) in enumerate((("perplexity", "perplexity"), ("bits_per_byte", "bits a byte"))):
            note = "general" if is_general(run, name) else "domain"
            first = [Cell(name, note, scope="rowgroup", rowspan=2)] if i == 0 else []
            cells = [_interval(mapping(results.get(arm)).get(key)) for arm in arms(run)]
            rows.append([*first, Cell(words, scope="row", class_="kind"), *cells])
    confidence = percent(run.pipelines["mine"].setting("pretrain", "confidence"), 0)
    caption = f"Held-out text after the training, with {confidence} intervals over documents"
    return Table(["Text", "", *(title(run, arm) for arm in arms(run))], rows, caption, text_columns=2)


def _interval(entry: Any) -> Cell:
    found = mapping(entry)
    low, high = finite(found.get("low")), finite(found.get("high"))
    lines = () if low is None or high is None else (f"{general(low)} to {general(high)}",)
    return Cell(general(found.get("value")), lines, big=True, class_="number")


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


def evaluation(run: RunDirectory) -> Shown:
    """Accuracy, loss and generated answers of every arm, averaged over the tasks and for each."""
    found = run.json("evaluate/results.json")
    return evaluated(found) if found else Shown(missing=(run.missing("evaluate", "evaluation"),))


def cost(run: RunDirectory) -> Shown:
    """Time, tokens, operations and money of every stage."""
    items = [(stage.title, run.json(f"{stage.name}/summary.json")) for stage in run.pipelines["mine"].stages]
    items += [(f"Training: {title(run, arm)}", facts) for arm, facts in arms(run).items() if arm != BASE]
    items = [(name, found) for name, found in items if any(finite(found.get(key)) is not None for key in _COSTS)]
    if not items:
        return Shown(missing=("No stage has recorded what it cost.",))
    rows = [[name, *_amounts(found)] for name, found in items]
    if len(items) > 1:
        rows.append(["All together", *_amounts({key: _total([found for _, found in items], key) for key in _COSTS})])
    asked = [mapping(found.get("llm")) for _, found in items if found.get("llm")]
    tables = [Table(["Stage", "Time", "Tokens read", "Operations"], rows, "Cost by stage", total=len(items) > 1)]
    return Shown(leads=[_spent(asked[-1])] if asked else [], tables=tables)


_COSTS = ("seconds", "tokens", "flops")


def _amounts(found: dict[str, Any]) -> list[object]:
    return [duration(found.get("seconds")), count(found.get("tokens")), metric(found.get("flops"), "FLOP")]


def _total(items: list[dict[str, Any]], key: str) -> float | None:
    known = [number for item in items if (number := finite(item.get(key))) is not None]
    return sum(known) if known else None


def _spent(account: dict[str, Any]) -> str:
    """Of all stages together: they share one account."""
    text = (
        f"The server of the language model was asked {count(account.get('attempts'))} times: "
        f"{count(account.get('prompt_tokens'))} tokens in, {count(account.get('completion_tokens'))} out, "
        f"{general(account.get('spent'))} spent, in the unit of the prices"
    )
    outcomes = ", ".join(f"{count(n)} {name}" for name, n in mapping(account.get("outcomes")).items())
    return f"{text} ({outcomes})." if outcomes else f"{text}."
