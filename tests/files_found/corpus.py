"""Files of a corpus that is mined, and what is odd in them."""

from __future__ import annotations

import gzip
import json
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from warc_pages import http, members, page, record

from files_found.case import Case
from ntk_jax.errors import UserError
from ntk_jax.mining.corpus.documents import Document, Drop
from ntk_jax.mining.corpus.extract import Extractor
from ntk_jax.mining.corpus.files import shards_of
from ntk_jax.mining.corpus.readers import Reading, read_piece

TITLE = "Files of a corpus"

TEXT = "The nurse walks to the bed and looks at the chart."
GOOD = record(http(page(TEXT)), url="http://a.example/good")


def rows(*found: object) -> bytes:
    return "\n".join(json.dumps(row) for row in found).encode()


def read(folder: Path, name: str, content: bytes, reading: Reading) -> tuple[list[Document | Drop], Counter[str]]:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    notes: Counter[str] = Counter()
    (shard,) = shards_of(folder, 1)
    return [found for piece in shard.pieces for found in read_piece(piece, reading, notes)], notes


def reads(name: str, content: bytes, drops: str = "", documents: int = 1, note: str = "", **reading: str) -> Callable:
    """So many documents with the text, these reasons of drops, and this note counted."""

    def check(folder: Path) -> None:
        if "warc" in name or "wet" in name:
            pytest.importorskip("fastwarc")
        found, notes = read(folder, name, content, Reading(**reading))
        texts = [one for one in found if isinstance(one, Document)]
        assert len(texts) == documents and all(TEXT in one.text or TEXT.encode() in (one.page or b"") for one in texts)
        assert [one.reason for one in found if isinstance(one, Drop)] == drops.split()
        assert not note or notes[note] == 1

    return check


def refuses(name: str, content: bytes, message: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        with pytest.raises(UserError, match=message):
            read(folder, name, content, Reading())

    return check


def hangs(folder: Path) -> None:
    pytest.importorskip("resiliparse")
    with Extractor(seconds=0.2) as extractor:
        assert extractor.extract(b"<div>" * 20000).failure == "timeout"
        assert TEXT in extractor.extract(page(TEXT)).text


def bad_member() -> bytes:
    bad = bytearray(gzip.compress(record(http(page(TEXT * 9)))))
    bad[60] ^= 0xFF
    return bytes(bad) + members([GOOD])


WRONG = record(http(page("swallows")), length=4000)
WET = record(TEXT.encode(), kind="conversion")

CASES = [
    Case("`.warc`, `.warc.gz`", "each HTML page with status 200 is a document", reads("a.warc.gz", members([GOOD]))),
    Case("`.wet`, `.warc.wet.gz`", "each text is a document", reads("a.warc.wet.gz", members([WET]))),
    Case("one gzip member around a whole archive", "read", reads("a.warc.gz", gzip.compress(GOOD * 2), documents=2)),
    Case(
        "a damaged gzip member",
        "`corrupt_member`; the records behind it are read",
        reads("a.warc.gz", bad_member(), "corrupt_member"),
    ),
    Case(
        "an archive that breaks off",
        "`cut_short`; the records before it are read",
        reads("a.warc", GOOD + record(http(page(TEXT)))[:-30], "cut_short"),
    ),
    Case(
        "a `Content-Length` that is too large or too small",
        "`wrong_length`; no record behind it is swallowed",
        reads("a.warc", WRONG + GOOD, "wrong_length"),
    ),
    Case(
        "a block digest that does not fit",
        "`wrong_digest`",
        reads("a.warc", record(http(page(TEXT)), digest=b"other") + GOOD, "wrong_digest"),
    ),
    Case("a record without a digest", "read, and counted as `no_digest`", reads("a.warc", GOOD, note="no_digest")),
    Case(
        "requests, metadata and the like",
        "no documents, counted as `not_a_page`",
        reads("a.warc", record(b"GET / HTTP/1.1\r\n\r\n", kind="request") + GOOD, note="not_a_page"),
    ),
    Case(
        "a page with a status other than 200",
        "`http_status`",
        reads("a.warc", record(http(page(TEXT), status="404 Not Found")) + GOOD, "http_status"),
    ),
    Case(
        "a picture, a PDF",
        "`no_text_type`",
        reads("a.warc", record(http(b"%PDF", mime="application/pdf")) + GOOD, "no_text_type"),
    ),
    Case("an empty page", "`empty`", reads("a.warc", record(http(b"")) + GOOD, "empty")),
    Case(
        "a body that is not compressed as it says",
        "`damaged_record`",
        reads("a.warc", record(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nno") + GOOD, "damaged_record"),
    ),
    Case("a page that keeps the extractor busy", "`timeout`, after `page_seconds` of CPU time", hangs),
    Case(
        "a page that is not UTF-8",
        "read by its server's charset, its own, or the look of its bytes",
        reads("a.html", page(TEXT + " été", encoding="cp1252")),
    ),
    Case(
        "`.jsonl`, also `.gz`, `.xz`, `.zst`; `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`",
        "each row is a document; its text stands under `text_key`",
        reads("a.jsonl.xz", lzma.compress(rows({"body": TEXT})), text_key="body"),
    ),
    Case(
        "records without that key",
        "refused, with the keys that there are",
        refuses("a.jsonl", rows({"content": TEXT}), "keys found: content"),
    ),
    Case(
        "a row whose text is null or no text",
        "`no_text`",
        reads("a.jsonl", rows({"text": TEXT}, {"text": None}), "no_text"),
    ),
    Case(
        "a line that is not JSON", "`unreadable_row`", reads("a.jsonl", rows({"text": TEXT}) + b"\n{", "unreadable_row")
    ),
    Case(
        "a file that is damaged from some place on",
        "`damaged_file`; what stands before is read",
        reads("a.csv", f"text\n{TEXT}\na,b,c\n".encode(), "damaged_file"),
    ),
    Case(
        "`.txt`, `.md`",
        "the file is one document; Windows-1252 where it is not UTF-8",
        reads("a.txt", f"{TEXT} été".encode("cp1252"), note="not_utf8"),
    ),
    Case("`.html`", "the file is one page", reads("a.html", page(TEXT))),
    Case(
        "a folder",
        "all files of these kinds in it and below it, hidden ones left out",
        reads("in/a.txt", TEXT.encode()),
    ),
    Case("files of other kinds only", "refused", refuses("a.pdf", b"x", "holds no file of a known kind")),
    Case("files of 0 bytes only", "refused: the corpus is empty", refuses("a.jsonl", b"", "the corpus is empty")),
]
