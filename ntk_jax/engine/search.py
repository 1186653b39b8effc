"""`ntk-jax search`: what a run's corpus has that is near a text, for looking around in it. The texts come from the
command line, or line by line from standard input, and each is answered before the next is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ntk_jax.engine.finished import opened, place_of
from ntk_jax.engine.stage import Pipeline
from ntk_jax.errors import UserError
from ntk_jax.report.text import label

SHOWN = 300  # characters of a chunk


def search(
    run: str,
    texts: Iterable[str],
    pipelines: Sequence[Pipeline],
    *,
    nearest: int = 5,
    index: str = "exact",
    as_json: bool = False,
    out: str | None = None,
    overrides: Sequence[str] = (),
) -> Iterator[str]:
    """The lines to print: of each text, the chunks nearest to it, best first. as_json: a JSON object a line, of query,
    score and all that is known of the chunk.

    Raises UserError: no run of mining there, no kept embeddings, another encoder, or as `mining.nearest`.
    """
    if nearest < 1:
        raise UserError(f"--nearest {nearest}: give at least 1")
    able = [pipeline for pipeline in pipelines if pipeline.search]
    with opened(place_of(run, out), pipelines, able, overrides, "encoder.path") as found:
        assert found.pipeline.search
        look = found.pipeline.search(found.config, found.folder, index)
        for text in filter(None, map(str.strip, texts)):
            hits = look(text, nearest)
            yield from _json(text, hits) if as_json else _lines(text, hits)


def _json(text: str, hits: Iterable[tuple[float, dict[str, Any]]]) -> Iterator[str]:
    for score, chunk in hits:
        yield json.dumps({"query": text, "score": round(score, 6), **chunk}, ensure_ascii=False)


def _lines(text: str, hits: Iterable[tuple[float, dict[str, Any]]]) -> Iterator[str]:
    yield f"\n{label(text, 100)}"
    for score, chunk in hits:
        place = f"{chunk['file']} at {chunk['offset']}"
        yield f"  {score:6.3f}  {label(chunk['title'] or chunk['id'], 50)}  ({label(chunk['url'] or place, 90)})"
        yield f"          {label(chunk['text'], SHOWN)}"
