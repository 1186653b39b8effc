"""Data files: formats that are recognised, formats of files, and what is odd in them."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from files_found.case import Case
from ntk_jax.data.sources import read_records
from ntk_jax.errors import UserError

TITLE = "Data files"

QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
PAIR = {"prompt": "q", "response": "a"}
TALK = {"messages": [QUESTION, ANSWER]}
CHOICE = {"prompt": "q", "choices": ["x", "y"], "answer": 1, "response": "y"}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read_first(folder: Path, name: str, content: bytes, settings: dict[str, Any]) -> dict[str, Any]:
    (folder / name).write_bytes(content)
    return list(read_records(folder / name, **settings))[0]


def reads(name: str, content: Any, expected: dict[str, Any], **settings: Any) -> Callable[[Path], None]:
    """The first record has these fields, and every other column of the file."""

    def check(folder: Path) -> None:
        row = content if isinstance(content, dict) else {}
        found = read_first(folder, name, lines(row) if row else content, settings)
        assert {key: found.get(key) for key in expected} == expected
        kept = {**found, **found.get("original", {})}
        assert all(kept[key] == value for key, value in row.items() if value is not None)

    return check


def refuses(name: str, content: Any, message: str, **settings: Any) -> Callable[[Path], None]:
    """The file is refused, with this in the line."""

    def check(folder: Path) -> None:
        with pytest.raises(UserError) as error:
            read_first(folder, name, lines(content) if isinstance(content, dict) else content, settings)
        assert message in str(error.value) and len(str(error.value)) <= 300 and str(error.value).isprintable()

    return check


def zst(folder: Path) -> None:
    with pyarrow.CompressedOutputStream(str(folder / "a.jsonl.zst"), "zstd") as file:
        file.write(lines(PAIR))
    assert list(read_records(folder / "a.jsonl.zst"))[0]["response"] == "a"


def parquet(folder: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"question": "q", "answer": "a"}]), folder / "a.parquet")
    assert list(read_records(folder / "a.parquet"))[0]["response"] == "a"


def damaged_arrow(folder: Path) -> None:
    table = pyarrow.table({"prompt": ["q"], "response": ["a"]})
    with pyarrow.ipc.new_stream(str(folder / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    data = (folder / "a.arrow").read_bytes()
    offsets = data.rindex(b"\0\0\0\0\x01\0\0\0")  # of the one text that the second column holds
    (folder / "a.arrow").write_bytes(data[: offsets + 4] + b"\xff\xff\xff\x7f" + data[offsets + 8 :])
    with pytest.raises(UserError, match="cannot read .* as Arrow"):
        list(read_records(folder / "a.arrow"))


SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
PARTS = [{"role": "User", "content": [{"type": "text", "text": "q"}]}, {"role": "ASSISTANT", "content": "a"}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}, ANSWER]
SYSTEM = {"role": "system", "content": "s"}
ARC = {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
HELLASWAG = {"ctx": "q", "endings": ["x", "y"], "label": "1", "activity_label": "Sport"}
SCIQ = {
    "question": "q",
    "correct_answer": "y",
    "distractor1": "z",
    "distractor2": "x",
    "distractor3": "w",
    "support": "s",
}
SORTED = {"prompt": "s\n\nq", "choices": ["w", "x", "y", "z"], "answer": 2}
SQUAD = {"context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}, "title": "t"}
MEDQA = {"question": "q", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"}
MEDMCQA = {"question": "q", "opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 1}
PUBMED = {"pubid": 7, "context": {"contexts": ["c", "d"]}, "question": "q", "long_answer": "l", "final_decision": "yes"}
PUBMED_COLUMNS = {"prompt": "{context.contexts} {question}", "choices": ["'no'", "'yes'"], "answer": "final_decision"}
ALPACA = {"instruction": "Add", "input": "1 2", "output": "3"}
UNCLEAR = "it is not clear which columns hold the prompt and the response"

CASES = [
    Case(
        "Alpaca: `instruction`, `input`, `output` (and `text`)",
        "prompt `{instruction}\\n\\n{input}`, or the instruction alone; the output is the response",
        reads("a.jsonl", ALPACA | {"text": "all of it"}, {"prompt": "Add\n\n1 2", "response": "3"}),
    ),
    Case(
        "the same with an empty `input`, or none",
        "the instruction alone",
        reads("a.jsonl", ALPACA | {"input": ""}, {"prompt": "Add"}),
    ),
    Case(
        "Dolly: `instruction`, `context`, `response`",
        "prompt `{instruction}\\n\\n{context}`",
        reads("a.jsonl", {"instruction": "q", "context": "c", "response": "a"}, {"prompt": "q\n\nc"}),
    ),
    Case(
        "ShareGPT: `conversations` with `from` and `value`",
        "messages; `human` is the user, `gpt` the assistant",
        reads("a.jsonl", {"conversations": SHAREGPT}, TALK),
    ),
    Case(
        "the same beside a `system` column",
        "a first message",
        reads("a.jsonl", {"conversations": SHAREGPT, "system": "s"}, {"messages": [SYSTEM, QUESTION, ANSWER]}),
    ),
    Case(
        "`messages` with `from` and `value`",
        "messages; the column is kept under `original`",
        reads("a.jsonl", {"messages": SHAREGPT}, TALK),
    ),
    Case("OpenAI: `messages`", "messages as they are", reads("a.jsonl", TALK, TALK)),
    Case(
        "a role in capitals; content in parts that are text",
        "small letters; one text",
        reads("a.jsonl", {"messages": PARTS}, TALK),
    ),
    Case(
        "content with an image", "refused", refuses("a.jsonl", {"messages": IMAGE}, '"messages.content" must be text')
    ),
    Case(
        "ultrachat: `prompt` and `messages`",
        "the messages; the prompt is kept under `original`",
        reads("a.jsonl", {"prompt": "q", **TALK}, TALK),
    ),
    Case(
        "`prompt`, `response` and `messages`",
        "refused",
        refuses("a.jsonl", PAIR | TALK, 'both "messages" and "prompt"'),
    ),
    Case(
        "`prompt` and `completion`", "prompt and response", reads("a.jsonl", {"prompt": "q", "completion": "a"}, PAIR)
    ),
    Case(
        "the same as lists of messages (TRL)",
        "one talk; the two stand under `original` in a selection",
        reads("a.jsonl", {"prompt": TALK["messages"][:-1], "completion": TALK["messages"][-1:]}, TALK),
    ),
    Case("`question` and `answer`", "prompt and response", reads("a.jsonl", {"question": "q", "answer": "a"}, PAIR)),
    Case(
        "`instruction` and `response`, `query` and `response`, `input` and `output`, `problem` and `solution`",
        "prompt and response",
        reads("a.jsonl", {"query": "q", "response": "a"}, PAIR),
    ),
    Case(
        "OpenOrca: `system_prompt`, `question`, `response`",
        "messages",
        reads(
            "a.jsonl",
            {"system_prompt": "s", "question": "q", "response": "a"},
            {"messages": [SYSTEM, QUESTION, ANSWER]},
        ),
    ),
    Case(
        "SQuAD: `context`, `question`, `answers`",
        "prompt `{context}\\n\\n{question}`, response the first answer",
        reads("a.jsonl", SQUAD, {"prompt": "c\n\nq", "response": "a"}),
    ),
    Case(
        "`text`, beside nothing that might be a prompt or a label",
        "an empty prompt; the text is the response",
        reads("a.jsonl", {"text": "a", "url": "u"}, {"prompt": "", "response": "a"}),
    ),
    Case("`text` and `label`", "refused", refuses("a.jsonl", {"text": "q", "label": 1}, UNCLEAR)),
    Case(
        "ARC: `choices` of `text` and `label`, `answerKey`",
        "multiple choice; the key is looked up among the labels",
        reads("a.jsonl", ARC, CHOICE),
    ),
    Case(
        "MMLU: `question`, `subject`, `choices`, `answer`",
        "multiple choice",
        reads("a.jsonl", {"question": "q", "subject": "s", "choices": ["x", "y"], "answer": 1}, CHOICE),
    ),
    Case(
        "MMLU's first release: CSV without a header, the last cell a letter",
        "multiple choice",
        reads("a.csv", b"q,x,y,z,w,B\n", {"prompt": "q", "choices": ["x", "y", "z", "w"], "answer": 1}),
    ),
    Case("HellaSwag: `ctx`, `endings`, `label`", "multiple choice", reads("a.jsonl", HELLASWAG, CHOICE)),
    Case(
        "PIQA: `goal`, `sol1`, `sol2`, `label`",
        "multiple choice",
        reads("a.jsonl", {"goal": "q", "sol1": "x", "sol2": "y", "label": 1}, CHOICE),
    ),
    Case(
        "SciQ: `correct_answer` and three distractors",
        "multiple choice, sorted by their text; the support comes before the question",
        reads("a.jsonl", SCIQ, SORTED),
    ),
    Case("MedQA: `options` by letter, `answer_idx`", "multiple choice", reads("a.jsonl", MEDQA, CHOICE)),
    Case(
        "MedMCQA: `opa` to `opd`, `cop`",
        "multiple choice, `cop` from 0",
        reads("a.jsonl", MEDMCQA, {"choices": ["x", "y", "z", "w"], "answer": 1}),
    ),
    Case(
        "`answer` as a letter, a choice's text, `1.0`, or an index as text",
        "the index",
        reads("a.jsonl", CHOICE | {"answer": "B"}, CHOICE),
    ),
    Case(
        "`answer` `1` as text where the choices are numbers",
        "refused, unless it means one choice only",
        refuses("a.jsonl", CHOICE | {"choices": ["1", "2"], "answer": "1"}, "a choice's text and another one's place"),
    ),
    Case(
        "choices that are numbers",
        "their texts",
        reads("a.jsonl", {"prompt": "q", "choices": [1, 2.5], "answer": 0}, {"choices": ["1", "2.5"]}),
    ),
    Case(
        "PubMedQA, SciTail, RACE and others with a passage or several answers",
        "refused; `data.columns` says what is meant",
        refuses("a.jsonl", PUBMED, UNCLEAR),
    ),
    Case(
        'PubMedQA with `columns: {prompt: "{context.contexts} {question}", choices: ["\'no\'", "\'yes\'"], '
        "answer: final_decision}`",
        "multiple choice",
        reads("a.jsonl", PUBMED, {"prompt": "c\nd q", "choices": ["no", "yes"], "answer": 1}, columns=PUBMED_COLUMNS),
    ),
    Case(
        "a column that is not there, in `columns`",
        "refused; the nearest ones are named",
        refuses(
            "a.jsonl",
            {"question": "q", "best": "a"},
            "did you mean question?",
            columns={"prompt": "qestion", "response": "best"},
        ),
    ),
    Case("a float as id, such as `7.0`", "`7`", reads("a.jsonl", lines(PAIR | {"id": 7.0}), {"id": "7"})),
    Case(
        "`.json` with one array, on one line or many",
        "a record an object",
        reads("a.json", json.dumps([ALPACA, ALPACA], indent=1).encode(), {"id": "a-1", "response": "3"}),
    ),
    Case(
        "an array with a comma before its end, or cut off",
        "refused with its line",
        refuses("a.json", b'[{"prompt": "q", "response": "a"},\n]', "a.json:2: a record must begin here, found ']'"),
    ),
    Case(
        'one object with a list in it, such as `{"data": [...]}`',
        "refused",
        refuses("a.jsonl", {"data": [PAIR]}, "the records are under the key 'data'"),
    ),
    Case(
        "`.csv` and `.tsv`, with a header; cells may have line ends in quotes",
        "a record a row",
        reads("a.csv", b'question,answer\r\n"q\nmore",a\r\n', {"prompt": "q\nmore", "response": "a"}),
    ),
    Case(
        "a row with more or fewer cells than the header",
        "refused with its line",
        refuses("a.tsv", b"question\tanswer\nq\n", "a.tsv:2: the row has 1 cells and the header 2"),
    ),
    Case("a `.csv` with semicolons", "refused", refuses("a.csv", b"question;answer\nq;a\n", "separated by ';'")),
    Case("`.gz`, `.xz` of any of these", "read", reads("a.csv.xz", lzma.compress(b"question,answer\nq,a\n"), PAIR)),
    Case("`.zst` of any of these", "read", zst),
    Case(
        "a compressed file that is cut off",
        "refused",
        refuses("a.jsonl.gz", gzip.compress(lines(PAIR))[:-9], "the compressed file is damaged"),
    ),
    Case("Parquet and Arrow with such columns", "read", parquet),
    Case(
        "an Arrow or Parquet file with damaged bytes",
        "refused, or read where they are letters of a text",
        damaged_arrow,
    ),
    Case("`.txt`", "refused: a text a line, or a file?", refuses("a.txt", b"a", "plain text has no records")),
    Case(
        "a byte-order mark at the start; CRLF",
        "read",
        reads("a.jsonl", b"\xef\xbb\xbf" + lines(PAIR).replace(b"\n", b"\r\n"), PAIR),
    ),
    Case("UTF-16, Latin-1", "refused", refuses("a.csv", "question,answer\nq,a".encode("utf-16"), "not UTF-8 text")),
    Case(
        "a byte that is zero",
        "refused",
        refuses("a.csv", b"question,answer\nq\0,a\n", "a.csv:2: a byte of a table is zero"),
    ),
    Case(
        "an object with a key twice",
        "refused with its line",
        refuses("a.jsonl", b'{"prompt": "q", "response": "a", "m": {"x": 1, "x": 2}}', "the key 'x' is there twice"),
    ),
    Case(
        "`NaN`, `Infinity` or `1e999` in a column that is not used",
        "read; null in the selection",
        reads("a.jsonl", b'{"prompt": "q", "response": "a", "m": NaN}', PAIR),
    ),
    Case(
        "the same as an answer or an id",
        "refused",
        refuses("a.jsonl", b'{"prompt": "q", "choices": ["x", "y"], "answer": 1e999}', '"answer" must be the index'),
    ),
    Case(
        "objects more than 100 levels deep",
        "refused with its line",
        refuses("a.jsonl", b'{"m": ' + b"[" * 5000 + b"]" * 5000 + b"}", "a.jsonl:1: cannot be read as JSON"),
    ),
    Case(
        "control characters in a name or a value",
        "shown escaped",
        refuses("a.jsonl", {"\x1b[2J": "q"}, "keys found: \\x1b[2J"),
    ),
]
