"""Figures of several named things: bars, how often each reason was given, and curves over training tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.report.amounts import NOTHING, count, finite, percent
from ntk_jax.report.axes import Scale, bottom_axis, label, rect, shorten, svg, text_width, tick_labels, ticks
from ntk_jax.report.figures import Curve, curves
from ntk_jax.report.layout import Figure
from ntk_jax.report.markup import Html, tag

COLORS = ("c-blue", "c-orange", "c-green", "c-purple", "c-red", "c-olive", "c-grey")
MOST_BARS = 14

_Parts = list[Html]


def color_of(number: int) -> str:
    """The colour class of the number-th of several; they begin anew, for every mark has its name beside it."""
    return COLORS[number % len(COLORS)]


@dataclass(frozen=True)
class Bar:
    """A row of bars. values: one of each series; texts: what stands behind each."""

    name: str
    values: tuple[float, ...]
    texts: tuple[str, ...]


def bars(
    rows: Sequence[Bar],
    series: Sequence[tuple[str, str]],
    *,
    title: str,
    description: str,
    scale_by: float = 1.0,
    width: float = 560,
) -> Html:
    """Horizontal bars from zero, a row a name, a bar a series. series: (name, CSS class); one alone has no key."""
    name_width = min(max(text_width(row.name) for row in rows), width * 0.4)
    text_room = max(text_width(text, 11.5) for row in rows for text in row.texts) + 8
    thick, gap, top = (13.0, 9.0, 26.0) if len(series) > 1 else (15.0, 9.0, 8.0)
    row_height = thick * len(series) + gap
    bottom = top + row_height * len(rows)
    most = max(max(value for row in rows for value in row.values) * scale_by, 1e-12)
    x = Scale(0, most, name_width + 10, width - text_room)
    values = [v for v in ticks(0, most, 4) if scale_by != 1 or v == round(v)] or [0.0]
    parts: _Parts = bottom_axis(x, bottom, values, tick_labels(values), title, top)
    at = x.start
    for name, color in series if len(series) > 1 else ():
        parts += [rect(at, 4, 10, 10, color), label(at + 14, 13, name, "tick")]
        at += 28 + text_width(name, 11.5)
    for i, row in enumerate(rows):
        y = top + row_height * i + gap / 2
        name = label(name_width, y + thick * len(series) / 2 + 4, shorten(row.name, name_width + 2), "name", "end")
        parts.append(tag("g", tag("title", row.name), name))
        for j, ((_, color), value, text) in enumerate(zip(series, row.values, row.texts, strict=True)):
            end = x(value * scale_by)
            parts.append(rect(x.start, y + thick * j, max(end - x.start, 0.8), thick - 2, color, f"{row.name}: {text}"))
            parts.append(label(end + 5, y + thick * j + thick - 4, text, "value halo"))
    return svg(width, bottom + 42, description, *parts)


def reason_bars(title: str, reasons: Mapping[str, Any], unit: str, how: str) -> Figure:
    """How often each reason was given, the commonest first. Raises ValueError: none was."""
    known = {reason: number for reason, n in reasons.items() if (number := finite(n)) is not None}
    if not known:
        raise ValueError(f"{title}: there is no reason")
    total, ranked = sum(known.values()), sorted(known.items(), key=lambda pair: -pair[1])
    if len(ranked) > MOST_BARS:
        rest = sum(n for _, n in ranked[MOST_BARS - 1 :])
        ranked = [*ranked[: MOST_BARS - 1], (f"{len(ranked) - MOST_BARS + 1} other reasons", rest)]
    rows = [Bar(reason, (n,), (f"{count(n)} ({percent(n / total) if total else NOTHING})",)) for reason, n in ranked]
    drawing = bars(rows, [("", "fill-pool")], title=unit, description=title)
    return Figure(title, drawing, how, f"{count(total)} in all, most often: {ranked[0][0]}.")


def token_curves(arms: Mapping[str, tuple[str, Sequence[tuple[float, float]]]], *, what: str, description: str) -> Html:
    """What was measured along the training, over its tokens: {arm: (colour class, [(tokens, value), ...])}."""
    most = max(tokens for _, points in arms.values() for tokens, _ in points)
    unit, name = next((unit, text) for size, unit, text in _SIZES if most >= size)
    drawn = [
        Curve(arm, color, [tokens / unit for tokens, _ in points], [value for _, value in points])
        for arm, (color, points) in arms.items()
    ]
    return curves(drawn, y_title=what, x_title=f"training tokens{name}", description=description)


_SIZES = ((1e10, 1e9, ", billions"), (1e7, 1e6, ", millions"), (1e4, 1e3, ", thousands"), (0, 1, ""))
