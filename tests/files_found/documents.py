"""Documents that questions are asked about."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from files_found.case import Case
from ntk_jax.data.sources import read_records
from ntk_jax.engine.config import build
from ntk_jax.errors import UserError
from ntk_jax.pipelines.question.config import QuestionConfig
from ntk_jax.pipelines.question.documents import read_documents
from ntk_jax.questions.chunks import chunk_documents

TITLE = "Documents to ask about"
GOOD = {"id": "good", "text": "The tenant pays the rent. The landlord keeps the roof."}
GERMAN = "Der Mieter zahlt die Miete zum ersten Mai eines jeden Jahres und h\u00e4lt die Wohnung in Ordnung. " * 3
SCAN = "~|_ .,';: l1 |l ^^ ,,.: \\/ ][ };{ =+ <>> ..'' \"^~ i! |;: _-_ '`'"


def read(folder: Path, rows: tuple[dict[str, Any], ...], **options: Any) -> Any:
    path = folder / "lease.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return chunk_documents(read_records(path), **{"words": 40, **options})


def kept(texts: list[str], *rows: dict[str, Any], **found: Any) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        result = read(folder, rows)
        assert [one.text for one in result.chunks] == texts
        assert {name: getattr(result, name) for name in found} == found

    return check


def dropped(reason: str, row: dict[str, Any], **options: Any) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        if "languages" in options:
            pytest.importorskip("resiliparse")
        result = read(folder, (GOOD, row), **options)
        assert {one.document for one in result.chunks} == {"good"} and result.dropped == {reason: 1}

    return check


def refused(folder: Path) -> None:
    with pytest.raises(UserError, match="no document is left to ask about: 1 empty, 1 rubbish"):
        read(folder, ({"text": " "}, {"text": SCAN}))


def cut_to_fit(folder: Path) -> None:
    result = read(folder, (GOOD,), count_tokens=len, max_tokens=30)
    assert result.shortened == 1 and max(len(one.text) for one in result.chunks) <= 30


def text_files(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "Acme.v2.txt").write_bytes("The rent is \u201cfair\u201d.".encode("cp1252"))
    (folder / "a" / "lease.md").write_text("# Lease\n\nThe tenant pays.")
    (folder / "lease.txt").write_text("The landlord pays.")
    (folder / "Sale.TXT.gz").write_bytes(gzip.compress(b"The buyer pays."))
    (folder / "blank.txt").write_text(" \n")
    found = list(documents([str(folder / "**" / "*.txt"), str(folder / "a" / "*.md"), str(folder / "*.gz")]))
    lease, other = str(folder / "lease.txt"), str(folder / "a" / "lease.md")
    assert [(one["id"], one["title"], one["response"]) for one in found] == [
        ("Acme.v2", "Acme.v2", "The rent is \u201cfair\u201d."),
        ("blank", "blank", " \n"),
        (lease, "lease", "The landlord pays."),
        (other, "lease", "# Lease\n\nThe tenant pays."),
        ("Sale", "Sale", "The buyer pays."),
    ]
    assert chunk_documents(found, words=40).dropped == {"empty": 1}


def damaged_texts(folder: Path) -> None:
    whole = gzip.compress(b"The buyer pays the price. " * 99)
    for name, body in (("a.txt.gz", b"no"), ("b.txt.gz", whole[:20]), ("c.txt.xz", b"no"), ("d.txt.zst", b"no")):
        (folder / name).write_bytes(body)
        with pytest.raises(UserError, match=rf"{name}: the compressed file is damaged \(.*\); copy it anew"):
            list(documents([str(folder / name)]))


def other_columns(folder: Path) -> None:
    row = {"body": "The tenant pays the rent.", "head": "Lease", "key": "k-1", "prompt": "not asked"}
    (folder / "lease.jsonl").write_text(json.dumps(row))
    for columns in (
        {"text": "body", "title": "head", "id": "key"},
        {"lease.jsonl": {"text": "body", "title": "head", "id": "key"}},
    ):
        (found,) = documents([str(folder / "lease.jsonl")], columns)
        assert (found["id"], found["title"], found["response"]) == ("k-1", "Lease", row["body"])
        assert chunk_documents([found], words=40).chunks[0].text == row["body"]
        (folder / "sale.txt").write_text("The buyer pays.")
        both = [str(folder / "lease.jsonl"), str(folder / "sale.txt")]
        if "text" in columns:
            with pytest.raises(
                UserError, match=r"sale.txt: it is read as a text, and has no columns; .* by their names"
            ):
                list(documents(both, columns))
        else:
            assert [one["id"] for one in documents(both, columns)] == ["k-1", "sale"]
    with pytest.raises(UserError, match=r"is a folder; name its files, for example .*/\*\.txt"):
        list(documents([str(folder)]))
    with pytest.raises(UserError, match="documents.columns: text is missing"):
        list(documents([str(folder / "lease.jsonl")], {"title": "head"}))
    with pytest.raises(UserError, match="a document has no 'prompt'; it has text, title, id, source"):
        list(documents([str(folder / "lease.jsonl")], {"prompt": "body"}))


def null_texts(folder: Path) -> None:
    named = {"text": "body"}
    for columns, rows in (
        (None, [{"id": "a", "text": None}, {"id": "b", "text": "The tenant pays."}]),
        (None, [{"prompt": "", "response": "The tenant pays."}, {"prompt": "", "response": None}]),
        (named, [{"id": "b", "body": "The tenant pays."}, {"id": "a", "body": None}]),
    ):
        (folder / "lease.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = chunk_documents(documents([str(folder / "lease.jsonl")], columns), words=40)
        assert [one.text for one in result.chunks] == ["The tenant pays."] and result.dropped == {"empty": 1}


def overlapping(folder: Path) -> None:
    for name in ("lease", "sale"):
        (folder / f"{name}.txt").write_text(f"The {name} is at an end.")
    found = documents([str(folder / "*.txt"), str(folder / "lease.txt"), str(folder / "l*.txt")])
    assert [one["id"] for one in found] == ["lease", "sale"]


def no_text(folder: Path) -> None:
    (folder / "lease.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(UserError, match=r"lease.pdf: not a known kind of file; give .txt, .md \(which pdftotext"):
        list(documents([str(folder / "lease.pdf")]))


def documents(files: list[str], columns: Any = None) -> Any:
    return read_documents(build(QuestionConfig, {"documents": {"files": files, "columns": columns}}, "test"))


CASES = [
    Case(
        "`.txt`, `.md`, `.txt.gz`",
        "the file is one document, called by its name without the ending, by its path where files of one name are "
        "given; Windows-1252 where it is not UTF-8",
        text_files,
    ),
    Case("a file that two of the patterns match", "read once", overlapping),
    Case("a compressed text file that is damaged", "refused", damaged_texts),
    Case(
        "records with other keys, and `documents.columns: {text: body, title: head, id: key}`",
        "documents; of columns that are no part of one, refused; beside text files, `{pattern: {text: body}}`",
        other_columns,
    ),
    Case("a record whose text is null", "dropped and counted as empty", null_texts),
    Case("`.pdf`, `.docx`", "refused: save the text, as pdftotext and pandoc do", no_text),
    Case(
        "a record `text`, with or without `title`",
        "a document of that name, else of its id",
        kept([GOOD["text"]], GOOD),
    ),
    Case(
        "a record `prompt`, `response`",
        "the document is both, or the response alone where the prompt is empty",
        kept(
            ["Who pays?\n\nThe tenant.", "Rent."],
            {"prompt": "Who pays?", "response": "The tenant."},
            {"prompt": "", "response": "Rent."},
        ),
    ),
    Case(
        "a document without a word, or white space alone",
        "dropped and counted",
        dropped("empty", {"text": " \u00a0 \n"}),
    ),
    Case(
        "the same text twice, apart from white space",
        "the first counts",
        dropped("the same as another", {"text": GOOD["text"] + "\n"}),
    ),
    Case(
        "a bad scan, a wrong encoding",
        "dropped and counted: less than half of its signs are letters or digits, or of its words look like words",
        dropped("rubbish: hardly any letters", {"text": SCAN}),
    ),
    Case(
        "a text with control characters, more than one in fifty",
        "dropped and counted",
        dropped("rubbish: control characters", {"text": "The\x05 tenant\x06 pays\x07 rent."}),
    ),
    Case(
        "a document of one line, without any end of a sentence",
        "cut between words, and noted",
        kept(["rent " * 39 + "rent", "rent"], {"text": "rent " * 41}, notes={"one line": 1, "no end of a sentence": 1}),
    ),
    Case(
        "a document in another language, where `languages` are given",
        "dropped and counted",
        dropped("in another language", {"text": GERMAN}, languages=("en",)),
    ),
    Case("a chunk of more tokens than the model can read", "cut further, and counted", cut_to_fit),
    Case("nothing but such documents", "refused, with how many for what reason", refused),
]
