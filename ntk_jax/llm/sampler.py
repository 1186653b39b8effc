"""The client that answers with a model of this package, in this process.

Prompts are read into the slots of a cache in pieces, several at a time; all slots then go on together, a stride of
tokens at a time, and a slot whose reply is done takes the next request. Pieces that prompts begin with alike are read
once and copied. What a reply is depends on its request alone: not on what is asked beside it or was asked before, on
the slot it gets, or on the order.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ntk_jax.data.templates import Rendering
from ntk_jax.data.tokens import encode_question, ends_of_turn
from ntk_jax.errors import UserError
from ntk_jax.llm import by_layer, strides
from ntk_jax.llm.asked import Asked, rung
from ntk_jax.llm.prefixes import Prefixes, default_limit, names_of
from ntk_jax.llm.request import Progress, Reply, Request
from ntk_jax.llm.sampling import Draws
from ntk_jax.llm.text import Words
from ntk_jax.models.apart import taken_apart
from ntk_jax.models.cache import BLOCK, STRIDE
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import on_host
from ntk_jax.parallel.rules import shard_batch

Answer = tuple[int, Reply, list[int]]  # ordinal of the request, its reply, the reply's tokens
Piece = tuple[int, int]  # slot and place
NOWHERE: Piece = (-1, 0)


class ModelClient:
    """A `Client` on a loaded model with its tokenizer, and its adapter if it has one.

    rendering: how talks become text. slots: replies that are written at a time, rounded up to a multiple of the mesh's
    devices. context: tokens of a prompt with its reply at most; None: as many as the model has positions. mesh: the
    devices, where the model lies; slots go over `data` and `fsdp`. prompt_tokens: read in one step a device; None: on a
    CPU 32 a slot, from 128 to 512, else 2,048. prefix_bytes: kept on every device of what was read of prompts, for
    those that begin alike, in this call of `ask` or later ones; None: `prefixes.default_limit`; 0: nothing. apart: a
    program for each layer in the place of one for all (`models/apart.py`); None: on a CPU without a mesh.

    The same request has the same reply, to the bit, whatever is asked beside it or was asked before, as long as slots,
    prompt_tokens, mesh and machine are the same; with others, sums are rounded otherwise, and a draw on the edge may
    fall otherwise. What is kept changes nothing: a prompt's pieces are the same, in rows of the same shapes, whether
    they are read or copied.

    Raises UserError: a model without a tokenizer; no slots; a context that the model does not have; prefix_bytes < 0;
    apart with a mesh.
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
        prefix_bytes: int | None = None,
        apart: bool | None = None,
    ) -> None:
        most = model.config.max_positions
        if model.tokenizer is None:
            raise UserError(f"{model.name} was loaded without a tokenizer; a model that answers needs one")
        if slots < 1:
            raise UserError(f"slots = {slots} must be at least 1")
        if context is not None and not 2 <= context <= most:
            raise UserError(f"context = {context} is outside 2 .. {most}, the positions of {model.name}")
        if prefix_bytes is not None and prefix_bytes < 0:
            raise UserError(f"prefix_bytes = {prefix_bytes} must be 0 (nothing is kept) or more")
        self.name, self.model, self.mesh = model.name, model, mesh
        self.rendering, self.context = rendering, context or most
        self.devices = mesh.shape["data"] * mesh.shape["fsdp"] if mesh is not None else 1
        self.slots = -(-slots // self.devices) * self.devices
        is_cpu = jax.default_backend() == "cpu"
        self.piece = 32 if is_cpu else 256
        # Long steps read faster, if there are prompts to fill them: where many are answered at a time.
        of_slots = min(max(self.piece * self.slots // self.devices, 128), 512)
        self.prompt_tokens = prompt_tokens or (of_slots if is_cpu else 2048)
        is_apart = is_cpu and mesh is None if apart is None else apart
        if is_apart and mesh is not None:
            raise UserError("apart = True is for one device; leave mesh or apart out")
        self.steps: Any = by_layer if is_apart else strides
        self.fixed: Any = (taken_apart(model),) if is_apart else _whole(model)
        self.prefixes = Prefixes(default_limit() if prefix_bytes is None else prefix_bytes)
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
        waiting: list[Asked] = []
        for ordinal, request in enumerate(requests):
            asked = self._encoded(ordinal, request, None if prompts is None else list(prompts[ordinal]))
            if isinstance(asked, Reply):
                yield ordinal, asked, []
            else:
                waiting.append(asked)
        # The longest first, so that those that are left alone at the end are short; those that begin alike together.
        waiting.sort(key=lambda asked: (-rung(asked.places(asked.limit), BLOCK), asked.ids, asked.ordinal))
        yield from _Desk(self, waiting).answers()

    def _encoded(self, ordinal: int, request: Request, ids: list[int] | None) -> Asked | Reply:
        try:
            if ids is None:
                ids, _ = encode_question(request.messages, self.model.tokenizer, self.rendering, f"request {ordinal}")
        except UserError as error:
            return Reply("", "failed", reason=str(error))
        if not ids or len(ids) >= self.context:
            room = f"the context has {self.context}, one of them for the reply"
            why = f"the prompt has {len(ids):,} tokens; {room}" if ids else "the prompt is empty"
            return Reply("", "failed", prompt_tokens=len(ids), reason=why)
        names = names_of(ids, self.piece) if self.prefixes.limit else []
        return Asked(ordinal, request, ids, min(request.max_tokens, self.context - len(ids)), self.piece, names)


def _whole(model: Model) -> tuple[Any, ...]:
    return model.graphdef, np.dtype(model.dtype), model.lora or {}, model.base


class _Desk:
    """The slots of one call of `ask`, and who waits for one. reading: slots whose prompts are not read to the end, in
    the order in which they were taken."""

    def __init__(self, client: ModelClient, waiting: Sequence[Asked]) -> None:
        self.client, self.waiting = client, deque(waiting)
        model = client.model
        self.each = client.slots // client.devices
        self.seats: list[Asked | None] = [None] * client.slots
        self.reading: list[int] = []
        self.steps, self.fixed = client.steps, client.fixed
        self.ends = np.asarray(client.ends or [-1], np.int32)
        self.cache = self.steps.empty(model.config, client.slots, BLOCK, model.dtype, client.mesh)

    def answers(self) -> Iterator[Answer]:
        """Until everyone has got one."""
        while self.waiting or any(self.seats):
            while (step := self._next_step()) is not None:
                yield from self._read(*step)
            if any(self._writing()):
                yield from self._stride()

    def _next_step(self) -> tuple[int, list[Piece]] | None:
        """(row length, pieces), those of each device in as many rows: what is read now; None: nothing. To wait until
        a step is full costs less than steps that are nearly empty, as long as few slots wait for it."""
        self._take_seats()
        for slot in self.reading:
            self._copy_what_is_kept(slot)
        found = {length: self._pieces(length) for length in {asked.row(asked.read) for _, asked in self._readers()}}
        if not found:
            return None
        full = {length: sum(slot >= 0 for slot, _ in rows) / len(rows) for length, rows in found.items()}
        length = max(found, key=lambda length: (full[length], length))
        can_wait = self.waiting and any(self._writing()) and 4 * len(self.reading) < self.client.slots
        return None if full[length] < 1 and can_wait else (length, found[length])

    def _take_seats(self) -> None:
        """Those who wait take the free slots, as many on one device as on another."""
        for slot in sorted(range(self.client.slots), key=lambda slot: (slot % self.each, slot)):
            if self.seats[slot] is None and self.waiting:
                self.seats[slot] = self.waiting.popleft()
                self.reading.append(slot)

    def _readers(self) -> Iterator[tuple[int, Asked]]:
        for slot in self.reading:
            asked = self.seats[slot]
            assert asked is not None
            yield slot, asked

    def _pieces(self, length: int) -> list[Piece]:
        """The next pieces of rows of one length. Whole pieces may be of one prompt, so their step has all rows that it
        can; the ends of prompts come one from a slot. What another reads in this step is left to be copied."""
        rows = max(1, self.client.prompt_tokens // length)
        rows = rows if length == self.client.piece else min(rows, max(1, self.each // 4))
        found: list[list[Piece]] = [[] for _ in range(self.client.devices)]
        names: set[bytes] = set()
        for slot, asked in self._readers():
            own = found[slot // self.each]
            for place in range(asked.read, len(asked.ids), asked.piece):
                name = asked.name(place)
                if len(own) == rows or asked.row(place) != length or name in names:
                    break
                own.append((slot, place))
                if name is not None:
                    names.add(name)
        return [piece for own in found for piece in own + [NOWHERE] * (rows - len(own))]

    def _read(self, length: int, pieces: list[Piece]) -> Iterator[Answer]:
        """Reads pieces of prompts, and draws the first token of the reply behind the last one of each."""
        askers = [self.seats[slot] if slot >= 0 else None for slot, _ in pieces]
        tokens, lengths = np.zeros((len(pieces), length), np.int32), np.ones(len(pieces), np.int32)
        last = np.zeros(len(pieces), bool)
        for number, (asked, (_, place)) in enumerate(zip(askers, pieces, strict=True)):
            if asked is not None:
                ids = asked.ids[place : place + length]
                tokens[number, : len(ids)], lengths[number], last[number] = ids, len(ids), asked.is_last(place)
                asked.read = place + len(ids)
        self._make_room(0)
        given = strides.Pieces(tokens, lengths, *self._at(pieces), last)
        first, self.cache = self.steps.read(*self.fixed, self.cache, *self._put((given, _draws(askers))))
        self._settle(self.cache)
        for slot, place in pieces:
            self._keep(slot, place)
        if last.any():
            found = on_host(first)
            for number, (slot, _) in enumerate(pieces):
                if last[number]:
                    self.reading.remove(slot)
                    yield from self._take(slot, found[number : number + 1])

    def _at(self, pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
        """The slot of each on its device, -1 is nowhere, and the place."""
        slots = [slot % self.each if slot >= 0 else -1 for slot, _ in pieces]
        return np.asarray(slots, np.int32), np.asarray([place for _, place in pieces], np.int32)

    def _alone(self, slot: int, place: int) -> Any:
        """`_at` of one piece, with nothing on the other devices."""
        pieces = [NOWHERE] * self.client.devices
        pieces[slot // self.each] = (slot, place)
        return self._put(self._at(pieces))

    def _keep(self, slot: int, place: int) -> None:
        """A piece that was read is kept for others, if they could share it."""
        asked = self.seats[slot] if slot >= 0 else None
        if asked is not None and (name := asked.name(place)) is not None and name not in self.client.prefixes:
            piece = self.steps.taken(self.cache, *self._alone(slot, place), asked.piece)
            self._settle(piece)
            self.client.prefixes.keep(asked.names[: place // asked.piece + 1], piece)

    def _settle(self, arrays: Any) -> None:
        """Waits, where devices are simulated by a CPU: programs that exchange data may not overlap there, for each
        holds threads that the other needs, and the process aborts."""
        if self.client.mesh is not None and jax.default_backend() == "cpu":
            jax.block_until_ready(arrays)

    def _copy_what_is_kept(self, slot: int) -> None:
        """The next pieces of a prompt, as far as they are kept, into its slot."""
        asked = self.seats[slot]
        assert asked is not None
        pieces = self.client.prefixes.found(asked.names, asked.read // asked.piece)
        if pieces:
            self._make_room(0)
        for piece in pieces:
            self.cache = self.steps.given_back(self.cache, piece, *self._alone(slot, asked.read))
            asked.read += asked.piece

    def _writing(self) -> list[Asked | None]:
        """Whose reply has begun, by slot."""
        return [asked if asked is not None and asked.made else None for asked in self.seats]

    def _stride(self) -> Iterator[Answer]:
        """A stride of all slots."""
        writing = self._writing()
        self._make_room(max(asked.places(len(asked.made) + STRIDE) for asked in writing if asked is not None))
        rows = self._put(self._rows())
        out, new = self.steps.stride(*self.fixed, self.cache, rows, self.ends)
        self.cache = self.steps.write(self.cache, new, rows)
        found = on_host(out)
        for slot, asked in enumerate(writing):
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

    def _finished(self, asked: Asked, fresh: int) -> Reply | None:
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
        needed = rung(max([places, *held]), BLOCK)
        length = self.steps.length_of(self.cache)
        if needed > length or 2 * needed <= length:
            self.cache = self.steps.longer_or_shorter(self.cache, needed)

    def _rows(self) -> strides.Rows:
        writing = self._writing()

        def of(value: Any, kind: Any = np.int32) -> np.ndarray:
            return np.asarray([0 if asked is None else value(asked) for asked in writing], kind)

        return strides.Rows(
            token=of(lambda asked: asked.made[-1]),
            prompt=of(lambda asked: len(asked.ids)),
            start=of(lambda asked: asked.start),
            made=of(lambda asked: len(asked.made)),
            limit=of(lambda asked: asked.limit),
            alive=of(lambda asked: True, bool),
            draws=_draws(writing),
        )

    def _put(self, tree: Any) -> Any:
        return tree if self.client.mesh is None else shard_batch(tree, self.client.mesh)


def _draws(rows: Sequence[Asked | None]) -> Draws:
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
