"""Figures of the diagnosis that the rest of the report has no use for: a heat map, a signed histogram, a scatter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ntk_jax.report.amounts import general, power
from ntk_jax.report.axes import (
    Scale,
    bottom_axis,
    exponent,
    label,
    left_axis,
    line,
    path,
    px,
    shorten,
    svg,
    text_width,
    tick_labels,
    ticks,
)
from ntk_jax.report.markup import Html, tag


def heat_map(
    matrix: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    low: float,
    high: float,
    description: str,
    numbers: bool | None = None,
    width: float = 560,
) -> Html:
    """A square of cells, darker for values nearer to `high`; the value stands in each cell while there is room."""
    count = len(names)
    tail = min(max(text_width(name, 11.5) for name in names), width * 0.3) + 8
    cell = (width - tail) / count
    numbers = cell >= 30 if numbers is None else numbers
    top = 8.0
    parts: list[Html] = []
    for i, row in enumerate(matrix):
        parts.append(label(tail - 6, top + cell * (i + 0.5) + 4, shorten(names[i], tail, 11.5), "tick", "end"))
        for j, value in enumerate(row):
            share = min(max((value - low) / (high - low), 0.0), 1.0) if high > low and value == value else 0.0
            x, y = tail + cell * j, top + cell * i
            title = tag("title", f"{names[i]} and {names[j]}: {general(value)}")
            size = {"width": px(cell - 1), "height": px(cell - 1)}
            parts.append(tag("rect", title, x=px(x), y=px(y), class_="heat-cell", fill_opacity=f"{share:.2f}", **size))
            if numbers:
                ink = "value heat-dark" if share > 0.55 else "value"
                text = f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")
                parts.append(label(x + cell / 2, y + cell / 2 + 4, text, ink, "middle"))
    return svg(width, top + cell * count + 6, description, *parts)


def signed_histogram(
    edges: Sequence[float],
    groups: Sequence[tuple[str, str, Sequence[float]]],
    *,
    x_title: str,
    description: str,
    marks: Sequence[tuple[float, str]] = (),
    width: float = 560,
) -> Html:
    """Outlines of shares per bin around zero. groups: (name, colour class, counts); marks: dashed lines with names."""
    shares = [(name, color, [c / max(sum(counts), 1) for c in counts]) for name, color, counts in groups]
    used = [i for _, _, values in shares for i, v in enumerate(values) if v > 0]
    first, last = max(min(used) - 1, 0), min(max(used) + 1, len(edges) - 2)
    height, top = 230, 42
    ceiling = max(max(values) for _, _, values in shares) * 1.06
    y = Scale(0, ceiling, height, top)
    y_values = ticks(0, ceiling, 4)
    y_labels = [f"{v * 100:g}%" for v in (round(v, 4) for v in y_values)]
    left = max(text_width(t, 11.5) for t in y_labels) + 12
    x = Scale(edges[first], edges[last + 1], left, width - 12)
    x_values = ticks(x.low, x.high, 6)
    parts = bottom_axis(x, height, x_values, tick_labels(x_values), x_title, height)
    parts += left_axis(y, left, y_values, y_labels, "share of pairs", width - 12)
    at = left
    for name, color, values in shares:
        outline = [(x(edges[first]), float(height))]
        for i in range(first, last + 1):
            outline += [(x(edges[i]), y(values[i])), (x(edges[i + 1]), y(values[i]))]
        outline.append((x(edges[last + 1]), height))
        parts.append(path(outline, f"line {color}"))
        parts += [line(at, 9, at + 16, 9, f"line {color}"), label(at + 21, 13, name, "tick")]
        at += 38 + text_width(name, 11.5)
    for value, name in marks:
        if x.low <= value <= x.high:
            side = "end" if value < 0 else "start"  # away from zero, so that a mark and its negative do not collide
            parts += [line(x(value), top - 8, x(value), height, "reference")]
            parts += [label(x(value) + (-5 if side == "end" else 5), top - 2, name, "note halo", side)]
    return svg(width, height + 42, description, *parts)


def scatter(
    points: Sequence[tuple[float, float, str]],
    *,
    x_title: str,
    y_title: str,
    description: str,
    width: float = 560,
) -> Html:
    """Dots with tooltips; points: (x, y, name). A dashed line at y = 0 where zero is inside."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    units = [exponent(*values) for values in (xs, ys)]
    xs, ys = [v / 10.0 ** units[0] for v in xs], [v / 10.0 ** units[1] for v in ys]

    def around(values: Sequence[float]) -> tuple[float, float]:
        margin = (max(values) - min(values)) * 0.06 or abs(values[0]) * 0.1 or 1.0
        return min(values) - margin, max(values) + margin

    height, top = 240, 34
    y = Scale(*around(ys), height, top)
    y_values = ticks(y.low, y.high, 5)
    left = max(text_width(t, 11.5) for t in tick_labels(y_values)) + 12
    x = Scale(*around(xs), left, width - 12)
    x_values = ticks(x.low, x.high, 6)
    names = [
        title + (f" (× {power(unit)})" if unit else "") for title, unit in zip((x_title, y_title), units, strict=True)
    ]
    parts = bottom_axis(x, height, x_values, tick_labels(x_values), names[0], height)
    parts += left_axis(y, left, y_values, tick_labels(y_values), names[1], width - 12)
    if y.low < 0 < y.high:
        parts.append(line(left, y(0), width - 12, y(0), "reference"))
    for (_, _, name), a, b in zip(points, xs, ys, strict=True):
        dot = tag("circle", tag("title", name), cx=px(x(a)), cy=px(y(b)), r="4", class_="dot raw c-blue")
        parts.append(dot)
    return svg(width, height + 42, description, *parts)


def standalone(drawing: Html) -> str:
    """The drawing as a file of its own: with the page's style inside, light and dark."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf8")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif"><style>{style}</style>'
    opening, _, rest = drawing.partition(">")
    attributes = opening.removeprefix("<svg")
    return head.replace("<svg ", f"<svg{attributes} ", 1) + rest + "\n"
