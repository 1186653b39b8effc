"""Yes or no of a language model, many questions at a time.

A question asks for a JSON object with a short reason and then the answer, so that the answer follows from the reason. A
reply that is no such object is read for its first plain yes or no, which is all that a small model manages; one without
either is asked for once more, and after that it is no verdict, counted with its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_jax.llm.parsing import Failure, correction, read_reply, without_thoughts
from ntk_jax.llm.request import Client, Progress, Reply, Request

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "answer": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["reason", "answer"],
}
_PLAIN = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_YES, _NO = ("yes", "true", "agree"), ("no", "false", "disagree")


@dataclass(frozen=True)
class Verdicts:
    """values: [n] float64, 1 belongs, 0 does not, NaN no verdict. reasons: [n] what the judge said in short, or why
    there is no verdict. failures: {why: how many}."""

    values: np.ndarray
    reasons: list[str]
    failures: Mapping[str, int]


def ask_verdicts(
    client: Client, requests: Sequence[Request], *, repair: bool = True, progress: Progress | None = None
) -> Verdicts:
    """The verdicts on all questions. repair: those that cannot be read are asked once more, together.

    Raises as `Client.ask`; what was answered until then is kept by whoever keeps replies.
    """
    values, reasons = np.full(len(requests), np.nan), [""] * len(requests)
    unread: dict[int, Failure] = {}
    for place, reply in client.ask(requests, progress):
        found = read_verdict(reply)
        if isinstance(found, Failure):
            reasons[place] = found.reason
            unread[place] = found
        else:
            values[place], reasons[place] = found
    places = [place for place in sorted(unread) if unread[place].raw]
    again = [correction(requests[place], unread[place]) for place in places] if repair else []
    for number, reply in client.ask(again) if again else ():
        found = read_verdict(reply)
        if not isinstance(found, Failure):
            values[places[number]], reasons[places[number]] = found
    failed = Counter(reason for value, reason in zip(values, reasons, strict=True) if np.isnan(value))
    return Verdicts(values, reasons, dict(failed))


def read_verdict(reply: Reply) -> tuple[float, str] | Failure:
    """(1 or 0, the reason given) of a reply, or why there is none."""
    found = read_reply(reply, check=_problem)
    if not isinstance(found, Failure):
        answer = str(found.value["answer"]).strip().lower()
        return float(answer in _YES), str(found.value.get("reason", ""))
    plain = _PLAIN.findall(without_thoughts(reply.text)) if reply.finish != "failed" else []
    if plain and len({word.lower() for word in plain}) == 1:
        return float(plain[0].lower() == "yes"), ""
    return found


def first_words(text: str, count: int) -> str:
    """The first `count` words of a text, with an ellipsis where more followed."""
    words = text.split()
    return " ".join(words) if len(words) <= count else " ".join(words[:count]) + " ..."


def _problem(value: Any) -> str | None:
    answer = str(value.get("answer", "")).strip().lower()
    return None if answer in (*_YES, *_NO) else "no answer of yes or no"
