"""What was selected: every method in a line, and the families of the pool as the first method picked from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ntk_jax.pipelines.select.report.findings import pool_sentence, useful_sentence
from ntk_jax.pipelines.select.report.layout import section
from ntk_jax.pipelines.select.report.refined import left_out
from ntk_jax.pipelines.select.report.run import SelectRun
from ntk_jax.report.amounts import NOTHING, count, finite, general, percent, signed, times
from ntk_jax.report.layout import Cell, Section, Table
from ntk_jax.report.reading import mapping, records

SHOWN_FAMILIES = 16  # rows before the rest is folded away


def families(run: SelectRun) -> Section:
    """Shares of each family in the pool and in the selections."""
    rows = family_rows(run)
    if not rows:
        missing = run.directory.missing("select", "selection")
        return section(
            "families",
            "Selection",
            missing=missing,
            lead="",
            methods=None,
            first=None,
            rest=None,
            label="",
            left_out=None,
        )
    shares = family_shares(run, rows)
    order = sorted(range(len(rows)), key=lambda i: (-shares[i][1], -shares[i][0], str(rows[i]["name"])))
    useful = useful_families(run)
    early = {i for n, i in enumerate(order) if n < SHOWN_FAMILIES or str(rows[i]["name"]) in useful}
    first, rest = [i for i in order if i in early], [i for i in order if i not in early]
    if len(rest) < 4:
        first, rest = order, []
    widest = max([s for pair in shares for s in pair] + [1e-12])
    header, lines = _family_lines(run, rows, shares, widest)
    few = sum(chosen(rows[i], run.first.name if run.first else "") for i in rest)
    return section(
        "families",
        "Selection",
        missing=None,
        lead=" ".join([*useful_sentence(run), *_summary(run, rows, shares)]),
        methods=_methods(run),
        first=Table(header, [lines[i] for i in first], "Families, most selected first", text_columns=2),
        rest=Table(header, [lines[i] for i in rest], "The other families", text_columns=2) if rest else None,
        left_out=left_out(run),
        label=f"{len(rest)} more families, {count(few)} selected from them",
    )


def family_rows(run: SelectRun) -> list[dict[str, Any]]:
    """The families that select/summary.json lists."""
    return [f for f in records(run.summary.get("families")) if f.get("name") is not None]


def useful_families(run: SelectRun) -> set[str]:
    """The families that are known to be useful."""
    found = run.summary.get("useful")
    return {str(name) for name in found} if isinstance(found, list) else set()


def chosen(family: dict[str, Any], method: str) -> float:
    """How many examples of the family a method selected."""
    return finite(mapping(family.get("selected")).get(method)) or 0.0


def family_shares(run: SelectRun, rows: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(share of the pool, share of the first method's selection) of each family."""
    method = run.first.name if run.first else ""
    pool = sum(finite(f.get("pool")) or 0.0 for f in rows) or 1.0
    total = sum(chosen(f, method) for f in rows) or 1.0
    return [((finite(f.get("pool")) or 0.0) / pool, chosen(f, method) / total) for f in rows]


def _family_lines(
    run: SelectRun, rows: Sequence[dict[str, Any]], shares: Sequence[tuple[float, float]], widest: float
) -> tuple[list[str], list[list[object]]]:
    """(header, a row for each family)."""
    first, *others = [method.name for method in run.methods] or [""]
    title = run.first.title if run.first else "Selected"
    useful = useful_families(run)
    header = ["Family", "Shares", title, "Pool", "Lift", *(method.title for method in run.methods[1:])]
    header += ["Mean score", "Median tokens"]
    lines: list[list[object]] = []
    for f, (in_pool, in_selection) in zip(rows, shares, strict=True):
        lines.append(
            [
                Cell(f["name"], badge="useful" if str(f["name"]) in useful else None),
                Cell(bars=_bars(in_pool, in_selection, widest)),
                Cell(count(chosen(f, first)), percent(in_selection)),
                Cell(count(f.get("pool")), percent(in_pool)),
                times(in_selection / in_pool) if in_pool else NOTHING,
                *(count(mapping(f.get("selected")).get(method)) for method in others),
                general(f.get("mean_score")),
                count(f.get("median_tokens")),
            ]
        )
    return header, lines


def _bars(in_pool: float, in_selection: float, widest: float) -> list[tuple[str, str]]:
    """Two thin bars on one scale. A share that is not nothing stays visible (min-width in style.css)."""
    bars = [("fill-selected", in_selection), ("fill-pool", in_pool)]
    return [(name, f"width:{share / widest * 100:.2f}%" + ("" if share else ";min-width:0")) for name, share in bars]


def _summary(run: SelectRun, rows: Sequence[dict[str, Any]], shares: Sequence[tuple[float, float]]) -> list[str]:
    used = sum(1 for _, share in shares if share)
    top = sorted((share for _, share in shares), reverse=True)[:3]
    title = run.first.title if run.first else "the selection"
    parts = [
        f"“{title}” selects from {used} of {len(rows)} families; the three most selected make up {percent(sum(top))}."
    ]
    looked = pool_sentence(run)
    if looked is not None:
        parts.append(f"The pool is {looked}, {count(run.summary.get('pool'))} of them usable.")
    scored, usable = finite(run.summary.get("scored")), finite(run.summary.get("pool"))
    if scored and usable and scored < usable:
        parts.append(f"Only {count(scored)} of them have a score; shares are of the whole pool.")
    return parts


def _methods(run: SelectRun) -> Table:
    """Every method in a line, and the pool to hold them against."""
    s = run.summary
    lengths = (count(s.get(key)) for key in ("pool", "median_span_pool", "median_tokens_pool"))
    rows: list[list[object]] = [["Whole pool", *lengths, NOTHING, percent(s.get("useful_share_pool"))]]
    for method in run.methods:
        f = method.found
        rows.append(
            [
                Cell(method.title, method.label),
                *(count(f.get(key)) for key in ("count", "median_span", "median_tokens")),
                signed(f.get("spearman_span_length")),
                percent(f.get("useful_share")),
            ]
        )
    header = ["Method", "N", "Median response", "Median example", "Spearman with length", "Useful share"]
    useful = finite(s.get("useful_share_pool")) is not None
    rows = rows if useful else [row[:-1] for row in rows]
    caption = (
        "Every method: examples selected, their median lengths in tokens, the rank correlation of its score with the "
        "length of the response" + (", and the share of useful families" if useful else "")
    )
    return Table(header if useful else header[:-1], rows, caption)
