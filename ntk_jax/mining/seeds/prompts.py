"""What a language model is asked for: one document, in six steps (the way of DoPAMine, arXiv 2410.00260, figure 2; the
words are this package's), as JSON or, for small models, as plain text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from ntk_jax.llm.request import Request
from ntk_jax.mining.seeds.plan import Slot

FIELDS = ("topic", "premise", "author", "audience", "motive")  # what the steps before the document fix
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in (*FIELDS, "document")},
    "required": [*FIELDS, "document"],
    "additionalProperties": False,
}
_TOKENS_PER_WORD = 1.6  # of English, generously, so that a document ends before its tokens do
_TOKENS_OF_STEPS = 350  # the other fields

_STEPS = """Invent one document of the kind that people in this field write or read.

{field}

Go through six steps.
1. Topic: pick a single narrow subject of {this}, one that does not come to mind first.{topic}
2. Premise: in a sentence or two, what has happened or is in question.
3. Author: a person who works in {this}; give the role and the experience.
4. Audience: who reads it, and what they already know.
5. Motive: why the author writes it. The tone is {demeanour}.
6. Document: write out the {type} in full, {low} to {high} words, in that tone and with the terms, names and numbers
that such an author would use. Leave no blanks to fill in, and say nothing about these steps.

Answer with one JSON object and nothing else. Its keys are "topic", "premise", "author", "audience", "motive" and
"document", and each value is a text."""

_PLAIN = """Write a {type} about {subject}. The field is {field} The tone is {demeanour}. The length is {low} to {high}
words. Write only the {type} itself."""

_TOPICS = """List {count} different narrow topics of this field: {field}

Spread them over the whole of the field, from its daily practice to its rare cases; each is two to eight words. Answer
with one JSON array of texts and nothing else."""


def seed_request(
    slot: Slot,
    domains: Mapping[str, str],
    *,
    json_reply: bool,
    seed: int = 0,
    sample: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 1500,
) -> Request:
    """Asks for the document of a slot. domains: {name: description}. sample: which try at this slot it is."""
    if json_reply:
        text = _steps(slot, domains)
        tokens = slot.length.high * _TOKENS_PER_WORD + _TOKENS_OF_STEPS
    else:
        text = _plain(slot, domains)
        tokens = slot.length.high * _TOKENS_PER_WORD
    return Request(
        messages=({"role": "user", "content": text},),
        max_tokens=min(max_tokens, int(tokens)),
        temperature=temperature,
        top_p=top_p,
        seed=_seed_of(seed, slot.id),
        sample=sample,
        schema=SCHEMA if json_reply else None,
    )


def topics_request(name: str, description: str, count: int, *, seed: int = 0, max_tokens: int = 1500) -> Request:
    """Asks for topics of a domain."""
    text = _TOPICS.format(count=count, field=_field((name,), {name: description}))
    schema = {"type": "array", "items": {"type": "string"}}
    talk = ({"role": "user", "content": text},)
    return Request(talk, max_tokens=max_tokens, temperature=1.0, seed=_seed_of(seed, name), schema=schema)


def prompt_id(request: Request) -> str:
    """Names what was asked: 12 hexadecimal digits of the SHA-256 of the messages."""
    return hashlib.sha256(json.dumps(request.messages, ensure_ascii=True).encode()).hexdigest()[:12]


def _steps(slot: Slot, domains: Mapping[str, str]) -> str:
    this = "this field" if len(slot.domains) == 1 else "both of these fields at once"
    given = " and ".join(slot.topics)
    return _STEPS.format(
        field=_field(slot.domains, domains),
        this=this,
        topic=f" It lies within: {given}." if given else "",
        demeanour=slot.demeanour,
        type=slot.type,
        low=slot.length.low,
        high=slot.length.high,
    )


def _plain(slot: Slot, domains: Mapping[str, str]) -> str:
    return _PLAIN.format(
        type=slot.type,
        subject=" and ".join(slot.topics or [_aspect(domains[name], slot.id) for name in slot.domains]),
        field=_field(slot.domains, domains),
        demeanour=slot.demeanour,
        low=slot.length.low,
        high=slot.length.high,
    ).replace("\n", " ")


def _aspect(description: str, slot: str) -> str:
    """One of the things that a description lists: a small model would else write about the field's name every time."""
    parts = [part.strip(" .") for part in re.split(r"[,;]|\band\b", description)]
    parts = [part for part in parts if len(part) > 2] or [description]
    return parts[_seed_of(0, slot) % len(parts)]


def _field(names: tuple[str, ...], domains: Mapping[str, str]) -> str:
    """`medicine: diseases and drugs.`"""
    described = [f"{name}: {domains[name].strip().rstrip('.')}" for name in names]
    return "; and ".join(described) + "."


def _seed_of(seed: int, name: str) -> int:
    """31 bits of the run's seed and a slot, so that no slot shares its draws with another."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest()) >> 1
