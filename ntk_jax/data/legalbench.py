"""Tasks of LegalBench as they lie in its repository: `tasks/<task>/` with train.tsv, test.tsv and base_prompt.txt.

The prompt file is few-shot: an instruction, solved examples, and last the same form with {{column}} slots. A record's
prompt is the instruction and the last form, filled in, so that a model is asked without examples; shots are put before
it by whoever evaluates. (Guha et al., LegalBench, 2023, arXiv 2308.11462.)
"""

from __future__ import annotations

import functools
import io
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ntk_jax.data import files
from ntk_jax.errors import UserError, listed, shown

Table = list[tuple[int, dict[str, str]]]  # (line, {column: cell})

PROMPT = "base_prompt.txt"
MOST_CHOICES = 26
_OURS = ("id", "source", "task", "prompt", "response", "messages", "choices", "answer", "original")
_SPLITS = ("train.tsv", "test.tsv")
_SLOT = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")
_LABEL = re.compile(r"\s*[^:\s][^:\n{]{0,39}:")  # what a line of a form begins with, such as "Clause:"


def is_task(path: Path) -> bool:
    """Whether this is a table of a task: a .tsv beside a base_prompt.txt, or one that lies where a task's tables do and
    has their columns, whose prompt is then missing."""
    if not files.plain_name(path).endswith(".tsv"):
        return False
    if (path.parent / PROMPT).is_file():
        return True
    if path.parent.parent.name != "tasks" or files.plain_name(path) not in _SPLITS:
        return False
    columns = next((cells for _, cells in _lines(path)), [])
    return columns[:1] == ["index"] and "answer" in columns


def companions(path: Path) -> list[Path]:
    """The other files that decide what the records of a table are: the prompt, and the tables whose answers are among
    the choices."""
    return [other for other in (path.parent / PROMPT, *_tables(path)) if other != path and other.is_file()]


def read_task(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of a task's table: prompt, response, task, every column but `answer` as it is, and where the
    answers are labels (of the whole task, 26 at most, each more than once; or Yes and No) choices and answer.

    Raises UserError, naming file and line: no prompt file, no slot in it, a slot without a column, a row that does not
    fit the header, an empty answer, no column `answer`.
    """
    task, table = path.parent.name, read_table(path)
    if not table:
        return
    columns = list(table[0][1])
    if "answer" not in columns:
        raise UserError(f'{path}:1: a task of LegalBench has a column "answer"; the columns are {listed(columns)}')
    form = _form(path.parent / PROMPT, columns, path)
    choices = labels_of([row.get("answer", "").strip() for other in _tables(path) for _, row in read_table(other)])
    split = files.plain_name(path).removesuffix(".tsv")
    for number, (line, row) in enumerate(table, start=1):
        answer = row["answer"].strip()
        if not answer:
            raise UserError(f"{path}:{line}: the answer is empty; correct or remove the row")
        prompt = _SLOT.sub(functools.partial(_cell, row), form).rstrip()
        record: dict[str, Any] = {key: value for key, value in row.items() if key not in _OURS}
        record |= {"id": f"{task}/{split}-{number}", "source": "LegalBench", "task": task}
        record |= {"prompt": prompt, "response": answer}
        record |= {"choices": choices, "answer": choices.index(answer)} if choices else {}
        taken = {key: value for key, value in row.items() if key in _OURS and key != "answer"}
        yield line, record | ({"original": taken} if taken else {})


def _cell(row: dict[str, str], slot: re.Match[str]) -> str:
    return row[slot[1]].strip() if slot[1] != "answer" else ""  # nothing: it is what is asked for


def labels_of(answers: list[str]) -> list[str]:
    """The sorted labels of a task with these answers; none where they are no labels."""
    counts = Counter(answer for answer in answers if answer)
    folded = {label.casefold(): label for label in counts}
    if counts and folded.keys() <= {"yes", "no"} and len(folded) == len(counts):
        return [folded.get(label.casefold(), label) for label in ("No", "Yes")]
    return sorted(counts) if 2 <= len(counts) <= MOST_CHOICES and min(counts.values()) > 1 else []


def zero_shot(text: str) -> str:
    """The instruction and the last form of a few-shot prompt, without the examples between.

    An example begins with the word that the last form begins with ("Clause:", "Q:"); where that one has none, it ends
    with the word behind which the answer goes, and is as many paragraphs long.
    """
    text = text.strip()
    lines = text.split("\n")
    slot = next(number for number, line in enumerate(lines) if _SLOT.search(line))
    begin = next((n + 1 for n in range(slot - 1, -1, -1) if not lines[n].strip()), 0)  # of the slot's paragraph
    for start in dict.fromkeys((begin, slot)):
        word = _LABEL.match(lines[start])
        if word:
            first = next(n for n, line in enumerate(lines) if line.lstrip().startswith(word[0].strip()))
            if first < start:
                return "\n".join([*lines[:first], *lines[start:]]).strip()
    paragraphs = [part for part in re.split(r"\n[ \t]*\n", text) if part.strip()]
    last = next(number for number, part in enumerate(paragraphs) if _SLOT.search(part))
    word = _LABEL.match(lines[-1]) if lines[-1].rstrip().endswith(":") else None
    if word:
        solved = re.compile(rf"^[ \t]*{re.escape(word[0].strip())}[ \t]*\S", re.MULTILINE)
        ends = [number for number, part in enumerate(paragraphs[:last]) if solved.search(part)]
        if ends:
            kept = paragraphs[: max(0, ends[0] - (len(paragraphs) - last) + 1)]
            return "\n\n".join([*kept, *paragraphs[last:]])
    return text


def _form(file: Path, columns: list[str], table: Path) -> str:
    if not file.is_file():
        raise UserError(
            f"{table}: a task of LegalBench needs its {PROMPT}, and {file.parent} has none; fetch it, or say which "
            "columns hold what"
        )
    text = _text(file)
    slots = list(_SLOT.finditer(text))
    if not slots:
        raise UserError(f"{file}: the prompt has no slot such as {{{{text}}}}; fetch the file anew")
    for slot in slots:
        if slot[1] not in columns:
            line = text.count("\n", 0, slot.start()) + 1
            raise UserError(
                f"{file}:{line}: the slot {shown(slot[1])} is no column of {table.name}; its columns are "
                f"{listed(columns)}"
            )
    return zero_shot(text)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}; correct its permissions") from None


def _tables(path: Path) -> list[Path]:
    """The tables of a task, this one among them."""
    return sorted({path, *(path.parent / name for name in _SPLITS if (path.parent / name).is_file())})


def read_table(path: Path) -> Table:
    """The rows of a table. Quotes may be those of CSV, or stand in the text as they are: where each line has as many
    cells as the header, and quotes would join lines or cannot be read, they are part of the text.

    Raises UserError as `files.read_rows`.
    """
    refused: UserError | None = None
    rows: Table = []
    try:
        rows = [(line, parse()) for _, line, parse in files.read_rows(path)]
    except UserError as error:
        refused = error
    lines = _lines(path)
    header = lines[0][1] if lines else []
    fits = len(set(header)) == len(header) > 0 and all(len(cells) == len(header) for _, cells in lines)
    if fits and (refused is not None or len(rows) != len(lines) - 1):
        return [(line, dict(zip(header, cells, strict=True))) for line, cells in lines[1:]]
    if refused is not None:
        raise refused
    return rows


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """(line, cells) as the tabs alone cut them; none where the file is no text, which `read_rows` says."""
    try:
        with files.open_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n") as text:
            found = [line.rstrip("\r\n") for line in text]
    except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError):
        return []
    return [(number, [_unquoted(cell) for cell in line.split("\t")]) for number, line in enumerate(found, 1) if line]


def _unquoted(cell: str) -> str:
    """A cell that CSV's quotes enclose, without them."""
    inner = cell[1:-1]
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else cell
