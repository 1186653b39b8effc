"""A language model that answers as a function says: what is asked is tested without weights and without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ntk_jax.llm.request import Progress, Reply, Request


class ScriptedClient:
    """A `ntk_jax.llm.request.Client`. function: a request to its reply; a text is a reply that ended by itself, and
    counts a token a word. Raises what the function raises.

    asked: every request so far, in order. last_first: replies come in the opposite order; a caller may rely on none.
    """

    def __init__(
        self, function: Callable[[Request], str | Reply], *, name: str = "scripted", last_first: bool = False
    ) -> None:
        self.name = name
        self.asked: list[Request] = []
        self._function = function
        self._last_first = last_first

    def ask(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[tuple[int, Reply]]:
        order = list(range(len(requests)))
        for done, ordinal in enumerate(reversed(order) if self._last_first else order, 1):
            self.asked.append(requests[ordinal])
            reply = self._function(requests[ordinal])
            if isinstance(reply, str):
                reply = Reply(reply, "stop", _words(requests[ordinal]), len(reply.split()))
            if progress is not None:
                progress(done, len(requests), "")
            yield ordinal, reply


def _words(request: Request) -> int:
    messages = request.messages
    texts = [messages] if isinstance(messages, str) else [message["content"] for message in messages]
    return sum(len(text.split()) for text in texts)
