"""Bytes as text, whatever encoding they are in."""

from __future__ import annotations

import re

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")


def decode(body: bytes, charset: str | None) -> tuple[str, bool]:
    """(text of these bytes, whether they are no UTF-8): by their mark, as UTF-8 with damage, by the charset that is
    named, or as Windows-1252."""
    marked = "utf-16" if body[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    for encoding in (marked, "", charset or "cp1252", "cp1252", "latin-1"):
        try:
            text = body.decode(encoding) if encoding else nearly_utf8(body)
        except (UnicodeDecodeError, LookupError, ValueError):
            continue
        if text is not None:
            return clean(text), encoding != "utf-8-sig"
    raise AssertionError("latin-1 decodes all bytes")


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
