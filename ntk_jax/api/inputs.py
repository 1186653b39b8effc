"""What the functions of the API take, and what becomes of it: examples, spans and objectives, short and long."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.span import Span
from ntk_jax.data.tokens import TOO_LONG, Dropped, as_rows
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective, TokenObjective
from ntk_jax.models.model import Model

SpanLike = Span | str
ObjectiveLike = Objective | str | TokenObjective


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Examples as token rows. kept: those that are used, at `places` of all `examples` in the order given."""

    examples: list[TokenRow | Dropped]
    kept: list[TokenRow]
    places: np.ndarray

    @property
    def longest(self) -> int:
        """Tokens of the longest example that is used."""
        return max(len(row.ids) for row in self.kept)

    def spread(self, values: np.ndarray, axes: Sequence[int] = (0,)) -> np.ndarray:
        """Values of the kept examples on some axes, as values of all of them: NaN where one was left out."""
        for axis in axes if len(self.kept) < len(self.examples) else ():
            shape = list(values.shape)
            shape[axis] = len(self.examples)
            wide = np.full(shape, np.nan, values.dtype)
            wide[(slice(None),) * axis + (self.places,)] = values
            values = wide
        return values


def encoded(model: Model, examples: Any, span: SpanLike) -> Encoded:
    """Examples by the model's tokenizer and a span. Raises UserError as `token_rows`, and when none can be used."""
    rule = span if isinstance(span, Span) else Span(span)
    vocabulary, positions = model.config.vocab_size, model.config.max_positions
    longest = min(rule.max_length or positions, positions)
    rows: list[TokenRow | Dropped] = []
    for _, row in as_rows(
        examples,
        model.tokenizer,
        max_length=longest,
        span=rule.which,
        overflow="drop" if rule.overflow == "error" else rule.overflow,
        rendering=rule.rendering,
        vocab_size=vocabulary,
    ):
        if isinstance(row, Dropped) and rule.overflow == "error":
            most = f" (at most {longest} tokens; the model has {positions} positions)" if row.reason == TOO_LONG else ""
            raise UserError(f"example {row.id}: {row.reason}; leave it out{most}, or take Span(overflow='drop')")
        rows.append(row)
    places = np.array([place for place, row in enumerate(rows) if isinstance(row, TokenRow)], np.int64)
    kept = [row for row in rows if isinstance(row, TokenRow)]
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped_of(rows).items())
        raise UserError(f"none of {len(rows)} examples can be used ({reasons}); look at max_length and the responses")
    return Encoded(rows, kept, places)


def dropped_of(rows: Sequence[TokenRow | Dropped]) -> dict[str, int]:
    """How many were left out for each reason."""
    return dict(sorted(Counter(row.reason for row in rows if isinstance(row, Dropped)).items()))


def token_rows(model: Model, examples: Any, *, span: SpanLike = "response") -> list[TokenRow | None]:
    """Examples as token rows by the model's tokenizer and chat template, in order.

    Args:
        model: from `load_model`, with its tokenizer unless the examples are token rows.
        examples: a path (or glob, `builtin:`, `tfds:`, `hf:`), several, an iterable of records, or token rows
            `{"input_ids": [...], "span": [0/1, ...]}`, which bypass templates and tokenizers.
        span: `response`, `all`, `last`, or a `Span` with a length rule and a template.

    Returns:
        A row for each example, with `ids` [T], `span` [T] bool, `id` and `truncated`; None for one that the span's
        overflow rule leaves out.

    Raises:
        UserError: an example that cannot be used under `Span(overflow="error")`, which is the default, or none at all;
            a bad record or file (naming file and line).

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model")
        >>> records = [{"prompt": "A cat", "response": "purrs"}, {"prompt": "A dog " * 200, "response": "barks"}]
        >>> rows = nj.token_rows(model, records, span=nj.Span(max_length=64, overflow="drop"))
        >>> [row is None for row in rows]
        [False, True]
    """
    return [row if isinstance(row, TokenRow) else None for row in encoded(model, examples, span).examples]


def objective_of(objective: ObjectiveLike, normalize: str | None, seed: int | None) -> Objective:
    """The objective, whose own normalisation and seed give way to those that are given."""
    chosen = objective if isinstance(objective, Objective) else Objective(objective)
    given: dict[str, Any] = {"normalize": normalize, "seed": seed}
    return dataclasses.replace(chosen, **{name: value for name, value in given.items() if value is not None})
