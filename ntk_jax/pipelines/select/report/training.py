"""How the training went and what the data was: loss curves, gradient norms, records read, kept and dropped."""

from __future__ import annotations

from typing import Any

from ntk_jax.pipelines.select.report.layout import section
from ntk_jax.pipelines.select.report.run import SelectRun
from ntk_jax.report.amounts import count, finite, percent
from ntk_jax.report.figures import Curve, curves
from ntk_jax.report.layout import Cell, Figure, Section, Table
from ntk_jax.report.reading import mapping, records

PERCENTILES = ("5", "25", "50", "75", "95", "max")

History = list[dict[str, Any]]


def training(run: SelectRun) -> Section:
    """Loss and gradient norm of the warm-up and of every arm."""
    directory = run.directory
    warmup: dict[tuple[str, str], History] = {("warm-up", "c-green"): directory.json_lines("warmup/history.jsonl")}
    arms = {
        (arm.folder, arm.color): history
        for arm in run.arms
        if (history := directory.json_lines(f"finetune/{arm.folder}/history.jsonl"))
    }
    figures = []
    text = "The faint line is each step's value, the bold one its moving mean; "
    for key, name, after in (
        (
            "loss",
            "Loss",
            "loss is the mean −log p of a response token in nats, over all tokens of a step or, with loss: "
            "example_mean, over its examples; arms with different data are not comparable by it.",
        ),
        ("grad_norm", "Gradient norm", "spikes or growth point to an unstable learning rate."),
    ):
        for histories, what in ((warmup, "warm-up"), (arms, "final training")):
            drawn = _curves(histories, key)
            if drawn:
                picture = curves(drawn, y_title=name.lower(), description=f"{name} of the {what} over steps.")
                figures.append(Figure(f"{name}, {what}", picture, text + after))
    missing = []
    if run.plan.has("warmup") and not any(warmup.values()):
        missing.append(directory.missing("warmup", "warm-up curve"))
    if not arms:
        missing.append(directory.missing("finetune", "fine-tuning curve"))
    return section("training", "Training", figures=figures, missing=missing)


def _curves(histories: dict[tuple[str, str], History], key: str) -> list[Curve]:
    found = []
    for (name, color), history in histories.items():
        points = [(finite(row.get("step")), finite(row.get(key))) for row in history]
        known = sorted((s, v) for s, v in points if s is not None and v is not None)
        if known:
            found.append(Curve(name, color, [s for s, _ in known], [v for _, v in known]))
    return found


def data(run: SelectRun) -> Section:
    """Records read, kept, truncated and dropped, and how long they are."""
    sets = [(name, d) for name, d in (("Domain", run.domain_data), ("Pool", run.pool_data)) if d]
    missing = []
    if not run.domain_data:
        missing.append(run.directory.missing("warmup", "domain statistics"))
    if not run.pool_data:
        stage = next(
            (
                s
                for s in ("preselect", "score", "sketch", "low_rank", "less", "embed", "losses", "pool")
                if run.plan.has(s)
            ),
            "pool",
        )
        missing.append(run.directory.missing(stage, "pool statistics"))
    tables = [table for table in (_account(sets), _lengths(run, sets), _formats(run)) if table.rows]
    parts = ("id", "before", "counted")
    found = [(name, mapping(d.get("example"))) for name, d in sets]
    shown = [{"name": name, **{part: str(e.get(part, "")) for part in parts}} for name, e in found if e]
    return section("data", "Data", tables=tables, examples=shown, missing=missing)


def _formats(run: SelectRun) -> Table:
    """What was recognised in files that are not records as they are."""
    found = records(run.plan.facts.get("formats"))
    rows: list[list[object]] = [[str(item.get(key, "")) for key in ("set", "files", "format")] for item in found]
    return Table(["Set", "Files", "Read as"], rows, "What the columns of the files were taken for")


def _account(sets: list[tuple[str, dict[str, Any]]]) -> Table:
    rows: list[list[object]] = []
    for name, d in sets:
        seen, kept = finite(d.get("records")), finite(d.get("kept"))
        reasons = ", ".join(f"{count(n)} {why}" for why, n in sorted(mapping(d.get("dropped")).items()) if finite(n))
        share = percent(kept / seen) if kept is not None and seen else ()
        truncated = finite(d.get("truncated"))
        cut = percent(truncated / kept) if truncated and kept else ()
        rows.append(
            [name, count(seen), Cell(count(kept), share), Cell(count(truncated), cut), reasons or "none"]
            + [notes_of(d), count(d.get("tokens")), count(d.get("span_tokens"))]
        )
    header = ["Set", "Records", "Kept", "Truncated", "Dropped", "Texts changed", "Tokens", "Tokens in spans"]
    return Table(header, rows, "What was read and what became of it")


def notes_of(d: dict[str, Any]) -> str:
    """What became of the words of examples or questions, counted."""
    return ", ".join(f"{count(n)} {why}" for why, n in sorted(mapping(d.get("notes")).items()) if finite(n)) or "none"


def _lengths(run: SelectRun, sets: list[tuple[str, dict[str, Any]]]) -> Table:
    rows = [
        [f"{name}, {what}", *(count(values.get(p)) for p in PERCENTILES)]
        for name, d in sets
        for what, values in _percentiles(d)
    ]
    longest, overflow = run.setting("model", "max_length"), run.setting("model", "overflow")
    caption = f"Lengths in tokens (limit {count(longest)}" + (f"; longer: {overflow})" if overflow else ")")
    return Table(["Set", "5%", "25%", "Median", "75%", "95%", "Longest"], rows, caption)


def _percentiles(d: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The tables of length percentiles inside data statistics, named; keys are "5" ... "95", "max"."""
    found = []
    for key, value in d.items():
        table = {str(k).removeprefix("p"): v for k, v in mapping(value).items()}
        if "50" in table and "max" in table:
            found.append(("response" if "span" in key else "whole example", table))
    return found
