"""The evaluation items that no question may be too much like."""

from __future__ import annotations

from ntk_jax.data.formats import AUTO
from ntk_jax.data.records import prompt_text, response_text
from ntk_jax.data.sources import read
from ntk_jax.pipelines.common.reading import reading_of
from ntk_jax.pipelines.question.config import evaluation_sources
from ntk_jax.pipelines.question.state import QuestionRun
from ntk_jax.questions.leaks import Leaks, leaks_of


def leaks(run: QuestionRun) -> Leaks | None:
    """All evaluation items, as questions are compared with them; None where nothing is evaluated."""
    config = run.config
    files = tuple(dict.fromkeys(evaluation_sources(config)))
    items: list[tuple[str, str]] = []
    for file, reading in (
        *((file, reading_of(config, "evaluate").for_patterns) for file in files),
        *((file, AUTO) for file in config.ask.decontaminate),
    ):
        items += [(prompt_text(record), response_text(record)) for record in read(file, reading)]
    return leaks_of(items, config.ask.overlap) if items else None
