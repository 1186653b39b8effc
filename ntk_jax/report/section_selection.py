"""What was selected: by family, by score and by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ntk_jax.report.amounts import count, finite, general, percent, signed, times
from ntk_jax.report.blocks import figure, grid, missing, numbers, section
from ntk_jax.report.figures import histogram
from ntk_jax.report.figures_length import Bubble, bubbles, length_bins, score_by_length
from ntk_jax.report.findings import strength, useful_sentence
from ntk_jax.report.markup import Html, fold, join, table, tag
from ntk_jax.report.reading import Run, mapping, records

SHOWN_FAMILIES = 16  # rows before the rest is folded away


def families(run: Run) -> Html:
    """Shares of each family in the pool and in the selection."""
    title = "What was selected"
    rows = [f for f in records(run.selection.get("families")) if f.get("name") is not None]
    if not rows:
        return section("families", title, missing(run, "select", "selection"))
    pool = sum(finite(f.get("pool")) or 0.0 for f in rows)
    known = run.state.get("select") != "missing" and any(finite(f.get("selected")) is not None for f in rows)
    chosen = sum(finite(f.get("selected")) or 0.0 for f in rows)
    useful = {str(name) for name in run.setting("report", "useful", [])}
    shares = [_shares(f, pool, chosen if known else 0.0) for f in rows]
    widest = max([s for pair in shares for s in pair] + [1e-12])
    order = sorted(range(len(rows)), key=lambda i: (-shares[i][1], -shares[i][0], str(rows[i]["name"])))
    random = any(finite(f.get("random")) is not None for f in rows)
    header = ["Family", "Shares", "Selected", "Pool", "Lift", "Mean score", "Median tokens"]
    header = [*header[:5], "Random", *header[5:]] if random else header

    def row(i: int) -> list[object]:
        f, (in_pool, in_selection) = rows[i], shares[i]
        badge = tag("span", "useful", class_="badge") if str(f["name"]) in useful else None
        cells: list[object] = [
            join([f["name"], badge], " "),
            tag("td", _bars(in_pool, in_selection, widest)),
            _n(f.get("selected"), in_selection) if known else "–",
        ]
        lift = times(in_selection / in_pool) if known and in_pool else "–"
        cells += [_n(f.get("pool"), in_pool), lift]
        if random:
            cells.append(count(f.get("random")))
        return [*cells, general(f.get("mean_score")), count(f.get("median_tokens"))]

    parts: list[object] = [_summary(run, rows, shares, known)]
    if not known:
        parts.append(missing(run, "select", "selection"))
    key = tag(
        "p",
        tag("i", class_="key fill-selected"),
        "share of the selection ",
        tag("i", class_="key fill-pool"),
        "share of the pool",
        class_="keys",
    )
    early = {i for n, i in enumerate(order) if n < SHOWN_FAMILIES or str(rows[i]["name"]) in useful}
    first, rest = [i for i in order if i in early], [i for i in order if i not in early]
    if len(rest) < 4:
        first, rest = order, []
    parts += [key, table(header, [row(i) for i in first], caption="Families, most selected first", text_columns=2)]
    if rest:
        few = sum(finite(rows[i].get("selected")) or 0 for i in rest)
        label = f"{len(rest)} more families, {count(few)} selected from them"
        parts.append(fold(label, table(header, [row(i) for i in rest], caption="The other families", text_columns=2)))
    text = "The upper bar is the family's share of the selection, the lower its share of the pool; lift is the first "
    text += "divided by the second, so above ×1 the kernel favours the family."
    parts.append(tag("p", tag("b", "How to read: "), text, class_="caption"))
    return section("families", title, *parts)


def _shares(f: dict[str, Any], pool: float, chosen: float) -> tuple[float, float]:
    in_pool = (finite(f.get("pool")) or 0.0) / pool if pool else 0.0
    return in_pool, (finite(f.get("selected")) or 0.0) / chosen if chosen else 0.0


def _n(value: Any, share: float) -> Html:
    return join([count(value), tag("small", percent(share))], " ")


def _bars(in_pool: float, in_selection: float, widest: float) -> Html:
    """Two thin bars on one scale; the numbers stand in the same row, so a screen reader skips the picture."""
    bars = [("fill-selected", in_selection), ("fill-pool", in_pool)]
    # A share that is not nothing stays visible (min-width in style.css); nothing leaves its place empty.
    wide = [f"width:{share / widest * 100:.2f}%" + ("" if share else ";min-width:0") for _, share in bars]
    made = [tag("span", class_=name, style=style) for (name, _), style in zip(bars, wide, strict=True)]
    return tag("div", *made, class_="bars", aria_hidden="true")


def _summary(
    run: Run, rows: Sequence[dict[str, Any]], shares: Sequence[tuple[float, float]], known: bool
) -> Html | None:
    if not known:
        return None
    parts = useful_sentence(run)
    none = sum(1 for f in rows if not finite(f.get("selected")))
    top = sorted((share for _, share in shares), reverse=True)[:3]
    share = percent(sum(top))
    parts.append(
        f"{len(rows) - none} of {len(rows)} families appear in the selection; the three most selected make up {share}."
    )
    if run.setting("preselect", "method", "none") != "none":
        scored = count(run.select.get("scored"))
        parts.append(f"Only the {scored} candidates that pre-selection left have scores; shares are of the whole pool.")
    return tag("p", " ".join(parts), class_="lead")


def scores(run: Run) -> Html:
    """Histogram of the scores, whole and enlarged right of the threshold."""
    title = "Scores"
    data = mapping(run.selection.get("histogram"))
    edges, pool = numbers(data.get("edges")), numbers(data.get("pool"))
    if not edges or not pool or len(edges) != len(pool) + 1 or edges[-1] <= edges[0]:
        return section("scores", title, missing(run, "select", "score histogram"))
    selected = numbers(data.get("selected"))
    selected = selected if selected and len(selected) == len(pool) and sum(selected) else None
    threshold = finite(run.select.get("threshold"))
    drawing = histogram(edges, pool, selected, threshold, description="Histogram of the scores of pool and selection.")
    text = "Bars count pool examples by score, the part in the selection's colour was selected"
    text += "; right of the dashed line everything was." if threshold is not None else "."
    parts = [figure(drawing, "Pool and selection", text)]
    if selected and max(selected) < 0.25 * max(pool):
        first = next(i for i, n in enumerate(selected) if n)
        start = max(0, min(first - 2, len(pool) - 4))
        close = histogram(
            edges[start:],
            pool[start:],
            selected[start:],
            threshold,
            description="The same histogram right of the threshold, enlarged.",
        )
        parts.append(
            figure(
                close,
                "The selected end, enlarged",
                "The same bars from just left of the threshold on, with a finer count axis.",
            )
        )
    facts = [f"{count(run.selection.get('scored'))} examples were scored"]
    if run.select:
        facts.append(f"{count(run.select.get('count'))} selected")
        if threshold is not None:
            facts.append(f"the lowest selected score is {general(threshold)}")
    return section("scores", title, tag("p", "; ".join(facts) + ".", class_="lead"), grid(*parts))


def lengths(run: Run) -> Html:
    """Score against length, per example and per family, and the rank correlations."""
    title = "Does the score just follow length?"
    if not run.score:
        return section("length", title, missing(run, run.scoring, "scores"))
    span, total = (finite(run.selection.get(f"spearman_{what}_length")) for what in ("span", "total"))
    words = [
        f"{signed(value)} with the {what} ({strength(value)})"
        for value, what in ((span, "response length"), (total, "length of the whole example"))
        if value is not None
    ]
    parts: list[object] = []
    if words:
        parts.append(tag("p", "Spearman correlation of the score: " + ", ".join(words) + ".", class_="lead"))
    median = mapping(run.select.get("median_tokens"))
    if finite(median.get("selected")) is not None:
        of = [
            f"{name} {count(median[name])}"
            for name in ("pool", "selected", "random")
            if finite(median.get(name)) is not None
        ]
        parts.append(tag("p", f"Median length of a whole example in tokens: {', '.join(of)}."))
    threshold = finite(run.select.get("threshold"))
    figures = []
    if run.scores is not None:
        what = f"{run.scores.what} length"
        bins = length_bins(run.scores.score, run.scores.length, threshold)
        drawing = score_by_length(bins, threshold, what, description=f"Score quantiles by {what}.")
        text = f"The line is the median score at each {what}, the bands hold the middle 50% and 90% of the "
        text += "examples."
        if threshold is not None:
            text += " The bars below say how much of each length was selected."
        figures.append(figure(drawing, f"Score by {what}", text))
    useful = {str(name) for name in run.setting("report", "useful", [])}
    drawn = _bubbles(records(run.selection.get("families")), useful)
    if len(drawn) > 1:
        text = "Each circle is a family, its area the family's size in the pool; coloured circles are favoured by the "
        text += "selection (lift above 1)"
        text += ", a heavy rim marks families known to be useful." if useful else "."
        figures.append(
            figure(
                bubbles(drawn, description="Families by median length and mean score."),
                "Families by length and score",
                text,
            )
        )
    if figures:
        parts.append(grid(*figures))
    return section("length", title, *(parts or [missing(run, run.scoring, "length statistics")]))


def _bubbles(rows: Sequence[dict[str, Any]], useful: set[str]) -> list[Bubble]:
    pool, chosen = (sum(finite(f.get(key)) or 0.0 for f in rows) for key in ("pool", "selected"))
    found = []
    for f in rows:
        tokens, score, size = (finite(f.get(key)) for key in ("median_tokens", "mean_score", "pool"))
        if tokens is not None and score is not None and size:
            in_pool, in_selection = _shares(f, pool, chosen)
            name = str(f.get("name"))
            found.append(
                Bubble(name, max(tokens, 1.0), score, size, in_selection / in_pool if chosen else None, name in useful)
            )
    return found
