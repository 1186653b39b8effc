"""What every method is given, how it asks in waves, in what order it takes things, and where it stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from ntk_jax.data.words import written_words
from ntk_jax.errors import UserError
from ntk_jax.llm.request import Progress, Request
from ntk_jax.questions.keep import LEAKED
from ntk_jax.questions.question import Chunk, Likelihood
from ntk_jax.questions.voice import Said, Voice, Wish, seed_of

Record = dict[str, Any]
Item = TypeVar("Item")
_REASONS = 3  # of a message
FIRST = 8  # requests of the first wave; each further one has twice as many, up to `Asked.wave`


class NothingWritten(UserError):
    """A method brought no record, which is its own fault: others may bring some."""


@dataclass(frozen=True)
class Asked:
    """What is wanted of one run of a method.

    tokens: of training, prompts and responses together, by count_tokens: the records end with the first that reaches
    it; those of `documents`, which cost nothing, do not. max_tokens: of a reply. part_words: of a document that are
    read at once, where a method reads whole documents. wave: requests that are asked together at most. likelihood: of
    the model that is to be trained. leaked: whether a question with its answer is too much like an evaluation item to
    be trained on; texts are not looked at. progress: (replies of the voice so far, with those of this wave, what was
    spent).
    The method fills dropped, {why: what was left out though its reply was usable}, and found, what it counted and
    measured on its way.

    Raises UserError: a number below 1.
    """

    tokens: int
    count_tokens: Callable[[str], int]
    seed: int = 0
    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 600
    part_words: int = 1000
    wave: int = 64
    likelihood: Likelihood | None = None
    leaked: Callable[[str, str], bool] | None = None
    progress: Progress | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tokens", "max_tokens", "part_words", "wave"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")

    def request(self, text: str, *names: object, schema: Mapping[str, Any] | None = None) -> Request:
        """Asks for `text`. names: what the draw belongs to, the same for no other request of the run."""
        return Request(
            messages=({"role": "user", "content": text},),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=seed_of(self.seed, *names),
            schema=schema,
        )

    def training_tokens(self, record: Mapping[str, Any]) -> int:
        """Of a record's prompt and response."""
        return sum(self.count_tokens(text) for text in (record["prompt"], record["response"]) if text)

    def order(self, count: int, *names: object) -> list[int]:
        """The numbers below `count` in a drawn order."""
        return np.random.default_rng(seed_of(self.seed, *names)).permutation(count).tolist()


def within(records: Iterable[Record], voice: Voice, asked: Asked, name: str) -> Iterator[Record]:
    """The records of a method up to the first that reaches the tokens, without questions that leaked; beyond the wave
    of the last record nothing is asked for.

    Raises NothingWritten, at the end: there was none, with the commonest reasons.
    """
    failed, calls, total, some = Counter(voice.failures), voice.calls, 0, False
    for record in records:
        if asked.leaked is not None and record["prompt"] and asked.leaked(record["prompt"], record["response"]):
            asked.dropped[LEAKED] += 1
            continue
        total, some = total + asked.training_tokens(record), True
        yield record
        if total >= asked.tokens:
            return
    if not some:
        reasons = [*(Counter(voice.failures) - failed).most_common(), *asked.dropped.most_common()][:_REASONS]
        said = ", ".join(f"{count} × {reason}" for reason, count in reasons) or "the documents gave nothing to ask for"
        raise NothingWritten(
            f"no record of {name} came of {voice.calls - calls} calls: {said}; take a model that follows instructions, "
            "the format text, or other documents"
        )


def summary(records: Sequence[Mapping[str, Any]], asked: Asked) -> dict[str, Any]:
    """What a method gave, for people, as JSON values. missing_tokens: how far it stayed below what was asked for."""
    total = sum(map(asked.training_tokens, records))
    return {
        "records": len(records),
        "tokens": total,
        "asked_tokens": asked.tokens,
        "missing_tokens": max(0, asked.tokens - total),
        "documents": len({record["document_id"] for record in records}),
        "chunks": len({record["chunk"] for record in records}),
        "dropped": dict(asked.dropped.most_common()),
        **asked.found,
    }


def answers(wishes: Iterable[tuple[Item, Wish]], voice: Voice, asked: Asked) -> Iterator[tuple[Item, Said]]:
    """What each wish brought, where it is usable, in order: asked for in waves, each only when it is needed."""
    for wave in waves(wishes, asked.wave):
        yield from answered(wave, voice, asked)


def answered(wave: Sequence[tuple[Item, Wish]], voice: Voice, asked: Asked) -> list[tuple[Item, Said]]:
    """What each wish brought, where it is usable, in order: all are asked together."""
    said = voice.ask([wish for _, wish in wave], _further(asked.progress, voice.calls))
    return [(item, one) for (item, _), one in zip(wave, said, strict=True) if one.usable]


def waves(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """The items in waves of `FIRST`, twice as many, and so on up to `most`: where few are needed few are asked for, and
    of many the last wave is a small part."""
    left, size = iter(items), min(FIRST, most)
    while wave := list(islice(left, size)):
        yield wave
        size = min(2 * size, most)


def worded(chunks: Sequence[Chunk], asked: Asked) -> list[Chunk]:
    """The chunks that hold a word. Raises NothingWritten: none does."""
    found = [chunk for chunk in chunks if written_words(chunk.text)]
    if len(found) < len(chunks):
        asked.dropped["a chunk without a word"] += len(chunks) - len(found)
    if not found:
        raise NothingWritten(f"none of {len(chunks)} chunks of documents holds a word; there is nothing to write from")
    return found


def by_document(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """The chunks of each document, in order."""
    found: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        found.setdefault(chunk.document, []).append(chunk)
    return list(found.values())


def turns(rows: Iterable[Iterable[Item]]) -> Iterator[Item]:
    """The first of every row, then the second of every row, and so on."""
    left = [iter(row) for row in rows]
    while left:
        still = []
        for row in left:
            for item in row:
                still.append(row)
                yield item
                break
        left = still


def record_of(
    name: str, chunk: Chunk, number: object, prompt: str, response: str, voice: Voice, said: Said, **facts: Any
) -> Record:
    """A record that a model wrote. number: which one of its chunk."""
    return {
        "id": f"{name}:{chunk.id}:{number}",
        "source": chunk.source,
        "prompt": prompt,
        "response": response,
        "document_id": chunk.document,
        "method": name,
        "chunk": chunk.id,
        **facts,
        "writer": voice.client.name,
        "prompt_id": said.prompt,
    }


def _further(progress: Progress | None, before: int) -> Progress | None:
    """Counts a wave's replies on from those before."""
    if progress is None:
        return None
    tell = progress
    return lambda done, of, spent: tell(before + done, before + of, spent)
