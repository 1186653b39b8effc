"""From records to token rows with a span, in batches, in order.

Prompt and response are tokenised as one text, as a model has read them in training, and the span begins at the first
token that holds a character of the response. Where one token holds the end of the prompt and the start of the response,
it is predicted with the response: as a part of the prompt it would give the response's first characters away. A
tokenizer that puts a BOS before a text gets one BOS, also when the chat template has written it already.
"""

from __future__ import annotations

import dataclasses
import itertools
import os.path
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.control import Encoding, codec_of
from ntk_jax.data.records import Record, response_text
from ntk_jax.data.sources import read_records
from ntk_jax.data.templates import SPELLS_CONTROL, Rendering, uses_chat, write, write_choices, write_question
from ntk_jax.errors import UserError

ENCODE_BATCH = 512  # records of one tokenizer call: enough to keep its threads busy, little to hold

TOO_LONG = "too long"
NO_RESPONSE = "no response tokens"
NO_PROMPT = "no prompt tokens"
CONTROL_IN_TEXT = SPELLS_CONTROL


@dataclass(frozen=True)
class Dropped:
    """An example that is left out, and why; it is counted, never lost silently."""

    reason: str
    id: str = ""


@dataclass(frozen=True)
class ChoiceRow:
    """A multiple-choice question: prompt [T] int32, and each choice [C_i] int32 as its continuation. notes: what became
    of the record's words, as in `templates.Written`."""

    prompt: np.ndarray
    choices: tuple[np.ndarray, ...]
    id: str = ""
    truncated: bool = False
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """What the question fills in a packed row: the prompt once and every choice."""
        return len(self.prompt) + sum(len(choice) for choice in self.choices)


def encode(
    record: Record,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    span: str = "response",
    overflow: str = "drop",
    rendering: Rendering = Rendering(),  # noqa: B008 (it cannot change)
) -> TokenRow | Dropped:
    """One checked record as tokens; see `encode_many`."""
    return encode_many([record], tokenizer, max_length=max_length, span=span, overflow=overflow, rendering=rendering)[0]


def encode_many(
    records: Sequence[Record],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    span: str = "response",
    overflow: str = "drop",
    rendering: Rendering = Rendering(),  # noqa: B008
) -> list[TokenRow | Dropped]:
    """Checked records as token rows, in order, by one tokenizer call.

    max_length: tokens of an example, None = any. span: `response` (the positions that predict response tokens), `all`,
    `last`. overflow: `drop`, or `truncate`, which cuts the start of what the prompt says (the BOS, what a chat template
    puts before and behind it, and one prompt token stay) and then the end of the response. An example without response
    text is dropped under the `response` span.
    Raises UserError: a template that cannot be used (see `templates.write`).
    """
    _check_options(span, overflow, max_length)
    if not records:
        return []
    written = [write(record, tokenizer, rendering) for record in records]
    encodings = codec_of(tokenizer).encode([each.prompt + each.response for each in written])
    bos = bos_ids(tokenizer)
    out: list[TokenRow | Dropped] = []
    for record, text, encoding in zip(records, written, encodings, strict=True):
        if span == "response" and not response_text(record).strip():
            out.append(Dropped(NO_RESPONSE, record["id"]))
        elif rendering.control_tokens == "drop" and SPELLS_CONTROL in text.notes:
            out.append(Dropped(CONTROL_IN_TEXT, record["id"]))
        else:
            added = [] if encoding.ids[: len(bos)] == bos else bos
            prompt = len(added) + encoding.before(len(text.prompt))
            tokens = np.asarray(added + encoding.ids, np.int32)
            kept = (0, 1)
            if max_length is not None and len(tokens) > max_length and overflow == "truncate":
                kept = _frame(record, text.prompt, encoding, bos)
            row = TokenRow(tokens, _span(prompt, len(tokens), span), record["id"], notes=text.notes)
            out.append(_fit(row, prompt, kept, max_length, overflow))
    return out


def encode_choices(
    record: Record,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    overflow: str = "drop",
    rendering: Rendering = Rendering(),  # noqa: B008
) -> ChoiceRow | Dropped:
    """A multiple-choice record as one prompt and the tokens of each choice (its text only, no end of turn, no EOS).

    Each choice is tokenised with the prompt. The prompt is what all of them have in common of it: where its last tokens
    change with the choice, they are predicted with the choice, so that all choices are compared as ends of one text.
    max_length bounds the prompt with its longest choice. overflow: `drop`, or `truncate` the prompt as `encode_many`.
    Raises UserError: the record has no choices, or the chat template cannot be used.
    """
    _check_options("response", overflow, max_length)
    if "choices" not in record:
        raise UserError(f'{record["id"]}: the record has no "choices"; multiple choice needs "choices" and "answer"')
    asked, answers, notes = write_choices(record, tokenizer, rendering)
    if rendering.control_tokens == "drop" and SPELLS_CONTROL in notes:
        return Dropped(CONTROL_IN_TEXT, record["id"])
    encodings = codec_of(tokenizer).encode([asked + answer for answer in answers])
    bos = bos_ids(tokenizer)
    shared = list(os.path.commonprefix([each.ids[: each.before(len(asked))] for each in encodings]))
    choices = [each.ids[len(shared) :] for each in encodings]
    added = [] if shared[: len(bos)] == bos else bos
    prompt = added + shared
    if not prompt:
        return Dropped(NO_PROMPT, record["id"])
    if not all(choices):
        return Dropped(NO_RESPONSE, record["id"])
    room = len(prompt) if max_length is None else max_length - max(map(len, choices))
    truncated = room < len(prompt)
    if truncated:
        start, end = _frame(record, asked, encodings[0], bos)
        if overflow == "drop" or room < start + min(end, len(prompt) - start):
            return Dropped(TOO_LONG, record["id"])
        prompt = prompt[:start] + prompt[len(prompt) - room + start :]
    arrays = tuple(np.asarray(choice, np.int32) for choice in choices)
    return ChoiceRow(np.asarray(prompt, np.int32), arrays, record["id"], truncated, notes)


def encode_question(
    messages: Sequence[Mapping[str, Any]] | str,
    tokenizer: Any,
    rendering: Rendering = Rendering(),  # noqa: B008
    name: str = "the question",
) -> tuple[list[int], tuple[str, ...]]:
    """(the tokens that a model reads before it answers, notes); see `templates.write_question`, and its errors."""
    text, notes = write_question(messages, tokenizer, rendering, name)
    ids, bos = codec_of(tokenizer).encode([text])[0].ids, bos_ids(tokenizer)
    return ids if ids[: len(bos)] == bos else bos + ids, notes


def ends_of_turn(tokenizer: Any, rendering: Rendering = Rendering()) -> set[int]:  # noqa: B008
    """The tokens with which an answer ends: the tokenizer's EOS, and the first control token that the chat template
    writes behind an assistant's words."""
    ends = {tokenizer.eos_token_id} - {None}
    if uses_chat(tokenizer, rendering):
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        written = write({"id": "the end of a turn", "messages": talk}, tokenizer, rendering)
        controls = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        before = written.response.rfind("b")
        ids = codec_of(tokenizer).encode([written.response[before:]])[0].ids
        ends |= set([number for number in ids if number in controls][:1])
    return ends


def as_rows(
    examples: str | Path | Iterable[Any],
    tokenizer: Any = None,
    *,
    max_length: int | None = None,
    span: str = "response",
    overflow: str = "drop",
    rendering: Rendering = Rendering(),  # noqa: B008
    vocab_size: int | None = None,
) -> Iterator[tuple[Record | None, TokenRow | Dropped]]:
    """Whatever the API takes as examples, as a stream of (record, token row): record is None for token rows.

    examples: a path or source specification, several of them, records, `{"input_ids", "span"}` mappings or TokenRows.
    vocab_size: bounds the ids of given token rows; None = the tokenizer's size, if there is one.
    Raises UserError: whatever `read_records` raises; text without a tokenizer; a token row with a bad id or span.
    """
    _check_options(span, overflow, max_length)
    if vocab_size is None and tokenizer is not None:
        vocab_size = len(tokenizer)

    def encode_chunk(records: list[Record]) -> Iterator[tuple[Record | None, TokenRow | Dropped]]:
        if tokenizer is None:
            raise UserError("these examples are text, but no tokenizer is given; load the model with its tokenizer")
        rows = encode_many(records, tokenizer, max_length=max_length, span=span, overflow=overflow, rendering=rendering)
        return zip(records, rows, strict=True)

    if isinstance(examples, (str, Path, Mapping)):
        examples = [examples]
    stream = iter(examples)
    first = next(stream, None)
    if first is None:
        raise UserError("there are no examples: the list is empty; give at least one")
    stream = itertools.chain([first], stream)
    if not _is_row(first):
        records = read_records(stream)
        while chunk := list(itertools.islice(records, ENCODE_BATCH)):
            yield from encode_chunk(chunk)
        return
    for number, item in enumerate(stream):
        if not _is_row(item):
            raise UserError(f"example {number}: token rows and records cannot be mixed; give one kind")
        ids, marks, name, cut = _given_row(item, number, span, vocab_size)
        if not marks.any():
            yield None, Dropped(NO_RESPONSE, name)
            continue
        row = TokenRow(ids, marks, name, cut)
        yield None, _fit(row, int(np.argmax(marks)) + 1, (0, 1), max_length, overflow)


def _is_row(item: Any) -> bool:
    return isinstance(item, TokenRow) or (isinstance(item, Mapping) and "input_ids" in item)


def _given_row(item: Any, number: int, span: str, vocab_size: int | None) -> tuple[np.ndarray, np.ndarray, str, bool]:
    """Checks a token row that the user made."""
    ids: Any
    marks: Any
    if isinstance(item, TokenRow):
        ids, marks, name, cut = item.ids, item.span, item.id or str(number), item.truncated
    else:
        ids, marks, name, cut = item["input_ids"], item.get("span"), str(item.get("id", number)), False
    where = f"example {name}"
    try:
        ids = np.asarray(ids)
    except (ValueError, OverflowError):  # ragged, or a number beyond 64 bits
        ids = np.asarray(0.5)
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"{where}: input_ids must be a list of token ids, at least one")
    bad = ids < 0 if vocab_size is None else (ids < 0) | (ids >= vocab_size)
    if bad.any():
        at = int(np.argmax(bad))
        size = "" if vocab_size is None else f" (the vocabulary has {vocab_size})"
        raise UserError(
            f"{where}: token id {ids[at]} at position {at} is outside the vocabulary{size}; correct the row"
        )
    if marks is None:
        if span == "response":
            raise UserError(f'{where}: the token row has no "span"; mark the positions that count, or use span: all')
        marks = _span(1, len(ids), span)
    marks = np.asarray(marks)
    if marks.shape != ids.shape or not np.isin(marks, (0, 1)).all():
        raise UserError(f"{where}: span must be a list of 0 and 1, one for each of the {len(ids)} tokens")
    return ids.astype(np.int32), marks.astype(bool), name, cut


def _check_options(span: str, overflow: str, max_length: int | None) -> None:
    if span not in ("response", "all", "last"):
        raise UserError(f"span {span!r} is not one of response, all, last")
    if overflow not in ("drop", "truncate"):
        raise UserError(f"overflow {overflow!r} is not one of drop, truncate")
    if max_length is not None and max_length < 2:
        raise UserError(f"max_length is {max_length}; an example needs at least 2 tokens, one to predict from")


def _span(prompt: int, total: int, span: str) -> np.ndarray:
    """[total] bool; prompt: its number of tokens."""
    marks = np.zeros(total, bool)
    if span == "all":
        marks[:] = True
    elif span == "last":
        marks[-1:] = True
    else:
        marks[max(prompt - 1, 0) : max(total - 1, 0)] = True
    return marks


def _frame(record: Record, prompt_text: str, encoding: Encoding, bos: list[int]) -> tuple[int, int]:
    """How many tokens at the start and at the end of the prompt are not the record's own words but the BOS and the
    template's marks, without which a model does not know who speaks; at least one at the end, which predicts the
    response's first token. bos: what the prompt opens with, whether the encoding has it or not."""
    said = [message["content"] for message in record["messages"][:-1]] if "messages" in record else [record["prompt"]]
    # as they are, without the white space that went to the response, or as a template that trims them has them
    first, last = (
        next((form for form in (words, words.rstrip()) if form in prompt_text), words.strip())
        for words in (said[0], said[-1])
    )
    begins, ends = prompt_text.find(first), prompt_text.rfind(last)
    if begins < 0 or ends < 0:  # the template rewrites the words: nothing to hold on to
        return len(bos), 1
    added = 0 if encoding.ids[: len(bos)] == bos else len(bos)
    prompt = encoding.before(len(prompt_text))
    head, tail = encoding.before(begins), encoding.first(ends + len(last))
    return max(len(bos), added + head), max(1, min(prompt - tail, prompt - head))


def _fit(
    row: TokenRow, prompt: int, kept: tuple[int, int], max_length: int | None, overflow: str
) -> TokenRow | Dropped:
    """Applies the length rule. prompt: the number of prompt tokens; kept: those at its start and end that stay."""
    if not row.span.any():
        return Dropped(NO_RESPONSE, row.id)
    excess = 0 if max_length is None else len(row.ids) - max_length
    if excess <= 0:
        return row
    if overflow == "drop":
        return Dropped(TOO_LONG, row.id)
    start, end = kept
    cut = min(excess, max(prompt - start - end, 0))
    ids = np.concatenate([row.ids[:start], row.ids[start + cut :]])[:max_length]
    span = np.concatenate([row.span[:start], row.span[start + cut :]])[:max_length].copy()
    if cut < excess:  # the end is new, and whether an end counts is the span's choice (`response`: no, else yes)
        span[-1] = row.span[-1]
    cut_row = dataclasses.replace(row, ids=ids, span=span, truncated=True)
    return cut_row if span.any() else Dropped(TOO_LONG, row.id)


def bos_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text when asked for special tokens: mostly one BOS or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    special = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return list(special[:start])
    return []
