"""The entities that a document names, and what it is about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ntk_jax.data.words import written_words
from ntk_jax.llm.request import Reply
from ntk_jax.llm.usable import Unusable
from ntk_jax.questions.methods.asked import Asked, answers, by_document
from ntk_jax.questions.methods.replies import fitting, json_of, lines_reader, texts_of
from ntk_jax.questions.question import Chunk, passage_of
from ntk_jax.questions.voice import Voice, Wish

MOST = 60  # entities of a document; the pairs of more are far more than any budget takes
SHOWN = 3  # chunks at most that are shown again when something is asked about entities
_NAME_WORDS = 8
_SUMMARY_WORDS = 60
_LINE_WORDS = 400  # of a line that is read at all
_SCHEMA = {
    "type": "object",
    "properties": {"summary": {"type": "string"}, "entities": {"type": "array", "items": {"type": "string"}}},
    "required": ["summary", "entities"],
}
_WHAT = (
    "the persons, organisations, places, dates, amounts, terms, duties and ideas that the passage is about, each in "
    f"one to {_NAME_WORDS} words, as the passage writes it"
)
_KIND = re.compile(  # what small models put before the names of a line, as they are asked for kinds of them
    r"(?:(?:named |other |legal |key |important )?(?:entit(?:y|ies)|persons?|people|part(?:y|ies)|organi[sz]ations?|"
    r"compan(?:y|ies)|places?|locations?|dates?|amounts?|terms?|dut(?:y|ies)|ideas?|concepts?)(?:\s*(?:,|/|and|or)\s*)?)+"
    r"\s*:\s*",
    re.IGNORECASE,
)
_NONE = re.compile(r"\W*(?:none|n/?a|not (?:stated|mentioned|specified|applicable))\b.*", re.IGNORECASE)
# What stands between commas; the one within a date (May 1, 2020) is none, nor the one within a number.
_LISTED = re.compile(r"(?:\b[A-Z][a-z]+\.? \d{1,2},\s+\d{4}\b|[^,;]|[,;](?!\s))+")
_GLOSS = re.compile(r"\s+[-–—(].*$|:\s.*$")  # what a line says of the name it begins with


@dataclass(frozen=True)
class Entity:
    """chunk: the first that names it."""

    name: str
    chunk: Chunk


@dataclass(frozen=True)
class Named:
    """A document with the entities that were found in it, in the order of the document."""

    chunks: tuple[Chunk, ...]
    summary: str
    entities: tuple[Entity, ...]

    def naming(self, entity: Entity) -> tuple[Chunk, ...]:
        """The first chunks that name an entity."""
        found = [chunk for chunk in self.chunks if _names(chunk, entity.name)] or [entity.chunk]
        return tuple(found[:SHOWN])


def parts_of(chunks: Sequence[Chunk], words: int) -> list[tuple[Chunk, ...]]:
    """Consecutive chunks of together at most `words` words; a longer one is a part by itself."""
    parts: list[list[Chunk]] = []
    size = 0
    for chunk in chunks:
        count = len(written_words(chunk.text))
        if not parts or size + count > words:
            parts.append([])
            size = 0
        parts[-1].append(chunk)
        size += count
    return [tuple(part) for part in parts]


def name_entities(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> list[Named]:
    """Reads every document in parts (`Asked.part_words`), and puts together what was found in them.

    Returns the documents with at least one entity, in order. Raises as `Voice.ask`.
    """
    rows = by_document(chunks)
    summaries: list[list[str]] = [[] for _ in rows]
    entities: list[dict[str, Entity]] = [{} for _ in rows]
    for (row, part), said in answers(_wishes(rows, asked), voice, asked):
        summary, names = said.value
        summaries[row].extend([summary] if summary else [])
        for name in names:
            first = next((chunk for chunk in part if _names(chunk, name)), part[0])
            entities[row].setdefault(name.casefold(), Entity(name, first))
    too_many = sum(max(0, len(own) - MOST) for own in entities)
    if too_many:
        asked.dropped[f"an entity beyond {MOST} of its document"] += too_many
    kept = [tuple(own.values())[:MOST] for own in entities]
    asked.found["entities"] = sum(map(len, kept))
    return [
        Named(tuple(row), " ".join(summary), own)
        for row, summary, own in zip(rows, summaries, kept, strict=True)
        if own
    ]


def _wishes(rows: Sequence[Sequence[Chunk]], asked: Asked) -> Iterator[tuple[tuple[int, tuple[Chunk, ...]], Wish]]:
    for n, row in enumerate(rows):
        for part in parts_of(row, asked.part_words):
            yield (n, part), _wish(part, asked)


def _wish(part: tuple[Chunk, ...], asked: Asked) -> Wish:
    passage = f"Passage:\n\n{passage_of(part)}\n\n"
    as_json = (
        f"{passage}First say in one or two sentences what this passage is about. Then list {_WHAT}. Answer with one "
        'JSON object and nothing else. Its keys are "summary", a text, and "entities", an array of texts.'
    )
    # Small models do the first of two things and stop, so no summary is asked for.
    as_text = f"{passage}List {_WHAT}: one a line, and nothing else."
    return Wish(
        text=(asked.request(as_text, "naming", part[0].id), read_lines),
        json=(asked.request(as_json, "naming", part[0].id, schema=_SCHEMA), read_json),
    )


def read_json(reply: Reply) -> tuple[str, list[str]] | Unusable:
    """(summary, names) of a JSON object; the summary may be missing."""
    value = json_of(reply)
    if isinstance(value, Unusable):
        return value
    names = fitting(texts_of(value, "entities", ("name", "entity")), 1, _NAME_WORDS)
    if not names:
        return Unusable("no entities in the JSON", again=True)
    said = texts_of(value, "summary") if isinstance(value, Mapping) else []
    return _shortened(" ".join(said)), names


def read_lines(reply: Reply) -> tuple[str, list[str]] | Unusable:
    """(summary, names) of plain lines: short lines are names, also several with commas between, behind their kind or
    not; a long one, or one marked as such, is the summary."""
    found = lines_reader("entities", 1, _LINE_WORDS)(reply)
    if isinstance(found, Unusable):
        return found
    summary = ""
    names: list[str] = []
    for line in found:
        label, _, rest = line.partition(":")
        if kind := _KIND.match(line):
            line = line[kind.end() :]
        if _NONE.fullmatch(line):
            continue
        pieces = [_GLOSS.sub("", piece).strip() for piece in _LISTED.findall(line)]
        if label.strip().casefold() == "summary":
            summary = summary or rest.strip()
        elif len(pieces) > 2 and all(len(written_words(piece)) <= _NAME_WORDS for piece in pieces):
            names.extend(pieces)
        elif len(written_words(bare := _GLOSS.sub("", line).strip())) <= _NAME_WORDS:
            names.append(bare)
        else:
            summary = summary or line
    names = fitting(names, 1, _NAME_WORDS)
    return (_shortened(summary), names) if names else Unusable("no entities")


def _names(chunk: Chunk, name: str) -> bool:
    # not within a word; Chinese and Japanese have no space about a name
    pattern = rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])"
    return re.search(pattern, chunk.text, re.IGNORECASE) is not None


def _shortened(text: str) -> str:
    return " ".join(text.split()[:_SUMMARY_WORDS])
