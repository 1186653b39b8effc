"""What a reader of the page of questions should know first: the findings, and what speaks against believing them."""

from __future__ import annotations

from collections.abc import Iterator

from ntk_jax.pipelines.question.report_arms import (
    BASE,
    GENERAL,
    OTHER,
    OWN,
    TRAINED,
    UNSEEN,
    measures,
    pairs_of,
    results,
    tasks_at,
    titles,
    value_text,
)
from ntk_jax.pipelines.question.report_ask import (
    ASK,
    calibrations,
    gains_of,
    generations,
    judge_of,
    named,
    unit_of,
    wrong_of,
)
from ntk_jax.pipelines.question.report_calls import SAME
from ntk_jax.report.amounts import count, finite, general, percent
from ntk_jax.report.layout import Notice
from ntk_jax.report.reading import RunDirectory, mapping, records
from ntk_jax.report.shown import percent_of

LENIENT = 0.2  # share of planted wrong answers that a judge takes for right, from which on its gap says little
SHORT = 0.1  # share of its tokens that a method may lack before that is said
FEW = 10  # documents of a task below which it is said that intervals over them are rough
MANY = 10  # verdicts, all of them yes, from which on that is said
_REFUSED = "the judge finds that the passage does not give this answer"


def verdict(run: RunDirectory) -> list[str]:
    """What was found, a sentence for each stage that is done; the first is the finding."""
    return [*_kept(run), *_learned(run), *_forgotten(run)]


def _kept(run: RunDirectory) -> Iterator[str]:
    for found in generations(run):
        before, after = gains_of(found)
        text = (
            f"{percent_of(found.get('kept'), found.get('slots'))} of {count(found.get('slots'))} questions that were "
            f"looked for are kept{named(run, found)}, on {count(found.get('chunks_with_questions'))} of "
            f"{count(found.get('chunks'))} chunks"
        )
        if before is not None and after is not None:
            share = percent_of(found.get("revised"), found.get("kept"))
            text += f"; {share} of them were rewritten, and their mean gap went from {general(before)} to "
            text += f"{general(after)} ({unit_of(found)})"
        yield f"{text}."


def _learned(run: RunDirectory) -> Iterator[str]:
    """For every task and measure the questions' own arm against all others."""
    found, named_arms = results(run), titles(run)
    if OWN not in named_arms:
        return
    for place in (UNSEEN, TRAINED, OTHER):
        for task in tasks_at(run, place):
            for measure, (by_arm, key, higher) in measures(found, task).items():
                pairs = pairs_of(found, OWN, task).get(measure, {})
                says: dict[str, list[str]] = {"better": [], "worse": [], "cannot tell": []}
                for arm, pair in pairs.items():
                    if arm in named_arms:
                        says[pair.says].append(f"“{named_arms[arm]}” ({pair.text})")
                value = value_text(mapping(by_arm.get(OWN)).get(key), higher)
                parts = [f"{way} against {', '.join(arms)}" for way, arms in says.items() if arms]
                if parts:
                    yield f"{measure.capitalize()} of {task}: “{named_arms[OWN]}” has {value}: {'; '.join(parts)}."


def _forgotten(run: RunDirectory) -> Iterator[str]:
    found, named_arms = results(run), titles(run)
    for task in tasks_at(run, GENERAL):
        for measure, by_arm in pairs_of(found, BASE, task).items():
            lost = [named_arms[arm] for arm, pair in by_arm.items() if arm in named_arms and pair.says == "better"]
            own = by_arm.get(OWN)
            if not lost and own is None:
                continue
            who = (
                f"forgetting shows in {', '.join(f'“{title}”' for title in lost)}"
                if lost
                else "no arm shows forgetting"
            )
            about = f"; the base minus “{named_arms[OWN]}”: {own.text}" if own is not None and OWN in named_arms else ""
            yield f"{measure.capitalize()} of {task}, another subject: {who}{about}."


def warnings(run: RunDirectory) -> list[Notice]:
    """What a reader must know before believing a number. anchor: the section's short name."""
    found = [Notice("roles", "Target and expert are one model", SAME)] if _same(run) else []
    return [*found, *_of_counts(run), *_of_items(run), *_of_judge(run), *_of_methods(run), *_of_documents(run)]


def _same(run: RunDirectory) -> bool:
    return run.pipelines["question"].facts.get("same") is True


def _of_counts(run: RunDirectory) -> Iterator[Notice]:
    for found in generations(run):
        if finite(found.get("shortfall")):
            text = f"{count(found['shortfall'])} are missing{named(run, found)}; the reasons are counted there."
            yield Notice("outcomes", "Fewer questions than were asked for", text)


def _of_items(run: RunDirectory) -> Iterator[Notice]:
    holding = finite(run.json(ASK).get("chunks_with_items"))
    if holding:
        text = (
            f"{count(holding)} chunks share a run of words with an evaluation item. Questions that do are left out, "
            "texts are not, so that an arm of texts may know these items by heart."
        )
        yield Notice("chunk", "The documents hold evaluation items", text)


def _of_documents(run: RunDirectory) -> Iterator[Notice]:
    """Intervals over few documents: a percentile bootstrap of so few is too narrow."""
    found = results(run)
    parts = (found, mapping(found.get("loss")), mapping(found.get("generated")))
    few = {
        str(task.get("name")): number
        for part in parts
        for task in records(part.get("tasks"))
        if (number := finite(task.get("documents"))) is not None and number < FEW
    }
    if few:
        text = "Intervals are over documents, and those over so few are too narrow: read them as rough."
        cases = tuple(f"{name}: {count(number)} documents" for name, number in few.items())
        yield Notice("evaluate", "Few documents", text, cases)


def _of_judge(run: RunDirectory) -> Iterator[Notice]:
    for found, about in calibrations(run):
        accepts, who = finite(about.get("false_accept")), judge_of(about)
        if about.get("void"):
            text = f"{about.get('judge')}{named(run, found)} does no better than chance on pairs that are known."
            yield Notice("judge", f"The {who} says nothing", text)
        elif accepts is not None and accepts >= LENIENT:
            text = f"Of what is planted it takes {percent(accepts)} of {wrong_of(about)}."
            yield Notice("judge", f"The {who} is lenient", text)
    asked, refused = _verdicts(run)
    if asked >= MANY and not refused:
        text = f"It found all {count(asked)} answers that were put before it right, so its word removes nothing."
        yield Notice("outcomes", "The judge always agrees", text)


def _verdicts(run: RunDirectory) -> tuple[int, int]:
    """(versions of questions that were judged, those of them that the judge refused)."""
    asked = refused = 0
    traces = [*(one.get("trace") for one in run.json_lines("ask/questions.jsonl")), *run.json_lines("ask/traces.jsonl")]
    for trace in traces:
        for version in records(mapping(trace).get("rounds")):
            asked += "verdict" in mapping(version.get("prompts"))
            refused += version.get("fault") == _REFUSED
    return asked, refused


def _of_methods(run: RunDirectory) -> Iterator[Notice]:
    cases = []
    for name, value in mapping(run.json(ASK).get("methods")).items():
        one = mapping(value)
        missing, asked = finite(one.get("missing_tokens")), finite(one.get("asked_tokens"))
        title = str(one.get("title") or name)
        if one.get("failed"):
            cases.append(f"{title} brought nothing: {one['failed']}.")
        elif missing and asked and missing > SHORT * asked:
            cases.append(
                f"{title}: {percent_of(missing, asked)} of {count(asked)} tokens are missing, and it is repeated."
            )
    if cases:
        text = "An arm of fewer tokens reads the same text more often; one that brought nothing is not trained."
        yield Notice("methods", "Methods that stayed short", text, tuple(cases))
