"""Documents as chunks that questions are asked about, and what became of the documents that give none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ntk_jax.data.chunks import chunks_of
from ntk_jax.data.language import UNKNOWN, language_of
from ntk_jax.data.readable import unreadable
from ntk_jax.data.words import text_hash
from ntk_jax.errors import UserError, shown
from ntk_jax.questions.question import Chunk

# Why a document gives no chunk.
NO_TEXT, EMPTY, DUPLICATE, LANGUAGE = "no text", "empty", "the same as another", "in another language"
TOO_LONG = "a single character is more than the model can read"
# What is noted of documents that are kept.
ONE_LINE, NO_SENTENCE, SAME_ID = "one line", "no end of a sentence", "an id that another has"

_SENTENCE_MARK = re.compile(r"[.!?\u3002\uff01\uff1f\u0964\u061f\u06d4]")

Span = tuple[int, int]


@dataclass(frozen=True)
class Chunked:
    """chunks: in the order of the documents. dropped: {why: documents without a chunk}. shortened: chunks that were cut
    further to fit a model. notes: {what: documents it was noted of}. languages: {document: its language}. same: {a
    document that was dropped as the same as another: that one}."""

    chunks: list[Chunk]
    dropped: Mapping[str, int] = field(default_factory=dict)
    shortened: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)
    languages: Mapping[str, str] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)


def chunk_documents(
    records: Iterable[Mapping[str, Any]],
    *,
    words: int,
    count_tokens: Callable[[str], int] | None = None,
    max_tokens: int | None = None,
    languages: Sequence[str] = (),
) -> Chunked:
    """Cuts documents into chunks of at most `words` words, at the ends of sentences and of about equal length.

    The document's text is `document_text`, and a chunk's text is exactly the characters [start, stop) of it. A chunk's
    id is the document's with # and an ordinal. Bad documents are dropped and counted, never raised: without a text,
    empty, the same text as one before, rubbish (`unreadable`), in another language. A line without any end of a
    sentence is cut between words.

    count_tokens, max_tokens: a chunk of more tokens is cut further, between words, or inside a word that alone is too
    long. languages: ISO 639-1 codes; documents in others are dropped. One whose language is not recognised stays. What
    counts is the document's beginning: a document in two languages is one of the first.
    Raises UserError: nothing is left, a number out of its range, languages without resiliparse.
    """
    if words < 1 or (max_tokens is not None and max_tokens < 1):
        raise UserError(f"words = {words}, max_tokens = {max_tokens}: a chunk has at least one word and one token")
    if (count_tokens is None) != (max_tokens is None):
        raise ValueError("count_tokens and max_tokens go together")
    chunks: list[Chunk] = []
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    found: dict[str, str] = {}
    names: set[str] = set()
    known: dict[int, str] = {}
    same: dict[str, str] = {}
    shortened = 0
    for number, record in enumerate(records, 1):
        text = document_text(record)
        why = _fault(text, known)
        language = language_of(text) if languages and text is not None and not why else UNKNOWN
        if not why and language not in (*languages, UNKNOWN):
            why = LANGUAGE
        if why or text is None:
            dropped[why or NO_TEXT] += 1
            if why == DUPLICATE and text is not None and isinstance(record.get("id"), str):
                same[record["id"]] = known[_key(text)]
            continue
        title = record.get("title")
        title = " ".join(title.split()) if isinstance(title, str) else ""
        room = max_tokens
        if count_tokens is not None and max_tokens is not None:  # models read the title with every chunk
            room = max_tokens - count_tokens(f"[{title or record.get('id', '')}]\n")
        spans, cut = _spans(text, words, count_tokens, room) if room is None or room > 0 else ([], False)
        if not spans:
            dropped[TOO_LONG] += 1
            continue
        name = known[_key(text)] = _name(record, number, names, notes)
        if languages:
            found[name] = language
        notes.update(_remarks(text))
        shortened += cut
        chunks += [
            Chunk(f"{name}#{ordinal}", name, title or name, str(record.get("source") or name), text[a:b], a, b)
            for ordinal, (a, b) in enumerate(spans)
        ]
    if not chunks:
        reasons = ", ".join(f"{count} {why}" for why, count in dropped.most_common())
        raise UserError(f"no document is left to ask about: {reasons or 'there was none'}; give others")
    return Chunked(chunks, dict(dropped), shortened, dict(notes), found, same)


def document_text(record: Mapping[str, Any]) -> str | None:
    """The text of a record: its response, behind its prompt where that is not empty; else its `text`; else what was
    said in its messages. None where there is no text of any kind."""
    response = record.get("response")
    if isinstance(response, str):
        prompt = record.get("prompt")
        return f"{prompt}\n\n{response}" if isinstance(prompt, str) and prompt.strip() else response
    if isinstance(record.get("text"), str):
        return str(record["text"])
    talk = record.get("messages")
    if isinstance(talk, Sequence) and not isinstance(talk, str):
        said = [one.get("content") for one in talk if isinstance(one, Mapping)]
        return "\n\n".join(text for text in said if isinstance(text, str)) or None
    return None


def _fault(text: str | None, known: Mapping[int, str]) -> str | None:
    """Why nothing can be asked about the text, in whatever language. known: {key: document} of those before."""
    if text is None:
        return NO_TEXT
    if not text.strip():
        return EMPTY
    if _key(text) in known:
        return DUPLICATE
    why = unreadable(text)
    return f"rubbish: {why}" if why else None


def _key(text: str) -> int:
    """The same for texts that differ in white space alone."""
    return text_hash(" ".join(text.split()))


def _name(record: Mapping[str, Any], number: int, names: set[str], notes: Counter[str]) -> str:
    """The document's id, made different from all before."""
    own = record.get("id")
    name = own if isinstance(own, str) and own.strip() else f"document-{number}" if own is None else shown(own)
    wanted, count = name, 1
    while name in names:
        count += 1
        name = f"{wanted}-{count}"
    if name != wanted:
        notes[SAME_ID] += 1
    names.add(name)
    return name


def _remarks(text: str) -> list[str]:
    found = [ONE_LINE] if len(text.strip().splitlines()) == 1 else []
    return found if _SENTENCE_MARK.search(text) else [*found, NO_SENTENCE]


def _spans(
    text: str, words: int, count_tokens: Callable[[str], int] | None, max_tokens: int | None
) -> tuple[list[Span], int]:
    """(the chunks of a text, how many of them were cut further)."""
    found: list[Span] = []
    shortened = 0
    for start, stop, count in chunks_of(text, words):
        own = [(start, stop)]
        if count_tokens is not None and max_tokens is not None:
            own = _fitting(text, start, stop, count, count_tokens, max_tokens)
            shortened += own != [(start, stop)]
        found += own
    return found, shortened


def _fitting(
    text: str, start: int, stop: int, words: int, count_tokens: Callable[[str], int], max_tokens: int
) -> list[Span]:
    """The characters [start, stop) in pieces of at most `max_tokens`, of as few words less as will do. A character that
    is too much by itself is left out."""
    tokens = count_tokens(text[start:stop])
    if tokens <= max_tokens:
        return [(start, stop)]
    if words > 1:
        fewer = min(words - 1, -(-words // -(-tokens // max_tokens)))
        pieces = chunks_of(text, fewer, start, stop)
    else:
        middle = (start + stop) // 2
        pieces = [(start, middle, 1), (middle, stop, 1)] if stop - start > 1 else []
    return [span for a, b, count in pieces for span in _fitting(text, a, b, count, count_tokens, max_tokens)]
