"""The report's figures as inline SVG: dots with whiskers, histograms, curves, score by length, families.

Drawn here and not by a plotting library because the page must stand alone, follow the reader's light or dark
scheme (colours are CSS classes) and come out byte for byte the same for the same numbers. Marks never differ by
colour alone: rows are labelled, curves carry their name at the end, filled and hollow dots have a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ntk_jax.report.amounts import count, general, power
from ntk_jax.report.axes import (
    Scale,
    bottom_axis,
    exponent,
    label,
    left_axis,
    line,
    log_ticks,
    path,
    px,
    rect,
    shorten,
    svg,
    text_width,
    tick_labels,
    ticks,
)
from ntk_jax.report.markup import Html, tag

Kind = Literal["normalized", "raw"]
KINDS: tuple[Kind, ...] = ("normalized", "raw")  # of likelihood


@dataclass(frozen=True)
class Mark:
    """One dot with its interval (None: no whisker)."""

    kind: str
    value: float
    low: float | None
    high: float | None
    text: str  # printed at the right edge


@dataclass(frozen=True)
class WhiskerRow:
    """A labelled row of one or two marks; `color` is a CSS class."""

    name: str
    color: str
    marks: tuple[Mark, ...]


def whiskers(
    rows: Sequence[WhiskerRow],
    *,
    title: str,
    reference: tuple[float, str] | None,
    scale_by: float = 1.0,
    width: float = 560,
    description: str,
) -> Html:
    """Dots with whiskers, one row per arm; filled dots are normalized, hollow ones raw.

    `reference` is a vertical dashed line (chance, or zero difference) with its name. Values times `scale_by`
    (100 for percent) are what the axis shows.
    """
    shown = [v for r in rows for m in r.marks for v in (m.value, m.low, m.high) if v is not None]
    shown += [reference[0]] if reference else []
    low, high = min(shown) * scale_by, max(shown) * scale_by
    margin = max((high - low) * 0.06, 0.005 * scale_by)
    name_width = min(max(text_width(r.name) for r in rows), width * 0.34)
    value_width = max(text_width(m.text, 11.5) for r in rows for m in r.marks) + 10
    row_height, top = 38, 40
    bottom = top + row_height * len(rows)
    x = Scale(low - margin, high + margin, name_width + 14, width - value_width - 6)
    values = ticks(x.low, x.high, 5 if width > 450 else 4)
    parts: list[Html] = [*bottom_axis(x, bottom, values, tick_labels(values), title, top)]
    kinds = [k for k in KINDS if any(m.kind == k for r in rows for m in r.marks)]
    at = x.start
    for kind in kinds if len(kinds) > 1 else ():  # one kind needs no key
        parts += [tag("circle", cx=px(at + 5), cy="10", r="4.5", class_=f"dot {kind} c-key")]
        parts += [label(at + 14, 14, kind, "tick")]
        at += 30 + text_width(kind, 11.5)
    if reference:
        at_x = x(reference[0] * scale_by)
        parts += [line(at_x, top - 4, at_x, bottom, "reference")]
        side = "end" if at_x > (x.start + x.end) / 2 else "start"
        parts += [label(at_x + (-5 if side == "end" else 5), top - 6, reference[1], "note", side)]
    for i, row in enumerate(rows):
        middle = top + row_height * (i + 0.5)
        name = label(name_width, middle + 4, shorten(row.name, name_width + 2), "name", "end")
        parts += [tag("g", tag("title", row.name), name)]
        step = 13 if len(row.marks) > 1 else 0
        for j, mark in enumerate(row.marks):
            y = middle + step * (j - (len(row.marks) - 1) / 2)
            if mark.low is not None and mark.high is not None:
                left, right = x(mark.low * scale_by), x(mark.high * scale_by)
                parts += [line(left, y, right, y, f"whisker {row.color}")]
                parts += [line(end, y - 3.5, end, y + 3.5, f"whisker {row.color}") for end in (left, right)]
            dot = tag(
                "circle", cx=px(x(mark.value * scale_by)), cy=px(y), r="4.5", class_=f"dot {mark.kind} {row.color}"
            )
            parts += [dot, label(width - 2, y + 4, mark.text, "value", "end")]
    return svg(width, bottom + 42, description, *parts)


def histogram(
    edges: Sequence[float],
    pool: Sequence[float],
    selected: Sequence[float] | None,
    threshold: float | None,
    *,
    description: str,
    x_title: str = "score",
    width: float = 560,
) -> Html:
    """Counts per bin, the selected in front of the pool on the same axes; a dashed line at the threshold."""
    power_of_ten = exponent(edges[0], edges[-1])
    unit = 10.0**power_of_ten
    height, top = 230, 42
    ceiling = max(max(pool), 1.0) * 1.04
    y = Scale(0, ceiling, height, top)
    y_values = [v for v in ticks(0, ceiling, 4) if v == round(v)]
    left = max(text_width(t, 11.5) for t in tick_labels(y_values)) + 12
    x = Scale(edges[0] / unit, edges[-1] / unit, left, width - 12)
    x_values = ticks(x.low, x.high, 6)
    name = x_title + (f" (× {power(power_of_ten)})" if power_of_ten else "")
    parts = bottom_axis(x, height, x_values, tick_labels(x_values), name, height)
    parts += left_axis(y, left, y_values, tick_labels(y_values), "examples", width - 12)
    for i, n in enumerate(pool):
        a, b = x(edges[i] / unit), x(edges[i + 1] / unit)
        gap = 0.6 if b - a > 3 else 0.0
        chosen = selected[i] if selected else 0
        about = f"{general(edges[i])} to {general(edges[i + 1])}: {count(n)} in the pool, {count(chosen)} selected"
        if n:
            parts += [rect(a, y(n), b - a - gap, height - y(n), "fill-pool", about)]
        if chosen:
            parts += [rect(a, y(chosen), b - a - gap, height - y(chosen), "fill-selected", about)]
    if threshold is not None and x.low <= threshold / unit <= x.high:
        at = x(threshold / unit)
        side = "end" if at > (x.start + x.end) / 2 else "start"
        parts += [line(at, top - 6, at, height, "reference")]
        text = f"threshold {general(threshold / unit)}"
        parts += [label(at + (-5 if side == "end" else 5), top + 4, text, "note halo", side)]
    keys = [("fill-pool", "pool")] + ([("fill-selected", "selected")] if selected else [])
    at = width - 12 - sum(24 + text_width(text, 11.5) for _, text in keys)
    for color, text in keys:
        parts += [rect(at, 5, 10, 10, color), label(at + 14, 14, text, "tick")]
        at += 24 + text_width(text, 11.5)
    return svg(width, height + 42, description, *parts)


@dataclass(frozen=True)
class Curve:
    """A named line over optimiser steps."""

    name: str
    color: str
    steps: Sequence[float]
    values: Sequence[float]


def curves(
    series: Sequence[Curve],
    *,
    y_title: str,
    description: str,
    x_title: str = "optimiser step",
    log: bool = False,
    width: float = 560,
) -> Html:
    """Lines over steps: the raw values faint, their moving mean bold, the name at the line's end. log: the x axis."""
    drawn = [(c, *_thin(c.steps, c.values)) for c in series]
    smooth = [_moving_mean(values) for _, _, values in drawn]
    bold = [v for values in smooth for v in values]
    # The axis follows the bold lines: a single spike of the raw values would otherwise flatten everything else.
    low, high = min(bold), max(bold)
    margin = max((high - low) * 0.12, abs(high) * 0.02) or 1.0  # of what is nought everywhere
    height, top = 240, 34
    power_of_ten = exponent(low, high)
    unit = 10.0**power_of_ten
    y = Scale((low - margin) / unit, (high + margin) / unit, height, top)
    y_values = ticks(y.low, y.high, 5)
    left = max(text_width(t, 11.5) for t in tick_labels(y_values)) + 12
    tail = min(max(text_width(c.name) for c in series), width * 0.3) + 10
    last = max(max(steps) for _, steps, _ in drawn)
    x = Scale(min(min(steps) for _, steps, _ in drawn), last, left, width - tail, log)
    x_values = [v for v in (log_ticks if log else ticks)(x.low, x.high) if v == round(v)]
    name = y_title + (f" (× {power(power_of_ten)})" if power_of_ten else "")
    parts = bottom_axis(x, height, x_values, tick_labels(x_values), x_title, height)
    parts += left_axis(y, left, y_values, tick_labels(y_values), name, width - tail)
    ends: list[tuple[float, Curve]] = []
    for (curve, steps, values), mean in zip(drawn, smooth, strict=True):
        inside = [(x(s), min(max(y(v / unit), top), height)) for s, v in zip(steps, values, strict=True)]
        bold_points = [(x(s), y(v / unit)) for s, v in zip(steps, mean, strict=True)]
        if len(inside) > 1:
            parts += [path(inside, f"raw-line {curve.color}"), path(bold_points, f"line {curve.color}")]
        else:
            parts += [tag("circle", cx=px(inside[0][0]), cy=px(inside[0][1]), r="3.5", class_=f"dot {curve.color}")]
        ends.append((bold_points[-1][1], curve))
    for (at, curve), shift in zip(sorted(ends, key=lambda e: e[0]), _spread(sorted(e[0] for e in ends)), strict=True):
        parts += [line(width - tail + 1, at, width - tail + 6, shift, f"line thin {curve.color}")]
        parts += [label(width - tail + 8, shift + 4, shorten(curve.name, tail - 8), f"name t-{curve.color}")]
    return svg(width, height + 42, description, *parts)


def _thin(steps: Sequence[float], values: Sequence[float], most: int = 400) -> tuple[list[float], list[float]]:
    """At most `most` points: means of neighbours, so that a run of 100,000 steps is still a small page."""
    size = -(-len(steps) // most)
    groups = range(0, len(steps), size)
    mean = lambda part: sum(part) / len(part)  # noqa: E731
    return [mean(steps[i : i + size]) for i in groups], [mean(values[i : i + size]) for i in groups]


def _moving_mean(values: Sequence[float]) -> list[float]:
    """A mean over about a twelfth of the curve around each point; at the ends, over the half that is there."""
    half = len(values) // 24
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(w) / len(w) for w in windows]


def _spread(ys: list[float], gap: float = 15.0) -> list[float]:
    """Moves sorted label positions apart until none overlap, keeping their order and centre of mass."""
    out = list(ys)
    for _ in range(50):
        moved = False
        for i in range(len(out) - 1):
            overlap = gap - (out[i + 1] - out[i])
            if overlap > 1e-6:
                out[i] -= overlap / 2
                out[i + 1] += overlap / 2
                moved = True
        if not moved:
            break
    return out
