"""How many calls a run of questions makes, role by role, by formula from its settings: what is likely, and the most."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.llm.estimate import Counts
from ntk_jax.llm.wire import likely_tokens
from ntk_jax.pipelines.question.config import QuestionConfig, judges, player
from ntk_jax.pipelines.question.methods import wanted
from ntk_jax.questions.judge import divergence_wish
from ntk_jax.questions.methods import entities, facts, paraphrase, static, strategies
from ntk_jax.questions.methods.asked import FIRST, Asked
from ntk_jax.questions.planted import KINDS as PLANTED
from ntk_jax.questions.question import Chunk, Slot, passage_of
from ntk_jax.questions.voice import PROBE, Wish
from ntk_jax.questions.wording import (
    answer_wish,
    feedback_wish,
    question_wish,
    revision_wish,
    support_wish,
    target_wish,
)

QUESTION, VERDICT = 35, 60  # tokens of a question, and of a verdict or of feedback, as they mostly are
CORRECTION = 60  # tokens of the words that ask for a reply once more
EARLIER = 6  # questions on the same passage that a prompt shows, mostly
MOST_EARLIER = 12  # and at most
INSTRUCTION, SHORT = 150, 60  # tokens of a method's instruction, and of a short reply to it
LONG = 250  # tokens of a text about entities
FACT = 30  # tokens of a fact
WORSE = 4  # times the likely calls that a method makes at most: half of the replies bring nothing, all are asked twice
# (waves of a method that follow on each other, what it can ask of a chunk at most)
STEPS = {
    **{"static": (2, 2 * static.MOST), "paraphrase": (1, len(paraphrase.STYLES))},
    **{"strategies": (1, strategies.WANTED), "entities": (1, None), "facts": (3, None), "calibration": (1, None)},
}


@dataclass(frozen=True)
class Sizes:
    """Tokens of a passage, a question and an expert's answer, as they mostly are and at most."""

    passage: int
    longest: int
    question: int
    answer: int


@dataclass(frozen=True)
class Line:
    """The calls of one kind. role: whose they are; owner: the section that says who plays it, None for the target in
    this process. likely, most: how many there are, with the tokens of each."""

    role: str
    what: str
    owner: str | None
    likely: Counts
    most: Counts


def calls_of(
    config: QuestionConfig, slots: int, sizes: Sizes, tokens: int, documents: float = 1.0, words: float = 0.0
) -> list[Line]:
    """All calls. slots: questions that are looked for in a generation. tokens: of training that each other method
    writes. documents, words: that are asked about."""
    lines = []
    for name, (role, likely, most) in _loop(config, slots).items():
        if most:
            lines.append(_line(config, role, name, likely, most, sizes))
    chunks = max(1, slots // config.ask.per_chunk)
    lines += _readings(config, sizes, chunks, documents, words)
    lines += [found for name in wanted(config) if (found := _method(config, name, sizes, tokens, chunks)) is not None]
    return lines


def measured(config: QuestionConfig, slots: int) -> tuple[float, float]:
    """(likely, most) questions of all rounds and generations whose likelihoods are taken; none where no signal takes
    them."""
    if config.ask.signal not in ("nll", "both"):
        return 0.0, 0.0
    found = _loop(config, slots)
    return found["target"][1], found["target"][2]


def _loop(config: QuestionConfig, slots: int) -> dict[str, tuple[str, float, float]]:
    """{kind of call: (role, likely, most)}.

    At most every slot is tried in every round and passes all that is looked at before the next call. It is likely that
    a question is tried until `patience` rounds bring nothing, that a share of them (estimate.kept_questions) has an
    answer that stands, and that half of the rewritten ones widen the gap. ask.calls bounds both.
    """
    s, kept = config.ask, config.estimate.kept_questions
    rounds = min(s.rounds, s.patience)
    tries, most = slots * (1.0 + rounds), slots * (1.0 + s.rounds)
    answered, better = kept * tries, kept * slots * (1 + 0.5 * rounds)
    judged, divergent = judges(config), s.signal in ("judge", "both")
    one_writer = player(config, "reviser") == player(config, "generator")
    found = {
        # Where nothing stands the generator is asked anew in place of the reviser.
        "question": ("generator", slots * 1.0, float(slots) if one_writer else most),
        "revision": ("reviser", slots * float(rounds), slots * float(s.rounds)),
        "feedback": (
            "judge" if judged else "expert",
            *((kept * slots * rounds, most - slots) if s.feedback else (0, 0)),
        ),
        "expert": ("expert", tries, most),
        "target": ("target", answered, most),
        "divergence": ("judge", *((answered, most) if divergent else (0, 0))),
        "expert draws": (
            "expert",
            *((s.target_samples * n for n in (answered, most)) if s.signal == "band" else (0, 0)),
        ),
        "target draws": (
            "target",
            *((s.target_samples * n for n in (answered, most)) if s.signal == "band" else (0, 0)),
        ),
        "verdict": ("judge", *((better, most) if judged else (0, 0))),
        "expert again": ("expert", s.samples * better, s.samples * most),
    }
    bound = [1.0, 1.0]
    if s.calls is not None:
        bound = [min(1.0, s.calls / max(1.0, sum(float(one[n]) for one in found.values()))) for n in (1, 2)]
    times = s.generations
    counted = {
        name: (role, times * bound[0] * likely, times * bound[1] * highest)
        for name, (role, likely, highest) in found.items()
    }
    if config.second_judge.model:
        counted["second verdict"] = ("second_judge", times * kept * slots, times * most)
    items = [times * min(float(s.calibration), number) for number in (kept * slots, slots)]
    pairs, silent = len(PLANTED), 2 if s.unanswerable else 0
    if divergent:
        counted["planted pairs"] = ("judge", pairs * items[0], pairs * items[1])
    if s.judged:
        counted["planted answers"] = ("judge", (pairs + silent) * items[0], (pairs + silent) * items[1])
    if config.second_judge.model:
        counted["planted answers, second"] = ("second_judge", (pairs + silent) * items[0], (pairs + silent) * items[1])
    return counted


def _line(config: QuestionConfig, role: str, name: str, likely: float, most: float, sizes: Sizes) -> Line:
    """Tokens of prompts are those of what is truly asked, about passages and with answers of these sizes."""
    s = config.ask
    cross = 1 + s.cross  # a question of two documents has two passages
    usual = _Texts(round(cross * sizes.passage), sizes.question, sizes.answer, VERDICT, EARLIER)
    largest = _Texts(round(cross * sizes.longest), s.question_tokens, s.answer_tokens, s.verdict_tokens, MOST_EARLIER)
    lengths = {
        "question": (QUESTION, s.question_tokens),
        "revision": (QUESTION, s.question_tokens),
        **dict.fromkeys(("target", "target draws"), (sizes.answer, s.answer_tokens)),
        # An answer with the words that show it, and the JSON about both.
        **dict.fromkeys(("expert", "expert draws", "expert again"), (2 * sizes.answer + 20, s.answer_tokens)),
    }
    short, long = lengths.get(name, (VERDICT, s.verdict_tokens))
    prompts = [likely_tokens(_request(config, name, texts)) for texts in (usual, largest)]
    counts = Counts(_whole(likely), prompts[0], min(short, long))
    judged = name in ("verdict", "second verdict", "divergence", *_PLANTED)
    # Of plain text verdicts alone are asked for again.
    repaired = judged or (s.format != "text" and name not in ("target", "target draws", "feedback"))
    calls, prompt = most, prompts[1]
    if repaired:  # asked once more, with the reply and what is wrong with it
        calls, prompt = 2 * most, prompt + (long + CORRECTION) // 2
    if repaired and s.format == "auto":
        calls += min(PROBE, most)
    return Line(role, _SHOWN.get(name, name), player(config, role), counts, Counts(_whole(calls), prompt, long))


_SHOWN = {
    **dict.fromkeys(("expert", "target"), "answer"),
    **dict.fromkeys(("expert draws", "target draws"), "draws"),
    "expert again": "answer again",
    "planted answers, second": "planted answers",
}
_PLANTED = ("planted pairs", "planted answers", "planted answers, second")


@dataclass(frozen=True)
class _Texts:
    """Tokens of what stands in prompts, and how many earlier questions are shown."""

    passage: int
    question: int
    answer: int
    feedback: int
    earlier: int


def _request(config: QuestionConfig, name: str, texts: _Texts) -> Any:
    """What is asked, with texts of four bytes a token."""
    s = config.ask
    slot = Slot("", "answerable", (Chunk("", "", "", "", _words(texts.passage)),))
    question, answer = _words(texts.question), _words(texts.answer)
    earlier = [question] * texts.earlier
    how: dict[str, Any] = {"seed": 0, "sample": 0, "temperature": s.temperature, "top_p": s.top_p}
    shown = passage_of(slot.chunks) if s.target_sees_document else None
    wishes: dict[str, Wish] = {
        "question": question_wish(slot, earlier, question, max_tokens=1, **how),
        "revision": revision_wish(slot, question, _words(texts.feedback), earlier, max_tokens=1, **how),
        "feedback": feedback_wish(slot, question, answer, answer, seed=0, max_tokens=1),
        **dict.fromkeys(("target", "target draws"), target_wish(question, shown)),
        **dict.fromkeys(
            ("divergence", "planted pairs"), divergence_wish(question, slot.passage, answer, answer, seed=0)
        ),
        **dict.fromkeys(
            ("verdict", "second verdict", *_PLANTED[1:]), support_wish(slot, question, answer, max_tokens=1)
        ),
    }
    wish = wishes.get(name) or answer_wish(slot, question)
    return (wish.text if s.format == "text" or wish.json is None else wish.json)[0]


def _words(tokens: int) -> str:
    return "word" * tokens


def _readings(config: QuestionConfig, sizes: Sizes, chunks: int, documents: float, words: float) -> Iterator[Line]:
    """What is asked of all documents before a method writes, however few tokens that is: entities of every part, which
    two methods share, and strategies of every document."""
    parts, most = max(documents, words / Asked.part_words), config.ask.method_tokens
    own, whole = wanted(config), chunks * sizes.passage
    for name, what, calls, highest in (
        # Two parts that follow on each other have more words together than one may have.
        (next((name for name in own if name in (entities.NAME, facts.NAME)), None), "entities", parts, 2 * parts),
        (strategies.NAME if strategies.NAME in own else None, "strategies", documents, documents),
    ):
        if name is not None:
            prompt = round(whole / max(parts, 1.0)) + INSTRUCTION
            largest = 2 * prompt + (most + CORRECTION) // 2
            likely = Counts(_whole(calls), prompt, min(most, LONG))
            most_calls = 2 * _whole(highest) + PROBE
            owner = player(config, "expert")
            yield Line(f"method {name}", what, owner, likely, Counts(most_calls, largest, most))


def waved(calls: float, wave: int) -> float:
    """The calls that are made where so many bring what is wanted: whole waves."""
    total, size = 0, min(FIRST, wave)
    while total < calls:
        total, size = total + size, min(2 * size, wave)
    return float(total)


def _method(config: QuestionConfig, name: str, sizes: Sizes, tokens: int, chunks: int) -> Line | None:
    """The calls of a method that writes so many tokens; None: it asks nobody. Its likely calls are the tokens by those
    that a call brings, in whole waves, and no more than it has to ask."""
    most = config.ask.method_tokens
    pair = sizes.question + sizes.answer
    # (tokens that a call brings, passages in its prompt, tokens of its reply); a question and its answer are two calls.
    about = {
        "static": (config.estimate.kept_questions * pair / 2, 1.0, pair / 2),
        "paraphrase": (min(most, sizes.passage), 1.0, min(most, sizes.passage)),
        "strategies": (min(most, sizes.passage), 1.0, min(most, sizes.passage)),
        "entities": (min(most, LONG), 2.0, min(most, LONG)),
        # A fact is found, made clear and asked about: about two calls for four questions with their answers.
        "facts": (2.0 * (sizes.question + FACT), 1.5, min(most, 2 * (sizes.question + FACT))),
        # Twice the tokens are gathered as facts, each is varied, and about one in four is asked about.
        "calibration": (pair / (1 + 2 * pair / FACT), 1.0, SHORT),
    }.get(name)
    if about is None or tokens <= 0:
        return None
    brought, passages, reply = about
    prompt = round(passages * sizes.passage) + INSTRUCTION
    steps, of_chunk = STEPS[name]
    # The waves of static questions begin anew with every further question of the chunks.
    wave = min(Asked.wave, chunks) if name == static.NAME else Asked.wave
    calls = _whole(steps * waved(tokens / max(brought, 1.0) / steps, wave))
    calls = calls if of_chunk is None else min(calls, of_chunk * chunks)
    largest = round(passages * sizes.longest) + INSTRUCTION + (most + CORRECTION) // 2
    owner = player(config, "expert")
    role = f"method {name}"
    return Line(role, "records", owner, Counts(calls, prompt, round(reply)), Counts(WORSE * calls, largest, most))


def _whole(calls: float) -> int:
    return math.ceil(calls - 1e-9)


def total(lines: Sequence[Line], which: str) -> Counts:
    """The calls of all lines together, with the tokens of all. which: likely or most."""
    found = [getattr(line, which) for line in lines]
    return Counts(
        sum(one.calls for one in found),
        sum(one.calls * one.prompt_tokens for one in found),
        sum(one.calls * one.completion_tokens for one in found),
    )
