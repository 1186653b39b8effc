"""The client that answers with a model of this package, in this process.

Prompts are read into the slots of a cache, several of like length at a time; all slots then go on together, a stride of
tokens at a time, and a slot whose reply is done takes the next request. What a reply is depends on its request alone:
not on what is asked beside it, on the slot it gets, or on the order.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ntk_jax.data.templates import Rendering
from ntk_jax.data.tokens import encode_question, ends_of_turn
from ntk_jax.errors import UserError
from ntk_jax.llm import strides
from ntk_jax.llm.request import Progress, Reply, Request
from ntk_jax.llm.sampling import Draws
from ntk_jax.llm.text import Words
from ntk_jax.models.cache import BLOCK, STRIDE, Cache, empty_cache, resized
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import on_host
from ntk_jax.parallel.rules import shard_batch

_LEAST_PROMPT = 32  # tokens of the shortest row that a prompt is read in
Answer = tuple[int, Reply, list[int]]  # ordinal of the request, its reply, the reply's tokens
_resized = jax.jit(resized, static_argnums=1)


@dataclass
class _Asked:
    """A request on its way. ids: the prompt's. limit: tokens that the reply may have. made: those it has."""

    ordinal: int
    request: Request
    ids: list[int]
    limit: int
    made: list[int] = field(default_factory=list)

    @property
    def row(self) -> int:
        """The length of the row that the prompt is read in."""
        return _rung(len(self.ids), _LEAST_PROMPT)

    @property
    def start(self) -> int:
        """The place of the reply's first token in the cache."""
        return -(-len(self.ids) // STRIDE) * STRIDE

    def places(self, tokens: int) -> int:
        """Places that the slot needs for the prompt and so many tokens of the reply."""
        return max(-(-self.row // BLOCK) * BLOCK, self.start + tokens)


class ModelClient:
    """A `Client` on a loaded model with its tokenizer, and its adapter if it has one.

    rendering: how talks become text. slots: replies that are written at a time, rounded up to a multiple of the mesh's
    devices. context: tokens of a prompt with its reply at most; None: as many as the model has positions. mesh: the
    devices, where the model lies; slots go over `data` and `fsdp`. prompt_tokens: read in one step a device when
    prompts are short; None: 128 on a CPU, else 2,048.

    The same request has the same reply, to the bit, whatever is asked beside it, as long as slots, prompt_tokens, mesh
    and machine are the same; with others, sums are rounded otherwise, and a draw on the edge may fall otherwise.

    Raises UserError: a model without a tokenizer; no slots; a context that the model does not have.
    """

    def __init__(
        self,
        model: Model,
        *,
        rendering: Rendering = Rendering(),  # noqa: B008 (it cannot change)
        slots: int = 16,
        context: int | None = None,
        mesh: Mesh | None = None,
        prompt_tokens: int | None = None,
    ) -> None:
        most = model.config.max_positions
        if model.tokenizer is None:
            raise UserError(f"{model.name} was loaded without a tokenizer; a model that answers needs one")
        if slots < 1:
            raise UserError(f"slots = {slots} must be at least 1")
        if context is not None and not 2 <= context <= most:
            raise UserError(f"context = {context} is outside 2 .. {most}, the positions of {model.name}")
        self.name, self.model, self.mesh = model.name, model, mesh
        self.rendering, self.context = rendering, context or most
        self.devices = mesh.shape["data"] * mesh.shape["fsdp"] if mesh is not None else 1
        self.slots = -(-slots // self.devices) * self.devices
        self.prompt_tokens = prompt_tokens or (128 if jax.default_backend() == "cpu" else 2048)
        ends = set(model.config.special_tokens["eos"]) | ends_of_turn(model.tokenizer, rendering)
        self.ends = sorted(ends)  # the tokens that end a reply
        # Stop texts that spell one of these are tokens: a reply's text is without them.
        self.controls = {str(token): number for number, token in model.tokenizer.added_tokens_decoder.items()}

    def ask(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[tuple[int, Reply]]:
        """(ordinal, reply) for each request, as they come. A request that cannot be answered, because its prompt is
        too long or the chat template refuses it, has a reply that says so.

        Raises UserError: settings that nothing can be drawn with (naming them).
        """
        done, tokens = 0, 0
        for ordinal, reply, _ in self.ask_with_tokens(requests):
            done, tokens = done + 1, tokens + reply.completion_tokens
            if progress is not None:
                progress(done, len(requests), f"{tokens:,} tokens written")
            yield ordinal, reply

    def ask_with_tokens(
        self, requests: Sequence[Request], prompts: Sequence[Sequence[int]] | None = None
    ) -> Iterator[Answer]:
        """`ask` with the tokens of each reply as they were drawn, the one that ends it and those of a stop text too.
        prompts: tokens that the model reads instead of the requests' messages."""
        for request in requests:
            _check(request)
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            yield from self._answers(requests, prompts)

    def _answers(self, requests: Sequence[Request], prompts: Sequence[Sequence[int]] | None) -> Iterator[Answer]:
        waiting: list[_Asked] = []
        for ordinal, request in enumerate(requests):
            asked = self._encoded(ordinal, request, None if prompts is None else list(prompts[ordinal]))
            if isinstance(asked, Reply):
                yield ordinal, asked, []
            else:
                waiting.append(asked)
        # The longest first, so that those that are left alone at the end are short; those of one row length together.
        waiting.sort(key=lambda asked: (-_rung(asked.places(asked.limit), BLOCK), -asked.row, asked.ordinal))
        yield from _Desk(self, waiting).answers()

    def _encoded(self, ordinal: int, request: Request, ids: list[int] | None) -> _Asked | Reply:
        try:
            if ids is None:
                ids, _ = encode_question(request.messages, self.model.tokenizer, self.rendering, f"request {ordinal}")
        except UserError as error:
            return Reply("", "failed", reason=str(error))
        if not ids or len(ids) >= self.context:
            room = f"the context has {self.context}, one of them for the reply"
            why = f"the prompt has {len(ids):,} tokens; {room}" if ids else "the prompt is empty"
            return Reply("", "failed", prompt_tokens=len(ids), reason=why)
        return _Asked(ordinal, request, ids, min(request.max_tokens, self.context - len(ids)))


class _Desk:
    """The slots of one call of `ask`, and who waits for one."""

    def __init__(self, client: ModelClient, waiting: Sequence[_Asked]) -> None:
        self.client, self.waiting = client, deque(waiting)
        model = client.model
        self.seats: list[_Asked | None] = [None] * client.slots
        self.fixed = (model.graphdef, np.dtype(model.dtype), model.lora or {}, model.base)
        self.ends = np.asarray(client.ends or [-1], np.int32)
        self.cache: Cache = empty_cache(model.config, client.slots, BLOCK, model.dtype, client.mesh)

    def answers(self) -> Iterator[Answer]:
        """Until everyone has got one."""
        while self.waiting or any(self.seats):
            while (group := self._next_group()) is not None:
                yield from self._begin(*group)
            if any(self.seats):
                yield from self._stride()

    def _next_group(self) -> tuple[int, list[int], list[int]] | None:
        """(row length, rows: the slot of each, -1 for none, slots): who begins now; None: nobody. To wait for slots
        until a step is full costs less than steps that are nearly empty, as only a quarter of the slots can wait."""
        if not self.waiting:
            return None
        length, each = self.waiting[0].row, self.client.slots // self.client.devices
        rows = max(1, min(self.client.prompt_tokens // length, each // 4))
        free = [
            [slot for slot in range(device * each, (device + 1) * each) if self.seats[slot] is None][:rows]
            for device in range(self.client.devices)
        ]
        found = sum(map(len, free))
        if not found or (found < min(rows * self.client.devices, len(self.waiting)) and any(self.seats)):
            return None
        slots: list[int] = []
        for own in free:
            for number in range(rows):
                same = self.waiting and self.waiting[0].row == length and number < len(own)
                if same:
                    self.seats[own[number]] = self.waiting.popleft()
                slots.append(own[number] if same else -1)
        return length, slots, [slot for slot in slots if slot >= 0]

    def _begin(self, length: int, slots: list[int], taken: list[int]) -> Iterator[Answer]:
        """Reads prompts into the slots, and draws the first token of each reply."""
        rows = [self.seats[slot] if slot >= 0 else None for slot in slots]
        tokens, lengths = np.zeros((len(rows), length), np.int32), np.ones(len(rows), np.int32)
        for number, asked in enumerate(rows):
            if asked is not None:
                lengths[number] = len(asked.ids)
                tokens[number, : lengths[number]] = asked.ids
        self._make_room(max(asked.places(0) for asked in rows if asked is not None))
        each = self.client.slots // self.client.devices
        places = np.asarray([slot % each if slot >= 0 else -1 for slot in slots], np.int32)
        given = self._put(((tokens, lengths), places, _draws(rows)))
        first, self.cache = strides.begin(*self.fixed, self.cache, *given)
        found = on_host(first)
        for number, slot in enumerate(slots):
            if slot >= 0:
                yield from self._take(slot, found[number : number + 1])

    def _stride(self) -> Iterator[Answer]:
        """A stride of all slots."""
        self._make_room(max(asked.places(len(asked.made) + STRIDE) for asked in self.seats if asked is not None))
        rows = self._put(self._rows())
        out, new = strides.stride(*self.fixed, self.cache, rows, self.ends)
        self.cache = strides.write(self.cache, new, rows)
        found = on_host(out)
        for slot, asked in enumerate(self.seats):
            if asked is not None:
                yield from self._take(slot, found[:, slot])

    def _take(self, slot: int, drawn: np.ndarray) -> Iterator[Answer]:
        """Adds what was drawn to the reply of a slot, which is free if that is its end."""
        asked = self.seats[slot]
        assert asked is not None
        asked.made += [int(token) for token in drawn if token != strides.NOTHING]
        reply = self._finished(asked, sum(drawn != strides.NOTHING))
        if reply is not None:
            self.seats[slot] = None
            yield asked.ordinal, reply, asked.made

    def _finished(self, asked: _Asked, fresh: int) -> Reply | None:
        """The reply, if the last `fresh` tokens ended it."""
        words = Words(self.client.model.tokenizer, asked.ids[-1])
        stops = {self.client.controls[stop] for stop in asked.request.stop if stop in self.client.controls}
        place = next((n for n in range(len(asked.made) - fresh, len(asked.made)) if asked.made[n] in stops), None)
        made = asked.made = asked.made if place is None else asked.made[: place + 1]
        ended = place is not None or made[-1] in self.client.ends
        body = made[:-1] if ended or made[-1] < 0 else made
        if asked.request.stop and (cut := words.stopped(body, asked.request.stop, fresh)) is not None:
            return Reply(cut[0], "stop", len(asked.ids), cut[1])
        if made[-1] < 0:
            why = "the logits are not finite; look at the weights or compute in float32"
            return Reply(words.of(body), "failed", len(asked.ids), len(body), why)
        if ended or len(made) >= asked.limit:
            return Reply(words.of(body), "stop" if ended else "length", len(asked.ids), len(made))
        return None

    def _make_room(self, places: int) -> None:
        """The cache as long as what is in it needs, in few lengths, so that short texts do not pay for long ones and
        few programs are compiled."""
        held = [asked.places(len(asked.made)) for asked in self.seats if asked is not None]
        needed = _rung(max([places, *held]), BLOCK)
        if needed > self.cache.length or 2 * needed <= self.cache.length:
            self.cache = _resized(self.cache, needed)

    def _rows(self) -> strides.Rows:
        def of(value: Any, kind: Any = np.int32) -> np.ndarray:
            return np.asarray([0 if asked is None else value(asked) for asked in self.seats], kind)

        return strides.Rows(
            token=of(lambda asked: asked.made[-1]),
            prompt=of(lambda asked: len(asked.ids)),
            start=of(lambda asked: asked.start),
            made=of(lambda asked: len(asked.made)),
            limit=of(lambda asked: asked.limit),
            alive=of(lambda asked: True, bool),
            draws=_draws(self.seats),
        )

    def _put(self, tree: Any) -> Any:
        return tree if self.client.mesh is None else shard_batch(tree, self.client.mesh)


def _draws(rows: Sequence[_Asked | None]) -> Draws:
    requests = [Request("", temperature=0.0) if asked is None else asked.request for asked in rows]
    seeds = [divmod(request.seed % 2**64, 2**32) for request in requests]
    return Draws(
        temperature=np.asarray([request.temperature for request in requests], np.float32),
        top_p=np.asarray([request.top_p for request in requests], np.float32),
        top_k=np.asarray([min(request.top_k, 2**31 - 1) for request in requests], np.int32),
        min_p=np.asarray([request.min_p for request in requests], np.float32),
        seed=np.asarray(seeds, np.uint32),
        sample=np.asarray([request.sample % 2**32 for request in requests], np.uint32),
    )


def _rung(count: int, least: int) -> int:
    """The next of least · 1, 2, 3, 4, 6, 8, 12, ...: at most half more than is needed."""
    units = -(-count // least)
    power = 1 << max(units - 1, 0).bit_length()
    return least * (power * 3 // 4 if power >= 4 and units <= power * 3 // 4 else power)


def _check(request: Request) -> None:
    """Raises UserError naming a setting that is out of its range."""
    wrong = [
        ("max_tokens", request.max_tokens, request.max_tokens >= 1, "at least 1"),
        ("temperature", request.temperature, 0 <= request.temperature < math.inf, "0 (greedy) or more"),
        ("top_p", request.top_p, 0 < request.top_p <= 1, "above 0 and at most 1 (off)"),
        ("top_k", request.top_k, request.top_k >= 0, "0 (off) or more"),
        ("min_p", request.min_p, 0 <= request.min_p <= 1, "from 0 (off) to 1"),
    ]
    for name, value, right, words in wrong:
        if not right:
            raise UserError(f"{name} = {value!r} must be {words}")
    if "" in request.stop:
        raise UserError("stop holds an empty text, before which every reply ends; leave it out")
    if not isinstance(request.messages, str) and not request.messages:
        raise UserError("a request has no messages; give it at least one")
