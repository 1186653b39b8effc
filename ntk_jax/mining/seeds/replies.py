"""Reads what a language model wrote when it was asked for a seed, and says in a few words why something is no seed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ntk_jax.llm.parsing import Parsed, parse_json
from ntk_jax.llm.request import Reply
from ntk_jax.llm.usable import Unusable, bare_text, first_sentences, plain_text, unusable
from ntk_jax.mining.seeds.prompts import FIELDS

_LABEL = re.compile(rf"^\W*({'|'.join(FIELDS)}|document)\W*:[ \t*]*(.*)$", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A seed's text, and what the steps before it fixed. cut: the reply ended in the middle, and the text with the last
    whole sentence."""

    text: str
    steps: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


def read_reply(reply: Reply, *, json_reply: bool, question: str, min_words: int = 20) -> Found | Unusable:
    """The seed in a reply. question: what was asked, which a seed may not repeat."""
    text = bare_text(reply)
    if isinstance(text, Unusable):
        return text
    found = _from_json(reply.text) if json_reply else _from_text(text)
    if isinstance(found, Unusable):
        return found
    if reply.finish == "length":
        found = Found(first_sentences(found.text), found.steps, cut=True)
    reason = unusable(found.text, question=question, min_words=min_words)
    return Unusable(reason) if reason else found


def _from_json(text: str) -> Found | Unusable:
    value = parse_json(text)
    if not isinstance(value, Parsed):
        return Unusable(value.reason, again=True)
    known = {str(key).strip().casefold(): item for key, item in value.value.items()}
    document = plain_text(known.get("document"))
    if not document:
        return Unusable("no document in the JSON", again=True)
    steps = {name: " ".join(plain_text(known.get(name)).split()) for name in FIELDS}
    return Found(document, {name: step for name, step in steps.items() if step})


def _from_text(text: str) -> Found:
    """A reply in plain text: labelled lines where the model writes some, else all of it."""
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
