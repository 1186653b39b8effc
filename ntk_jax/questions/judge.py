"""A language model as judge of how far two answers to a question are apart.

It reads the passage, the question and both answers, and is not given which of them is whose: which is the first is
drawn, so that a judge with a liking for the first place favours nobody. It gives whole points from 0, the same, to 4,
contradictory. A model that writes no JSON is asked for a line with the score.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from ntk_jax.data.words import text_hash
from ntk_jax.llm.parsing import Failure, read_reply, without_thoughts
from ntk_jax.llm.request import Reply, Request
from ntk_jax.llm.usable import Unusable, failure_of, plain_text
from ntk_jax.questions.voice import Wish, seed_of

MOST = 4  # points

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "score": {"type": "integer", "minimum": 0, "maximum": MOST}},
    "required": ["reason", "score"],
}
_TASK = """You compare two answers to one question about a passage. Look only at what they say about the question, \
not at style, length or politeness. Give points for how far apart they are:
0 - both say the same, if in other words
1 - the same in all that the question asks for; one adds or leaves out something minor
2 - they share the main point, but differ in a part that matters
3 - they have little in common, or one stays vague where the other answers
4 - they contradict each other, or one of them is missing or wholly wrong by the passage"""
_AS_JSON = 'Reply with JSON only: {"reason": "one short sentence", "score": a whole number from 0 to 4}'
_AS_TEXT = """Reply with two lines, and nothing else:
REASON: one short sentence
SCORE: a whole number from 0 to 4"""

_NAMES = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}
_NUMBER = r"([0-9]+(?:\.[0-9]+)?|zero|one|two|three|four)(?![\w%]|\.[0-9])(?:\s*(?:/|out of|of)\s*([0-9]+|four))?"
_MARKS = r"[\s\"'`*_\[({]*"
_LABELLED = re.compile(
    rf"\b(?:score|points|rating)\b{_MARKS}(?:is|of|was|would be|[:=\-\u2013\u2014])?{_MARKS}{_NUMBER}", re.IGNORECASE
)
_ALONE = re.compile(rf"^{_MARKS}{_NUMBER}{_MARKS}(?:points?)?[\s\"'`*_\])}}.]*$", re.IGNORECASE | re.MULTILINE)
_REASON = re.compile(r"\breason\b[\s*_]*[:\-]\s*(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Divergence:
    """How far two answers are apart. value: points of `MOST`, 0 the same and 1 contradictory. reason: the judge's, with
    the answers called first and second as it read them. swapped: the target's was the first."""

    value: float
    reason: str = ""
    swapped: bool = False


def divergence_wish(question: str, passage: str, expert: str, target: str, *, seed: int, max_tokens: int = 160) -> Wish:
    """Asks how far apart the expert's and the target's answer are; greedy. What is read is a `Divergence`. seed: draws,
    with the texts, which answer stands first."""
    swapped = bool(seed_of(seed, "order", *map(text_hash, (question, expert, target))) & 1)
    first, second = (target, expert) if swapped else (expert, target)
    shown = (
        f"Passage:\n{passage}\n\nQuestion: {question}\n\n"
        f"First answer:\n{first.strip() or '(no answer)'}\n\nSecond answer:\n{second.strip() or '(no answer)'}\n\n"
    )

    def request(form: str, schema: dict[str, Any] | None) -> Request:
        talk = ({"role": "user", "content": f"{_TASK}\n\n{shown}{form}"},)  # some templates refuse a system message
        return Request(messages=talk, max_tokens=max_tokens, temperature=0.0, schema=schema)

    read = functools.partial(read_divergence, swapped=swapped)
    return Wish(text=(request(_AS_TEXT, None), read), json=(request(_AS_JSON, SCHEMA), read))


def read_divergence(reply: Reply, swapped: bool = False) -> Divergence | Unusable:
    """The judgement in a reply: in its JSON, else behind the word score, else a number alone on a line."""
    if reply.finish == "failed":
        return Unusable(failure_of(reply))
    found = read_reply(reply)
    if not isinstance(found, Failure) and "score" in found.value:
        points = _points(found.value["score"])
        reason = plain_text(found.value.get("reason"))
    else:
        text = without_thoughts(reply.text)
        if not text:
            return Unusable("nothing but thoughts" if reply.text.strip() else "an empty reply", again=True)
        points = _points_in(text)
        said = _REASON.search(text)
        reason = said[1].strip() if said else ""
    if isinstance(points, str):
        return Unusable(f"{points}; cut at max_tokens" if reply.finish == "length" else points, again=True)
    return Divergence(points / MOST, reason, swapped)


def _points_in(text: str) -> int | str:
    for pattern in (_LABELLED, _ALONE):
        found = [_of(*match.groups()) for match in pattern.finditer(text)]
        if found:
            return found[0] if len(set(found)) == 1 else "several different scores"
    return "no score"


def _points(value: Any) -> int | str:
    """Points, or what is wrong with them."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return "no score"
    if match := re.fullmatch(rf"{_MARKS}{_NUMBER}{_MARKS}[.\])]*", str(value), re.IGNORECASE):
        return _of(*match.groups())
    return _points_in(value) if isinstance(value, str) else f"a score outside 0 to {MOST}"


def _of(number: str, total: str | None) -> int | str:
    """The points that were written, of so many if that was written too."""
    if total is not None and total.lower() not in ("4", "four"):
        return f"a score that is not of {MOST}"
    points = float(_NAMES.get(number.lower(), number))
    if points > MOST:
        return f"a score outside 0 to {MOST}"
    return int(points) if points == int(points) else "a score that is no whole number"
