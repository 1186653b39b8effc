"""Examples of a run: records as token rows, by the run's template and length rules, with the account of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.formats import AUTO, Reading
from ntk_jax.data.records import Record, response_text
from ntk_jax.data.shown import shown
from ntk_jax.data.sources import read, sample_indices
from ntk_jax.data.statistics import DataStatistics
from ntk_jax.data.templates import Rendering
from ntk_jax.data.tokens import NO_RESPONSE, Dropped, as_rows
from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.model import RunModel
from ntk_jax.pipelines.common.sections import ModelSection


def rendering_of(section: ModelSection) -> Rendering:
    """How the run's records become text."""
    return Rendering(section.template, section.add_eos, section.control_tokens, section.template_options or {})


@dataclass(frozen=True)
class Encoder:
    """Records to token rows. model: whose tokenizer and vocabulary."""

    model: RunModel
    section: ModelSection

    def rows(self, records: Sequence[Record], span: str) -> Iterator[tuple[Record, TokenRow | Dropped]]:
        """Each record with its tokens, in order. Whatever the span, an example without a response is dropped: it could
        be scored, but neither trained on nor compared."""
        section, base = self.section, self.model.base
        for record, row in as_rows(
            records,
            base.tokenizer,
            max_length=section.max_length,
            span=span,
            overflow=section.overflow,
            rendering=rendering_of(section),
            vocab_size=base.config.vocab_size,
        ):
            assert record is not None
            yield record, row if response_text(record).strip() else Dropped(NO_RESPONSE, record["id"])

    def encode(self, records: Sequence[Record], span: str = "response") -> Examples:
        """The records that can be used, and the account of all. Training always looks at responses only."""
        statistics = DataStatistics()
        kept: list[Record] = []
        rows: list[TokenRow] = []
        for record, row in self.rows(records, span):
            statistics.add(record, row)
            if isinstance(row, TokenRow):
                kept.append(record)
                rows.append(row)
        return Examples(kept, rows, statistics)


@dataclass(frozen=True)
class Examples:
    """Usable records with their rows, in order; statistics: the account of all that were read."""

    records: list[Record]
    rows: list[TokenRow]
    statistics: DataStatistics

    def account(self, tokenizer: Any) -> dict[str, Any]:
        """What data.json says of them, with the first one as the model reads it."""
        return self.statistics.to_dict() | {"example": shown(self.rows[0], tokenizer)}


def read_examples(
    encoder: Encoder,
    key: str,
    files: tuple[str, ...],
    limit: int | None,
    seed: int,
    *,
    span: str = "response",
    reading: Reading = AUTO,
) -> Examples:
    """The examples of files, sampled by the seed. key: what the config calls the files.

    Raises UserError: a bad file or record, or no example that can be used.
    """
    records: list[Any] = list(read(files, reading))
    chosen = sample_indices(len(records), limit, seed)
    if chosen is not None:
        records = [records[i] for i in chosen]
    found = encoder.encode(records, span)
    if not found.rows:
        raise none_usable(key, f"{len(records)} examples of {', '.join(files)}", found.statistics)
    return found


def none_usable(key: str, what: str, statistics: DataStatistics) -> UserError:
    """The error for a set of which no example can be used."""
    dropped = statistics.to_dict()["dropped"]
    return UserError(f"{key}: none of {what} is usable (dropped: {dropped}); check model.max_length and the responses")
