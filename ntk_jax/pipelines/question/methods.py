"""The records that the other methods write from the same chunks, each with as many training tokens as the kept
questions have: what the loop is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ntk_jax.errors import note
from ntk_jax.pipelines.question.leaks import leaks
from ntk_jax.pipelines.question.state import QuestionRun
from ntk_jax.questions.methods.asked import Asked, NothingWritten, Record, summary
from ntk_jax.questions.methods.table import METHODS
from ntk_jax.questions.question import Chunk
from ntk_jax.questions.voice import Voice
from ntk_jax.storage.atomic import read_json, write_json, write_lines


def wanted(config: Any) -> tuple[str, ...]:
    """The methods whose arms are trained."""
    return tuple(name for name in config.train.arms if name in METHODS)


def write_methods(
    run: QuestionRun, folder: Path, chunks: Sequence[Chunk], kept: Sequence[Record]
) -> dict[str, dict[str, Any]]:
    """Writes <method>.jsonl of every method and returns {method: its summary}; one whose summary is there is not asked
    again. A method that brings nothing is named with its reason, and has no arm."""
    config, tokens = run.config, run.config.ask.tokens or training_tokens(run, kept)
    found, leaked = {}, None
    for name in wanted(config):
        path = folder / f"{name}.summary.json"
        if not path.exists():
            leaked = _leaked(run) if leaked is None else leaked
            write_json(path, _write(run, folder / f"{name}.jsonl", name, chunks, tokens, leaked))
        found[name] = read_json(path, dict)
    return found


def training_tokens(run: QuestionRun, records: Sequence[Record]) -> int:
    """Of prompts and responses."""
    count = _counter(run)
    return sum(count(record["prompt"]) + count(record["response"]) for record in records)


def _leaked(run: QuestionRun) -> Callable[[str, str], bool]:
    """Whether a question with its answer is too much like an evaluation item, by the rule for those of the loop."""
    items = leaks(run)
    return lambda question, answer: items is not None and items.holds(question, answer)


def _write(
    run: QuestionRun, path: Path, name: str, chunks: Sequence[Chunk], tokens: int, leaked: Callable[[str, str], bool]
) -> dict[str, Any]:
    config, method = run.config, METHODS[name]
    client = run.client("expert")
    assert client is not None
    voice = Voice(name, client, config.ask.format)
    asked = Asked(
        tokens,
        _counter(run),
        seed=config.seed,
        top_p=config.ask.top_p,
        max_tokens=config.ask.method_tokens,
        leaked=leaked,
        likelihood=run.target_likelihood(run.model.base, "") if method.measures else None,
        progress=run.job.progress(f"method {name}", None, "replies"),
    )
    records: list[Record] = []
    failed = None
    try:
        records += method.write(chunks, voice, asked)
    except NothingWritten as error:
        failed = str(error)
        note(failed)
    write_lines(path, (json.dumps(one, ensure_ascii=False) for one in records))
    return {"title": method.title, **summary(records, asked), "voice": voice.account(), "failed": failed}


def _counter(run: QuestionRun) -> Any:
    tokenizer = run.model.base.tokenizer
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False)) if text else 0
