"""Log likelihood of every choice of multiple-choice questions, each prompt read once.

The choices of a question are branches behind one copy of its prompt: each sees the prompt and itself, so its
numbers are those of scoring (prompt, choice) alone, at the price of the prompt once instead of once a choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ntk_jax.data.packing import pack_choices
from ntk_jax.data.templates import Rendering
from ntk_jax.data.tokens import ChoiceRow, encode_choices
from ntk_jax.errors import UserError
from ntk_jax.evaluation.packed import batch_shape, log_prob_sums, log_prob_sums_and_misses, row_length_of
from ntk_jax.models.model import Model
from ntk_jax.training.flops import forward_flops

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ChoiceScores:
    """Per record, in the order given: log_likelihoods[i] [C] float32 (sum over the choice's tokens, in nats) and
    lengths[i] [C] int32 (tokens of the choice); both None where the question was dropped, for reasons[i].

    truncated[i]: the start of the prompt was cut. notes[i]: what became of the record's words. dropped: how many for
    each reason. tokens: read by the model, each prompt once. label_tokens: of the choices.
    """

    log_likelihoods: list[np.ndarray | None]
    lengths: list[np.ndarray | None]
    reasons: list[str | None]
    truncated: list[bool]
    notes: list[tuple[str, ...]]
    tokens: int
    label_tokens: int
    flops: float

    @property
    def dropped(self) -> dict[str, int]:
        return dict(Counter(reason for reason in self.reasons if reason is not None))


def choice_log_likelihoods(
    model: Model,
    records: Sequence[Mapping[str, Any]],
    *,
    max_length: int,
    rendering: Rendering = Rendering(),  # noqa: B008 (it cannot change)
    overflow: str = "drop",
    batch_tokens: int = 8192,
    mesh: Mesh | None = None,
    where: str = "the questions",
    progress: Progress | None = None,
) -> ChoiceScores:
    """Scores every choice of every record; max_length bounds a prompt with one choice. Longer ones are dropped, or
    lose the start of their prompt under overflow="truncate".

    batch_tokens: of one compiled step, over all devices. where: the file, for messages.
    Raises `UserError`: no records, a record without choices or with an answer that is none of them.
    """
    if not records:
        raise UserError(f"{where}: there are no questions; give a file that has some")
    if model.tokenizer is None:
        raise UserError(f"{model.name} was loaded without a tokenizer; evaluation of text needs one")
    for record in records:
        check_question(record, where)

    rows: list[ChoiceRow] = []
    kept: list[int] = []
    reasons: list[str | None] = [None] * len(records)
    truncated = [False] * len(records)
    notes: list[tuple[str, ...]] = [()] * len(records)
    for ordinal, record in enumerate(records):
        row = encode_choices(
            dict(record), model.tokenizer, max_length=max_length, overflow=overflow, rendering=rendering
        )
        if isinstance(row, ChoiceRow):
            rows.append(row)
            kept.append(ordinal)
            truncated[ordinal], notes[ordinal] = row.truncated, row.notes
        else:
            reasons[ordinal] = row.reason

    flat = score_choice_rows(model, rows, batch_tokens=batch_tokens, mesh=mesh, progress=progress)
    log_likelihoods: list[np.ndarray | None] = [None] * len(records)
    lengths: list[np.ndarray | None] = [None] * len(records)
    for ordinal, row, values in zip(kept, rows, flat, strict=True):
        if not np.all(np.isfinite(values)):
            raise UserError(
                f"{where}: question {row.id!r} has a log likelihood that is not finite; look at the weights "
                "(ntk-jax doctor checks them) or compute in float32"
            )
        log_likelihoods[ordinal] = values
        lengths[ordinal] = np.asarray([len(choice) for choice in row.choices], np.int32)
    tokens = sum(row.tokens for row in rows)
    label_tokens = sum(len(choice) for row in rows for choice in row.choices)
    adapter_size = sum(leaf.size for leaf in jax.tree.leaves(model.lora))
    flops = forward_flops(model.config, tokens, label_tokens, lora_parameters=adapter_size)
    return ChoiceScores(log_likelihoods, lengths, reasons, truncated, notes, tokens, label_tokens, flops)


def check_question(record: Mapping[str, Any], where: str) -> None:
    """Raises `UserError`, naming file and id, when a record is not a multiple-choice question."""
    name, choices, answer = record.get("id", "(no id)"), record.get("choices"), record.get("answer")
    if not choices:
        raise UserError(
            f"{where}: record {name!r} has no choices; evaluation needs multiple-choice records "
            '("choices": [...], "answer": index)'
        )
    if not isinstance(choices, Sequence) or isinstance(choices, str) or len(choices) < 2:
        raise UserError(f"{where}: record {name!r} has fewer than two choices; give at least two")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UserError(
            f"{where}: the answer of record {name!r} is {answer!r}; it must be an index of its {len(choices)} choices"
        )


def score_choice_rows(
    model: Model,
    rows: Sequence[ChoiceRow],
    *,
    batch_tokens: int = 8192,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """Sum of log p over the tokens of each choice: per question [C] float32."""
    return _by_question(rows, log_prob_sums, model, batch_tokens, mesh, progress)


def score_continuations(
    model: Model,
    rows: Sequence[ChoiceRow],
    *,
    batch_tokens: int = 8192,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`score_choice_rows`, and whether greedy decoding would write the choice: per question [C] float32, [C] bool."""
    found = _by_question(rows, log_prob_sums_and_misses, model, batch_tokens, mesh, progress)
    return [(values[:, 0], values[:, 1] == 0) for values in found]


def _by_question(
    rows: Sequence[ChoiceRow],
    compute: Callable[..., np.ndarray],
    model: Model,
    batch_tokens: int,
    mesh: Mesh | None,
    progress: Progress | None,
) -> list[np.ndarray]:
    """What a function of `packed` gives for each choice, per question."""
    if not rows:
        return []
    row_length = row_length_of(max(row.tokens for row in rows))
    offsets = np.cumsum([0] + [len(row.choices) for row in rows])

    def finished(done: int) -> None:
        if progress is not None:
            progress(int(np.searchsorted(offsets, done, side="right")) - 1, len(rows))

    packed = pack_choices(rows, **batch_shape(row_length, batch_tokens, mesh))
    flat = compute(model, packed, int(offsets[-1]), mesh=mesh, finished=finished)
    return [flat[start:stop] for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]
