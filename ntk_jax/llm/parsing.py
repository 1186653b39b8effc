"""JSON out of what a language model wrote: as it stands, else repaired, else by asking once more, else a failure that
is counted and keeps the text. One bad reply never costs the others.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import json_repair

from ntk_jax.llm.request import Client, Progress, Reply, Request
from ntk_jax.llm.wire import whole

LONGEST_REPAIR = 100_000  # characters; repairing takes time that grows faster than the text
DEEPEST = 100  # levels of nesting
# Line ends inside strings are the commonest fault; NaN is no JSON, and no number that anybody can use.
_DECODER = json.JSONDecoder(strict=False, parse_constant=lambda _: None)
_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)(?:```|\Z)", re.DOTALL)
# Thoughts before the answer, whose first mark some chat templates write into the prompt, or that never ended.
_THOUGHT = re.compile(r"\A(?!\s*[\[{`]).*</think(?:ing)?>|\A\s*<think(?:ing)?>.*", re.DOTALL)
_LIKELY = {"{": re.compile(r"\{\s*[\"'}]"), "[": re.compile(r"\[")}  # braces stand in prose too

Check = Callable[[Any], str | None]  # of a parsed value: what is wrong with it, in a few words; None: nothing


@dataclass(frozen=True)
class Parsed:
    """A value. how: it was JSON as it stood, was repaired, or came from a second reply."""

    value: Any
    how: Literal["json", "repaired", "asked again"] = "json"


@dataclass(frozen=True)
class Failure:
    """No value. reason: in a few words, the same for the same kind of failure, to be counted by. raw: what was written,
    whole."""

    reason: str
    raw: str


def parse_json(
    text: str, ask_again: Callable[[str], str | None] | None = None, *, kind: type = dict, check: Check | None = None
) -> Parsed | Failure:
    """The JSON value in a text: the whole text, what stands between ``` and ```, or the first value in prose.

    kind: the value is a dict or a list; an empty one is a failure. check: what else must be so. ask_again: given what
    is wrong, returns another reply or None; called once, if all else fails.
    """
    found = _parse(text, kind, check)
    if isinstance(found, Parsed) or ask_again is None:
        return found
    second = ask_again(found.reason)
    if second is None:
        return found
    value = _parse(second, kind, check)
    return Parsed(value.value, "asked again") if isinstance(value, Parsed) else Failure(found.reason, text)


def ask_for_json(
    client: Client,
    requests: Sequence[Request],
    *,
    kind: type = dict,
    check: Check | None = None,
    repair: bool = True,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Parsed | Failure]]:
    """(ordinal of the request, what its reply holds) for each, in any order. repair: those that cannot be read are
    asked once more, together, after all others, with what is wrong.

    Raises as `Client.ask`.
    """
    unread: list[tuple[int, Failure]] = []
    for ordinal, reply in client.ask(requests, progress):
        found = read_reply(reply, kind=kind, check=check)
        if isinstance(found, Failure) and repair and reply.finish != "failed":
            unread.append((ordinal, found))
        else:
            yield ordinal, found
    unread.sort(key=lambda item: item[0])
    again = [correction(requests[ordinal], failure) for ordinal, failure in unread]
    for number, reply in client.ask(again) if again else ():
        ordinal, failure = unread[number]
        found = read_reply(reply, kind=kind, check=check)
        yield ordinal, Parsed(found.value, "asked again") if isinstance(found, Parsed) else failure


def read_reply(reply: Reply, *, kind: type = dict, check: Check | None = None) -> Parsed | Failure:
    """As `parse_json`, of a reply; one that failed is a failure for that reason."""
    if reply.finish == "failed":
        return Failure(reply.reason or "no reply", reply.text)
    found = parse_json(reply.text, kind=kind, check=check)
    if isinstance(found, Failure) and reply.finish == "length":
        return Failure(f"{found.reason}; cut at max_tokens", reply.text)
    return found


def correction(request: Request, failure: Failure, *, as_json: bool = True) -> Request:
    """The request that asks for the same reply, better written; as_json: False where plain text was asked for."""
    form = "as valid JSON" if as_json else "in the form that was asked for"
    wish = f"This cannot be used: {failure.reason}. Write it again, {form} and nothing else."
    if isinstance(request.messages, str):
        return dataclasses.replace(request, messages=f"{request.messages}{failure.raw}\n\n{wish}\n")
    talk = ({"role": "assistant", "content": failure.raw or "(nothing)"}, {"role": "user", "content": wish})
    return dataclasses.replace(request, messages=(*request.messages, *talk))


def without_thoughts(text: str) -> str:
    """What a model wrote behind its thoughts, where it marks them; empty where it never came to an answer."""
    return _THOUGHT.sub("", text).strip()


def _parse(text: str, kind: type, check: Check | None) -> Parsed | Failure:
    name = "list" if kind is list else "object"
    body = without_thoughts(text)
    if not body:
        return Failure("nothing but thoughts" if text.strip() else "an empty reply", text)
    reason = ""
    for how, value in _values(body, "{" if kind is dict else "["):
        if not isinstance(value, kind):
            reason = reason or f"no JSON {name}"
            continue
        if not value:
            reason = f"an empty JSON {name}"
            continue
        value = _clean(value)
        problem = check(value) if check is not None else None
        if problem is None:
            return Parsed(value, how)
        reason = problem
    return Failure(reason or f"no JSON {name}", text)


def _values(body: str, opening: str) -> Iterator[tuple[Literal["json", "repaired"], Any]]:
    """What the text may hold, the strictest reading first."""
    fenced = [part.strip() for part in _FENCE.findall(body)]
    for part in (body, *fenced):
        value = _loads(part)
        if value is not None:
            yield "json", value
    likely = _LIKELY[opening].search(body)
    start = likely.start() if likely else body.find(opening)
    if start >= 0:
        value = _first(body[start:])
        if value is not None:
            yield "json", value
    for part in (*fenced, body[start:] if start >= 0 else ""):
        if opening in part and len(part) <= LONGEST_REPAIR and part.count("{") + part.count("[") <= 50 * DEEPEST:
            try:
                yield "repaired", json_repair.loads(part)
            except (ValueError, RecursionError, IndexError, TypeError, AttributeError):  # it promises none of them
                continue


def _loads(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def _first(text: str) -> Any:
    try:
        return _DECODER.raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


def _clean(value: Any, depth: int = 0) -> Any:
    """Without half surrogate pairs, which no file can hold, and without what stands too deep."""
    if isinstance(value, str):
        return whole(value)
    if depth >= DEEPEST:
        return None
    if isinstance(value, dict):
        return {whole(str(name)): _clean(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, depth + 1) for item in value]
    return value
