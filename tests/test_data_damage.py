"""Damaged and odd files: whatever is in them, they are read, or refused in one short line; no process dies of one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ntk_jax.data.sources import count_records, formats_of, read_chosen, read_records
from ntk_jax.errors import UserError
from ntk_jax.selection.records import record_line

CHILD = Path(__file__).with_name("damaged_columns.py")


def survives(kind: str, first: int, last: int, folder: Path) -> None:
    """Reads so many damaged files in a process of its own."""
    command = [sys.executable, str(CHILD), kind, str(first), str(last), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    case = (folder / "case").read_text() if (folder / "case").exists() else "none"
    assert done.returncode == 0, f"{kind}: exit {done.returncode} at case {case}: {done.stdout}{done.stderr[-2000:]}"
    assert "'refused': 0" not in done.stdout and "'read': 0" not in done.stdout, done.stdout


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_no_process_dies_of_a_damaged_file(tmp_path: Path, kind: str) -> None:
    """Where batches are not checked before use, case 90 of `file` and case 16 of `stream` end the process."""
    survives(kind, 0, 170, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_no_process_dies_of_many_damaged_files(tmp_path: Path, kind: str) -> None:
    survives(kind, 170, 10_170, tmp_path)


KEYS = (
    *("id", "source", "task", "prompt", "response", "completion", "instruction", "input", "output", "question"),
    *("answer", "choices", "options", "answerKey", "label", "text", "messages", "conversations", "context", "answers"),
    *("score", "system", "original", "query", "ctx", "endings", "goal", "sol1", "sol2", "a.b", ""),
    *("\x1b[2J\n", "\u2028"),
)  # fmt: skip
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**70, 1.0, 0.5, float("nan"), float("inf"), 1e300, "", " ", "A", "b", "1", "-1"),
    *("text", "x" * 5000, "\x00", "\x1b]0;t\x07", "\ud800", "é\u202e", "'", "{a}", [], {}, [[]], [1, 2], ["a", "b"]),
    *(["a", None], ["", "b"], {"text": ["a", "b"], "label": ["A", "B"]}, {"text": "a", "label": "A"}),
    {"A": "x", "B": "y"},
    [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}],
    [{"role": "user", "content": "q"}, {"role": "Assistant", "content": [{"type": "text", "text": "a"}]}],
    [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
    [{"from": 1, "value": "q"}, {"from": None, "value": ["a"]}],
    [{"role": "\x1b", "content": None}],
    [{"role": "x" * 400, "content": "q"}],
    {"text": ["a"], "answer_start": [0]},
]  # fmt: skip
SHAPES = (
    *(("prompt", "response"), ("prompt", "choices", "answer"), ("messages",), ("conversations", "system")),
    *(("instruction", "input", "output"), ("question", "answer"), ("question", "choices", "answerKey"), ("text",)),
    *(("ctx", "endings", "label"), ("goal", "sol1", "sol2", "label"), ("context", "question", "answers")),
)  # fmt: skip
FORMATS = (*["auto"] * 9, "records", "alpaca", "sharegpt", "openai", "text")


def odd_file(rng: random.Random) -> tuple[str, bytes]:
    """(ending, bytes) of a file with records of odd values, written in one of four ways and often damaged."""
    keys = rng.choice(SHAPES)
    good = {"prompt": "q", "response": "a", "choices": ["x", "y"], "answer": 1, "messages": VALUES[-6]}
    good |= {"conversations": VALUES[-5], "label": "1", "endings": ["x", "y"], "answers": VALUES[-1], "answerKey": "A"}
    rows: list[Any] = []
    for number in range(rng.randrange(1, 6)):
        row = {key: good.get(key, f"{key} {number}") for key in keys}
        for _ in range(rng.choice([0, 0, 0, 0, 1, 2])):
            row[rng.choice(KEYS)] = rng.choice(VALUES)
        if rng.random() < 0.1:
            row.pop(rng.choice(keys), None)
        rows.append(row if rng.random() < 0.97 else rng.choice(VALUES))
    ending = rng.choice(["jsonl", "json", "json", "csv", "tsv"])
    if ending == "jsonl":
        text = "".join(json.dumps(row) + rng.choice(["\n", "\r\n", "\n\n"]) for row in rows)
    elif ending == "json":
        text = json.dumps(rows, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.8)
    else:
        mark = "," if ending == "csv" else "\t"
        rows = [row for row in rows if isinstance(row, dict)] or [{"prompt": "q"}]
        cells = [list(rows[0]), *(map(str, row.values()) for row in rows)]
        text = "\n".join(mark.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells)
    data = bytearray(text.encode("utf8", "surrogatepass"))
    if rng.random() < 0.4 and data:
        for _ in range(rng.choice([1, 1, 2, 8])):
            place = rng.randrange(len(data))
            what = rng.randrange(4)
            if what == 0:
                data[place] = rng.randrange(256 if rng.random() < 0.2 else 128)
            elif what == 1:
                data[place:place] = rng.choice(
                    [b'"', b"[", b"{", b"]", b"}", b",", b"\\", b"\n", b"\0", b"\xef\xbb\xbf", b"1e999"]
                )
            elif what == 2:
                del data[place : place + rng.randrange(1, 9)]
            else:
                data[place:place] = b"[" * rng.choice([20, 120, 5000])
            if not data:
                break
    return ending, bytes(data)


def outcome(look: Any) -> Any:
    """What `look` gives, or the line that refuses it."""
    try:
        return look()
    except UserError as error:
        line = str(error)
        assert len(line) <= 300 and line.isprintable(), repr(line)
        return line


def reads_or_refuses(case: int, folder: Path) -> str:
    """Reads an odd file in every way. Returns `read` or `refused`."""
    rng = random.Random(case)
    ending, data = odd_file(rng)
    path, format = folder / f"odd.{ending}", rng.choice(FORMATS)
    path.write_bytes(data)
    found = outcome(lambda: list(read_records(path, format=format)))
    counted = outcome(lambda: count_records(path))
    outcome(lambda: formats_of(path))
    if isinstance(found, str):
        return "refused"
    assert counted == len(found)
    for record in found:
        assert isinstance(record["id"], str) and isinstance(record["source"], str)
        assert ("messages" in record) or (isinstance(record["prompt"], str) and isinstance(record["response"], str))
        assert "choices" not in record or 0 <= record["answer"] < len(record["choices"])
        json.loads(record_line(record))
    if format == "auto":
        wanted = list(range(0, len(found), 2))
        assert repr(list(read_chosen(path, wanted))) == repr(found[::2])
    return "read"


def test_odd_files_are_read_or_refused(tmp_path: Path) -> None:
    outcomes = [reads_or_refuses(case, tmp_path) for case in range(500)]
    assert min(outcomes.count("read"), outcomes.count("refused")) > 50


@pytest.mark.slow
def test_many_odd_files_are_read_or_refused(tmp_path: Path) -> None:
    outcomes = [reads_or_refuses(case, tmp_path) for case in range(500, 10_500)]
    assert min(outcomes.count("read"), outcomes.count("refused")) > 1000
