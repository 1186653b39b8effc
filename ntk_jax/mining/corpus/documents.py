"""What a reader of the corpus finds: documents, and what had to be dropped."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text, or one page whose text is still to be taken out.

    id: unique in the corpus, the name of the file and the place in it. file: relative to the folder that all files
    share. offset: a byte of a web archive, of another file the number of the row, from 1. page: HTML, its text is not
    known yet; charset: as its server named it. record_id, source: as a record calls them. language: as an archive says.
    """

    id: str
    file: str
    offset: int
    text: str = ""
    page: bytes | None = None
    charset: str | None = None
    url: str = ""
    title: str = ""
    date: str = ""
    record_id: str = ""
    source: str = ""


@dataclass(frozen=True)
class Drop:
    """What is not taken. reason: one word for the counts. detail: more of it, for people. text: how it begins."""

    id: str
    reason: str
    detail: str = ""
    text: str = ""
