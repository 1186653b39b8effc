"""Web archives for tests: records as crawlers write them, and the ways in which files are bad."""

from __future__ import annotations

import base64
import gzip
import hashlib


def record(
    body: bytes,
    *,
    kind: str = "response",
    url: str = "http://a.example/",
    length: int | None = None,
    digest: bytes | None = None,
    extra: str = "",
) -> bytes:
    """One WARC record. length: what its header says, by default the truth. digest: of which bytes."""
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-02T03:04:05Z\r\n"
    head += f"WARC-Record-ID: <urn:uuid:{hashlib.md5(url.encode()).hexdigest()}>\r\n{extra}"
    if digest is not None:
        head += f"WARC-Block-Digest: sha1:{base64.b32encode(hashlib.sha1(digest).digest()).decode()}\r\n"
    mime = "application/http; msgtype=response" if kind == "response" else "text/plain"
    head += f"Content-Type: {mime}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body + b"\r\n\r\n"


def http(page: bytes, *, mime: str = "text/html", status: str = "200 OK", length: int | None = None) -> bytes:
    """An HTTP reply with this page."""
    said = len(page) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: {mime}\r\nContent-Length: {said}\r\n\r\n".encode() + page


def page(text: str, title: str = "A page", encoding: str = "utf-8") -> bytes:
    """An HTML page with paragraphs of this text."""
    parts = "".join(f"<p>{part}</p>" for part in text.split("\n"))
    return (
        f'<html><head><meta charset="{encoding}"><title>{title}</title></head><body>'
        f"<nav><a href=/>Home</a></nav><main><h1>{title}</h1>{parts}</main></body></html>"
    ).encode(encoding)


def members(records: list[bytes]) -> bytes:
    """A .warc.gz: one gzip member a record."""
    return b"".join(gzip.compress(part, mtime=0) for part in records)
