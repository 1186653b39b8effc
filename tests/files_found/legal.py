"""LegalBench's tasks and CUAD's clause annotations, as they lie in their repositories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from files_found.case import Case
from ntk_jax.data.sources import read_records
from ntk_jax.errors import UserError

TITLE = "LegalBench and CUAD"

PROMPT = "Is it?\n\nClause: a\nLabel: Yes\n\nClause: {{text}}\nLabel:"
HEADER = "index\tanswer\ttext\tdocument_name\n"
TABLE = HEADER + "0\tYes\tb\tone\n1\tNo\tc\ttwo\n"
CLAUSES = "Filename,Parties,Parties-Answer,Insurance,Insurance-Answer\nA.pdf,['B'],B,['We insure.'],Yes\n"


def _contract(**more: Any) -> str:
    entry = {"id": "A__Insurance", "question": "q", "answers": [{"text": "We insure.", "answer_start": 0}], **more}
    parties = {"id": "A__Parties", "question": "q", "answers": [{"text": "B", "answer_start": 9}]}
    return json.dumps({"data": [{"title": "A", "paragraphs": [{"context": "We insure.", "qas": [parties, entry]}]}]})


def _task(folder: Path, table: str, prompt: str | None) -> Path:
    place = folder / "tasks" / "visits"
    place.mkdir(parents=True)
    if prompt is not None:
        (place / "base_prompt.txt").write_text(prompt)
    (place / "test.tsv").write_text(table)
    return place / "test.tsv"


def task_gives(table: str, expected: dict[str, Any], prompt: str = PROMPT) -> Callable[[Path], None]:
    """The first record has these fields; None: it has no such field."""

    def check(folder: Path) -> None:
        first = next(read_records(_task(folder, table, prompt)))
        assert {key: first.get(key) for key in expected} == expected

    return check


def task_refused(table: str, prompt: str | None, message: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        with pytest.raises(UserError, match=message):
            list(read_records(_task(folder, table, prompt)))

    return check


def by_columns(folder: Path) -> None:
    columns = {"prompt": "{text}?", "response": "answer"}
    assert next(read_records(_task(folder, TABLE, PROMPT), columns=columns))["prompt"] == "b?"


def file_gives(name: str, text: str, expected: dict[str, Any], count: int = 1) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        (folder / name).write_text(text)
        found = list(read_records(folder / name))
        assert len(found) == count and {key: found[0].get(key) for key in expected} == expected

    return check


def file_refused(name: str, text: str, message: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=message):
            list(read_records(folder / name))

    return check


INSURED = {"category": "Insurance", "document_id": "A", "spans": ["We insure."], "choices": ["Yes", "No"], "answer": 0}

CASES = [
    Case(
        "`tasks/visits/test.tsv` or `train.tsv` beside a `base_prompt.txt`",
        "a task of LegalBench: the prompt is the instruction and the last form, filled in, without the solved examples",
        task_gives(TABLE, {"prompt": "Is it?\n\nClause: b\nLabel:", "response": "Yes", "task": "visits"}),
    ),
    Case(
        "its other columns, such as `document_name`",
        "kept, to split by",
        task_gives(TABLE, {"document_name": "one", "text": "b", "index": "0"}),
    ),
    Case(
        "answers Yes and No, or at most 26 that each occur more than once in the task's tables",
        "choices, sorted",
        task_gives(TABLE, {"choices": ["No", "Yes"], "answer": 1}),
    ),
    Case(
        "any other answers",
        "a response alone",
        task_gives(HEADER + "0\tParis\tb\tone\n1\tRome\tc\ttwo\n", {"choices": None, "response": "Paris"}),
    ),
    Case(
        "a quote in a cell that CSV would not write so",
        "part of the text, where each line has as many cells as the header",
        task_gives(HEADER + '0\tYes\t"b\tone\n1\tNo\tc\ttwo\n', {"text": '"b'}),
    ),
    Case(
        "`columns` for such a table",
        "the table as it stands",
        by_columns,
    ),
    Case(
        "such a table in `tasks/visits/` without `base_prompt.txt`",
        "refused: fetch it",
        task_refused(TABLE, None, "needs its base_prompt.txt"),
    ),
    Case(
        "a slot that is no column",
        "refused with its line",
        task_refused(TABLE, "Clause:\n{{clause}}", r"base_prompt.txt:2: the slot 'clause' is no column of test.tsv"),
    ),
    Case(
        "a row with too few cells; an empty answer",
        "refused with its line",
        task_refused(HEADER + "0\tYes\tb\n", PROMPT, r"test.tsv:2: the row has 3 cells and the header 4"),
    ),
    Case("a table with a header alone", "refused", task_refused(HEADER, PROMPT, "no records")),
    Case(
        "CUAD's `master_clauses.csv`",
        "a yes/no question for each contract and kind of clause, with `spans`, `category`, `document_id` and "
        "`document_name`; kinds whose answer is a text are left out",
        file_gives("master_clauses.csv", CLAUSES, INSURED),
    ),
    Case(
        "CUAD's `CUAD_v1.json`, in the form of SQuAD",
        "the same questions; Yes where a span is marked",
        file_gives("CUAD_v1.json", _contract(), INSURED),
    ),
    Case(
        "a cell of spans that is no list",
        "refused with its line",
        file_refused("master_clauses.csv", CLAUSES.replace("insure.']", "insure."), r"csv:2: 'Insurance' is no list"),
    ),
    Case(
        "another file in the form of SQuAD, whose ids name no kind of clause",
        "refused: write a line for each question",
        file_refused("dev-v2.0.json", _contract(id="56be4db0"), "its id names no kind of clause"),
    ),
    Case(
        "a JSON file that ends in the middle",
        "refused with its line",
        file_refused("CUAD_v1.json", _contract()[:-2], "CUAD_v1.json:1: not JSON"),
    ),
]
