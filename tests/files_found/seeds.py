"""Seeds: files of them, own documents, and what language models reply when they are asked for some."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from files_found.case import Case
from ntk_jax.errors import UserError
from ntk_jax.llm.request import Reply
from ntk_jax.llm.usable import Unusable
from ntk_jax.mining.seeds.own import seeds_of_documents
from ntk_jax.mining.seeds.replies import Found, read_reply
from ntk_jax.mining.seeds.seed import read_file

TITLE = "Seeds"
DOMAINS = ("medicine", "law")
TEXT = "The nurse measured the child's fever twice before the doctor changed the dose of the drug at noon again today."


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(message: str, *rows: Any) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        with pytest.raises(UserError, match=message):
            read_file(lines(folder, *rows), DOMAINS)

    return check


def own(domain: str | None, names: tuple[str, ...], text: str, *rows: Any) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        first = seeds_of_documents(lines(folder, *rows), domain, DOMAINS)[0]
        assert (first.domains, first.text) == (names, text)

    return check


def reply(text: str, found: str | Unusable, *, json_reply: bool = True, finish: str = "stop") -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        got = read_reply(Reply(text, finish), json_reply=json_reply, question="")  # type: ignore[arg-type]
        if isinstance(found, Unusable):
            assert got == found
        else:
            assert isinstance(got, Found) and got.text == found

    return check


GOOD = json.dumps({"topic": "fever", "document": TEXT})
CASES = [
    Case(
        "`{text, domains}` a line",
        "a seed; `domains` may be one name",
        own(None, ("law",), "a", {"text": "a", "domains": "law"}),
    ),
    Case("a seed without text or without domains", "refused: the line", refused(":1: the seed has no", {"text": "a"})),
    Case(
        "a domain that the run has not",
        "refused: which there are",
        refused("there are", {"text": "a", "domains": ["x"]}),
    ),
    Case("a seed that names a domain twice", "refused", refused("twice", {"text": "a", "domains": ["law", "law"]})),
    Case("two seeds of one id", "refused", refused("second time", *[{"id": "1", "text": "a", "domains": ["law"]}] * 2)),
    Case(
        "own documents as `text`, prompt and response, or messages",
        "the words of all of it, for the domain that the file is given for",
        own("law", ("law",), "a\n\nb", {"prompt": "a", "response": "b"}),
    ),
    Case(
        "a reply in JSON, between fences or after a sentence", "read", reply(f"Here it is:\n```json\n{GOOD}\n```", TEXT)
    ),
    Case("a reply whose JSON breaks off", "what is whole of it", reply(GOOD[:-2], TEXT)),
    Case(
        "a reply whose document is an object or a list",
        "its texts joined",
        reply(GOOD.replace(json.dumps(TEXT), json.dumps([TEXT])), TEXT),
    ),
    Case(
        "a reply without JSON", "asked for once more, then counted", reply("no", Unusable("no JSON object", again=True))
    ),
    Case(
        "a reply in plain text, cut at its most tokens",
        "up to its last sentence",
        reply(TEXT + " And", TEXT, json_reply=False, finish="length"),
    ),
    Case(
        "“I'm sorry, but ...”",
        "counted: the model declined",
        reply("I'm sorry, but no.", Unusable("the model declined"), json_reply=False),
    ),
    Case(
        "the same words over and over",
        "counted",
        reply("a b c d " * 20, Unusable("the text repeats itself"), json_reply=False),
    ),
]
