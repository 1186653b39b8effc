"""RUN/questions.jsonl: the kept questions under the name that people look for."""

from __future__ import annotations

from pathlib import Path

from ntk_jax.pipelines.question.config import QuestionConfig
from ntk_jax.storage.atomic import link_file

FILE = "questions.jsonl"


def write_questions(config: QuestionConfig, folder: Path) -> None:
    """The file of the stage ask."""
    link_file(folder / "ask" / FILE, folder / FILE)
