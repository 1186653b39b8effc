"""From records to token rows with a span, in batches, in order.

Prompt and response are tokenised apart, so that the span begins exactly at the response. A tokenizer that puts a BOS
before a text gets one BOS, also when the chat template has written it already.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import Record, response_text
from ntk_jax.data.sources import read_records
from ntk_jax.data.templates import render, render_choices
from ntk_jax.errors import UserError

ENCODE_BATCH = 512  # records of one tokenizer call: enough to keep its threads busy, little to hold

TOO_LONG = "too long"
NO_RESPONSE = "no response tokens"
NO_PROMPT = "no prompt tokens"


@dataclass(frozen=True)
class Dropped:
    """An example that is left out, and why; it is counted, never lost silently."""

    reason: str
    id: str = ""


@dataclass(frozen=True)
class ChoiceRow:
    """A multiple-choice question: prompt [T] int32, and each choice [C_i] int32 as its continuation."""

    prompt: np.ndarray
    choices: tuple[np.ndarray, ...]
    id: str = ""
    truncated: bool = False

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
    template: str = "auto",
    add_eos: bool = True,
) -> TokenRow | Dropped:
    """One checked record as tokens; see `encode_many`."""
    return encode_many(
        [record], tokenizer, max_length=max_length, span=span, overflow=overflow, template=template, add_eos=add_eos
    )[0]


def encode_many(
    records: Sequence[Record],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    span: str = "response",
    overflow: str = "drop",
    template: str = "auto",
    add_eos: bool = True,
) -> list[TokenRow | Dropped]:
    """Checked records as token rows, in order, by one tokenizer call.

    max_length: tokens of an example, None = any. span: `response` (the positions that predict response tokens), `all`,
    `last`. overflow: `drop`, or `truncate`, which cuts the start of what the prompt says (the BOS, what a chat template
    puts before and behind it, and one prompt token stay) and then the end of the response. An example without response
    text is dropped under the `response` span.
    Raises UserError: a template that cannot be used (see `templates.render`).
    """
    _check_options(span, overflow, max_length)
    if not records:
        return []
    texts = [render(record, tokenizer, template, add_eos) for record in records]
    ids = _tokenize(tokenizer, [text for pair in texts for text in pair])
    bos = _bos_ids(tokenizer)
    out: list[TokenRow | Dropped] = []
    for number, record in enumerate(records):
        prompt, response = _with_bos(bos, ids[2 * number], ids[2 * number + 1])
        if span == "response" and not response_text(record).strip():
            out.append(Dropped(NO_RESPONSE, record["id"]))
            continue
        tokens = np.asarray(prompt + response, np.int32)
        kept = (0, 1)
        if max_length is not None and len(tokens) > max_length and overflow == "truncate":
            kept = _frame(record, texts[number][0], prompt, tokenizer, bos)
        marks = _span(len(prompt), len(tokens), span)
        out.append(_fit(tokens, marks, record["id"], len(prompt), kept, max_length, overflow))
    return out


def encode_choices(
    record: Record,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    template: str = "auto",
    overflow: str = "drop",
) -> ChoiceRow | Dropped:
    """A multiple-choice record as one prompt and the tokens of each choice (its text only, no end of turn, no EOS).

    max_length bounds the prompt with its longest choice. overflow: `drop`, or `truncate` the prompt as `encode_many`.
    Raises UserError: the record has no choices, or the chat template cannot be used.
    """
    _check_options("response", overflow, max_length)
    if "choices" not in record:
        raise UserError(f'{record["id"]}: the record has no "choices"; multiple choice needs "choices" and "answer"')
    prompt_text, lead, choice_texts = render_choices(record, tokenizer, template)
    # The lead is tokenised together with the choice, as in training, and given to the prompt if it stays apart.
    prompt, lead_ids, *choices = _tokenize(tokenizer, [prompt_text, lead, *(lead + text for text in choice_texts)])
    bos = _bos_ids(tokenizer)
    prompt, _ = _with_bos(bos, prompt, choices[0])
    asked = prompt
    if lead.strip() and all(choice[: len(lead_ids)] == lead_ids for choice in choices):
        prompt = prompt + lead_ids
        choices = [choice[len(lead_ids) :] for choice in choices]
    if not prompt:
        return Dropped(NO_PROMPT, record["id"])
    if not all(choices):
        return Dropped(NO_RESPONSE, record["id"])
    longest = max(map(len, choices))
    truncated = False
    if max_length is not None and len(prompt) + longest > max_length:
        if overflow == "drop":
            return Dropped(TOO_LONG, record["id"])
        start, end = _frame(record, prompt_text, asked, tokenizer, bos)
        room = max_length - longest - start
        if room < end + len(prompt) - len(asked):
            return Dropped(TOO_LONG, record["id"])
        prompt, truncated = prompt[:start] + prompt[len(prompt) - room :], True
    return ChoiceRow(
        np.asarray(prompt, np.int32), tuple(np.asarray(choice, np.int32) for choice in choices), record["id"], truncated
    )


def as_rows(
    examples: str | Path | Iterable[Any],
    tokenizer: Any = None,
    *,
    max_length: int | None = None,
    span: str = "response",
    overflow: str = "drop",
    template: str = "auto",
    add_eos: bool = True,
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
        rows = encode_many(
            records,
            tokenizer,
            max_length=max_length,
            span=span,
            overflow=overflow,
            template=template,
            add_eos=add_eos,
        )
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
        row = _fit(ids, marks, name, int(np.argmax(marks)) + 1, (0, 1), max_length, overflow)
        yield None, TokenRow(row.ids, row.span, row.id, True) if cut and isinstance(row, TokenRow) else row


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


def _frame(record: Record, prompt_text: str, prompt: list[int], tokenizer: Any, bos: list[int]) -> tuple[int, int]:
    """How many tokens at the start and at the end of the prompt are not the record's own words but the BOS and the
    template's marks, without which a model does not know who speaks; at least one at the end, which predicts the
    response's first token."""
    said = [message["content"] for message in record["messages"][:-1]] if "messages" in record else [record["prompt"]]
    # as they are, or as a template that trims them has them
    first, last = (words if words in prompt_text else words.strip() for words in (said[0], said[-1]))
    begins, ends = prompt_text.find(first), prompt_text.rfind(last)
    if begins < 0 or ends < 0:  # the template rewrites the words: nothing to hold on to
        return (len(bos) if prompt[: len(bos)] == bos else 0), 1
    head, tail = _tokenize(tokenizer, [prompt_text[:begins], prompt_text[ends + len(last) :]])
    if prompt[: len(bos)] == bos and head[: len(bos)] != bos:
        head = bos + head
    start = _common(head, prompt)
    return start, max(1, min(_common(tail[::-1], prompt[::-1]), len(prompt) - start))


def _common(a: list[int], b: list[int]) -> int:
    """The length of the common start."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _fit(
    ids: np.ndarray,
    span: np.ndarray,
    name: str,
    prompt: int,
    kept: tuple[int, int],
    max_length: int | None,
    overflow: str,
) -> TokenRow | Dropped:
    """Applies the length rule. prompt: the number of prompt tokens; kept: those at its start and end that stay."""
    if not span.any():
        return Dropped(NO_RESPONSE, name)
    excess = 0 if max_length is None else len(ids) - max_length
    if excess <= 0:
        return TokenRow(ids, span, name)
    if overflow == "drop":
        return Dropped(TOO_LONG, name)
    start, end = kept
    cut = min(excess, max(prompt - start - end, 0))
    ends_marked = span[-1]
    ids = np.concatenate([ids[:start], ids[start + cut :]])[:max_length]
    span = np.concatenate([span[:start], span[start + cut :]])[:max_length].copy()
    if cut < excess:  # the end is new, and whether an end counts is the span's choice (`response`: no, else yes)
        span[-1] = ends_marked
    return TokenRow(ids, span, name, True) if span.any() else Dropped(TOO_LONG, name)


def _tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    # verbose=False: a text longer than the tokenizer's own limit is our business, not a warning
    call: Callable[..., Any] = tokenizer
    return call(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _bos_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text when asked for special tokens: mostly one BOS or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    special = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return list(special[:start])
    return []


def _with_bos(bos: list[int], prompt: list[int], response: list[int]) -> tuple[list[int], list[int]]:
    """Prepends the BOS to the prompt unless the text brought it along."""
    return (prompt if (prompt + response)[: len(bos)] == bos else bos + prompt), response
