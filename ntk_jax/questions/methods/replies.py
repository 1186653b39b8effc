"""Reads what models write for the methods: a text, a list of names or sentences, labelled parts, questions and answers.

Each reader takes a reply and returns what was asked for or `Unusable`, whatever the reply holds. Those of JSON ask for
a better one (`again`); a plain text that cannot be read is not asked for again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_jax.data.near_duplicates import shingles
from ntk_jax.data.words import bare_words, written_words
from ntk_jax.llm.parsing import Parsed, parse_json
from ntk_jax.llm.request import Reply
from ntk_jax.llm.usable import Unusable, bare_text, first_sentences, plain_text, unusable
from ntk_jax.questions.voice import Read

MIN_WORDS = 20  # of a text; of one about a short passage half of that passage's
COPIED = 0.8  # share of a text's runs of six words that stand in the passage above which it is a copy
A_COPY = "a copy of the passage"
_BULLET = re.compile(r"^[\s>#\-–*•·+]*(?:\(?\d{1,3}[.):]\s+)?[\s*\"“]*")
_HEADING_WORDS = 8  # a line of at most so many words and a colon names what follows


@dataclass(frozen=True)
class Text:
    """A text as it is trained on. cut: the reply ended in the middle, and the text with its last whole sentence."""

    text: str
    cut: bool = False


def text_reader(instruction: str, passage: str) -> Read:
    """A free text about a passage; it may neither repeat the instruction nor copy the passage."""
    least = max(3, min(MIN_WORDS, len(written_words(passage)) // 2))

    def read(reply: Reply) -> Text | Unusable:
        text = bare_text(reply)
        if isinstance(text, Unusable):
            return text
        cut = reply.finish == "length"
        text = first_sentences(text) if cut else text
        reason = unusable(text, question=instruction, min_words=least)
        reason = reason or (A_COPY if _copied(text, passage) > COPIED else None)
        return Unusable(reason) if reason else Text(text, cut)

    return read


def lines_reader(what: str, low: int, high: int) -> Read:
    """A list of `what`, one a line, of low to high words each. Of a reply that was cut the last is left out."""

    def read(reply: Reply) -> list[str] | Unusable:
        text = bare_text(reply)
        if isinstance(text, Unusable):
            return text
        if reason := _declined(text):
            return Unusable(reason)
        found = lines_of(text)
        return fitting(found[:-1] if reply.finish == "length" else found, low, high) or Unusable(f"no {what}")

    return read


def array_reader(key: str, low: int, high: int, names: Sequence[str] = ()) -> Read:
    """The list of texts under `key` of a JSON object, or a JSON array by itself. names: the parts of an item that is
    itself an object, of which the first that is there counts."""

    def read(reply: Reply) -> list[str] | Unusable:
        value = json_of(reply)
        if isinstance(value, Unusable):
            return value
        return fitting(texts_of(value, key, names), low, high) or Unusable(f"no {key} in the JSON", again=True)

    return read


def pairs_reader(as_json: bool) -> Read:
    """[(question, answer)], of JSON {"pairs": [{"question", "answer"}]} or of lines `Question:` and `Answer:`."""

    def read(reply: Reply) -> list[tuple[str, str]] | Unusable:
        if as_json:
            value = json_of(reply)
            if isinstance(value, Unusable):
                return value
            inner = _known(value).get("pairs", value) if isinstance(value, Mapping) else value
            rows = inner if isinstance(inner, list) else [inner]
            known = [_known(row) for row in rows if isinstance(row, Mapping)]
            found = [(_flat(row.get("question")), _flat(row.get("answer"))) for row in known]
        else:
            text = bare_text(reply)
            if isinstance(text, Unusable):
                return text
            if reason := _declined(text):
                return Unusable(reason)
            found = _alternating(labelled(text, ("question", "q", "answer", "a")))
            found = found[:-1] if reply.finish == "length" else found
        good = [pair for pair in dict.fromkeys(found) if _is_pair(*pair)]
        return good or Unusable("no question with its answer", again=as_json)

    return read


def parts_reader(names: Sequence[str], as_json: bool) -> Read:
    """{name: text} of all the names, of a JSON object or of labelled lines."""

    def read(reply: Reply) -> dict[str, str] | Unusable:
        if as_json:
            value = json_of(reply)
            if isinstance(value, Unusable):
                return value
            known = _known(value) if isinstance(value, Mapping) else {}
            found = {name: _flat(known.get(name)) for name in names}
        else:
            text = bare_text(reply)
            if isinstance(text, Unusable):
                return text
            if reason := _declined(text):
                return Unusable(reason)
            parts = labelled(text, names)
            found = {name: next((part for label, part in parts if label == name), "") for name in names}
            if reply.finish == "length" and parts:
                found[parts[-1][0]] = ""
        missing = [name for name in names if not bare_words(found[name])]
        return Unusable(f"no {' and no '.join(missing)}", again=as_json) if missing else found

    return read


def json_of(reply: Reply) -> Any:
    """The JSON object or array in a reply, else `Unusable`. Of a reply that was cut what stands last is left out, as it
    may be half of what was meant."""
    text = bare_text(reply)
    if isinstance(text, Unusable):
        return text
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    as_list = bool(starts) and text[min(starts)] == "["
    found = parse_json(reply.text, kind=list if as_list else dict)
    cut = reply.finish == "length"
    if not isinstance(found, Parsed):
        # A small model that says no does so in prose, and would say it again.
        declined = _declined(text)
        return Unusable(declined or found.reason + "; cut at max_tokens" * cut, again=not declined)
    return _without_last(found.value) if cut and found.how == "repaired" else found.value


def texts_of(value: Any, key: str, names: Sequence[str] = ()) -> list[str]:
    """The texts under `key` of a JSON object, or of an array by itself; what is one text is its lines."""
    inner = _known(value).get(key) if isinstance(value, Mapping) else value
    if isinstance(inner, Mapping):
        inner = list(inner.values())
    if isinstance(inner, str):
        return lines_of(inner)
    items = inner if isinstance(inner, list) else [inner]
    return [_item(item, names) for item in items]


def lines_of(text: str) -> list[str]:
    """The lines of a list without bullets, numbers, quotes and bold marks; headings are left out."""
    found = []
    for line in text.splitlines():
        line = " ".join(_BULLET.sub("", line, count=1).replace("**", "").split()).rstrip('"”,;*')
        if line and not (line.endswith(":") and len(line.split()) <= _HEADING_WORDS):
            found.append(line)
    return found


def labelled(text: str, labels: Sequence[str]) -> list[tuple[str, str]]:
    """(label in small letters, what stands behind it up to the next) for each line that begins with a label and a
    colon; numbers and bold marks about the label do not count."""
    pattern = re.compile(rf"^\W*(?:\d{{1,3}}\W+)?({'|'.join(labels)})\s*\d{{0,3}}\W*:[ \t*]*(.*)$", re.IGNORECASE)
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        label = pattern.match(line)
        if label:
            found.append((label[1].casefold(), [label[2]]))
        elif found:
            found[-1][1].append(line)
    return [(label, " ".join(" ".join(lines).replace("**", "").split())) for label, lines in found]


def fitting(texts: Iterable[str], low: int, high: int) -> list[str]:
    """Those of low to high words, each once whatever its capitals, in order."""
    found: dict[str, str] = {}
    for text in texts:
        if low <= len(written_words(text)) <= high and bare_words(text):
            found.setdefault(text.casefold(), text)
    return list(found.values())


def _alternating(parts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each question with the answer that follows it."""
    pairs = zip(parts, parts[1:], strict=False)
    return [(first, second) for (q, first), (a, second) in pairs if q[0] == "q" and a[0] == "a"]


def _is_pair(question: str, answer: str) -> bool:
    return len(written_words(question)) >= 3 and bool(bare_words(answer)) and bare_words(question) != bare_words(answer)


def _known(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key).strip().casefold(): item for key, item in value.items()}


def _item(item: Any, names: Sequence[str]) -> str:
    if isinstance(item, Mapping):
        known = _known(item)
        item = next((known[name] for name in names if _flat(known.get(name))), item)
    return _flat(item)


def _flat(value: Any) -> str:
    return " ".join(plain_text(value).split())


def _without_last(value: Any) -> Any:
    """A value without what stands last in it: an item of a list, or the text of an object's last key."""
    if isinstance(value, list):
        return value[:-1]
    if isinstance(value, dict) and value:
        name = list(value)[-1]
        return {**value, name: _without_last(value[name])}
    return None


def _copied(text: str, passage: str) -> float:
    """The share of the text's runs of six words that the passage has, too."""
    runs = shingles(text, 6)
    return float(np.isin(runs, shingles(passage, 6)).mean()) if len(runs) else 0.0


def _declined(text: str) -> str | None:
    """Why a list or a short answer is of no use. Lists repeat words by nature, so that only a refusal counts."""
    reason = unusable(" ".join(written_words(text)[:12]), min_words=1)
    return "an empty reply" if reason and reason.startswith("fewer") else reason
