"""The messages of OpenAI-compatible servers: a request as the body of a POST, and what a response says.

Nothing in a response is taken for granted: servers send HTML with status 200, null where a text belongs, no choices, no
usage, or half a JSON.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ntk_jax.errors import one_line
from ntk_jax.llm.request import Reply, Request

SEED_LIMIT = 2**31  # servers read seeds as signed 32 bits
STOPS = 4  # stop texts that servers take; the reply is cut at any of them here as well
REASON = 200  # characters of a server's own words in a reason

# What became of an attempt. reply: there is one. refused: this request will never be answered. busy: all should wait.
# failed: try again. fatal: no request will be answered.
Kind = Literal["reply", "refused", "busy", "failed", "fatal"]

_BUSY = (429, 503, 529)
_BILLED_MAYBE = (408, 502, 504, 520, 521, 522, 523, 524)  # whoever gave up waiting was not the model
_FATAL = {
    401: "it does not accept the key",
    402: "it wants to be paid first",
    403: "it does not accept the key, or the key may not use this model",
    404: "it knows no such model or address; an address usually ends in /v1",
    405: "it takes no such calls at this address; an address usually ends in /v1",
}
_FINISH = {"length": "length", "max_tokens": "length", "content_filter": "failed"}


@dataclass(frozen=True)
class Capabilities:
    """What a server honours, as found by `probe`; the defaults are for one that was not probed.

    seeds: `plain`; `generation_config`: only with that key in the body, as `transformers serve`; `ignored`: two seeds
    give one text. max_tokens: the name of that field. schema: how a reply is held to a JSON schema, `json_schema`,
    `json_object` (to JSON alone) or `none`. refused: fields that it answers with an error, never sent. unheard: the
    names of what it takes without an effect, for people.
    """

    seeds: Literal["plain", "generation_config", "ignored"] = "plain"
    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    schema: Literal["json_schema", "json_object", "none"] = "json_schema"
    refused: tuple[str, ...] = ()
    unheard: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt. tokens: (of the prompt, of the reply) as reported. billed: whether it costs anything,
    yes where that is not known. wait: seconds that the server asks for. choices: how many texts the response had;
    logprobs: whether the first had these. Nothing else of a response is held, for it may repeat the key."""

    kind: Kind
    reason: str = ""
    text: str = ""
    finish: str = "stop"
    tokens: tuple[int, int] | None = None
    billed: bool = True
    wait: float | None = None
    choices: int = 0
    logprobs: bool = False

    def reply(self, request: Request) -> Reply:
        """The reply, cut before the first of the request's stop texts."""
        tokens = self.tokens or (0, 0)
        if self.kind != "reply" or self.finish == "failed":
            return Reply("", "failed", *tokens, reason=self.reason)
        ends = [at for stop in request.stop if stop and (at := self.text.find(stop)) >= 0]
        if ends:
            return Reply(self.text[: min(ends)], "stop", *tokens)
        return Reply(self.text, self.finish, *tokens)


def body_of(model: str, request: Request, able: Capabilities, more: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a POST to /chat/completions, or to /completions for a text that is to be continued. more: further
    fields, which have the last word."""
    body: dict[str, Any] = {"model": model}
    if isinstance(request.messages, str):
        body["prompt"] = request.messages
    else:
        body["messages"] = [dict(message) for message in request.messages]
    body[able.max_tokens] = request.max_tokens
    body["temperature"] = request.temperature
    body["seed"] = (request.seed + 1_000_003 * request.sample) % SEED_LIMIT
    choice: dict[str, Any] = {}
    if request.top_p < 1:
        choice["top_p"] = request.top_p
    if request.top_k > 0:
        choice["top_k"] = request.top_k
    if request.min_p > 0:
        choice["min_p"] = request.min_p
    body |= choice
    if request.stop:
        body["stop"] = list(request.stop[:STOPS])
    if request.schema is not None and able.schema == "json_schema":
        schema = {"name": "reply", "schema": dict(request.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif request.schema is not None and able.schema == "json_object":
        body["response_format"] = {"type": "json_object"}
    if able.seeds == "generation_config" and request.temperature > 0:
        drawing = {"do_sample": True, "temperature": request.temperature, "top_k": 0, **choice}
        body["generation_config"] = json.dumps(drawing)
    body = {name: value for name, value in body.items() if name not in able.refused}
    return {**body, **more}


def most_tokens(request: Request, more: Mapping[str, Any] | None = None) -> int:
    """More tokens than the request's prompt can have: a tokenizer of bytes makes at most one of each byte; and what a
    chat template adds. more: the further fields of the body, which may go into the prompt too."""
    messages, added = request.messages, len(json.dumps(dict(more))) if more else 0
    if isinstance(messages, str):
        return len(messages.encode("utf8", "replace")) + added + 16
    size = sum(len(str(text).encode("utf8", "replace")) for message in messages for text in message.values())
    schema = len(json.dumps(request.schema)) if request.schema is not None else 0
    return size + schema + added + 32 * len(messages) + 256  # a template's own system message


def most_reply_tokens(request: Request, body: Mapping[str, Any]) -> int:
    """The tokens that may be billed for the reply: of all texts that the body asks for, by the limits that it has."""
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if isinstance(body.get(name), int)]
    texts = body.get("n", 1)
    return max(limits or [request.max_tokens]) * (max(texts, 1) if isinstance(texts, int) else 1)


def likely_tokens(request: Request) -> int:
    """About the tokens of the request's prompt: one for four bytes."""
    return most_tokens(request) // 4


def read_response(status: int, headers: Mapping[str, str], content: bytes) -> Outcome:
    """What a response says."""
    if status == 200:
        return _read_answer(content)
    said = _said(content)
    reason = f"HTTP {status}" + (f": {said}" if said else "")
    if status in _FATAL or 300 <= status < 400:
        why = _FATAL.get(status, "it sends elsewhere; give the address that it names")
        return Outcome("fatal", f"{why} ({reason})", billed=False)
    if status in _BUSY:
        if "insufficient_quota" in said:
            return Outcome("fatal", f"the account has no money left ({reason})", billed=False)
        return Outcome("busy", reason, billed=False, wait=_retry_after(headers.get("retry-after")))
    if status in (409, 425) or status in _BILLED_MAYBE or status >= 500:
        return Outcome("failed", reason, billed=status in _BILLED_MAYBE)
    return Outcome("refused", reason, billed=False)


def _read_answer(content: bytes) -> Outcome:
    """A response with status 200. Without usage all that was held back is billed, for a model may have worked."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        start = content[:60].decode("utf8", "replace").strip()
        return Outcome("failed", f"not JSON: {one_line(start, 60)}" if start else "an empty response")
    if not isinstance(value, dict):
        return Outcome("failed", f"a JSON {type(value).__name__} where an object belongs")
    tokens = _usage(value.get("usage"))
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        error = one_line(whole(_error_of(value)), REASON)
        reason = f"error with status 200: {error}" if error else "no choices"
        return Outcome("failed", reason, tokens=tokens)
    about: dict[str, Any] = {"choices": len(choices or ()), "logprobs": bool(choice.get("logprobs")), "tokens": tokens}
    finish = _FINISH.get(str(choice.get("finish_reason")), "stop")
    if finish == "failed":
        return Outcome("reply", "stopped by the server's content filter", finish=finish, **about)
    text = _text(choice)
    if text is None and finish == "length":  # the same request would have no text again, and cost as much
        return Outcome("reply", "no text: all of max_tokens went into hidden thoughts", finish="failed", **about)
    if text is None:
        return Outcome("failed", "no text", **about)
    return Outcome("reply", text=text, finish=finish, **about)


def _text(choice: Mapping[str, Any]) -> str | None:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else choice.get("text")
    if isinstance(content, list):  # parts of a message
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return whole(content) if isinstance(content, str) else None


def whole(text: str) -> str:
    """The text as UTF-8 can hold it: JSON can spell half a surrogate pair."""
    return text.encode("utf8", "replace").decode("utf8")


def _usage(usage: object) -> tuple[int, int] | None:
    if not isinstance(usage, dict):
        return None
    found = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**31 for count in found):
        return None
    return found[0], found[1]  # type: ignore[return-value]


def _said(content: bytes) -> str:
    """A server's own words on what is wrong."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    text = _error_of(value) if isinstance(value, dict) else content[: 4 * REASON].decode("utf8", "replace").strip()
    if text.startswith("<"):
        return "a page of HTML"
    return one_line(whole(text), REASON)


def _error_of(value: Mapping[str, Any]) -> str:
    error = value.get("error", value.get("detail", value.get("message", "")))
    if isinstance(error, dict):
        return " ".join(str(error[name]) for name in ("message", "code") if error.get(name))
    return str(error or "")


def _retry_after(header: str | None) -> float | None:
    """Seconds; of a date, from now. None: it says nothing that can be read."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if 0 <= seconds < float("inf") else 0.0 if seconds < 0 else None
