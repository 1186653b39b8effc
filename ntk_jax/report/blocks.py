"""The few building blocks every section shares: the section itself, a figure with how to read it, what is missing."""

from __future__ import annotations

from typing import Any

from ntk_jax.report.amounts import finite
from ntk_jax.report.markup import Html, tag
from ntk_jax.report.reading import STAGES, Run

ARM_COLORS = {"base": "c-base", "domain": "c-domain", "random": "c-random", "selected": "c-selected"}


def section(anchor: str, title: str, *children: object) -> Html:
    """A titled part of the page that the table of contents can point at."""
    return tag("section", tag("h2", title), *children, id=anchor)


def figure(drawing: object, title: str, how_to_read: str, found: str | None = None) -> Html:
    """A drawing under its title, with one sentence that says how to read it, perhaps one that says what was found."""
    finding = (tag("br"), tag("b", "Found: "), found) if found else ()
    caption = tag("figcaption", tag("b", "How to read: "), how_to_read, *finding)
    return tag("figure", tag("h3", title), drawing, caption)


def grid(*figures: object, columns: str = "two") -> Html:
    """Figures side by side where there is room, one under the other where there is not."""
    return tag("div", *figures, class_=f"grid {columns}")


def missing(run: Run, stage: str, what: str) -> Html:
    """Plain words for a part that cannot be shown because its stage has not (fully) run."""
    state = run.state.get(stage, "missing")
    if state == "done":
        why = f"the stage “{STAGES[stage]}” is done but did not record it"
    elif state == "unfinished":
        why = f"the stage “{STAGES[stage]}” was started and is not finished"
    else:
        why = f"the stage “{STAGES[stage]}” has not run"
    return tag("p", f"No {what} yet: {why}." if state != "done" else f"No {what}: {why}.", class_="missing")


def color(arm: str) -> str:
    """The CSS class that paints an arm."""
    return ARM_COLORS.get(arm, "c-other")


def numbers(items: Any) -> list[float] | None:
    """A list of finite numbers, or None when it is anything else or empty."""
    if not isinstance(items, list) or not items:
        return None
    values = [finite(item) for item in items]
    return None if any(v is None for v in values) else [v for v in values if v is not None]
