"""What a round of the adversarial loop costs: questions a minute, where the time goes, and all chunks together against
one chunk at a time.

    python scripts/benchmark_questions.py TARGET EXPERT --documents FILE --chunks 8 --repeats 1

TARGET and EXPERT are Hugging Face folders, both in this process. --documents: JSONL with `text`. Both ways run the same
loop with the same settings and models; together a model writes --slots replies at a time, and one chunk at a time as
many as it has questions, so that it pays for no empty ones. One at a time goes through the first --alone of the chunks,
as its time is a chunk's times their number; what is compared is questions a minute. Other chunks only warm up, a few
together and a single one, so that little is compiled in what is measured. Shares: of the time in generation (both
models), in likelihoods, and the rest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import measurement as ms

import ntk_jax as nj
from ntk_jax.data.sources import read
from ntk_jax.data.templates import Rendering
from ntk_jax.errors import UserError
from ntk_jax.evaluation.loss import held_out_losses
from ntk_jax.llm.request import Client, Progress, Reply, Request
from ntk_jax.llm.sampler import ModelClient
from ntk_jax.models.model import Model
from ntk_jax.questions.chunks import chunk_documents
from ntk_jax.questions.loop import search
from ntk_jax.questions.question import Chunk, Likelihood
from ntk_jax.questions.rounds import Settings, Voices
from ntk_jax.questions.slots import plan_slots
from ntk_jax.questions.voice import Voice

_WARM = 4  # chunks that are enough for every program to be compiled


class Timed:
    """A `Client` that counts the seconds and tokens of another."""

    def __init__(self, client: Client) -> None:
        self.client, self.name = client, client.name
        self.seconds, self.replies, self.tokens = 0.0, 0, 0

    def ask(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[tuple[int, Reply]]:
        begun = time.perf_counter()
        found = list(self.client.ask(requests, progress))
        self.seconds += time.perf_counter() - begun
        self.replies += len(found)
        self.tokens += sum(reply.completion_tokens for _, reply in found)
        yield from found


class TimedLikelihood:
    """A `Likelihood` under a model, with its seconds."""

    def __init__(self, model: Model, length: int) -> None:
        self.model, self.length, self.seconds = model, length, 0.0

    def __call__(self, records: Any) -> list[tuple[float, int] | None]:
        begun = time.perf_counter()
        found = held_out_losses(self.model, records, max_length=self.length, rendering=Rendering())["losses"]
        self.seconds += time.perf_counter() - begun
        return [None if "dropped" in one else (one["loss"] * one["tokens"], one["tokens"]) for one in found]


def main() -> None:
    parser = ms.parser(__doc__)
    parser.add_argument("target", help="a Hugging Face folder")
    parser.add_argument("expert", help="a Hugging Face folder")
    parser.add_argument("--documents", required=True, help="JSONL with the key text")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--alone", type=int, help="of these, those that also go one at a time; default: all")
    parser.add_argument("--words", type=int, default=120, help="of a chunk")
    parser.add_argument("--per-chunk", type=int, default=2, help="questions of a chunk")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--slots", type=int, default=16, help="replies at a time")
    options = parser.parse_args()
    if min(options.chunks, options.words, options.per_chunk, options.slots, options.repeats) < 1 or options.rounds < 0:
        raise UserError("--chunks, --words, --per-chunk, --slots and --repeats must be at least 1, --rounds at least 0")
    alone = options.chunks if options.alone is None else options.alone
    if not 1 <= alone <= options.chunks:
        raise UserError("--alone must be from 1 to --chunks")
    about = ms.environment(())
    ms.print_environment(about)
    models = {path: nj.load_model(path, dtype=options.dtype) for path in {options.target, options.expert}}
    found = chunk_documents(list(read(options.documents)), words=options.words).chunks
    if len(found) < (options.repeats + 1) * options.chunks:
        raise UserError(f"{options.documents} has {len(found)} chunks; give more documents or lower --chunks")
    runs = [found[n * options.chunks : (n + 1) * options.chunks] for n in range(options.repeats + 1)]
    ways: dict[str, Callable[[Sequence[Chunk]], dict[str, float]]] = {
        "together": lambda chunks: measured(models, options, [chunks], options.slots),
        "one at a time": lambda chunks: measured(models, options, [[one] for one in chunks[:alone]], options.per_chunk),
    }
    ways["together"](runs[0][:_WARM])  # compiles
    ways["one at a time"](runs[0][:1])
    figures: dict[str, Any] = {"benchmark": "questions", **about, "dtype": options.dtype}
    figures["alone"] = alone
    names = ("target", "expert", "chunks", "words", "per_chunk", "rounds", "slots", "repeats")
    figures |= {name: getattr(options, name) for name in names}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for chunks in runs[1:]:
        for name, way in ways.items():
            taken[name].append(way(chunks))
            print(f"{name}: {taken[name][-1]['seconds']:.1f} s", flush=True)
    rows = [["way", "questions a minute", "replies", "generation", "likelihoods", "rest", "seconds"]]
    for name, found_of in taken.items():
        middle = {key: statistics.median(one[key] for one in found_of) for key in found_of[0]}
        figures[name] = middle
        shares = [f"{middle[key] / middle['seconds']:.0%}" for key in ("generation", "likelihoods", "rest")]
        rate = f"{middle['questions_a_minute']:.2f}"
        rows.append([name, rate, f"{middle['replies']:.0f}", *shares, f"{middle['seconds']:.1f}"])
    figures["ratio"] = statistics.median(
        one["questions_a_minute"] / other["questions_a_minute"]
        for one, other in zip(taken["together"], taken["one at a time"], strict=True)
    )
    print("\n".join("  ".join(cell.ljust(20) for cell in row) for row in rows))
    print(f"together / one at a time: {figures['ratio']:.2f}")
    ms.finish(figures, options.out)


def measured(
    models: dict[str, Model], options: argparse.Namespace, parts: Sequence[Sequence[Chunk]], slots: int
) -> dict[str, float]:
    """The loop over parts, one after the other."""
    clients = {path: Timed(ModelClient(model, slots=slots)) for path, model in models.items()}
    target: TimedLikelihood = TimedLikelihood(models[options.target], 1024)
    settings = Settings(
        rounds=options.rounds, again=0, quotes="found", answer_tokens=64, question_tokens=48, verdict_tokens=64
    )
    tried, begun = 0, time.perf_counter()
    for chunks in parts:
        expert = clients[options.expert]
        voices = Voices(
            generator=Voice("generator", expert, "text"),
            expert=Voice("expert", expert, "text"),
            target=Voice("target", clients[options.target], "text"),
            reviser=Voice("reviser", expert, "text"),
        )
        slots_, focuses = plan_slots(chunks, options.per_chunk, {}, options.seed)
        likelihood: Likelihood = target
        found = search(slots_, voices, settings, target=likelihood, focuses=focuses)
        tried += sum(len(trace.versions) for trace in found.traces)
    seconds = time.perf_counter() - begun
    generation = sum(client.seconds for client in clients.values())
    return {
        "seconds": seconds,
        "questions_a_minute": 60 * tried / seconds,
        "replies": float(sum(client.replies for client in clients.values())),
        "tokens": float(sum(client.tokens for client in clients.values())),
        "generation": generation,
        "likelihoods": target.seconds,
        "rest": seconds - generation - target.seconds,
    }


if __name__ == "__main__":
    ms.command_line(main)
