"""The figures of questions: gaps by round, and the gap of every kept question before and after it was rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ntk_jax.report.amounts import count, finite, general
from ntk_jax.report.axes import Scale, bottom_axis, label, left_axis, line, px, svg, text_width, tick_labels, ticks
from ntk_jax.report.figures import Mark, WhiskerRow, whiskers
from ntk_jax.report.markup import Html, tag

MOST_DOTS = 600  # of a figure; of more pairs every so-manieth is drawn


def gaps_by_round(rounds: Sequence[dict[str, Any]], *, unit: str, description: str) -> Html | None:
    """Mean and standard deviation of the gaps that each round measured. rounds: as `Search.rounds`; None where nothing
    was measured."""
    rows = []
    for one in rounds:
        gaps = one.get("gaps") or {}
        mean, sd = finite(gaps.get("mean")), finite(gaps.get("sd"))
        if mean is not None and sd is not None:
            text = f"{general(mean)} ± {general(sd)}, median {general(gaps.get('median'))}"
            name = f"round {count(one.get('round'))}, {count(gaps.get('n'))} questions"
            rows.append(WhiskerRow(name, "c-blue", (Mark("normalized", mean, mean - sd, mean + sd, text),)))
    if not rows:
        return None
    return whiskers(rows, title=f"gap, {unit}", reference=(0.0, "no gap"), description=description)


def before_and_after(pairs: Sequence[tuple[float, float]], *, unit: str, description: str, width: float = 460) -> Html:
    """A dot a question: its first gap to the right, the gap that it was kept with upwards; on the line nothing changed.
    pairs: at least one."""
    step = -(-len(pairs) // MOST_DOTS)
    drawn = pairs[::step]
    values = [value for pair in drawn for value in pair]
    margin = max((max(values) - min(values)) * 0.06, 1e-6 * max(map(abs, values)), 1e-9)
    low, high = min(values) - margin, max(values) + margin
    height, top = 340.0, 34.0
    shown = ticks(low, high, 5)
    names = tick_labels(shown)
    left = max(text_width(name, 11.5) for name in names) + 12
    x, y = Scale(low, high, left, width - 12), Scale(low, high, height, top)
    parts: list[Html] = bottom_axis(x, height, shown, names, f"gap of the first question, {unit}", height)
    parts += left_axis(y, left, shown, names, "gap of the question that is kept", width - 12)
    parts += [line(x(low), y(low), x(high), y(high), "reference")]
    parts += [label(x(high) - 4, y(high) + 14, "nothing changed", "note halo", "end")]
    for before, after in drawn:
        color = "c-blue" if after > before else "c-grey"
        about = tag("title", f"{general(before)} to {general(after)}")
        parts += [tag("circle", about, cx=px(x(before)), cy=px(y(after)), r="3.5", class_=f"dot {color}")]
    return svg(width, height + 42, description, *parts)
