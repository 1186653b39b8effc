"""Reads what a language model wrote when it was asked for a seed, and says in a few words why something is no seed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ntk_jax.data.words import WRITTEN, written_words
from ntk_jax.llm.parsing import Parsed, parse_json, without_thoughts
from ntk_jax.llm.request import Reply
from ntk_jax.mining.seeds.prompts import FIELDS

DISTINCT_RUNS = 0.5  # share of different runs of words below which a text repeats itself
COPIED_RUNS = 0.2  # share of runs that stand in the question above which a text repeats that
_FENCE = re.compile(r"^\s*```[\w-]*\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_LABEL = re.compile(rf"^\W*({'|'.join(FIELDS)}|document)\W*:[ \t*]*(.*)$", re.IGNORECASE)
_OPENING = re.compile(r"^(sure|certainly|of course|here is|here's|here are|below is)\b[^\n]*:\s*\n", re.IGNORECASE)
_DECLINED = re.compile(
    r"^\W*(i'?m sorry|i am sorry|sorry\b|i can'?t\b|i cannot\b|i'?m unable|i am unable|as an ai\b|as a language model)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)|[\u3002\uff01\uff1f][\u300d\u300f”’]*")


@dataclass(frozen=True)
class Found:
    """A seed's text, and what the steps before it fixed. cut: the reply ended in the middle, and the text with the last
    whole sentence."""

    text: str
    steps: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass(frozen=True)
class Unusable:
    """Why a reply is no seed, in words that are the same for all replies of a kind. again: asking for the same answer
    in better form may help."""

    reason: str
    again: bool = False


def read_reply(reply: Reply, *, json_reply: bool, question: str, min_words: int = 20) -> Found | Unusable:
    """The seed in a reply. question: what was asked, which a seed may not repeat."""
    if reply.finish == "failed":
        return Unusable(f"no reply: {reply.reason or 'unknown'}")
    if not reply.text.strip():
        return Unusable("an empty reply")
    if not without_thoughts(reply.text):
        return Unusable("nothing but thoughts")
    found = _from_json(reply.text) if json_reply else _from_text(without_thoughts(reply.text))
    if isinstance(found, Unusable):
        return found
    if reply.finish == "length":
        found = Found(first_sentences(found.text), found.steps, cut=True)
    reason = unusable(found.text, question=question, min_words=min_words)
    return Unusable(reason) if reason else found


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
        items = [_plain(item) for item in found.value]
    else:
        items = [re.sub(r"^[\s\-*•\d.)\"]+|[\",]+$", "", line) for line in without_thoughts(text).splitlines()]
    return list(dict.fromkeys(" ".join(item.split()) for item in items if item.strip()))


def _from_json(text: str) -> Found | Unusable:
    value = parse_json(text)
    if not isinstance(value, Parsed):
        return Unusable(value.reason, again=True)
    known = {str(key).strip().casefold(): item for key, item in value.value.items()}
    document = _plain(known.get("document"))
    if not document:
        return Unusable("no document in the JSON", again=True)
    steps = {name: " ".join(_plain(known.get(name)).split()) for name in FIELDS}
    return Found(document, {name: step for name, step in steps.items() if step})


def _from_text(text: str) -> Found:
    """A reply in plain text: labelled lines where the model writes some, else all of it."""
    text = _OPENING.sub("", _unfenced(text).strip(), count=1)
    lines = text.split("\n")
    steps: dict[str, str] = {}
    for number, line in enumerate(lines):
        label = _LABEL.match(line)
        if label and label[1].casefold() == "document":
            return Found("\n".join([label[2], *lines[number + 1 :]]).strip(), steps)
        if label and label[2].strip():
            steps[label[1].casefold()] = " ".join(label[2].split())
        elif line.strip():
            return Found("\n".join(lines[number:]).strip(), steps)
    return Found(text, {})


def _unfenced(text: str) -> str:
    fenced = _FENCE.match(text)
    return fenced[1] if fenced else text


def _plain(value: Any) -> str:
    """The words of a JSON value: models nest what should be one text."""
    if isinstance(value, Mapping):
        return "\n\n".join(filter(None, map(_plain, value.values())))
    if isinstance(value, list):
        return "\n\n".join(filter(None, map(_plain, value)))
    return "" if value is None or isinstance(value, bool) else str(value).strip()


def _runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    """All runs of `size` words, without regard to capitals."""
    small = [word.casefold() for word in words]
    return [tuple(small[i : i + size]) for i in range(len(small) - size + 1)]
