"""What a reader of the corpus finds: documents, and what had to be dropped."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")


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


def clean(text: str) -> str:
    """The text without what no file of text can hold: zero bytes and halves of surrogate pairs."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def nearly_utf8(data: bytes) -> str | None:
    """The text of bytes that are UTF-8 but for some damage, such as a character that was cut: what is damaged becomes
    U+FFFD. None: they are of another encoding, in which few bytes beyond ASCII make sense as UTF-8."""
    text = data.decode("utf-8", "replace")
    damaged = text.count("\ufffd") - data.count("\ufffd".encode())
    return text if len(_BEYOND_ASCII.findall(text)) - damaged > 2 * damaged else None
