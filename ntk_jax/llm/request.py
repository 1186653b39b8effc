"""What is asked of a language model and what comes back, whoever answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Progress = Callable[[int, int, str], None]  # replies that are there, of how many, what was spent


@dataclass(frozen=True)
class Request:
    """One reply that is wanted.

    messages: of a talk, [{"role", "content"}, ...], which the model's chat template writes; or a text that the model
    continues as it stands.
    max_tokens: at most so many new tokens. temperature 0: greedy. top_p, top_k (0: off), min_p: which tokens may be
    drawn. stop: the reply ends before the first of these texts. seed: of the draw; the same request has the same reply,
    whatever is answered beside it. sample: which of several replies to the same question this is. schema: a JSON schema
    that the reply should follow, where whoever answers can be held to one; the reply is parsed either way.
    """

    messages: tuple[Mapping[str, str], ...] | str
    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    sample: int = 0
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reply:
    """What came back. finish: `stop` (the model ended, or a stop text came), `length` (max_tokens), or `failed`, and
    then `reason` says why in one line. Tokens are what was billed. cached: it was there before and cost nothing."""

    text: str
    finish: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reason: str | None = None
    cached: bool = False


class Client(Protocol):
    """Whoever answers."""

    name: str  # of the model, for people and for what is written

    def ask(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[tuple[int, Reply]]:
        """(ordinal of the request, its reply) for each of them, as they come: in any order. A reply that is given out
        has been kept before. Raises UserError: nobody can answer (a refused key, a spent cap); what was answered is
        kept."""
        ...
