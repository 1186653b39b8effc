"""What the questions are about and how one came to be: chunks, slots, and the versions that a question went through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# What is asked for. answerable: the passage says it. negative: the right answer is no, and the passage shows it.
# unanswerable: the passage does not say it, and the right answer is to say so. cross: it takes passages of two places.
KINDS = ("answerable", "negative", "unanswerable", "cross")

NO_GAIN = "the gap did not grow"  # why a rewritten question did not take the place of the one before

# (sum of the negative log-likelihood of the response in nats, its tokens) of each record under one model; None where
# the record does not fit the model's context.
Likelihood = Callable[[Sequence[Mapping[str, Any]]], "list[tuple[float, int] | None]"]


@dataclass(frozen=True)
class Chunk:
    """A piece of a document that questions are asked about. start, stop: its characters in the document's text."""

    id: str
    document: str
    title: str
    source: str
    text: str
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Slot:
    """A question that is to be found. kind: one of `KINDS`. chunks: one, or two for a cross-document question. number:
    its place among the slots of its first chunk."""

    id: str
    kind: str
    chunks: tuple[Chunk, ...]
    number: int = 0

    @property
    def passage(self) -> str:
        """What models read."""
        return passage_of(self.chunks)


@dataclass(frozen=True)
class Answer:
    """What the expert says. stated: whether the passage answers the question, by its own word. quotes: the words of the
    passage that show it. cut: the reply ended in the middle, and the text with its last whole sentence."""

    text: str
    quotes: tuple[str, ...] = ()
    stated: bool = True
    cut: bool = False


@dataclass(frozen=True)
class Version:
    """A question as it stood in one round. signals: {nll, tokens, judge, band, ...} as they were measured. gap: the one
    number that rounds are compared by, None where it was not measured. fault: why it cannot be kept, None: it can be.
    accepted: it took the place of the version before. prompts: {what was asked: id of the prompt}. calls, tokens: of
    all that was asked for it, (of prompts, of replies). verdicts: {what was asked of a judge: its reply}."""

    round: int
    question: str
    expert: Answer | None = None
    target: str | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    gap: float | None = None
    fault: str | None = None
    accepted: bool = False
    feedback: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    calls: int = 0
    tokens: tuple[int, int] = (0, 0)
    verdicts: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Trace:
    """How the question of a slot came to be. versions: all that were tried. best: the place of the one that stands.
    stale: rounds without a gain. stopped: why nothing further was tried."""

    slot: Slot
    focus: str | None = None
    versions: list[Version] = field(default_factory=list)
    best: int | None = None
    stale: int = 0
    stopped: str | None = None

    @property
    def standing(self) -> Version | None:
        return None if self.best is None else self.versions[self.best]


def passage_of(chunks: Sequence[Chunk]) -> str:
    """The chunks with their titles, as models read them."""
    return "\n\n".join(f"[{chunk.title}]\n{chunk.text}" if chunk.title else chunk.text for chunk in chunks)
