"""Which words a question may not share with what is evaluated."""

from __future__ import annotations

import numpy as np

from ntk_jax.data.contamination import evaluation_runs
from ntk_jax.data.formats import AUTO
from ntk_jax.data.records import prompt_text, response_text
from ntk_jax.data.sources import read
from ntk_jax.pipelines.common.reading import reading_of
from ntk_jax.pipelines.question.config import evaluation_sources
from ntk_jax.pipelines.question.state import QuestionRun


def leaks(run: QuestionRun) -> np.ndarray | None:
    """The word runs of all evaluation items that questions may not share; None where nothing is evaluated."""
    config = run.config
    files = tuple(dict.fromkeys(evaluation_sources(config)))
    texts = []
    for file, reading in (
        *((file, reading_of(config, "evaluate").for_patterns) for file in files),
        *((file, AUTO) for file in config.ask.decontaminate),
    ):
        texts += [f"{prompt_text(record)}\n{response_text(record)}" for record in read(file, reading)]
    return evaluation_runs(texts, config.ask.overlap)[0] if texts else None
