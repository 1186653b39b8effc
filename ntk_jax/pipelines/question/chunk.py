"""The documents, cut into the chunks that questions are asked about; some documents are kept unseen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ntk_jax.data.sources import sample_indices
from ntk_jax.data.splitting import split_documents
from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.pipelines.question.config import QuestionConfig
from ntk_jax.pipelines.question.documents import check_documents, sampled_documents
from ntk_jax.pipelines.question.state import QuestionRun
from ntk_jax.questions.chunks import chunk_documents
from ntk_jax.questions.question import Chunk
from ntk_jax.storage.atomic import read_json, write_json, write_lines
from ntk_jax.storage.reading import read_json_lines

FILE = "chunks.jsonl"
ROOM = 160  # tokens of a question and of what stands around the chunk


def check(config: QuestionConfig) -> None:
    """Raises UserError: a share that leaves no document to ask about, or no room for a chunk."""
    if config.documents.trained == 0:
        raise UserError("documents.trained = 0 leaves no document to ask about; give a share above 0")
    if config.model.max_length < ROOM + config.ask.answer_tokens + 32:
        raise UserError(
            f"model.max_length = {config.model.max_length} holds no chunk beside a question and an answer of "
            f"{config.ask.answer_tokens} tokens; raise it, or lower ask.answer_tokens"
        )


def check_inputs(run: QuestionRun, closing: bool) -> None:
    """Raises UserError: columns that no file has."""
    check_documents(run.config)


def chunk(run: QuestionRun, folder: Path) -> Facts:
    """Writes chunks.jsonl, the chunks that are asked about, and summary.json: what was dropped and why, and which
    documents are unseen."""
    clock, section, config = Clock(run.job.folder, "chunk"), run.config.documents, run.config
    total = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal total
        for record in sampled_documents(config):
            total += 1
            yield record

    tokenizer = run.model.base.tokenizer
    room = config.model.max_length - ROOM - config.ask.answer_tokens
    found = chunk_documents(
        counted(),
        words=section.words,
        count_tokens=lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        max_tokens=room,
        languages=section.languages,
    )
    names = list(dict.fromkeys(one.document for one in found.chunks))
    chosen = set(split_documents(names, section.trained, config.seed)[0] if section.trained < 1 else names)
    own = [one for one in found.chunks if one.document in chosen]
    places = sample_indices(len(own), section.chunks, config.seed)
    asked = own if places is None else [own[i] for i in places]
    # A document none of whose chunks is asked about is as unseen as the others; one with the same text is not.
    about = {one.document for one in asked}
    copies = [name for name, other in found.same.items() if other in about]
    write_lines(folder / FILE, (json.dumps(dataclasses.asdict(one), ensure_ascii=False) for one in asked))
    summary: dict[str, Any] = {
        "documents": total,
        "used": len(names),
        "trained": [name for name in names if name in about],
        "copies": copies,
        "unseen": [name for name in names if name not in about],
        "chunks": len(asked),
        "all_chunks": len(own),
        "words": sum(len(one.text.split()) for one in asked),
        "dropped": dict(found.dropped),
        "shortened": found.shortened,
        "notes": dict(found.notes),
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"chunks": len(asked)}


def chunks_of(run: QuestionRun) -> list[Chunk]:
    """The chunks that the stage wrote. Raises UserError: the file is damaged."""
    path = run.job.folder / "chunk" / FILE
    lines = read_json_lines(path, f"delete the folder {path.parent} and run again")
    return [Chunk(**line) for line in lines]


def trained_documents(run: QuestionRun) -> list[str]:
    """The documents that questions are asked about, and those with the same text."""
    found = read_json(run.job.folder / "chunk" / "summary.json", dict)
    names: list[str] = [*found["trained"], *found["copies"]]
    return names
