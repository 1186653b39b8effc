"""Figures of score against length: per example (bands over length bins) and per family (bubbles)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ntk_jax.report.amounts import count, general, percent, power
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

_QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class LengthBin:
    """Examples whose length is in [low, high): how many, score quantiles 5 25 50 75 95, and the share selected."""

    low: float
    high: float
    members: int
    quantiles: tuple[float, ...]
    selected: float


def length_bins(score: np.ndarray, length: np.ndarray, threshold: float | None, bins: int = 18) -> list[LengthBin]:
    """Bins of about equal members over the sorted lengths; equal lengths are never split over two bins.

    Args:
        score, length: [N].
        threshold: examples scoring at least this count as selected.
    """
    edges = np.unique(np.quantile(length, np.linspace(0, 1, bins + 1), method="nearest"))
    edges = np.append(edges[:-1] if len(edges) > 1 else edges, length.max() + 1)
    found = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = score[(length >= low) & (length < high)]
        if len(inside):
            quantiles = tuple(float(q) for q in np.percentile(inside, _QUANTILES))
            chosen = 0.0 if threshold is None else float((inside >= threshold).mean())
            found.append(LengthBin(float(low), float(high), len(inside), quantiles, chosen))
    return found


def score_by_length(
    bins: Sequence[LengthBin], threshold: float | None, what: str, *, description: str, width: float = 560
) -> Html:
    """Median, quartile band and 5–95% band of the score over length; below, the share of each bin selected."""
    values = [q for b in bins for q in b.quantiles] + ([threshold] if threshold is not None else [])
    power_of_ten = exponent(min(values), max(values))
    unit = 10.0**power_of_ten
    margin = (max(values) - min(values)) * 0.05 or abs(values[0]) * 0.05 or 1.0
    top, height, strip_top, strip = 34, 230, 268, 312
    y = Scale((min(values) - margin) / unit, (max(values) + margin) / unit, height, top)
    y_values = ticks(y.low, y.high, 5)
    left = max([text_width(t, 11.5) for t in tick_labels(y_values)] + [34]) + 12
    x = Scale(max(bins[0].low, 1.0) / 1.1, max(bins[-1].high, bins[0].low + 1, 2.0), left, width - 12, log=True)
    x_values = log_ticks(x.low, x.high)
    name = "score" + (f" (× {power(power_of_ten)})" if power_of_ten else "")
    parts = left_axis(y, left, y_values, tick_labels(y_values), name, width - 12)
    middles = [x(math.sqrt(max(b.low, 1.0) * max(b.high - 1, b.low, 1.0))) for b in bins]
    if len(bins) > 1:
        for outer, inner, class_ in ((0, 4, "band-wide"), (1, 3, "band-narrow")):
            up = [(m, y(b.quantiles[inner] / unit)) for m, b in zip(middles, bins, strict=True)]
            down = [(m, y(b.quantiles[outer] / unit)) for m, b in zip(middles, bins, strict=True)]
            parts += [path(up + down[::-1], class_, close=True)]
        parts += [path([(m, y(b.quantiles[2] / unit)) for m, b in zip(middles, bins, strict=True)], "line c-blue")]
    for m, b in zip(middles, bins, strict=True):
        about = f"{_range(b)} tokens: {count(b.members)} examples, median score {general(b.quantiles[2])}"
        parts += [
            tag("circle", tag("title", about), cx=px(m), cy=px(y(b.quantiles[2] / unit)), r="3", class_="dot c-blue")
        ]
    if threshold is not None:
        at = y(threshold / unit)
        parts += [line(left, at, width - 12, at, "reference")]
        parts += [label(width - 14, at - 5, f"threshold {general(threshold / unit)}", "note halo", "end")]
    foot = height if threshold is None else strip  # without a threshold it is not known what was selected
    if threshold is not None:
        most = max(b.selected for b in bins)
        ceiling = max(most, 1e-9)
        share = Scale(0, ceiling * 1.02, strip, strip_top)
        parts += [label(2, strip_top - 9, "share selected", "title")]
        parts += [line(left, share(v), width - 12, share(v), "grid") for v in (0, ceiling)]
        parts += [
            label(left - 6, share(v) + 4, percent(v, 0 if v >= 0.095 or not v else 1), "tick", "end")
            for v in (0.0, most)
        ]
        for b in bins:
            a, z = x(max(b.low, 1.0)), x(b.high)
            about = f"{_range(b)} tokens: {percent(b.selected)} of {count(b.members)} selected"
            parts += [rect(a, share(b.selected), max(z - a - 1, 1), strip - share(b.selected), "fill-selected", about)]
    parts += bottom_axis(x, foot, x_values, tick_labels(x_values), f"{what} in tokens (logarithmic)", foot)
    return svg(width, foot + 42, description, *parts)


def _range(b: LengthBin) -> str:
    return count(b.low) if b.high - 1 <= b.low else f"{count(b.low)}–{count(b.high - 1)}"


@dataclass(frozen=True)
class Bubble:
    """A family: median length, mean score, examples in the pool, share of the selection over share of the pool."""

    name: str
    tokens: float
    score: float
    pool: float
    lift: float | None
    useful: bool


def bubbles(families: Sequence[Bubble], *, description: str, width: float = 560, names: int = 9) -> Html:
    """Families by median length and mean score; area is the size in the pool, colour whether selection favours it."""
    scores = [b.score for b in families]
    power_of_ten = exponent(min(scores), max(scores))
    unit = 10.0**power_of_ten
    margin = (max(scores) - min(scores)) * 0.1 or abs(scores[0]) * 0.1 or 1.0
    top, height = 34, 312
    y = Scale((min(scores) - margin) / unit, (max(scores) + margin) / unit, height, top)
    y_values = ticks(y.low, y.high, 5)
    left = max(text_width(t, 11.5) for t in tick_labels(y_values)) + 12
    shortest, longest = min(b.tokens for b in families), max(b.tokens for b in families)
    x = Scale(max(shortest, 0.5) / 1.25, max(longest, 1.0) * 1.25, left, width - 12, log=True)
    x_values = log_ticks(x.low, x.high)
    name = "mean score" + (f" (× {power(power_of_ten)})" if power_of_ten else "")
    parts = bottom_axis(
        x, height, x_values, tick_labels(x_values), "median length of the whole example in tokens (logarithmic)", top
    )
    parts += left_axis(y, left, y_values, tick_labels(y_values), name, width - 12)
    largest = max(b.pool for b in families) or 1.0
    taken: list[tuple[float, float, float, float]] = []
    circles, notes = [], []
    worth = [b for b in families if b.useful or b.lift is None or b.lift > 1]
    named = sorted(worth, key=lambda b: (not b.useful, -(b.lift or 0), -b.score, b.name))[:names]
    for b in sorted(families, key=lambda b: (-b.pool, b.name)):  # large ones first, so that small ones stay visible
        radius = 3 + 11 * math.sqrt(max(b.pool, 0) / largest)
        state = "liked" if b.lift is not None and b.lift > 1 else "plain"
        about = (
            f"{b.name}: median {general(b.tokens)} tokens, mean score {general(b.score)}, {count(b.pool)} in the pool"
        )
        circle = tag("circle", tag("title", about), cx=px(x(b.tokens)), cy=px(y(b.score / unit)), r=px(radius))
        circles.append(tag("g", circle, class_=f"bubble {state}{' useful' if b.useful else ''}"))
    for b in named:  # a name may cover a plain circle, never another name or a named circle
        half = 2 + 7 * math.sqrt(max(b.pool, 0) / largest)
        taken.append((x(b.tokens) - half, y(b.score / unit) - half, x(b.tokens) + half, y(b.score / unit) + half))
    for b in named:
        radius = 3 + 11 * math.sqrt(max(b.pool, 0) / largest)
        text = shorten(b.name, 150, 11.5)
        size = text_width(text, 11.5)
        cx, cy = x(b.tokens), y(b.score / unit)
        for at, dy in (
            (cx + radius + 3, 4),
            (cx - radius - 3 - size, 4),
            (cx - size / 2, -radius - 4),
            (cx - size / 2, radius + 12),
        ):
            box = (at, cy + dy - 10, at + size, cy + dy + 2)
            free = all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken)
            if free and at > left and box[2] < width - 8 and box[1] > top - 8 and box[3] < height:
                taken.append(box)
                notes.append(label(at, cy + dy, text, "note halo"))
                break
    return svg(width, height + 42, description, *parts, *circles, *notes)
