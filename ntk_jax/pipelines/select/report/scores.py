"""The first method's scores: how they are distributed, and whether they follow length."""

from __future__ import annotations

from ntk_jax.pipelines.select.report.layout import section
from ntk_jax.pipelines.select.report.run import SelectRun, scores_and_lengths
from ntk_jax.pipelines.select.report.selection import chosen, family_rows, family_shares, useful_families
from ntk_jax.pipelines.select.report.warnings import strength
from ntk_jax.report.amounts import count, finite, general, signed
from ntk_jax.report.figures import histogram
from ntk_jax.report.figures_length import Bubble, bubbles, length_bins, score_by_length
from ntk_jax.report.layout import Figure, Section
from ntk_jax.report.reading import mapping, numbers


def scores(run: SelectRun) -> Section:
    """Histogram of the scores, whole and enlarged right of the threshold."""
    data = mapping(run.found.get("histogram"))
    edges, pool = numbers(data.get("edges")), numbers(data.get("pool"))
    if not edges or not pool or len(edges) != len(pool) + 1 or edges[-1] <= edges[0]:
        return section("scores", "Scores", missing=_no_scores(run, "score histogram"), lead="", figures=[])
    selected = numbers(data.get("selected"))
    selected = selected if selected and len(selected) == len(pool) and sum(selected) else None
    threshold = finite(run.found.get("threshold"))
    drawing = histogram(edges, pool, selected, threshold, description="Histogram of the scores of pool and selection.")
    text = "Bars count pool examples by score, the part in the selection's colour was selected"
    text += "; right of the dashed line everything was." if threshold is not None else "."
    figures = [Figure("Pool and selection", drawing, text)]
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
        text = "The same bars from just left of the threshold on, with a finer count axis."
        figures.append(Figure("The selected end, enlarged", close, text))
    facts = [
        f"“{run.first.title if run.first else ''}”: {count(run.summary.get('scored'))} examples were scored",
        f"{count(run.found.get('count'))} selected",
    ]
    if threshold is not None:
        facts.append(f"the lowest selected score is {general(threshold)}")
    return section("scores", "Scores", missing=None, lead="; ".join(facts) + ".", figures=figures)


def _no_scores(run: SelectRun, what: str) -> str:
    """A method may rank without a score above which everything is taken; that is no gap in the run."""
    if run.first and run.found and not run.found.get("histogram"):
        return f"No {what}: “{run.first.title}” recorded no scores."
    return run.directory.missing("select", what)


def lengths(run: SelectRun) -> Section:
    """Score against length, per example and per family, and the rank correlations."""
    words = [
        f"{signed(value)} with the {what} ({strength(value)})"
        for value, what in (
            (finite(run.found.get("spearman_span_length")), "response length"),
            (finite(run.found.get("spearman_total_length")), "length of the whole example"),
        )
        if value is not None
    ]
    title = run.first.title if run.first else ""
    lead = f"Spearman correlation of the score of “{title}”: {', '.join(words)}." if words else ""
    figures = [figure for figure in (_by_length(run), _by_family(run)) if figure is not None]
    missing = None if lead or figures else _no_scores(run, "length statistics")
    return section("length", "Length", missing=missing, lead=lead, figures=figures)


def _by_length(run: SelectRun) -> Figure | None:
    found, threshold = scores_and_lengths(run), finite(run.found.get("threshold"))
    if found is None:
        return None
    what = f"{found.what} length"
    bins = length_bins(found.score, found.length, threshold)
    drawing = score_by_length(bins, threshold, what, description=f"Score quantiles by {what}.")
    text = f"The line is the median score at each {what}, the bands hold the middle 50% and 90% of the examples."
    if threshold is not None:
        text += " The bars below say how much of each length was selected."
    return Figure(f"Score by {what}", drawing, text)


def _by_family(run: SelectRun) -> Figure | None:
    useful, drawn = useful_families(run), _bubbles(run)
    if len(drawn) < 2:
        return None
    text = "Each circle is a family, its area the family's size in the pool; coloured circles are favoured by the "
    text += "selection (lift above 1)"
    text += ", a heavy rim marks families known to be useful." if useful else "."
    drawing = bubbles(drawn, description="Families by median length and mean score.")
    return Figure("Families by length and score", drawing, text)


def _bubbles(run: SelectRun) -> list[Bubble]:
    rows, useful = family_rows(run), useful_families(run)
    any_chosen = run.first is not None and any(chosen(f, run.first.name) for f in rows)
    found = []
    for f, (in_pool, in_selection) in zip(rows, family_shares(run, rows), strict=True):
        tokens, score, size = (finite(f.get(key)) for key in ("median_tokens", "mean_score", "pool"))
        if tokens is not None and score is not None and size:
            lift = in_selection / in_pool if any_chosen else None
            name = str(f.get("name"))
            found.append(Bubble(name, max(tokens, 1.0), score, size, lift, name in useful))
    return found
