"""RUN/questions.jsonl: the kept questions under the name that people look for."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from ntk_jax.pipelines.question.config import QuestionConfig

FILE = "questions.jsonl"


def write_questions(config: QuestionConfig, folder: Path) -> None:
    """A link to the file of the stage, or a copy of it."""
    source, target = folder / "ask" / FILE, folder / FILE
    if not source.exists() or (target.exists() and target.samefile(source)):
        return
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
