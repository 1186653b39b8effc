"""Small documents, and a scripted model that does well whatever the methods of questions ask it for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scripted_llm import ScriptedClient

from ntk_jax.llm.request import Reply, Request
from ntk_jax.questions.methods.asked import Asked
from ntk_jax.questions.methods.table import METHODS
from ntk_jax.questions.question import Chunk
from ntk_jax.questions.voice import Voice

LETTERS = "abcdefghijklmnopqrstuvwxyz"
Write = Callable[[Request], "str | Reply"]


def words(count: int, *names: object) -> str:
    """Words that are like no others."""
    draw = random.Random(" ".join(map(str, names)))
    return " ".join("".join(draw.choices(LETTERS, k=6)) for _ in range(count))


def chunks_of_documents(documents: int = 3, each: int = 2) -> list[Chunk]:
    found = []
    for d in range(documents):
        for n in range(each):
            text = f"Acme{d} sells Bolt{d}x{n} to Corex{d}x{n}. " + words(40, "chunk", d, n) + "."
            found.append(Chunk(f"d{d}-{n}", f"d{d}", f"Treaty {d}", "legal", text))
    return found


def asked_for(request: Request) -> str:
    """What kind of thing a request wants."""
    text = request.messages[0]["content"]  # type: ignore[index]
    marks = {
        "naming": "the persons, organisations, places",
        "about": "List what these passages say about",
        "statements": "List the facts that this passage states",
        "ways": "different ways to study",
        "variants": "because it says the opposite",
        "questions": "different questions that this fact answers",
        "question": "Write a question that this fact",
        "sentence": "as one sentence that somebody",
        "ask": "Write one question that a careful reader",
        "ground": "Question: ",
    }
    return next((kind for kind, mark in marks.items() if mark in text), "text")


def value_of(request: Request) -> Any:
    """What a good model has to say, as a JSON value or as a text."""
    kind, text = asked_for(request), request.messages[0]["content"]  # type: ignore[index]
    own = (kind, request.seed, len(request.messages))
    if kind == "naming":
        names = sorted({word.strip(".,") for word in text.split() if any(digit in word for digit in "0123456789")})
        return {"summary": words(12, *own) + ".", "entities": [name for name in names if name[0] in "ABC"]}
    if kind in ("about", "statements"):
        return {"facts": [f"{words(9, *own, n)}." for n in range(3)]}
    if kind == "ways":
        return {"strategies": [f"{words(7, *own, n)}." for n in range(4)]}
    if kind == "variants":
        return {"same": words(9, *own, "same") + ".", "opposite": words(9, *own, "opposite") + "."}
    if kind == "questions":
        return {
            "pairs": [{"question": words(7, *own, n) + "?", "answer": words(9, *own, n, 1) + "."} for n in range(4)]
        }
    if kind == "question":
        return {"question": words(7, *own) + "?", "answer": words(9, *own, 1) + "."}
    if kind == "ask":
        return {"question": words(9, *own) + "?"}
    if kind == "ground":
        said = text.split("\n\nQuestion: ")[0].split("\n")[-1].split(". ")[-1]
        return {"stated": True, "answer": words(8, *own, text) + ".", "quotes": [said]}
    return words(9 if kind == "sentence" else 30, *own) + "."


def as_text(value: Any) -> str:
    """The same in plain lines."""
    if isinstance(value, str):
        return value
    if "quotes" in value:
        return f"ANSWER: {value['answer']}\nQUOTE: {value['quotes'][0]}"
    if "pairs" in value:
        return "\n".join(f"{n}. Question: {p['question']}\nAnswer: {p['answer']}" for n, p in enumerate(value["pairs"]))
    if "entities" in value:
        return "\n".join([f"Summary: {value['summary']}", *(f"- {name}" for name in value["entities"])])
    if any(isinstance(item, list) for item in value.values()):
        return "\n".join(f"{n}. {item}" for items in value.values() for n, item in enumerate(items, 1))
    return "\n".join(f"**{name.capitalize()}:** {item}" for name, item in value.items())


def good(request: Request) -> str:
    value = value_of(request)
    return json.dumps(value) if request.schema is not None else as_text(value)


def count_words(text: str) -> int:
    return len(text.split())


def fair(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, int] | None]:
    """A likelihood: that of a record is drawn by its id."""
    return [(random.Random(record["id"]).uniform(0.1, 5), 1) for record in records]


def run(
    name: str, write: Write = good, *, chunks: Sequence[Chunk] | None = None, form: str = "auto", **how: Any
) -> tuple[list[dict[str, Any]], Voice, Asked, ScriptedClient]:
    """All records of a method."""
    client = ScriptedClient(write, last_first=bool(how.pop("last_first", False)))
    voice = Voice("generator", client, form)
    asked = Asked(**{"tokens": 10**6, "count_tokens": count_words, "likelihood": fair, **how})
    records = list(METHODS[name].write(chunks_of_documents() if chunks is None else chunks, voice, asked))
    return records, voice, asked, client
