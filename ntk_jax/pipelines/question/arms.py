"""The arms that are trained and compared, and the records of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntk_jax.errors import UserError
from ntk_jax.pipelines.question.chunk import chunks_of
from ntk_jax.pipelines.question.state import QuestionRun
from ntk_jax.questions.methods.table import METHODS
from ntk_jax.questions.question import passage_of
from ntk_jax.questions.wording import target_messages
from ntk_jax.storage.atomic import read_json
from ntk_jax.storage.reading import read_json_lines

BASE, OWN = "base", "adversarial"
ROUND = "round-"  # of the arms by round


@dataclass(frozen=True)
class Arm:
    """name: of its folder. title: for people. path: of its records. round: questions as they stood after it; None: as
    they were kept."""

    name: str
    title: str
    path: Path
    round: int | None = None


def check_arms(names: Sequence[str]) -> None:
    """Raises UserError: an arm that there is not, or that is named twice."""
    known = (OWN, *METHODS)
    for name in names:
        if name not in known:
            raise UserError(f"train.arms: there is no arm {name}; choose from {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"train.arms = {list(names)}: give at least one arm, each once")


def arms_of(run: QuestionRun) -> list[Arm]:
    """The arms of a run, those first that the others are measured against; a method that brought nothing has none, nor
    has a round after which no question stood that could be kept."""
    config, folder = run.config, run.job.folder / "ask"
    found = []
    for name in config.train.arms:
        if name == OWN:
            found.append(own_arm(run))
            if config.train.by_round:
                found += [arm for arm in _by_round(run, folder / "questions.jsonl") if lines_of(arm)]
        else:
            summary = read_json(folder / f"{name}.summary.json", dict)
            if summary["records"]:
                found.append(Arm(name, METHODS[name].title, folder / f"{name}.jsonl"))
    if not found:
        raise UserError("train.arms: none of the methods wrote a record; see ask/summary.json")
    return found


def own_arm(run: QuestionRun) -> Arm:
    """That of the kept questions."""
    return Arm(OWN, "Adversarial questions", run.job.folder / "ask" / "questions.jsonl")


def records_of(run: QuestionRun, arm: Arm) -> list[dict[str, Any]]:
    """The records of an arm as they are trained on."""
    return as_trained(run, lines_of(arm))


def as_trained(run: QuestionRun, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Written records as they are trained on: bare, or behind their passages (train.with_passage)."""
    if not run.config.train.with_passage:
        return [_bare(line) for line in lines]
    chunks = {chunk.id: chunk for chunk in chunks_of(run)}
    return [_with_passage(line, chunks) for line in lines]


def lines_of(arm: Arm) -> list[dict[str, Any]]:
    """The records of an arm as they were written, with the whole account of how each came to be."""
    lines = read_json_lines(arm.path, f"delete the folder {arm.path.parent} and run again")
    return list(_at_round(lines, arm.round) if arm.round is not None else lines)


def _by_round(run: QuestionRun, path: Path) -> list[Arm]:
    """An arm for each round but the last, in which questions stand as they are kept; none for one after which no
    question stood."""
    lines = read_json_lines(path, f"delete the folder {path.parent} and run again")
    return [
        Arm(f"{ROUND}{number}", f"Questions as they stood after round {number}", path, number)
        for number in range(run.config.ask.rounds)
        if any(_at_round(lines, number))
    ]


def _at_round(lines: Sequence[dict[str, Any]], number: int) -> Iterator[dict[str, Any]]:
    """The kept questions as they stood after a round, where one stood that could be kept."""
    for line in lines:
        stood = [one for one in line["trace"]["rounds"] if one["accepted"] and one["round"] <= number]
        if stood:
            one = stood[-1]
            own = {"quotes": one["expert"]["quotes"], "gap": one["gap"], "round": one["round"]}
            yield {**line, "prompt": one["question"], "response": one["expert"]["text"], **own}


def _bare(line: dict[str, Any]) -> dict[str, Any]:
    return {key: line[key] for key in ("id", "source", "prompt", "response")}


def _with_passage(line: dict[str, Any], chunks: dict[str, Any]) -> dict[str, Any]:
    """A question behind its chunk, as it was asked; free text stays as it is."""
    named = line.get("chunks") or ([line["chunk"]] if "chunk" in line else [])
    if not line["prompt"] or not all(name in chunks for name in named):
        return _bare(line)
    talk = target_messages(line["prompt"], passage_of([chunks[name] for name in named]))
    answer = {"role": "assistant", "content": line["response"]}
    return {"id": line["id"], "source": line["source"], "messages": [*talk, answer]}
