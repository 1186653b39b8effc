"""What a number of calls will cost, before any is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ntk_jax.llm.ledger import BILLIONTHS, Prices
from ntk_jax.llm.request import Request
from ntk_jax.llm.wire import likely_tokens


@dataclass(frozen=True)
class Rate:
    """How fast replies come. tokens_per_second: of one worker's reply, as measured or stated; None: unknown."""

    workers: int = 1
    tokens_per_second: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def seconds(self, calls: int, prompt_tokens: int, completion_tokens: int) -> float | None:
        """The longest of what the limits and the replies themselves take. None: nothing is known."""
        found = []
        if self.requests_per_minute is not None:
            found.append(60.0 * calls / self.requests_per_minute)
        if self.tokens_per_minute is not None:
            found.append(60.0 * (prompt_tokens + completion_tokens) / self.tokens_per_minute)
        if self.tokens_per_second is not None:
            found.append(completion_tokens / (self.tokens_per_second * min(self.workers, max(calls, 1))))
        return max(found) if found else None


@dataclass(frozen=True)
class Counts:
    """Of requests that cannot be written yet: how many, and the tokens of each."""

    calls: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Calls:
    """Of each call once: replies that are kept are not taken away, those that are asked for again not added. Tokens of
    prompts are a guess of four bytes each, those of replies the most there can be. money: in the unit of the prices."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    money: float
    seconds: float | None

    def __str__(self) -> str:
        text = (
            f"{self.calls:,} calls, about {self.prompt_tokens:,} tokens in and at most {self.completion_tokens:,} out"
        )
        if self.money:
            text += f", at most about {self.money:.4g}"
        if self.seconds is not None:
            text += f", {_duration(self.seconds)}"
        return text


def estimate_calls(
    requests: Sequence[Request] | Counts, prices: Prices | None = None, rate: Rate | None = None
) -> Calls:
    """What requests will take, each sent once."""
    if isinstance(requests, Counts):
        calls = requests.calls
        prompt_tokens, completion_tokens = calls * requests.prompt_tokens, calls * requests.completion_tokens
    else:
        calls = len(requests)
        prompt_tokens = sum(map(likely_tokens, requests))
        completion_tokens = sum(request.max_tokens for request in requests)
    money = (prices or Prices()).cost(prompt_tokens, completion_tokens) / BILLIONTHS
    seconds = (rate or Rate()).seconds(calls, prompt_tokens, completion_tokens)
    return Calls(calls, prompt_tokens, completion_tokens, money, seconds)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
