"""The selected examples themselves, each beside the domain example whose gradient it is most aligned with."""

from __future__ import annotations

from typing import Any

from ntk_jax.pipelines.select.report.layout import section
from ntk_jax.pipelines.select.report.run import SelectRun
from ntk_jax.report.amounts import count, general
from ntk_jax.report.layout import Section
from ntk_jax.report.reading import mapping, records

OPEN = 3  # examples that start unfolded
PREVIEW, LINES = 420, 14  # characters and lines of a text shown before it is opened
LONGEST = 50_000  # characters of one text the page will carry at all


def examples(run: SelectRun) -> Section | None:
    """Selected examples beside the domain example each aligns with most; None where this config shows none."""
    if not run.plan.has("align"):
        return None
    found = records(run.directory.json("align/examples.json", list))
    if not found:
        missing = run.directory.missing("align", "selected examples")
        return section("examples", "Examples", missing=missing, lead="", examples=[])
    lead = f"The first of “{run.first.title if run.first else ''}”. "
    lead += "Beside each, the domain example with which its kernel value is largest; press a line to open it."
    ids = {str(mapping(e.get("aligned")).get("id")) for e in found if e.get("aligned")}
    if len(found) > 2 and 0 < len(ids) <= max(1, len(found) // 4):
        # Raw inner products favour whichever domain example has the largest gradient, so one may win everywhere.
        lead += f" Only {count(len(ids))} of the domain come up: kernel values grow with the size of both gradients, "
        lead += "so an example with a large one wins often."
    shown = [_example(e, i < OPEN) for i, e in enumerate(found)]
    return section("examples", "Examples", missing=None, lead=lead, examples=shown)


def _example(e: dict[str, Any], open_: bool) -> dict[str, Any]:
    aligned = mapping(e.get("aligned"))
    return {
        "rank": count(e.get("rank")),
        "score": general(e.get("score")),
        "family": e.get("family"),
        "tokens": count(e.get("tokens")),
        "id": e.get("id"),
        "texts": _texts(e),
        "aligned": {"id": aligned.get("id"), "kernel": general(aligned.get("kernel")), "texts": _texts(aligned)}
        if aligned
        else None,
        "open": open_,
    }


def _texts(e: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        _text(name, str(e[key]))
        for name, key in (("Prompt", "prompt"), ("Response", "response"))
        if e.get(key) is not None
    ]


def _text(name: str, text: str) -> dict[str, Any]:
    """The text whole when short, else its beginning with the rest on demand."""
    long = len(text) > PREVIEW or text.count("\n") >= LINES
    preview = "\n".join(text[:PREVIEW].split("\n")[: LINES - 1]).rstrip() + " …" if long else None
    whole = f"all {count(len(text))} characters"
    if len(text) > LONGEST:
        text = text[:LONGEST] + f"\n[{count(len(text) - LONGEST)} more characters are in the run directory's select/]"
    return {"name": name, "text": text, "preview": preview, "whole": whole}
