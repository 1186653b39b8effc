"""Asks a language model for things in a role: as JSON where it can write that, else as plain text; what cannot be read
is asked for once more; and an account of all of it is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.errors import TryAgain, UserError
from ntk_jax.llm.parsing import Failure, correction
from ntk_jax.llm.request import Client, Progress, Reply, Request
from ntk_jax.llm.usable import Unusable

FORMS = ("auto", "json", "text")
PROBE = 16  # wishes whose replies decide for `auto` whether a model can write JSON

Read = Callable[[Reply], Any]  # what a reply holds, or `Unusable`


@dataclass(frozen=True)
class Wish:
    """One thing that is wanted of a model. text: the request in plain text with its reader. json: the same as JSON;
    None: plain text is the only form."""

    text: tuple[Request, Read]
    json: tuple[Request, Read] | None = None


@dataclass(frozen=True)
class Said:
    """What came back. value: what was read, or `Unusable`. prompt: the id of what was asked last. raw: the reply as it
    was written. calls, tokens: what it took, (of prompts, of replies). failed: there was no reply at all."""

    value: Any
    prompt: str
    raw: str = ""
    calls: int = 1
    tokens: tuple[int, int] = (0, 0)
    failed: bool = False

    @property
    def usable(self) -> bool:
        return not isinstance(self.value, Unusable)


class Voice:
    """A role. role: its name, for people and for the account. form: json, text, or auto, which takes JSON unless more
    than half of the first replies cannot be read as such. prompts: {id: messages} of all that was asked.

    Raises UserError: no such form.
    """

    def __init__(self, role: str, client: Client, form: str = "auto") -> None:
        if form not in FORMS:
            raise UserError(f"format must be one of {', '.join(FORMS)}, got {form!r}")
        self.role, self.client = role, client
        self.form = None if form == "auto" else form
        self.prompts: dict[str, Any] = {}
        self.failures: Counter[str] = Counter()
        self.calls = self.repaired = self.cut = self.cached = 0
        self.tokens = [0, 0]

    def ask(self, wishes: Sequence[Wish], progress: Progress | None = None, what: str = "") -> list[Said]:
        """What each wish brought, in order. The same replies give the same, in whatever order they come. what: they are
        about; empty: the role. Raises UserError and TryAgain as `Client.ask`, saying how far this came."""
        there = 0

        def count(done: int, total: int, spent: str) -> None:
            nonlocal there
            there = done
            if progress is not None:
                progress(done, total, spent)

        try:
            return self._heard(wishes, count)
        except (UserError, TryAgain) as error:
            kind = TryAgain if isinstance(error, TryAgain) else UserError
            raise kind(f"{what or self.role}: {there:,} of {len(wishes):,} replies are there; {error}") from None

    def _heard(self, wishes: Sequence[Wish], progress: Progress) -> list[Said]:
        found: dict[int, Said] = {}
        if self.form is None:
            first = [n for n, wish in enumerate(wishes) if wish.json][:PROBE]
            said = self._said([wishes[n].json or wishes[n].text for n in first], None)
            if first:
                # What the model declined, or a server that was down, says nothing of what it can write.
                unread = sum(isinstance(one.value, Unusable) and one.value.again for one in said)
                self.form = "json" if 2 * unread <= len(said) else "text"
            if self.form == "json":
                found = dict(zip(first, said, strict=True))
        asked = [wish.json if self.form == "json" and wish.json else wish.text for wish in wishes]
        rest = [n for n in range(len(wishes)) if n not in found]
        found |= dict(zip(rest, self._said([asked[n] for n in rest], progress), strict=True))
        return self._repaired(asked, [found[n] for n in range(len(wishes))])

    def account(self) -> dict[str, Any]:
        """What was asked of the role, for a summary."""
        return {
            "model": self.client.name,
            "form": self.form,
            "calls": self.calls,
            "repaired": self.repaired,
            "cut": self.cut,
            "cached": self.cached,
            "prompt_tokens": self.tokens[0],
            "completion_tokens": self.tokens[1],
            "failures": dict(self.failures.most_common()),
        }

    def _said(self, asked: Sequence[tuple[Request, Read]], progress: Progress | None) -> list[Said]:
        replies = self._replies([request for request, _ in asked], progress)
        return [_said(request, reply, read(reply)) for (request, read), reply in zip(asked, replies, strict=True)]

    def _repaired(self, asked: Sequence[tuple[Request, Read]], found: list[Said]) -> list[Said]:
        """What could not be read is asked for once more, and what then cannot be read is counted."""
        broken = [n for n, one in enumerate(found) if isinstance(one.value, Unusable) and one.value.again]
        wanted = [
            correction(request, Failure(found[n].value.reason, found[n].raw), as_json=request.schema is not None)
            for n in broken
            for request, _ in (asked[n],)
        ]
        for n, request, reply in zip(broken, wanted, self._replies(wanted, None), strict=True):
            second = _said(request, reply, asked[n][1](reply))
            tokens = (found[n].tokens[0] + second.tokens[0], found[n].tokens[1] + second.tokens[1])
            value = second.value if second.usable else found[n].value
            found[n] = Said(value, second.prompt, second.raw if second.usable else found[n].raw, 2, tokens)
            self.repaired += second.usable
        self.failures.update(one.value.reason for one in found if isinstance(one.value, Unusable))
        return found

    def _replies(self, requests: Sequence[Request], progress: Progress | None) -> list[Reply]:
        if not requests:
            return []
        replies = dict(self.client.ask(requests, progress))
        self.calls += len(requests)
        for number, request in enumerate(requests):
            self.prompts[prompt_id(request)] = request.messages
            reply = replies[number]
            self.cut += reply.finish == "length"
            self.cached += reply.cached
            self.tokens[0] += reply.prompt_tokens
            self.tokens[1] += reply.completion_tokens
        return [replies[number] for number in range(len(requests))]


def prompt_id(request: Request) -> str:
    """Names what was asked: 12 hexadecimal digits of the SHA-256 of the messages."""
    return hashlib.sha256(json.dumps(request.messages, ensure_ascii=True).encode()).hexdigest()[:12]


def seed_of(seed: int, *names: object) -> int:
    """31 bits of the run's seed and some names, so that no draw is shared by accident."""
    text = " ".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) >> 1


def _said(request: Request, reply: Reply, value: Any) -> Said:
    tokens = (reply.prompt_tokens, reply.completion_tokens)
    return Said(value, prompt_id(request), reply.text, 1, tokens, reply.finish == "failed")
