"""How much an evaluation reads, for an estimate: by the records of its files, of which a sample is tokenized."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.columns import remote_kind
from ntk_jax.data.records import Record
from ntk_jax.data.sources import sample_indices
from ntk_jax.data.tokens import ChoiceRow, encode_choices, encode_many
from ntk_jax.engine.costs import Grounds
from ntk_jax.errors import UserError
from ntk_jax.evaluation.shots import before_choices, before_responses
from ntk_jax.evaluation.tasks import Task
from ntk_jax.pipelines.common.examples import rendering_of

_NAMES = {
    "accuracy": ("questions", "question"),
    "loss": ("held-out examples", "held-out example"),
    "generated": ("generated answers", "generated answer"),
}


@dataclass(frozen=True)
class Questions:
    """Multiple-choice questions of all files, or held-out examples. tokens: the prompt once and every choice, or the
    response; labels: of the choices, or the response. bytes: of the choices, which predictions repeat."""

    files: int
    count: float
    tokens: float
    labels: float
    bytes: float
    longest: int


NONE = Questions(0, 0, 0.0, 0.0, 0.0, 1)


def here(files: Sequence[str]) -> bool:
    """Whether any of the files is on this machine. What a network name stands for is not looked up."""
    for item in files:
        path = str(Path(item).expanduser())
        if item.startswith("builtin:") or Path(path).exists():
            return True
        if not remote_kind(item) and glob.has_magic(path) and any(glob.iglob(path, recursive=True)):
            return True
    return False


def say_count(tasks: Sequence[Task], metric: str, grounds: Grounds) -> int:
    """Records of tasks that are here, as a ground."""
    count = sum(len(task.records) for task in tasks)
    grounds.known(_NAMES[metric][0], count, f"{count:,} in {len(tasks)} file(s)", "counted in evaluate.files")
    return count


def count_questions(
    config: Any, tasks: Sequence[Task], metric: str, tokenizer: Any, most: int, grounds: Grounds
) -> Questions:
    """What a metric reads of tasks that are here, by a seeded sample of at most so many records. config: with the
    sections model and evaluate, and a seed. Raises UserError: nothing is usable."""
    names, model = _NAMES[metric], config.model
    pairs = [(task, record) for task in tasks for record in task.records]
    records = [record for _, record in pairs]
    few = sample_indices(len(records), most, config.seed)
    pairs = pairs if few is None else [pairs[i] for i in few]
    sample = _behind_shots(config, tokenizer, pairs, metric)
    options: dict[str, Any] = {
        "max_length": model.max_length, "overflow": model.overflow, "rendering": rendering_of(model)
    }  # fmt: skip
    if metric == "accuracy":
        asked = [row for r in sample if isinstance(row := encode_choices(r, tokenizer, **options), ChoiceRow)]
        sizes = [(row.tokens, sum(map(len, row.choices))) for row in asked]
        size = float(np.mean([len(json.dumps(r["choices"], ensure_ascii=False).encode()) for r in sample]))
    else:
        read = encode_many(sample, tokenizer, **options)
        sizes = [(len(row.ids), int(row.span.sum())) for row in read if isinstance(row, TokenRow)]
        size = 0.0
        if metric == "generated":
            longest = config.evaluate.answer_tokens
            sizes = [(min(total - response + longest, model.max_length), longest) for total, response in sizes]
    if not sizes:
        raise UserError(f"evaluate.files: none of the sampled {names[0]} is usable; raise model.max_length")
    tokens, labels = np.array(sizes).T
    text = f"tokenized {len(sample):,} of {len(records):,}"
    grounds.known(f"tokens a {names[1]}", float(tokens.mean()), spread(tokens), text)
    count = len(records) * len(sizes) / len(sample)
    return Questions(len(tasks), count, float(tokens.mean()), float(labels.mean()), size, int(tokens.max()))


def _behind_shots(config: Any, tokenizer: Any, pairs: Sequence[tuple[Task, Record]], metric: str) -> list[Record]:
    """Records of tasks behind the solved examples that stand before them, as they are evaluated."""
    found = []
    fits: dict[str, Any] = {"max_length": config.model.max_length, "rendering": rendering_of(config.model)}
    for task, record in pairs:
        if not task.shots.records:
            found.append(record)
        else:
            if metric == "generated":  # which needs room for a whole reply
                fits["max_length"] = max(2, config.model.max_length - config.evaluate.answer_tokens)
            place = before_choices if metric == "accuracy" else before_responses
            found += place([record], task.shots.records, tokenizer, **fits)[0]
    return found


def spread(lengths: Sequence[int] | np.ndarray, error: float = 0.0) -> str:
    """Mean, spread and median of lengths, in words. error: standard error of the mean."""
    low, middle, high = np.percentile(lengths, (5, 50, 95))
    plus = f" ± {error:.1f} (standard error)" if error else ""
    return f"mean {np.mean(lengths):.1f}{plus}, 5% to 95%: {low:.0f} to {high:.0f}, median {middle:.0f}"
