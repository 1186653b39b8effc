"""What selections leave out and why, and what diversity made of the candidates."""

from __future__ import annotations

from typing import Any

from ntk_jax.pipelines.select.report.run import SelectRun
from ntk_jax.report.amounts import NOTHING, count, finite, general, percent
from ntk_jax.report.layout import Table
from ntk_jax.report.reading import mapping


def left_out(run: SelectRun) -> Table | None:
    """A row a method: examples that were looked at, how many were left out for each reason; None where none may be."""
    found = {method.title: mapping(method.found.get("refined")) for method in run.methods}
    found = {title: facts for title, facts in found.items() if facts}
    if not found:
        return None
    reasons = _reasons(found)
    diverse = any(facts.get("candidates") is not None for facts in found.values())
    rows: list[list[object]] = []
    for title, facts in found.items():
        dropped = mapping(facts.get("dropped"))
        row: list[object] = [title, count(facts.get("looked_at"))]
        row += [count(dropped.get(reason, 0)) for reason in reasons]
        rows.append(row + (_diversity(run, facts) if diverse else []))
    header = ["Method", "Looked at", *(reason[0].upper() + reason[1:] for reason in reasons)]
    header += ["Candidates", f"{_what(run)}, the best N", "the selection"] if diverse else []
    items = mapping(run.summary.get("decontamination"))
    caption = "What was left out, the next best in its place; select/<method>.dropped.jsonl has each with its reason"
    if finite(items.get("items")) is not None:
        short = finite(items.get("items_too_short"))
        caption += f". Looked for: {count(items['items'])} evaluation items"
        caption += f", of which {count(short)} are too short to be found by their words" if short else ""
    without = finite(items.get("items_without_embedding"))
    caption += f"; {count(without)} have no embedding and were compared by words alone" if without else ""
    near = mapping(items.get("nearest_cosine"))
    if near:
        caption += f"; the cosine of an example with the nearest item is {general(near.get('median'))} in the middle, "
        caption += f"above {general(near.get('99%'))} for one in a hundred and {general(near.get('largest'))} at most"
    if finite(items.get("pool_dropped")) is not None:
        caption += f"; {count(items['pool_dropped'])} examples of the pool were taken for one and never ranked"
    return Table(header, rows, caption)


def left_out_line(run: SelectRun) -> str | None:
    """The same in a line for the terminal."""
    parts = []
    for method in run.methods:
        facts = mapping(method.found.get("refined"))
        dropped = mapping(facts.get("dropped"))
        said = ", ".join(f"{reason} {count(number)}" for reason, number in dropped.items()) or "nothing"
        parts += [f"of {method.title}: {said}"] if facts else []
    whole = finite(mapping(run.summary.get("decontamination")).get("pool_dropped"))
    parts += [f"of the whole pool: contamination {count(whole)}"] if whole is not None else []
    return f"Left out {'; '.join(parts)}" if parts else None


def _reasons(found: dict[str, dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(reason for facts in found.values() for reason in mapping(facts.get("dropped"))))


def _what(run: SelectRun) -> str:
    dpp = mapping(run.setting("select", "diversity")).get("method") == "dpp"
    return "Log-volume" if dpp else "Cover of the candidates"


def _diversity(run: SelectRun, facts: dict[str, Any]) -> list[object]:
    values = mapping(facts.get("diversity"))
    shown = general if _what(run) == "Log-volume" else percent
    return [
        count(facts["candidates"]) if finite(facts.get("candidates")) is not None else NOTHING,
        *(shown(values.get(key)) for key in ("value_of_best", "value")),
    ]
