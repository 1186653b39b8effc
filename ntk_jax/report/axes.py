"""Scales, ticks and text widths: the arithmetic under the figures."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

from ntk_jax.report.amounts import minus
from ntk_jax.report.markup import Html, escape, join, tag

FONT = 12.5  # px, of the text in figures: matches `svg text` in style.css


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to pixels in [start, end]; logarithmic when `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(max(value, self.low)) if self.log else value
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` round values inside [low, high]: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / max(wanted, 1)
    decade = 10.0 ** math.floor(math.log10(raw))
    step = next(decade * m for m in (1, 2, 2.5, 5, 10) if decade * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [0.0 if i == 0 else i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... inside [low, high]; powers of ten alone when the range is wide, round steps when narrow."""
    steps = (1, 2, 5) if high / low < 2000 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    values = [m * 10.0**e for e in range(first, last + 1) for m in steps]
    inside = [v for v in values if low * 0.999 <= v <= high * 1.001]
    return inside if len(inside) > 2 else ticks(low, high, 4)


def tick_labels(values: list[float]) -> list[str]:
    """The ticks with as many decimals as tell them apart."""
    if not values:
        return []
    gap = min((b - a for a, b in zip(values, values[1:], strict=False)), default=abs(values[0]) or 1.0)
    decimals = 0
    while decimals < 6 and any(abs(round(v, decimals) - v) > abs(gap) * 1e-3 for v in values):
        decimals += 1
    return [minus(f"{v:,.{decimals}f}") for v in values]


def exponent(*values: float) -> int:
    """The power of ten to take out of an axis so that its labels stay short; 0 when they already are."""
    largest = max((abs(v) for v in values), default=0.0)
    if largest == 0 or 1e-2 <= largest < 1e5:
        return 0
    return math.floor(math.log10(largest))


def text_width(text: str, size: float = FONT) -> float:
    """Pixels a label takes, roughly: wide (CJK) letters count double, combining marks nothing."""
    units = 0.0
    for letter in text:
        if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Cf"):
            continue
        wide = unicodedata.east_asian_width(letter) in "WF"
        narrow, broad = letter in "iljI.,:;|! '", letter in "mwMW−–—…"
        units += 1.05 if wide else 0.36 if narrow else 0.95 if broad else 0.7 if letter.isupper() else 0.6
    return units * size


def shorten(text: str, width: float, size: float = FONT) -> str:
    """`text` cut with an ellipsis to fit `width` pixels."""
    text = " ".join(text.split())
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def px(value: float) -> str:
    """A coordinate with one decimal: enough for the eye, and the same bytes on every machine."""
    text = f"{value:.1f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def svg(width: float, height: float, label: str, *children: object) -> Html:
    """The drawing; `label` is what a screen reader says (the numbers themselves stand in a table nearby)."""
    return tag(
        "svg",
        join(children, "\n"),
        viewBox=f"0 0 {px(width)} {px(height)}",
        role="img",
        aria_label=label,
        style=f"max-width:{px(width * 1.15)}px",
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    """A straight line."""
    return tag("line", x1=px(x1), y1=px(y1), x2=px(x2), y2=px(y2), class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str, title: str | None = None) -> Html:
    """A box, with a tooltip when `title` is given."""
    inner = tag("title", title) if title else None
    return tag("rect", inner, x=px(x), y=px(y), width=px(max(width, 0.0)), height=px(max(height, 0.0)), class_=class_)


def label(x: float, y: float, text: object, class_: str | None = None, anchor: str | None = None) -> Html:
    """Text at a point; `anchor` is start (default), middle or end."""
    return tag("text", escape(text), x=px(x), y=px(y), class_=class_, text_anchor=anchor)


def path(points: list[tuple[float, float]], class_: str, close: bool = False) -> Html:
    """A polyline through the points, or an area when closed."""
    d = "M" + "L".join(f"{px(x)} {px(y)}" for x, y in points) + ("Z" if close else "")
    return tag("path", d=d, class_=class_)


def bottom_axis(scale: Scale, y: float, values: list[float], labels: list[str], title: str, top: float) -> list[Html]:
    """Grid lines, tick labels and title under a plot whose upper edge is `top`."""
    middle = (scale.start + scale.end) / 2
    parts = [line(scale(v), top, scale(v), y, "grid") for v in values]
    parts += [line(scale.start, y, scale.end, y, "axis")]
    parts += [label(scale(v), y + 16, text, "tick", "middle") for v, text in zip(values, labels, strict=True)]
    return [*parts, label(middle, y + 34, title, "title", "middle")]


def left_axis(scale: Scale, x: float, values: list[float], labels: list[str], title: str, right: float) -> list[Html]:
    """Grid lines and tick labels beside a plot; the title stands above the axis, level, because that reads faster."""
    parts = [line(x, scale(v), right, scale(v), "grid") for v in values]
    parts += [label(x - 6, scale(v) + 4, text, "tick", "end") for v, text in zip(values, labels, strict=True)]
    return [*parts, label(2, scale.end - 10, title, "title")]
