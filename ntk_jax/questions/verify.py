"""What a question must pass before it is kept: its answer's quotes stand in the passage, the expert gives the same
answer again, and a second judge agrees. A rewritten question that fails gives way to the one before it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ntk_jax.data.words import bare_words
from ntk_jax.llm.request import Progress
from ntk_jax.llm.usable import Unusable
from ntk_jax.questions.agreement import consistency
from ntk_jax.questions.question import Answer, Slot, Trace, Version
from ntk_jax.questions.reach import locate
from ntk_jax.questions.voice import Voice, seed_of
from ntk_jax.questions.wording import answer_wish, support_wish

FOUND = 0.6  # share of the answer's words that a sentence of the passage must hold to serve as its quote
_NO = re.compile(r"^\W*no\b", re.IGNORECASE)


@dataclass(frozen=True)
class Checks:
    """samples: further answers of the expert, drawn; 0: its consistency is not looked at. least: the consistency that
    is asked for. temperature: of these draws."""

    samples: int = 3
    least: float = 0.5
    temperature: float = 0.7
    seed: int = 0
    answer_tokens: int = 240
    verdict_tokens: int = 160


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
    """The answer with the sentences of the passage that say most of it, in the place of quotes that do not stand there;
    as it is where no sentence says enough."""
    if not answer.stated or (
        answer.quotes and all(any(locate(quote, chunk.text) for chunk in slot.chunks) for quote in answer.quotes)
    ):
        return answer
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


def _shared(words: Counter[str], text: str) -> float:
    total = sum(words.values())
    return sum((words & Counter(bare_words(text))).values()) / total if total else 0.0


def verify(
    traces: Sequence[Trace],
    expert: Voice,
    second: Voice | None,
    checks: Checks,
    *,
    progress: Callable[[str, int], Progress] | None = None,
) -> list[Version | None]:
    """Of each trace the last version that stands and passes; None where none does. What fails is marked as at fault in
    the trace. second: another judge than the loop's, None: there is none. Raises as the voices' clients."""
    places = {n: trace.best for n, trace in enumerate(traces) if trace.best is not None}
    found: list[Version | None] = [None] * len(traces)
    while places:
        faults = _faults(
            [(traces[n], traces[n].versions[at]) for n, at in places.items()], expert, second, checks, progress
        )
        following = {}
        for (n, at), fault in zip(places.items(), faults, strict=True):
            trace = traces[n]
            if fault is None:
                found[n] = trace.versions[at]
                continue
            trace.versions[at] = replace(trace.versions[at], fault=fault, accepted=False)
            earlier = [place for place in range(at) if trace.versions[place].accepted]
            trace.best = earlier[-1] if earlier else None
            if earlier:
                following[n] = earlier[-1]
        places = following
    return found


def _faults(
    asked: Sequence[tuple[Trace, Version]],
    expert: Voice,
    second: Voice | None,
    checks: Checks,
    progress: Callable[[str, int], Progress] | None,
) -> list[str | None]:
    faults: list[str | None] = [None] * len(asked)
    pairs: list[tuple[int, Any]] = [
        (
            n,
            answer_wish(
                trace.slot,
                version.question,
                seed=seed_of(checks.seed, trace.slot.id, "again"),
                sample=sample,
                temperature=checks.temperature,
                max_tokens=checks.answer_tokens,
            ),
        )
        for n, (trace, version) in enumerate(asked)
        for sample in range(checks.samples)
    ]
    said = _ask(expert, "verify: the expert again", pairs, progress)
    again: list[list[Answer]] = [[] for _ in asked]
    for (n, _), one in zip(pairs, said, strict=True):
        # What cannot be read is an answer that agrees with none.
        again[n].append(one.value if isinstance(one.value, Answer) else Answer("", stated=True))
    if checks.samples:
        for n, (trace, version) in enumerate(asked):
            assert version.expert is not None
            if consistency_of(trace.slot, version.expert, again[n]) < checks.least:
                faults[n] = "the expert answers otherwise when it is asked again"
    if second is not None:
        rest = [n for n in range(len(asked)) if faults[n] is None]
        wishes = []
        for n in rest:
            trace, version = asked[n]
            assert version.expert is not None
            wish = support_wish(trace.slot, version.question, version.expert.text, max_tokens=checks.verdict_tokens)
            wishes.append((n, wish))
        for (n, _), one in zip(wishes, _ask(second, "verify: second judge", wishes, progress), strict=True):
            if isinstance(one.value, Unusable):
                faults[n] = f"second judge: {one.value.reason}"
            elif not one.value:
                faults[n] = "the second judge finds that the passage does not give this answer"
    return faults


def consistency_of(slot: Slot, answer: Answer, again: Sequence[Answer]) -> float:
    """How far the expert agrees with itself. Of an unanswerable question: how often it says so."""
    if slot.kind == "unanswerable":
        return sum(not one.stated for one in again) / max(len(again), 1)
    return consistency([answer.text, *(one.text if one.stated else "" for one in again)])


def _ask(
    voice: Voice, what: str, pairs: Sequence[tuple[int, Any]], progress: Callable[[str, int], Progress] | None
) -> list[Any]:
    return voice.ask(
        [wish for _, wish in pairs], progress(what, len(pairs)) if progress is not None and pairs else None
    )
