"""Few-shot evaluation: solved examples before every question.

The shots of a task are the same for all its questions, drawn by the seed from a file of their own; a record that asks
what one of the task's questions asks is never a shot. With a chat template they are earlier turns of the talk; without
one they stand before the prompt, an empty line between two. A question that is too long with all of them gets fewer
(the last ones go first): it is never cut for a shot's sake.
"""

from __future__ import annotations

import fnmatch
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.formats import AUTO, Reading
from ntk_jax.data.records import Record, response_text
from ntk_jax.data.sources import read, read_records
from ntk_jax.data.templates import Rendering, plain_prompt, plain_texts, uses_chat
from ntk_jax.data.tokens import ChoiceRow, encode_choices, encode_many
from ntk_jax.errors import UserError

BETWEEN = "\n\n"  # two examples without a chat template
_STREAM = 0x5407
_TEST = re.compile(r"(?<![a-z])test(?![a-z])")


@dataclass(frozen=True)
class Shots:
    """records: solved examples, first to last. file: where they come from."""

    records: tuple[Record, ...] = ()
    file: str = ""


def check_shots(tasks: Sequence[str], files: Mapping[str, Any] | None) -> None:
    """Raises UserError: files that are no mapping, or a name or pattern that fits no task."""
    if files is not None and not isinstance(files, Mapping):
        raise UserError(f"shot_files must be a mapping such as {{task: file}}, got {type(files).__name__}")
    for pattern in files or {}:
        if not any(fnmatch.fnmatchcase(task, str(pattern)) for task in tasks):
            raise UserError(f"shot_files: {pattern} fits no task; the tasks are {', '.join(tasks)}")


def shots_of(
    task: str,
    where: str,
    questions: Sequence[Mapping[str, Any]],
    count: int,
    files: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    reading: Reading = AUTO,
) -> Shots:
    """`count` solved examples for a task; none for 0.

    where: the task's file. questions: all of its records. files: {task or pattern: file, or records}; the first that
    fits counts, and without one the file beside `where` with `train` in place of `test` in its name.
    Raises UserError: there is no such file, it is the task's own, or it has too few examples that are no questions.
    """
    if count == 0:
        return Shots()
    source = shot_source(task, where, files)
    if isinstance(source, str) and source == where:
        raise UserError(f"shot_files: {source} is the file of the task {task} itself; give examples that are not asked")
    name = source if isinstance(source, str) else "the records given"
    try:
        found = list(read(source, reading) if isinstance(source, str) else read_records(list(source)))
    except UserError as error:
        raise UserError(f"shots of {task}: {error} (shot_files names another)") from None
    taken, chosen = {_asked(record) for record in questions}, []
    draw = np.random.default_rng([seed, _STREAM, zlib.crc32(task.encode())])
    for place in draw.permutation(len(found)):
        key = _asked(found[place])
        if key and key not in taken and response_text(found[place]).strip():
            taken.add(key)
            chosen.append(found[place])
            if len(chosen) == count:
                return Shots(tuple(chosen), name)
    raise UserError(
        f"shots = {count}, but {name} has {len(chosen)} examples that {task} does not ask; lower shots or give another "
        "file as shot_files"
    )


def shot_source(task: str, where: str, files: Mapping[str, Any] | None) -> Any:
    """The file, or the records, that a task's shots are drawn from. Raises UserError: none is known."""
    given = next((item for name, item in (files or {}).items() if fnmatch.fnmatchcase(task, str(name))), None)
    if given is not None:
        return str(given) if isinstance(given, Path) else given
    found = _train_name(where)
    if found is None:
        raise UserError(
            f"shots of {task}: there is no file with train in place of test beside {where}, whose name has no test; "
            "name one as shot_files"
        )
    return found


def _train_name(where: str) -> str | None:
    """exams/medqa.test.jsonl → exams/medqa.train.jsonl; tfds:name/test → tfds:name/train."""
    folder, slash, name = where.rpartition("/")
    return folder + slash + _TEST.sub("train", name) if _TEST.search(name) else None


def _asked(record: Mapping[str, Any]) -> str:
    """What a record asks, so that the same question written otherwise is known again."""
    system, turns = _parts(record)
    return " ".join(" ".join(turn["content"] for turn in turns[:-1]).casefold().split())


def _parts(record: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """(the system's messages, the other turns with the answer last)."""
    if "messages" not in record:
        return [], [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["response"]},
        ]
    talk = list(record["messages"])
    if talk[-1]["role"] != "assistant":
        talk.append({"role": "assistant", "content": response_text(record)})
    return [turn for turn in talk if turn["role"] == "system"], [turn for turn in talk if turn["role"] != "system"]


def answered(record: Record, answer: str) -> Record:
    """A shot with another answer, such as the right choice's own words."""
    system, turns = _parts(record)
    return {"id": record["id"], "messages": [*system, *turns[:-1], {"role": "assistant", "content": answer}]}


def with_shots(record: Record, shots: Sequence[Mapping[str, Any]], *, chat: bool) -> Record:
    """A question behind solved examples: a talk with them as earlier turns, or one prompt. System messages of the shots
    are left out; the question's own stands first."""
    system, turns = _parts(record)
    kept = {key: value for key, value in record.items() if key not in ("prompt", "response", "messages")}
    before = [_parts(shot)[1] for shot in shots]
    if chat:
        return {**kept, "messages": [*system, *(turn for talk in before for turn in talk), *turns]}
    examples = ["".join(plain_texts({"messages": talk})) for talk in before]
    asked = [*(turn["content"] for turn in system), *examples, plain_prompt(turns[:-1])]
    return {**kept, "prompt": BETWEEN.join(asked), "response": turns[-1]["content"]}


def fitted(
    records: Sequence[Record],
    shots: Sequence[Record],
    fits: Callable[[list[Record]], list[bool]],
    *,
    chat: bool,
) -> tuple[list[Record], list[int]]:
    """(the records behind as many shots as fit, how many those are). fits(records): which are short enough. A record
    with an empty prompt asks nothing and gets none."""
    found, counts = list(records), [0] * len(records)
    waiting = [place for place, record in enumerate(records) if _asked(record)]
    for count in range(len(shots), 0, -1):
        tried = [with_shots(records[place], shots[:count], chat=chat) for place in waiting]
        good = fits(tried) if tried else []
        for place, record, fine in zip(waiting, tried, good, strict=True):
            if fine:
                found[place], counts[place] = record, count
        waiting = [place for place, fine in zip(waiting, good, strict=True) if not fine]
    return found, counts


def before_choices(
    records: Sequence[Record], shots: Sequence[Record], tokenizer: Any, *, max_length: int | None, rendering: Rendering
) -> tuple[list[Record], list[int]]:
    """`fitted` for questions whose choices are scored; the shots' answers are the words of their right choices."""
    solved = [answered(s, s["choices"][s["answer"]]) if s.get("choices") else s for s in shots]

    def fits(tried: list[Record]) -> list[bool]:
        rows = (encode_choices(record, tokenizer, max_length=max_length, rendering=rendering) for record in tried)
        return [isinstance(row, ChoiceRow) for row in rows]

    return fitted(records, solved, fits, chat=uses_chat(tokenizer, rendering))


def before_responses(
    records: Sequence[Record], shots: Sequence[Record], tokenizer: Any, *, max_length: int | None, rendering: Rendering
) -> tuple[list[Record], list[int]]:
    """`fitted` for examples whose response's loss is taken."""

    def fits(tried: list[Record]) -> list[bool]:
        rows = encode_many(tried, tokenizer, max_length=max_length, rendering=rendering)
        return [isinstance(row, TokenRow) for row in rows]

    return fitted(records, shots, fits, chat=uses_chat(tokenizer, rendering))


def shot_facts(
    tasks: Mapping[str, Shots], lines: Mapping[str, Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]]
) -> dict[str, Any]:
    """The key `shots` of results.json: {"count", "tasks": [{"name", "file", "ids", "fewer": {metric: records that had
    fewer, of the arm with most of them}}]}. lines: {metric: {arm: {task: lines}}}."""
    most = max((len(shots.records) for shots in tasks.values()), default=0)
    found = []
    for name, shots in tasks.items():
        fewer: dict[str, int] = {}
        for metric, arms in lines.items():
            counts = [
                sum(line.get("shots", most) < most for line in of_arm[name] if "dropped" not in line)
                for of_arm in arms.values()
                if name in of_arm
            ]
            fewer |= {metric: max(counts)} if counts else {}
        found.append({"name": name, "file": shots.file, "ids": [s["id"] for s in shots.records], "fewer": fewer})
    return {"count": most, "tasks": found}
