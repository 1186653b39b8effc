"""What of a reply is usable as a text, and why something is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ntk_jax.data.words import WRITTEN, written_words
from ntk_jax.llm.parsing import Parsed, parse_json, without_thoughts
from ntk_jax.llm.request import Reply

DISTINCT_RUNS = 0.5  # share of different runs of words below which a text repeats itself
COPIED_RUNS = 0.2  # share of runs that stand in the question above which a text repeats that
_DECLINED = re.compile(
    r"^\W*(i'?m sorry|i am sorry|sorry\b|i can'?t\b|i cannot\b|i'?m unable|i am unable|as an ai\b|as a language model)",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^\s*```[\w-]*\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_OPENING = re.compile(r"^(sure|certainly|of course|here is|here's|here are|below is)\b[^\n]*:\s*\n", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)|[\u3002\uff01\uff1f][\u300d\u300f”’]*")


@dataclass(frozen=True)
class Unusable:
    """Why a reply is of no use, in words that are the same for all replies of a kind. again: asking for the same answer
    in better form may help."""

    reason: str
    again: bool = False


def bare_text(reply: Reply) -> str | Unusable:
    """What a reply says in plain text: without thoughts, a fence around all of it, and an opening such as `Sure, here
    is my text:`; or why it says nothing."""
    if reply.finish == "failed":
        return Unusable(failure_of(reply))
    if not reply.text.strip():
        return Unusable("an empty reply")
    text = without_thoughts(reply.text)
    if not text:
        return Unusable("nothing but thoughts")
    fenced = _FENCE.match(text)
    return _OPENING.sub("", (fenced[1] if fenced else text).strip(), count=1).strip()


def failure_of(reply: Reply) -> str:
    """Why there is no reply, without what differs from one request to the next."""
    reason = re.sub(r"^request \d+: ", "", reply.reason or "unknown")
    return f"no reply: {re.sub(r'the prompt has [0-9,]+ tokens', 'the prompt has too many tokens', reason)}"


def unusable(text: str, *, question: str = "", min_words: int = 20) -> str | None:
    """Why a text cannot stand for a domain, or None."""
    words = written_words(text)
    if _DECLINED.match(text):
        return "the model declined"
    if len(words) < min_words:
        return f"fewer than {min_words} words"
    runs = _runs(words, 4)
    if len(words) >= 40 and len(set(runs)) < DISTINCT_RUNS * len(runs):
        return "the text repeats itself"
    asked, runs = set(_runs(written_words(question), 6)), _runs(words, 6)
    if asked and sum(run in asked for run in runs) > COPIED_RUNS * len(runs):
        return "the text repeats the question"
    return None


def first_sentences(text: str, max_words: int | None = None) -> str:
    """The first `max_words` words (None: all) as far as a sentence ends among them; all of them where none does."""
    text = text.strip()
    if max_words is not None:
        words = list(WRITTEN.finditer(text))
        if len(words) <= max_words:
            return text
        text = text[: words[max_words - 1].end()]
    ends = [match.end() for match in _SENTENCE_END.finditer(text + " ")]
    return text[: ends[-1]] if ends else text


def read_list(text: str) -> list[str]:
    """The texts of a reply that should be a JSON array; where it is none, its lines."""
    found = parse_json(text, kind=list)
    if isinstance(found, Parsed):
        items = [plain_text(item) for item in found.value]
    else:
        items = [re.sub(r"^[\s\-*•\d.)\"]+|[\",]+$", "", line) for line in without_thoughts(text).splitlines()]
    return list(dict.fromkeys(" ".join(item.split()) for item in items if item.strip()))


def plain_text(value: Any) -> str:
    """The words of a JSON value: models nest what should be one text."""
    if isinstance(value, Mapping):
        return "\n\n".join(filter(None, map(plain_text, value.values())))
    if isinstance(value, list):
        return "\n\n".join(filter(None, map(plain_text, value)))
    return "" if value is None or isinstance(value, bool) else str(value).strip()


def _runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    """All runs of `size` words, without regard to capitals."""
    small = [word.casefold() for word in words]
    return [tuple(small[i : i + size]) for i in range(len(small) - size + 1)]
