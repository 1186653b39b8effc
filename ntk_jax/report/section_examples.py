"""The selected examples themselves, each beside the domain example whose gradient it is most aligned with."""

from __future__ import annotations

from typing import Any

from ntk_jax.report.amounts import count, general
from ntk_jax.report.blocks import missing, section
from ntk_jax.report.markup import Html, fold, join, pre, tag
from ntk_jax.report.reading import Run, mapping

OPEN = 3  # examples that start unfolded
PREVIEW, LINES = 420, 14  # characters and lines of a text shown before it is opened
LONGEST = 50_000  # characters of one text the page will carry at all


def examples(run: Run) -> Html:
    """Selected examples beside the domain example each aligns with most."""
    title = "Selected examples"
    if not run.examples:
        return section("examples", title, missing(run, "select", "selected examples"))
    intro = "Beside each, the domain example with which its kernel value is largest; press a line to open it."
    ids = {str(mapping(e.get("aligned")).get("id")) for e in run.examples if e.get("aligned")}
    if len(run.examples) > 2 and 0 < len(ids) <= max(1, len(run.examples) // 4):
        # Raw inner products favour whichever domain example has the largest gradient, so one may win everywhere.
        intro += f" Only {count(len(ids))} of the domain come up: kernel values grow with the size of both gradients, "
        intro += "so an example with a large one wins often."
    return section(
        "examples", title, tag("p", intro, class_="lead"), *(_example(e, i < OPEN) for i, e in enumerate(run.examples))
    )


def _example(e: dict[str, Any], open_: bool) -> Html:
    head = [
        tag("b", f"Rank {count(e.get('rank'))}"),
        tag("span", "score ", general(e.get("score"))),
        tag("span", e.get("family")),
        tag("span", f"{count(e.get('tokens'))} tokens"),
        tag("code", e.get("id")),
    ]
    aligned = mapping(e.get("aligned"))
    if aligned:
        name = tag(
            "h4", "Aligns most with ", tag("code", aligned.get("id")), f", kernel {general(aligned.get('kernel'))}"
        )
        other = tag("div", name, *_texts(aligned))
    else:
        other = tag("div", tag("p", "The aligned domain example was not recorded.", class_="missing"))
    body = tag("div", tag("div", tag("h4", "Selected"), *_texts(e)), other, class_="grid two")
    return fold(tag("span", *head, class_="head"), body, open_=open_, class_="example")


def _texts(e: dict[str, Any]) -> list[Html]:
    return [
        _text(name, str(e[key]))
        for name, key in (("Prompt", "prompt"), ("Response", "response"))
        if e.get(key) is not None
    ]


def _text(name: str, text: str) -> Html:
    """The text whole when short, else its beginning with the rest on demand. Direction is the text's own (Arabic)."""
    marker = tag("span", name, class_="what")
    if len(text) <= PREVIEW and text.count("\n") < LINES:
        return tag("div", marker, pre(text, dir="auto"), class_="text")
    preview = "\n".join(text[:PREVIEW].split("\n")[: LINES - 1]).rstrip() + " …"
    if len(text) > LONGEST:
        text = text[:LONGEST] + f"\n[{count(len(text) - LONGEST)} more characters are in select/selection.jsonl]"
    more = tag("span", f"all {count(len(text))} characters", class_="more")
    return fold(
        join([marker, tag("span", preview, class_="preview", dir="auto"), more]), pre(text, dir="auto"), class_="text"
    )
