"""What a question must pass before it is kept: its answer's quotes stand in the passage, the expert agrees with itself,
and a second judge agrees, too. A rewritten question that fails gives way to the one before it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ntk_jax.data.words import bare_words, written_words
from ntk_jax.llm.request import Progress
from ntk_jax.llm.usable import Unusable
from ntk_jax.questions.agreement import consistency
from ntk_jax.questions.question import Answer, Slot, Trace, Version
from ntk_jax.questions.reach import locate
from ntk_jax.questions.voice import Said, Voice
from ntk_jax.questions.wording import support_wish

FOUND = 0.6  # share of the answer's words that a sentence of the passage must hold to serve as its quote
SECOND = "second verdict"  # in a version's prompts and verdicts
WORDS = 6  # of a sentence that can be asked about
_NO = re.compile(r"^\W*no\b", re.IGNORECASE)


def fault_of_answer(slot: Slot, answer: Answer) -> str | None:
    """Why a question cannot be kept, by its answer alone; None: nothing is wrong with it."""
    if slot.kind == "unanswerable":
        return "the passage answers it, and it should not" if answer.stated else None
    if not answer.stated:
        return "the passage does not answer it"
    if answer.cut:
        return "the answer is cut at max_tokens"
    if not answer.quotes:
        return "no quote from the passage"
    places = [[chunk.id for chunk in slot.chunks if locate(quote, chunk.text)] for quote in answer.quotes]
    if not all(places):
        return "a quote does not stand in the passage"
    if slot.kind == "cross" and len({place for found in places for place in found}) < len(slot.chunks):
        return "one passage alone answers it"
    if slot.kind == "negative" and not _NO.match(answer.text):
        return "the answer is not no"
    return None


def found_quotes(slot: Slot, answer: Answer) -> Answer:
    """The answer with those of its quotes that stand in the passage; with the sentences of the passage that say most of
    it where none does."""
    if not answer.stated:
        return answer
    standing = tuple(quote for quote in answer.quotes if any(locate(quote, chunk.text) for chunk in slot.chunks))
    if standing:
        return answer if standing == answer.quotes else replace(answer, quotes=standing)
    words = Counter(bare_words(answer.text))
    found = []
    for chunk in slot.chunks:
        share, sentence = max(
            ((_shared(words, text), text) for text in sentences(chunk.text)),
            default=(0.0, ""),
            key=lambda pair: pair[0],
        )
        if share >= FOUND:
            found.append(sentence)
    return replace(answer, quotes=tuple(found))


def sentences(text: str) -> list[str]:
    """The sentences of a text, and the parts of long ones: contracts enumerate behind semicolons."""
    ends = [found.end() for found in re.finditer(r"[.!?;][\"'”’)\]]*(?=\s)|\n+|[。！？]", text)]
    starts = [0, *ends]
    return [part for start, stop in zip(starts, [*ends, len(text)], strict=True) if (part := text[start:stop].strip())]


def any_sentence(text: str, draw: int) -> str | None:
    """One of the text's sentences that has some words; None where there is none."""
    found = [one for one in sentences(text) if len(written_words(one)) >= WORDS]
    return found[draw % len(found)] if found else None


def _shared(words: Counter[str], text: str) -> float:
    total = sum(words.values())
    return sum((words & Counter(bare_words(text))).values()) / total if total else 0.0


def second_opinion(
    traces: Sequence[Trace],
    judge: Voice | None,
    *,
    max_tokens: int = 160,
    progress: Callable[[str, int], Progress] | None = None,
) -> list[Version | None]:
    """Of each trace the last version that stands and that another judge than the loop's agrees with; None where none
    is. What it does not agree with is marked as at fault in the trace. judge: None agrees with all. Raises as the
    judge's client."""
    places = {n: trace.best for n, trace in enumerate(traces) if trace.best is not None}
    found: list[Version | None] = [None] * len(traces)
    while places:
        wishes = []
        for n, at in places.items():
            version = traces[n].versions[at]
            assert version.expert is not None
            wishes.append(support_wish(traces[n].slot, version.question, version.expert.text, max_tokens=max_tokens))
        said = judge.ask(wishes, progress("second judge", len(wishes)) if progress else None) if judge else None
        following = {}
        for place, (n, at) in enumerate(places.items()):
            trace = traces[n]
            if said is not None:
                trace.versions[at] = _with_verdict(trace.versions[at], said[place])
            fault = None if said is None else _fault(said[place].value)
            if fault is None:
                found[n] = trace.versions[at]
                continue
            trace.versions[at] = replace(trace.versions[at], fault=fault, accepted=False)
            earlier = [before for before in range(at) if trace.versions[before].accepted]
            trace.best = earlier[-1] if earlier else None
            if earlier:
                following[n] = earlier[-1]
        places = following
    return found


def _with_verdict(version: Version, said: Said) -> Version:
    """The version with what the second judge said of it, and what that took."""
    return replace(
        version,
        verdicts={**version.verdicts, SECOND: said.raw},
        prompts={**version.prompts, SECOND: said.prompt},
        calls=version.calls + said.calls,
        tokens=(version.tokens[0] + said.tokens[0], version.tokens[1] + said.tokens[1]),
    )


def _fault(verdict: Any) -> str | None:
    if isinstance(verdict, Unusable):
        return f"second judge: {verdict.reason}"
    return None if verdict else "the second judge finds that the passage does not give this answer"


def consistency_of(slot: Slot, answer: Answer, again: Sequence[Answer]) -> float:
    """How far the expert agrees with itself. Of an unanswerable question: how often it says so."""
    if slot.kind == "unanswerable":
        return sum(not one.stated for one in again) / max(len(again), 1)
    return consistency([answer.text, *(one.text if one.stated else "" for one in again)])
