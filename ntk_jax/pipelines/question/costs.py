"""What a run of questions will cost: calls of every role with their tokens and money, what models of this process write
and are measured on, the trainings and the evaluation.

What models of this process do is counted for the likely number of calls; calls and money are stated for the likely
number and for the most there can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from ntk_jax.engine.costs import Cost, Disk, Work
from ntk_jax.engine.rates import Rate
from ntk_jax.evaluation.tasks import METRICS
from ntk_jax.llm.estimate import Calls, Counts
from ntk_jax.models.cache import BLOCK
from ntk_jax.models.memory import Shape, backward_bytes, forward_bytes
from ntk_jax.pipelines.common.evaluated_reads import Questions, count_questions, here, say_count
from ntk_jax.pipelines.common.llm import estimate_llm
from ntk_jax.pipelines.question.arms import OWN
from ntk_jax.pipelines.question.calls import Line, measured, total
from ntk_jax.pipelines.question.config import evaluation_sources
from ntk_jax.pipelines.question.costs_load import Load, load
from ntk_jax.pipelines.question.evaluate import BATCH_TOKENS, expected_tasks
from ntk_jax.pipelines.question.state import is_base
from ntk_jax.questions.methods.table import METHODS
from ntk_jax.report.text import align
from ntk_jax.training.flops import forward_flops, training_flops

__all__ = ["ask", "chunk", "evaluate", "load", "notes", "train"]
AROUND = 20  # tokens that the chat template writes around a question and its answer
ASKED = 30  # and those of the words around a passage
ITEM = 150  # tokens of an evaluation item where they cannot be counted
SAMPLE = 500  # evaluation items that are tokenized
BYTES_A_TOKEN = 4.5  # of text
BYTES_A_WORD = 7.0  # of a chunk as JSON
STATEMENT = 60  # tokens of a statement with the question whether it is true


def chunk(load: Load) -> Cost:
    """Nothing for the device."""
    return Cost((), Disk(BYTES_A_WORD * load.words))


def ask(load: Load) -> Cost:
    """What models of this process write, the likelihoods of the gaps, and the target of every further generation."""
    works = [*_written(load), *_likelihoods(load), *_targets(load)]
    found = total(load.lines, "likely")
    # Replies with what was asked for, the prompts by themselves, the records, and the targets of further generations.
    replies = 2 * BYTES_A_TOKEN * (found.prompt_tokens + found.completion_tokens)
    targets = load.config.ask.generations - 1
    trained = _trained(load)
    return Cost(tuple(works), Disk(replies + targets * trained.saved, trained.checkpoints if targets else 0.0))


@dataclass(frozen=True)
class _Trained:
    """What a training changes. lora, count: parameters of its adapter, and all that are trained. saved: bytes that an
    arm keeps. own: bytes of the weights that a trained arm has beside those of the base."""

    lora: int
    count: int
    saved: float
    own: float

    @property
    def checkpoints(self) -> float:
        """Bytes of three: of each parameter itself and Adam's two moments, in float32."""
        return 3 * 3 * 4.0 * self.count


def _trained(load: Load) -> _Trained:
    model, size = load.model.base, load.model.adapter_size
    if load.config.train.parameters == "lora":
        return _Trained(size, size, 4.0 * size, 4.0 * size)
    count = sum(leaf.size for leaf in jax.tree.leaves(model.base))
    return _Trained(0, count, float(model.dtype.itemsize * count), float(model.dtype.itemsize * count))


def _resident(load: Load) -> float:
    """Bytes of the weights of all models of this process: each is loaded once, whatever roles it plays."""
    own = {owner: getattr(load.config, owner) for owner in load.players if owner is not None}
    others = {
        (section.model, section.dtype): load.players[owner].bytes
        for owner, section in own.items()
        if not is_base(load.config, section)
    }
    # A further generation asks a target that was trained: with weights of its own beside those that it began with.
    target = _trained(load).own if load.config.ask.generations > 1 else 0.0
    return _weights(load) + sum(others.values()) + target


def _weights(load: Load) -> float:
    leaves = [*jax.tree.leaves(load.model.base.base), *jax.tree.leaves(load.model.base.lora)]
    return float(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))


def _written(load: Load) -> Iterator[Work]:
    """Replies of models of this process: every token of prompts and replies once through the model, those of replies
    through the head; with the cache of keys and values of all slots."""
    for owner, player in load.players.items():
        own = [line for line in load.lines if line.owner == owner]
        found = total(own, "likely")
        longest = max(line.most.prompt_tokens + line.most.completion_tokens for line in own)
        flops = forward_flops(player.shape, found.prompt_tokens + found.completion_tokens, found.completion_tokens)
        places = -(-longest // BLOCK) * BLOCK
        shape = player.shape
        slots = -(-player.slots // load.devices)  # of a device
        cache = 2.0 * slots * places * shape.num_layers * shape.num_kv_heads * shape.head_dim * player.itemsize
        load.grounds.known(
            f"cache of the {player.name}",
            cache,
            f"{cache / 1e6:,.0f} MB",
            f"{slots} slots a device of {places:,} places, keys and values of {shape.num_layers} layers",
        )
        tokens = float(found.prompt_tokens + found.completion_tokens)
        yield Work(found.calls, tokens, flops, flops, memory=_resident(load) + cache, part=f"written by {player.name}")


def _likelihoods(load: Load) -> Iterator[Work]:
    """Of the expert's answers, with the passage in view and without (or under the expert); and of the statements of the
    method that asks what the target is sure of."""
    config, size = load.config, load.model.adapter_size
    asked, _ = measured(config, load.slots)
    claims = sum(line.likely.calls for line in load.lines if line.role == "method calibration") / 2.0
    if not asked and not claims:
        return
    seen = load.sizes.passage + ASKED
    sees = 1 + (config.ask.reference == "expert" and config.ask.target_sees_document)
    tokens = asked * (2 * (load.record + AROUND) + sees * seen) + 4 * claims * STATEMENT
    labels = asked * 2 * load.sizes.answer + 4 * claims
    shape = load.model.base.config
    flops = forward_flops(shape, round(tokens), round(labels), lora_parameters=size)
    memory = _resident(load) + _forward_memory(load, load.sizes.longest + ASKED + load.record + AROUND)
    yield Work(2 * asked + 4 * claims, tokens, flops, flops, memory=memory, part="likelihoods")


def _forward_memory(load: Load, longest: int, labels: float = 0.3) -> float:
    length = -(-min(longest, load.config.model.max_length) // 64) * 64
    rows = max(1, BATCH_TOKENS // (length * load.devices))
    model = load.model.base
    return forward_bytes(model.config, Shape(rows, length, round(labels * rows * length)), model.dtype.itemsize)


def _targets(load: Load) -> Iterator[Work]:
    """The target of a further generation is trained on all that was kept before it."""
    generations = load.config.ask.generations
    for number in range(1, generations):
        tokens = load.config.train.epochs * load.kept * number / generations * _record(load)
        yield _training(load, tokens, load.sizes.answer / _record(load), f"target {number + 1}", _resident(load))


def train(load: Load) -> Cost:
    """A training of every arm, all with the same number of tokens."""
    config, tokens, trained = load.config, _tokens(load), _trained(load)
    works = []
    for name in _arms(load):
        text = name in METHODS and METHODS[name].kind == "text"
        share = 1.0 if text else load.sizes.answer / _record(load)
        works.append(_training(load, tokens, share, name, _weights(load)))
    load.grounds.assume(
        "tokens of an arm",
        round(tokens),
        f"{tokens:,.0f}",
        "train.tokens" if config.train.tokens else "train.epochs of the questions that are likely to be kept",
    )
    return Cost(tuple(works), Disk(len(works) * config.train.evaluations * trained.saved, trained.checkpoints))


def _arms(load: Load) -> list[str]:
    config = load.config.train
    rounds = load.config.ask.rounds if config.by_round and OWN in config.arms else 0
    return [*config.arms, *(f"round-{number}" for number in range(rounds))]


def _record(load: Load) -> float:
    """Tokens of a record as it is trained on."""
    seen = load.sizes.passage + ASKED if load.config.train.with_passage else 0
    return float(load.record + AROUND + seen)


def _tokens(load: Load) -> float:
    """That an arm is trained on."""
    section = load.config.train
    if section.tokens:
        return float(section.tokens)
    if section.max_steps is not None:
        return section.max_steps * section.batch_size * _record(load)
    return section.epochs * load.kept * _record(load)


def _training(load: Load, tokens: float, share: float, part: str, resident: float) -> Work:
    """A training. share: of the tokens that the loss is taken of."""
    model, trained, parameters = load.model.base, _trained(load), load.config.train.parameters
    remat = model.config.hidden_size >= 1024
    flops = training_flops(
        model.config,
        round(tokens),
        round(share * tokens),
        remat,
        parameters=parameters,
        lora_parameters=trained.lora,
    )
    length = -(-round(_record(load) + load.sizes.longest) // 64) * 64
    rows = max(1, load.config.train.tokens_per_microbatch // (length * load.devices))
    shape = Shape(rows, length, round(share * rows * length))
    memory = resident + 8 * 4.0 * trained.count + backward_bytes(model.config, shape, model.dtype.itemsize, remat)
    return Work(tokens / _record(load), tokens, flops, flops, "backward", memory, part)


def evaluate(load: Load) -> Cost:
    """A pass of every arm, and of every arm on its way, over all items."""
    config = load.config
    sources = evaluation_sources(config)
    if not sources or not here(sources):
        load.grounds.assume("evaluation", 0, "not counted", f"{', '.join(sources) or 'no file'} is not here")
        return Cost()
    arms = _arms(load) if config.evaluate.arms is None else [name for name in config.evaluate.arms if name != "base"]
    base = 1 if config.evaluate.arms is None or "base" in config.evaluate.arms else 0
    passes = base + len(arms) * config.train.evaluations
    works, lines = [], 0.0
    for metric in METRICS:
        found = _questions(load, metric)
        if found is not None:
            tokens, labels = passes * found.count * found.tokens, passes * found.count * found.labels
            trained = _trained(load)
            flops = forward_flops(load.model.base.config, round(tokens), round(labels), lora_parameters=trained.lora)
            memory = (
                _weights(load)
                + trained.own
                + _forward_memory(load, found.longest, found.labels / max(found.tokens, 1.0))
            )
            works.append(Work(passes * found.count, tokens, flops, flops, memory=memory, part=metric))
            lines += passes * found.count * (120 + found.bytes)
    return Cost(tuple(works), Disk(lines))


def _questions(load: Load, metric: str) -> Questions | None:
    tasks = [task for task in expected_tasks(load.config) if metric in task.metrics]
    if not tasks:
        return None
    count, tokenizer = say_count(tasks, metric, load.grounds), load.model.base.tokenizer
    if tokenizer is not None:
        return count_questions(load.config, tasks, metric, tokenizer, SAMPLE, load.grounds)
    load.grounds.assume("tokens of an evaluation item", ITEM, f"{ITEM}", "this command's own rule")
    return Questions(len(tasks), count, ITEM, ITEM / 10, 0.0, 2 * ITEM)


def notes(load: Load, rate: Rate | None) -> tuple[dict[str, Any], list[str]]:
    """The calls of every role, their tokens and their price: what is likely, and the most."""
    values = [_value(load, line) for line in load.lines]
    rows = [["calls", "asked of", "likely", "at most", "tokens in", "out", "money", "at most"]]
    for line, value in zip(load.lines, values, strict=True):
        likely, most = value["likely"], value["most"]
        asked = value["model"]
        rows.append(
            [
                f"{line.role.replace('_', ' ')}: {line.what}",
                asked if len(asked) <= 28 else f"…{asked[-27:]}",
                *(f"{one['calls']:,}" for one in (likely, most)),
                *(f"{likely[key]:,}" for key in ("prompt_tokens", "completion_tokens")),
                *(f"{one['money']:.4g}" if one["money"] else "" for one in (likely, most)),
            ]
        )
    lines = [
        "Calls of all roles. Tokens are of the likely calls. At most: every question is tried in all rounds and passes "
        "until the last check, every reply that can be asked for again is, and all are as long as they may be.",
        *align(rows, rules_before={1}),
        *_sums(load, values),
    ]
    return {"calls": values, "kept": round(load.kept), "method_tokens": round(load.tokens)}, lines


def _value(load: Load, line: Line) -> dict[str, Any]:
    model = load.config.model.path if line.owner is None else getattr(load.config, line.owner).model
    found = {"role": line.role, "what": line.what, "section": line.owner or "model", "model": model}
    for name, counts in (("likely", line.likely), ("most", line.most)):
        calls = _estimated(load, line.owner, counts)
        found[name] = {
            "calls": calls.calls,
            "prompt_tokens": calls.prompt_tokens,
            "completion_tokens": calls.completion_tokens,
            "money": calls.money,
            "seconds": calls.seconds,
        }
    return found


def _estimated(load: Load, owner: str | None, counts: Counts) -> Calls:
    section = getattr(load.config, owner or "target")
    return estimate_llm(section, counts, load.config.estimate.reply_tokens_per_second)


def _sums(load: Load, values: list[dict[str, Any]]) -> Iterator[str]:
    """Of each section: money against its cap, and time."""
    for owner in dict.fromkeys(line.owner for line in load.lines):
        own = [value for line, value in zip(load.lines, values, strict=True) if line.owner == owner]
        likely, most = (sum(value[which]["calls"] for value in own) for which in ("likely", "most"))
        text = f"{owner or 'target, in this process'}: {likely:,} calls are likely, {most:,} the most"
        section = None if owner is None else getattr(load.config, owner)
        if section is not None and section.kind == "server" and section.price_in is not None:
            spent, worst = (sum(value[which]["money"] for value in own) for which in ("likely", "most"))
            text += (
                f"; {spent:.4g} at {section.price_in:g} and {section.price_out:g} a million tokens, {worst:.4g} at most"
            )
            if section.cap is not None:
                enough = worst <= section.cap
                short = "less than what is likely" if section.cap < spent else "less than the most"
                text += f"; {owner}.cap = {section.cap:g} is {'enough' if enough else f'{short}, so it may stop'}"
        seconds = [value["likely"]["seconds"] for value in own]
        if all(one is not None for one in seconds):
            text += f"; about {sum(seconds) / 60:,.0f} min, one kind of call after the other"
        yield f"{text}."
