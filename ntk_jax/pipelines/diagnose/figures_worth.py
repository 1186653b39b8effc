"""What scores are worth, as forest plots and a table."""

from __future__ import annotations

from typing import Any

from ntk_jax.pipelines.diagnose.shown import Parts, Shown, there
from ntk_jax.report.amounts import count, general, metric, minus, percent, signed
from ntk_jax.report.figures import Mark, WhiskerRow, whiskers
from ntk_jax.report.layout import Table

METAGRADIENT = "metagradient"


def worth_figures(parts: Parts) -> list[Shown]:
    """One against the metagradient, one against trainings on subsets, as far as there are correlations."""
    part = there(parts, "worth")
    if part is None:
        return []
    return [item for item in (_by_candidate(part), _by_subset(part)) if item is not None]


def worth_table(parts: Parts) -> Table | None:
    """All figures of every score, best first by the metagradient."""
    part = there(parts, "worth")
    if part is None:
        return None
    rows = []
    for name, found in _sorted(part["scores"], "spearman"):
        precision = found["precision"]
        chance = "" if precision["chance"] is None else f" (chance {percent(precision['chance'], 0)})"
        rows.append(
            [
                name,
                count(found["scored"]),
                interval(found["spearman"]),
                interval(found["lds"]),
                _number((found["lds"] or {}).get("by_example")),
                ("–" if precision["value"] is None else f"{percent(precision['value'], 0)}") + chance,
            ]
        )
    own = part[METAGRADIENT]["lds"]
    if own:
        rows.append([METAGRADIENT, count(len(part["candidates"])), "", interval(own), _number(own["by_example"]), ""])
    header = ["Score", "Scored", "Spearman, metagradient", "LDS", "LDS, by example", f"Top {count(part['top'])}"]
    caption = (
        f"What scores are worth, over {count(len(part['candidates']))} candidates and {count(part['subsets'])} subsets"
    )
    return Table(header, rows, caption)


def worth_lines(parts: Parts) -> list[str]:
    """The table for a terminal."""
    table = worth_table(parts)
    if table is None:
        return []
    lines = [[str(cell) for cell in row] for row in [table.header, *table.rows]]
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines]
    return [table.caption + ":", *(f"  {line}" for line in text)]


def interval(found: dict[str, Any] | None) -> str:
    """A value with its interval."""
    if not found or found["value"] is None:
        return "–"
    if found["low"] is None:
        return signed(found["value"])
    return f"{signed(found['value'])} [{signed(found['low'])}, {signed(found['high'])}]"


def _number(value: float | None) -> str:
    return "–" if value is None else minus(signed(value))


def _by_candidate(part: dict[str, Any]) -> Shown | None:
    known = _sorted({name: f for name, f in part["scores"].items() if _there(f["spearman"])}, "spearman")
    if not known:
        return None
    one = part[METAGRADIENT]
    best, found = next((one for one in known if one[1]["spearman"]["low"] is not None), known[0])
    verdict = _against_zero(found["spearman"])
    return Shown(
        "worth_metagradient",
        "Which score ranks examples by their worth?",
        _forest(known, "spearman", "Spearman with minus the metagradient"),
        f"Rank correlation of each score with what the example does to the loss on {part['held_out']['source']} "
        f"({count(part['held_out']['examples'])} examples): minus the derivative by the example's weight through "
        f"{count(part['steps'])} optimiser steps on {count(len(part['candidates']))} candidates (sampled from "
        f"{'the pool' if part['from'] == 'pool' else 'what the runs selected'}) and {count(part['fixed'])} domain "
        "examples; 95% intervals from a bootstrap over candidates.",
        f"The largest is {best} at {signed(found['spearman']['value'])}, {verdict}; more weight lowers the loss for "
        f"{percent(one['helpful'], 0)} of the candidates. The fine-tuning took it from {general(one['loss_before'])} "
        f"to {general(one['loss_after'])} nats; its derivative cost "
        f"{metric(one['flops'], 'FLOP')}.",
    )


def _against_zero(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return "of too few candidates for an interval"
    if found["low"] > 0:
        return "its interval is above zero"
    return "its interval is below zero" if found["high"] < 0 else "its interval holds zero"


def _by_subset(part: dict[str, Any]) -> Shown | None:
    rows = {name: found for name, found in part["scores"].items() if _there(found["lds"])}
    own = part[METAGRADIENT]["lds"]
    if _there(own):
        rows[METAGRADIENT] = {"lds": own}
    if not rows:
        return None
    known = _sorted(rows, "lds")
    scores = [(name, found) for name, found in known if name != METAGRADIENT]
    text = f"Of the scores the largest is {scores[0][0]} at {signed(scores[0][1]['lds']['value'])}. " if scores else ""
    text += f"The metagradient itself has {signed(own['value'])}." if _there(own) else ""
    return Shown(
        "worth_lds",
        "Which score foresees training on a subset?",
        _forest(known, "lds", "linear datamodeling score"),
        f"Spearman, over {count(part['subsets'])} random subsets of {count(part['subset_size'])} candidates, of the "
        "summed scores with minus the held-out loss after fine-tuning on the subset; 95% intervals from a bootstrap "
        "over subsets. What the metagradient has is about what any score of single examples can have.",
        text.strip(),
    )


def _forest(known: list[tuple[str, dict[str, Any]]], key: str, title: str) -> Any:
    def row(name: str, found: dict[str, Any]) -> WhiskerRow:
        color = {METAGRADIENT: "c-orange", "response length": "c-grey"}.get(name, "c-blue")
        mark = Mark("normalized", found["value"], found["low"], found["high"], signed(found["value"]))
        return WhiskerRow(name, color, (mark,))

    rows = [row(name, found[key]) for name, found in known]
    return whiskers(rows, title=title, reference=(0.0, "no relation"), description=f"What scores are worth: {title}")


def _there(found: dict[str, Any] | None) -> bool:
    return bool(found) and found is not None and found["value"] is not None


def _sorted(scores: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    def value(item: tuple[str, dict[str, Any]]) -> float:
        found = item[1][key]
        return found["value"] if _there(found) else -2.0

    return sorted(scores.items(), key=lambda item: (-value(item), item[0]))
