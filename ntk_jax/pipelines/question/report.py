"""Questions on the page: what was looked for and kept, each question's rounds side by side, who was asked at what
price, and what training on them brought beside the other methods.

All of it is read from these files; a stage that is not there yet has no section.

| file                  | what is read of it                                                                          |
|-----------------------|---------------------------------------------------------------------------------------------|
| plan.json             | of the facts `roles` {role: model} and `same`; of the config report.examples               |
| chunk/summary.json    | documents, used, trained, unseen (names), chunks, all_chunks, words, dropped, shortened     |
| chunk/chunks.jsonl    | the passages of the questions that are shown                                               |
| ask/summary.json      | generations [outcomes, rounds, gaps, voices, calibrations], methods, llm (accounts), seconds |
| ask/questions.jsonl   | the kept questions with their traces; ask/traces.jsonl: the others, each with `not_kept`    |
| ask/<method>.jsonl    | a record of each other method                                                              |
| train/summary.json    | tokens, parameters, arms                                                                   |
| evaluate/results.json | as the evaluation writes it; `general`: tasks of other subjects                             |
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from ntk_jax.pipelines.question.report_along import along, by_round, round_arms, tokens_along
from ntk_jax.pipelines.question.report_arms import (
    GENERAL,
    OTHER,
    RESULTS,
    TRAIN,
    TRAINED,
    UNSEEN,
    details,
    overview,
    tasks_at,
    titles,
    training,
)
from ntk_jax.pipelines.question.report_ask import (
    ASK,
    CHUNK,
    calibrations,
    coverage,
    documents,
    generations,
    judge,
    outcomes,
    rounds,
)
from ntk_jax.pipelines.question.report_calls import methods, roles
from ntk_jax.pipelines.question.report_questions import questions
from ntk_jax.pipelines.question.report_verdict import verdict, warnings
from ntk_jax.report.amounts import count
from ntk_jax.report.layout import Fact, Notice, Part
from ntk_jax.report.reading import RunDirectory, mapping
from ntk_jax.report.shown import Shown, safely, section_of

NAME = "question"
_OF = "questions"  # whose a part is, for people


@dataclass(frozen=True)
class _Shown:
    """A section. there: whether it has something to show; file: what it needs."""

    anchor: str
    name: str
    title: str
    file: str
    make: Callable[[RunDirectory], Shown]
    there: Callable[[RunDirectory], object] = lambda run: True


def _details(place: str, anchor: str, name: str, title: str) -> _Shown:
    make, there = functools.partial(details, place=place), functools.partial(tasks_at, place=place)
    return _Shown(anchor, name, title, RESULTS, make, there)


_SECTIONS = (
    _Shown("roles", "Roles", "Who played which role, and what was asked of each", "", roles),
    _Shown("chunk", "Documents", "Documents and chunks", CHUNK, documents),
    _Shown("outcomes", "Outcomes", "What became of the questions", ASK, outcomes),
    _Shown("rounds", "Rounds", "How the gap grew from round to round", ASK, rounds),
    _Shown("questions", "Questions", "The questions and how they came to be", ASK, questions),
    _Shown("coverage", "Coverage", "Which chunks have a question", ASK, coverage),
    _Shown("judge", "Judge", "Can the judges be trusted?", ASK, judge, calibrations),
    _Shown(
        "methods",
        "Other methods",
        "What the other methods wrote",
        ASK,
        methods,
        lambda run: run.json(ASK).get("methods"),
    ),
    _Shown("train", "Training", "What every arm was trained on", TRAIN, training),
    _Shown("evaluate", "Evaluation", "Did training on the questions help?", RESULTS, overview),
    _Shown("along", "Along the training", "Accuracy and loss along the training", RESULTS, along, tokens_along),
    _Shown("by-round", "By round", "Does rewriting pay?", RESULTS, by_round, round_arms),
    _details(UNSEEN, "unseen", "Unseen documents", "Documents that nobody was asked about"),
    _details(TRAINED, "trained", "Trained documents", "Documents that questions were asked about"),
    _details(OTHER, "other", "Other files", "Files that are not split by document"),
    _details(GENERAL, "forgetting", "Forgetting", "What was forgotten"),
)


def part(run: RunDirectory) -> Part:
    """What a run of questions puts on the page, finished or not."""
    plan = run.pipelines[NAME]
    sections = []
    for item in _SECTIONS:
        title = f"the section “{item.title}”"
        if (not item.file or run.json(item.file)) and safely(run, title, _OF, functools.partial(item.there, run), True):
            damaged = Shown(missing=(f"{item.file} is there, but cannot be shown.",))
            shown = safely(run, title, _OF, functools.partial(item.make, run), damaged)
            sections.append(section_of(f"{NAME}-{item.anchor}", item.name, item.title, shown))
    return Part(
        kicker=plan.title,
        title="What a model does not understand, and what learning it brought",
        facts=safely(run, "the head of the page", _OF, lambda: _facts(run), []),
        verdict=safely(run, "the verdict", _OF, lambda: verdict(run), []),
        warnings=safely(run, "the warnings", _OF, lambda: _notices(run), []),
        sections=sections,
    )


def _notices(run: RunDirectory) -> list[Notice]:
    return [Notice(f"{NAME}-{one.anchor}", one.title, one.text, one.cases) for one in warnings(run)]


def _facts(run: RunDirectory) -> list[Fact]:
    roles_of = mapping(run.pipelines[NAME].facts.get("roles"))
    facts = [Fact(name.capitalize(), str(roles_of[name])) for name in ("target", "expert") if name in roles_of]
    if found := run.json(CHUNK):
        unseen = found.get("unseen")
        kept = f"{count(len(unseen))} documents are kept unseen" if isinstance(unseen, list) and unseen else ""
        facts.append(Fact("Documents", f"{count(found.get('used'))}, {count(found.get('chunks'))} chunks", kept))
    if every := generations(run):
        signal = mapping(every[0].get("measure")).get("signal")
        note = f"gap: {signal}" if signal else ""
        facts.append(Fact("Questions", f"{count(run.json(ASK).get('questions'))} kept", note))
    if names := list(titles(run).values()):
        facts.append(Fact("Arms", count(len(names)), ", ".join(names)))
    return facts
