"""The clause annotations of CUAD in its own two files: yes/no questions about contracts, with the spans for a Yes.

`CUAD_v1.json` has the form of SQuAD: for each contract its text and, for each kind of clause, the marked spans.
`master_clauses.csv` has a row a contract and two columns a kind: the spans as a list, and the answer. Most kinds are
asked of with Yes or No; those whose answer is a name, a date, a term or a place are left out of both. (Hendrycks et
al., CUAD, 2021, arXiv 2103.06268.)
"""

from __future__ import annotations

import ast
import csv
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ntk_jax.data import files
from ntk_jax.errors import UserError, shown

CHOICES = ("Yes", "No")
# Kinds that nearly every contract has, whose answer is a text. The table's own answers say so; the other file has none.
_TEXTS = ("document name", "parties", "agreement date", "effective date", "expiration date", "renewal term") + (
    ("notice period to terminate renewal", "governing law")
)
_HEAD = 1 << 16  # bytes that are looked at to recognise a file
_SQUAD = re.compile(
    r'\s*\{[^\[{]{0,500}"data"\s*:\s*\[\s*\{\s*(?:"title"\s*:\s*"(?:[^"\\]|\\.)*"\s*,\s*)?"paragraphs"\s*:'
)
_ANSWER = re.compile(r"(.*\S)\s*-\s*Answer\s*", re.DOTALL)
_ANSWERS = ("yes", "no", "")
_ENDING = re.compile(r"\.(?:pdf|txt|docx?|html?)$", re.IGNORECASE)

Found = Iterator[tuple[str, dict[str, Any]]]  # (where it stands, record)


def is_cuad(path: Path) -> bool:
    """Whether the file is one of the two, by its beginning."""
    name = files.plain_name(path)
    if name.endswith(".csv"):
        return bool(_pairs(_header(_head(path))))
    return name.endswith(".json") and _SQUAD.match(_head(path)) is not None


def read_cuad(path: Path) -> Found:
    """(where, record) of every contract and kind of clause: prompt, choices, answer, response, spans, category,
    document_id and document_name (both the name of the contract's file without its ending).

    Raises UserError, naming file and place: not JSON, a part that is missing, a cell that is no list of spans or no
    answer, no kind of clause.
    """
    return _of_table(path) if files.plain_name(path).endswith(".csv") else _of_json(path)


def question(document: str, category: str, spans: list[str], present: bool) -> dict[str, Any]:
    """The record that asks whether a contract has a clause of a kind."""
    prompt = (
        f'Contract: {document}\nDoes this contract have a clause of the kind "{category}"?\n'
        f"Options:\n- {CHOICES[0]}\n- {CHOICES[1]}\nAnswer:"
    )
    answer = 0 if present else 1
    return {
        "id": f"cuad/{document}/{category}",
        "source": "CUAD",
        "task": "cuad",
        "document_id": document,
        "document_name": document,
        "category": category,
        "prompt": prompt,
        "choices": list(CHOICES),
        "answer": answer,
        "response": CHOICES[answer],
        "spans": spans,
    }


def _of_table(path: Path) -> Found:
    rows = [(f"{path}:{line}", parse()) for _, line, parse in files.read_rows(path)]
    if not rows:
        return
    pairs = _pairs(list(rows[0][1]))
    asked = {
        category: (spans, answer)
        for category, (spans, answer) in pairs.items()
        if _is_asked(row[answer] for _, row in rows)
    }
    if not asked:
        raise UserError(f'{path}:1: no column "... -Answer" holds only Yes and No; fetch the file anew')
    for where, row in rows:
        name = _ENDING.sub("", row["Filename"].strip())
        if not name:
            raise UserError(f"{where}: the Filename is empty; name the contract")
        for category, (spans, answer) in asked.items():
            found, said = _spans(row[spans], where, spans), row[answer].strip().casefold()
            if said not in _ANSWERS:
                raise UserError(
                    f"{where}: {shown(answer)} must be Yes or No, got {shown(row[answer])}; correct the cell"
                )
            yield where, question(name, category, found, said == "yes" or (not said and bool(found)))


def _is_asked(answers: Iterable[str]) -> bool:
    """Whether a kind is one that is asked of with Yes or No: most of its answers are, or it has none."""
    known = [answer.strip().casefold() in _ANSWERS for answer in answers if answer.strip()]
    return 2 * sum(known) > len(known) or not known


def _pairs(header: list[str]) -> dict[str, tuple[str, str]]:
    """{kind: (column of its spans, column of its answer)}; none where this is no such table."""
    if header[:1] != ["Filename"]:
        return {}
    there = {column.strip(): column for column in header}
    matches = [(match[1], column) for column in header if (match := _ANSWER.fullmatch(column))]
    return {category: (there[category], column) for category, column in matches if category in there}


def _spans(cell: str, where: str, column: str) -> list[str]:
    """The texts of a cell such as ['first', 'second']; a text that is no list is one span."""
    text = cell.strip()
    if not text.startswith("["):
        return [text] if text else []
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(span, str) for span in found):
        raise UserError(
            f"{where}: {shown(column)} is no list of texts, got {shown(cell)}; correct its brackets and quotes"
        )
    return [span for span in found if span.strip()]


def _of_json(path: Path) -> Found:
    """The spans of a contract's parts are put together."""
    found: dict[tuple[str, str], list[str]] = {}
    for number, contract in enumerate(_list(_parsed(path), "data", str(path))):
        place = f"{path}: data[{number}]"
        name = _ENDING.sub("", _text(contract, "title", place).strip())
        for part, paragraph in enumerate(_list(contract, "paragraphs", place)):
            for asked, entry in enumerate(_list(paragraph, "qas", f"{place}.paragraphs[{part}]")):
                where = f"{place}.paragraphs[{part}].qas[{asked}]"
                _, mark, category = _text(entry, "id", where).rpartition("__")
                category = re.sub(r"_\d+$", "", category).strip()
                if not mark or not name or not category:
                    raise UserError(
                        f"{where}: its id names no kind of clause (title__kind); of other files in the form of SQuAD, "
                        "write a line for each question to a .jsonl"
                    )
                if category.casefold() not in _TEXTS:
                    spans = found.setdefault((name, category), [])
                    spans += [_text(answer, "text", where) for answer in _list(entry, "answers", where)]
    for (name, category), spans in found.items():
        yield f"{path}: {name}", question(name, category, spans, bool(spans))


def _parsed(path: Path) -> Any:
    try:
        with files.open_bytes(path) as file:
            return files.parse_json(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); fetch the file anew") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); fetch the file anew") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it anew") from None


def _list(value: Any, key: str, where: str) -> list[Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise UserError(f"{where}: {shown(key)} must be a list, got {shown(found)}; fetch the file anew")
    return found


def _text(value: Any, key: str, where: str) -> str:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, str):
        raise UserError(f"{where}: {shown(key)} must be a text, got {shown(found)}; fetch the file anew")
    return found


def _head(path: Path) -> str:
    try:
        with files.open_bytes(path) as file:
            return file.read(_HEAD).decode("utf-8-sig", errors="ignore")
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return ""


def _header(text: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text, newline="")), [])
    except csv.Error:
        return []
