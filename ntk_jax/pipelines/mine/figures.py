"""The figures of mining, each of plain numbers: cosines and where they are cut, precision against recall, what was
dropped and taken, which cells the seeds cover, how often the judge agreed, perplexity along the training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ntk_jax.report.amounts import count, general, percent
from ntk_jax.report.axes import (
    Scale,
    bottom_axis,
    label,
    left_axis,
    line,
    path,
    px,
    rect,
    shorten,
    svg,
    text_width,
    tick_labels,
    ticks,
)
from ntk_jax.report.figures import Mark, WhiskerRow, whiskers
from ntk_jax.report.figures_bars import color_of
from ntk_jax.report.markup import Html, tag

MOST_POINTS = 200  # of a curve that is drawn

_Parts = list[Html]


def rootogram(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    threshold: float | None,
    x_title: str,
    description: str,
    unit: str = "chunks",
    width: float = 560,
) -> Html:
    """Counts per bin on a square-root scale (Tukey's), on which a thin tail behind a dashed threshold is still seen.
    edges: [B + 1], counts: [B]. Bins that begin at or above the threshold are coloured."""
    height, top = 230.0, 34.0
    ceiling = math.sqrt(max(max(counts), 1.0)) * 1.05
    y = Scale(0, ceiling, height, top)
    y_values = [v for v in _round_counts(max(counts)) if math.sqrt(v) <= ceiling]
    left = max(text_width(count(v), 11.5) for v in y_values) + 12
    x = Scale(edges[0], edges[-1], left, width - 12)
    x_values = ticks(x.low, x.high, 6)
    parts: _Parts = bottom_axis(x, height, x_values, tick_labels(x_values), x_title, height)
    heights = [math.sqrt(v) for v in y_values]
    parts += left_axis(y, left, heights, [count(v) for v in y_values], f"{unit}, square-root scale", width - 12)
    for i, n in enumerate(counts):
        if n > 0:
            a, b = x(edges[i]), x(edges[i + 1])
            color = "fill-selected" if threshold is not None and edges[i] >= threshold else "fill-pool"
            about = f"{general(edges[i])} to {general(edges[i + 1])}: {count(n)} {unit}"
            at = y(math.sqrt(n))
            parts.append(rect(a, at, b - a - (0.6 if b - a > 3 else 0.0), height - at, color, about))
    if threshold is not None and x.low <= threshold <= x.high:
        at = x(threshold)
        side = "end" if at > (x.start + x.end) / 2 else "start"
        parts.append(line(at, top - 6, at, height, "reference"))
        text = f"threshold {general(threshold)}"
        parts.append(label(at + (-5 if side == "end" else 5), top + 4, text, "note halo", side))
    return svg(width, height + 42, description, *parts)


def _round_counts(most: float) -> list[float]:
    """0 and 1, 4, 10, 40, 100, ... up to `most`: as good as evenly apart on a square-root scale."""
    found, decade = [0.0], 1.0
    while decade <= most:
        found += [v for v in (decade, 4 * decade) if most / 120 <= v <= most]
        decade *= 10
    return found


@dataclass(frozen=True)
class PrecisionRecall:
    """A domain's curve. threshold, precision, recall: [T], highest threshold first. chosen: the threshold that was
    taken. base_rate: the precision of taking everything."""

    name: str
    recall: Sequence[float]
    precision: Sequence[float]
    chosen: tuple[float, float] | None = None  # (recall, precision)
    base_rate: float | None = None


def precision_recall_curves(curves_of: Sequence[PrecisionRecall], *, description: str, width: float = 560) -> Html:
    """Precision against recall as steps, a dot where each curve's threshold lies, its base rate as a dashed line."""
    height, top, left = 260.0, 34.0, 44.0
    names = [curve.name for curve in curves_of]
    key_width = min(max(text_width(name, 11.5) for name in names) + 40, width * 0.36)
    x, y = Scale(0, 1, left, width - key_width), Scale(0, 1, height, top)
    shares = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    labels = [percent(v, 0) for v in shares]
    parts: _Parts = bottom_axis(x, height, shares, labels, "recall: share of the domain that is found", height)
    parts += left_axis(y, left, shares, labels, "precision: share of what is taken that belongs", width - key_width)
    for number, curve in enumerate(curves_of):
        color = color_of(number)
        points = [(x(0), y(curve.precision[0]))]
        for recall, precision in zip(*_thinned(curve.recall, curve.precision), strict=True):
            points += [(x(recall), points[-1][1]), (x(recall), y(precision))]
        parts.append(path(points, f"line {color}"))
        if curve.base_rate is not None:
            at = y(curve.base_rate)
            about = tag("title", f"{curve.name}: {percent(curve.base_rate)} of all chunks belong")
            parts += [
                tag("g", about, line(left, at, width - key_width, at, f"whisker {color}"), stroke_dasharray="2 4")
            ]
        if curve.chosen is not None:
            where = f"{curve.name}: precision {percent(curve.chosen[1])} at recall {percent(curve.chosen[0])}"
            at_x, at_y = px(x(curve.chosen[0])), px(y(curve.chosen[1]))
            parts.append(tag("circle", tag("title", where), cx=at_x, cy=at_y, r="5", class_=f"dot {color}"))
        row = top + 14 + 20 * number
        parts += [line(width - key_width + 12, row - 4, width - key_width + 28, row - 4, f"line {color}")]
        parts += [label(width - key_width + 33, row, shorten(curve.name, key_width - 34, 11.5), "tick")]
    return svg(width, height + 42, description, *parts)


def _thinned(recall: Sequence[float], precision: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `MOST_POINTS` points, first and last among them, spread evenly over the recall."""
    if len(recall) <= MOST_POINTS:
        return list(recall), list(precision)
    kept, reached = [0], 0.0
    for i in range(1, len(recall)):
        if recall[i] - reached >= 1 / MOST_POINTS or i == len(recall) - 1:
            kept.append(i)
            reached = recall[i]
    return [recall[i] for i in kept], [precision[i] for i in kept]


def cell_map(
    table: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    description: str,
    width: float = 560,
) -> Html:
    """A rectangle of cells, darker for more; the number stands in each that has any. Column names stand slanted."""
    tail = min(max(text_width(name, 11.5) for name in rows), width * 0.38) + 8
    top = min(max(text_width(name, 11.5) for name in columns), 150.0) * 0.72 + 14
    overhang = min(text_width(columns[-1], 11.5), 150.0) * 0.72
    cell, tall = (width - tail - overhang) / len(columns), 22.0
    most = max((value for row in table for value in row), default=0.0) or 1.0
    parts: _Parts = []
    for j, name in enumerate(columns):
        at = f"{px(tail + cell * (j + 0.5))} {px(top - 6)}"
        words = [tag("title", name), shorten(name, 150, 11.5)]
        parts.append(tag("text", *words, class_="tick", transform=f"translate({at}) rotate(-45)"))
    for i, name in enumerate(rows):
        y = top + tall * i
        parts.append(label(tail - 6, y + tall / 2 + 4, shorten(name, tail, 11.5), "tick", "end"))
        for j, value in enumerate(table[i]):
            about = tag("title", f"{name}, {columns[j]}: {count(value)}")
            size = {"width": px(cell - 1), "height": px(tall - 1)}
            share = 0.85 * value / most
            x = tail + cell * j
            parts.append(tag("rect", about, x=px(x), y=px(y), class_="heat-cell", fill_opacity=f"{share:.2f}", **size))
            if value:
                ink = "value heat-dark" if share > 0.55 else "value"
                parts.append(label(x + cell / 2, y + tall / 2 + 4, count(value), ink, "middle"))
    return svg(width, top + tall * len(rows) + 6, description, *parts)


def agreement(rows: Mapping[str, tuple[float, float | None, float | None]], *, description: str) -> Html:
    """The judge's agreement by domain with its interval: {domain: (share, low, high)}."""
    drawn = [
        WhiskerRow(name, "c-blue", (Mark("normalized", value, low, high, percent(value)),))
        for name, (value, low, high) in rows.items()
    ]
    return whiskers(drawn, title="% of judged chunks", reference=None, scale_by=100, description=description)
