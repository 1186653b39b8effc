"""Files that models are evaluated on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from files_found.case import Case
from ntk_jax.errors import UserError
from ntk_jax.evaluation.generated import rule_of
from ntk_jax.evaluation.tasks import read_tasks

TITLE = "Files to evaluate on (`evaluate.files`)"

QUESTION = {"id": "q", "prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}
PLAIN = {"id": "p", "prompt": "2 + 2 =", "response": "4"}
CHAT = {"id": "c", "messages": [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": "4"}]}


def _file(folder: Path, records: list[dict[str, Any]], name: str = "exam.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def _gives(records: list[dict[str, Any]], asked: list[str] | None, *metrics: str) -> Any:
    def check(folder: Path) -> None:
        (task,) = read_tasks([_file(folder, records)], asked)
        assert task.metrics == metrics and len(task.records) == len(records)

    return check


def _refused(records: list[dict[str, Any]], asked: list[str] | None, message: str) -> Any:
    def check(folder: Path) -> None:
        with pytest.raises(UserError, match=message):
            read_tasks([_file(folder, records)], asked)

    return check


def _answered(record: dict[str, Any], rule: str, taken: str) -> Any:
    def check(folder: Path) -> None:
        (task,) = read_tasks([_file(folder, [record])], ["generated"])
        assert task.metrics == ("generated",) and rule_of(task.records[0], rule, task.where) == taken

    return check


def _unanswered(record: dict[str, Any], rule: str, message: str) -> Any:
    def check(folder: Path) -> None:
        (task,) = read_tasks([_file(folder, [record])], ["generated"])
        with pytest.raises(UserError, match=message):
            rule_of(task.records[0], rule, task.where)

    return check


def _parquet(folder: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"id": ["a", "b"], "prompt": ["1 =", "2 ="], "response": ["1", "2"], "choices": [None, None]}
    parquet.write_table(arrow.table(columns), folder / "notes.parquet")
    (task,) = read_tasks([str(folder / "notes.parquet")])
    assert task.metrics == ("loss",)


def _shots(folder: Path) -> None:
    exam = _file(folder, [PLAIN], "exam.test.jsonl")
    other = _file(folder, [PLAIN, {**PLAIN, "id": "other", "prompt": "3 + 1 ="}], "exam.train.jsonl")
    (task,) = read_tasks([exam], shots=1)
    assert task.shots.file == other and [shot["id"] for shot in task.shots.records] == ["other"]


def _without_shots(records: list[dict[str, Any]], message: str) -> Any:
    def check(folder: Path) -> None:
        exam = _file(folder, [PLAIN], "exam.test.jsonl")
        if records:
            _file(folder, records, "exam.train.jsonl")
        with pytest.raises(UserError, match=message):
            read_tasks([exam], shots=1)

    return check


CASES: list[Case] = [
    Case("every record has `choices` and `answer`", "accuracy", _gives([QUESTION], None, "accuracy")),
    Case("no record has `choices`", "held-out loss of the responses", _gives([PLAIN], None, "loss")),
    Case("`messages` that end with the assistant's", "held-out loss of the last message", _gives([CHAT], None, "loss")),
    Case("a column `choices` that is null in every row", "as if it were not there: held-out loss", _parquet),
    Case(
        "some records have `choices`, others have none",
        "refused, naming a record that has none; `evaluate.metrics: [loss]` takes them all",
        _refused([QUESTION, PLAIN], None, "record 'p' has no choices, but others of the file have"),
    ),
    Case(
        "`choices`, and `evaluate.metrics: [accuracy, loss]`",
        "accuracy, and the loss of `response`, which is the right choice where it is left out",
        _gives([QUESTION], ["accuracy", "loss"], "accuracy", "loss"),
    ),
    Case("`choices`, and `evaluate.metrics: [loss]`", "held-out loss alone", _gives([QUESTION], ["loss"], "loss")),
    Case(
        "no `choices`, and `evaluate.metrics: [accuracy]`",
        "refused, naming the record",
        _refused([PLAIN], ["accuracy"], "record 'p' has no choices, and accuracy needs them"),
    ),
    Case(
        "`choices`, and `evaluate.metrics: [generated]`",
        "the model writes an answer, in which a letter (or the words) of a choice is looked for",
        _answered(QUESTION, "auto", "letter"),
    ),
    Case(
        "a response that is a number or ends in `#### 42`, and `[generated]`",
        "the last number of the answer that the model writes is compared",
        _answered({**PLAIN, "response": "2 and 2 are 4\n#### 4"}, "auto", "number"),
    ),
    Case(
        "any other response, and `[generated]`",
        "exact match, but for case, white space and marks around it; `evaluate.answer_rule` names another rule",
        _answered({**PLAIN, "response": "four"}, "auto", "exact"),
    ),
    Case(
        "no `choices`, and `evaluate.answer_rule: letter`",
        "refused, naming the record",
        _unanswered(PLAIN, "letter", "record 'p' has no choices, and the rule letter needs them"),
    ),
    Case(
        "a response without a number, and `evaluate.answer_rule: number`",
        "refused, naming the record",
        _unanswered({**PLAIN, "response": "four"}, "number", "record 'p' has no number"),
    ),
    Case(
        "`exam.test.jsonl` beside `exam.train.jsonl`, and `evaluate.shots: 1`",
        "shots are drawn from the latter",
        _shots,
    ),
    Case(
        "no such file, no `evaluate.shot_files`, and `evaluate.shots: 1`",
        "refused, naming the task",
        _without_shots([], "does not exist"),
    ),
    Case(
        "a file of shots that asks only what is asked",
        "refused: no question is ever a shot",
        _without_shots([PLAIN], "has 0 examples that exam does not ask"),
    ),
]
