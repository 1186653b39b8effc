"""The documents, cut into the chunks that questions are asked about; some documents are kept unseen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.formats import Reading
from ntk_jax.data.sources import read, sample_indices
from ntk_jax.data.splitting import split_documents
from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError, listed, shown
from ntk_jax.pipelines.question.config import QuestionConfig
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


def chunk(run: QuestionRun, folder: Path) -> Facts:
    """Writes chunks.jsonl, the chunks that are asked about, and summary.json: what was dropped and why, and which
    documents are unseen."""
    clock, section, config = Clock(run.job.folder, "chunk"), run.config.documents, run.config
    records = read_documents(config)
    chosen = sample_indices(len(records), section.limit, config.seed)
    if chosen is not None:
        records = [records[i] for i in chosen]
    tokenizer = run.model.base.tokenizer
    room = config.model.max_length - ROOM - config.ask.answer_tokens
    found = chunk_documents(
        records,
        words=section.words,
        count_tokens=lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        max_tokens=room,
        languages=section.languages,
    )
    names = list(dict.fromkeys(one.document for one in found.chunks))
    trained, unseen = split_documents(names, section.trained, config.seed) if section.trained < 1 else (names, [])
    own = [one for one in found.chunks if one.document in set(trained)]
    places = sample_indices(len(own), section.chunks, config.seed)
    asked = own if places is None else [own[i] for i in np.sort(places)]
    write_lines(folder / FILE, (json.dumps(dataclasses.asdict(one), ensure_ascii=False) for one in asked))
    summary: dict[str, Any] = {
        "documents": len(records),
        "used": len(names),
        "trained": list(trained),
        "unseen": list(unseen),
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


def read_documents(config: QuestionConfig) -> list[dict[str, Any]]:
    """The documents of the files that are asked for. Raises UserError: none is."""
    section = config.documents
    found = list(read(section.files, Reading("auto", section.columns, "documents.").for_patterns))
    for key, value in (section.where or {}).items():
        values = sorted({shown(one.get(key)) for one in found})
        found = [one for one in found if one.get(key) == value]
        if not found:
            raise UserError(f"documents.where: no document has {key} = {shown(value)}; there are {listed(values)}")
    return found


def chunks_of(run: QuestionRun) -> list[Chunk]:
    """The chunks that the stage wrote. Raises UserError: the file is damaged."""
    path = run.job.folder / "chunk" / FILE
    lines = read_json_lines(path, f"delete the folder {path.parent} and run again")
    return [Chunk(**line) for line in lines]


def trained_documents(run: QuestionRun) -> list[str]:
    """The documents that questions are asked about."""
    found: list[str] = read_json(run.job.folder / "chunk" / "summary.json", dict)["trained"]
    return found
