"""Forest plots and gains by cost, drawn with the helpers of the report's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ntk_jax.report.amounts import metric, minus
from ntk_jax.report.axes import (
    Scale,
    bottom_axis,
    label,
    left_axis,
    line,
    log_ticks,
    path,
    px,
    svg,
    text_width,
    tick_labels,
    ticks,
)
from ntk_jax.report.figures import Mark, WhiskerRow, whiskers
from ntk_jax.report.markup import Html, tag

APART = 14.0  # px between two names that are beside each other


def forest(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    *,
    in_percent: bool = False,
    lowest_first: bool = False,
    zero: str = "no difference",
) -> Html:
    """A row an arm with its interval, best first; grey where the interval holds zero, which is called so."""
    scale = 100.0 if in_percent else 1.0
    made = []
    for row in sorted(rows, key=lambda row: row["value"] if lowest_first else -row["value"]):
        low, high = row["low"], row["high"]
        text = minus(f"{scale * row['value']:+.{1 if in_percent else 3}f}")
        clear = low is not None and (low > 0 or high < 0)
        mark = Mark("normalized", row["value"], low, high, text)
        made.append(WhiskerRow(row["arm"], "c-blue" if clear else "c-grey", (mark,)))
    title = title + (", points" if in_percent else "")
    return whiskers(made, title=title, reference=(0.0, zero), scale_by=scale, width=640, description=title)


def pareto(points: Sequence[tuple[str, float, float]], title: str) -> Html:
    """Gain (y) by the FLOPs of the selection (x, logarithmic; what costs nothing stands at the left end). points:
    (name, FLOPs, gain). Those that nothing cheaper reaches are filled, and joined."""
    width, height, top, free = 640.0, 300.0, 34.0, 64.0
    costs = sorted(cost for _, cost, _ in points if cost > 0) or [1.0]
    gains = [gain for _, _, gain in points]
    margin = (max(gains) - min(gains)) * 0.1 or 1.0
    y = Scale(min(gains) - margin, max(gains) + margin, height, top)
    y_values = ticks(y.low, y.high, 5)
    left = max(text_width(text, 11.5) for text in tick_labels(y_values)) + 12
    x = Scale(costs[0] / 1.5, costs[-1] * 1.5, left + free, width - 90, log=True)
    x_values = log_ticks(x.low, x.high)
    names = [metric(value, "FLOP").removesuffix("FLOP").replace(".00", "").replace(".0 ", " ") for value in x_values]
    parts = bottom_axis(x, height, x_values, names, "FLOP of finding the selection", top)
    parts += left_axis(y, left, y_values, tick_labels(y_values), title, width - 90)
    parts += [label(left + free / 3, height + 16, "none", "tick", "middle")]
    if y.low < 0 < y.high:
        parts.append(line(left, y(0), width - 90, y(0), "reference"))
    best = frontier(points)
    at = {name: (x(cost) if cost > 0 else left + free / 3, y(gain)) for name, cost, gain in points}
    edge = sorted(at[name] for name in best)
    if len(edge) > 1:
        parts.append(path(edge, "line thin c-blue"))
    taken: list[tuple[float, float]] = []
    for name, (px_x, px_y) in sorted(at.items(), key=lambda item: item[1][1]):
        filled = name in best
        kind = "dot normalized c-blue" if filled else "dot raw c-grey"
        parts.append(tag("circle", tag("title", name), cx=px(px_x), cy=px(px_y), r="4.5", class_=kind))
        spot = px_y + 4
        while any(abs(spot - b) < APART and abs(px_x - a) < 110 for a, b in taken):
            spot += 2
        taken.append((px_x, spot))
        parts.append(label(px_x + 9, spot, name, "note halo"))
    return svg(width, height + 42, f"{title}, by the FLOPs of finding the selection", *parts)


def frontier(points: Sequence[tuple[str, float, float]]) -> set[str]:
    """The names of those than which nothing that costs as little or less gains more."""
    return {
        name
        for name, cost, gain in points
        if not any(c <= cost and g >= gain and (c < cost or g > gain) for _, c, g in points)
    }
