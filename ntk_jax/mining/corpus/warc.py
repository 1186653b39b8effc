"""Documents of web archives: the pages of WARC files and the texts of WET files (ISO 28500)."""

from __future__ import annotations

import importlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ntk_jax.data.decoding import clean, decode
from ntk_jax.errors import UserError
from ntk_jax.mining.corpus.documents import Document, Drop
from ntk_jax.mining.corpus.frames import Frame, read_frames

_HTML = ("text/html", "application/xhtml+xml")
_DIGESTS = ("sha1", "sha256", "sha512", "md5")  # what fastwarc can compute; it calls all others wrong
_SHOWN = 500  # bytes of a record that cannot be used, for the report


def read_warc(
    path: Path,
    name: str,
    start: int = 0,
    stop: int | None = None,
    *,
    notes: Counter[str],
    verify_digests: bool = True,
    largest_page: int = 1 << 23,
) -> Iterator[Document | Drop]:
    """The documents of an archive whose records begin in the bytes [start, stop), and its faults.

    name: the file's, for ids. notes: counts what is worth knowing of records that are kept: `no_digest` (or one of an
    unknown kind), `cut_by_crawler` (it says so), `shorter_than_said` (than the HTTP length), `not_a_page` (requests and
    the like, which are no documents). verify_digests: records whose digest is wrong are dropped; one without is kept.
    largest_page: bytes. Raises UserError: fastwarc is not installed, or the file cannot be read.
    """
    warc = _library("fastwarc.warc")
    for frame in read_frames(path, start, stop):
        place = f"{name}@{frame.offset}" + (f"+{frame.inside}" if frame.inside else "")
        if frame.fault:
            yield Drop(place, frame.fault, "", frame.data[:_SHOWN].decode("utf8", "replace"))
            continue
        try:
            # One record at a time, from memory: the library then cannot lose more than this one.
            records = warc.ArchiveIterator(io.BytesIO(frame.data), parse_http=False)
            found = _document(next(iter(records)), frame, place, name, notes, verify_digests, largest_page)
        except (OSError, ValueError, StopIteration) as error:
            detail = str(error).splitlines()[0][:200] if str(error) else ""
            found = Drop(place, "damaged_record", detail, frame.data[:_SHOWN].decode("utf8", "replace"))
        if found:
            yield found


def _document(
    record: Any, frame: Frame, place: str, name: str, notes: Counter[str], verify: bool, largest: int
) -> Document | Drop | None:
    """None: a record of a kind that holds no document. Raises OSError: what the record holds cannot be decoded."""
    kind = (record.headers.get("WARC-Type") or "").lower()
    if kind not in ("response", "resource", "conversion"):
        notes["not_a_page"] += 1
        return None
    headers = record.headers
    url = clean(headers.get("WARC-Target-URI") or "").strip("<>")
    digest = (headers.get("WARC-Block-Digest") or "").partition(":")[0].lower()
    if verify and digest in _DIGESTS and not record.verify_block_digest():
        return Drop(place, "wrong_digest", url)
    notes["no_digest"] += digest not in _DIGESTS
    notes["cut_by_crawler"] += bool(headers.get("WARC-Truncated"))
    facts: dict[str, Any] = {
        "url": url,
        "date": clean(headers.get("WARC-Date") or ""),
        "record_id": clean(headers.get("WARC-Record-ID") or "").strip("<>"),
    }
    mime, charset = (headers.get("Content-Type") or "").split(";")[0].strip().lower(), None
    if kind == "response" and url.lower().startswith("http"):
        record.parse_http(auto_decode="all")
        if not record.http_headers or record.http_headers.status_code is None:
            return Drop(place, "no_http", url)
        if record.http_headers.status_code != 200:
            return Drop(place, "http_status", f"{record.http_headers.status_code} {url}")
        mime, charset = (record.http_content_type or "").lower(), record.http_charset
    body = record.reader.read(largest + 1)  # a page of some kilobytes may be uncompressed to many gigabytes
    if len(body) > largest:
        return Drop(place, "too_large", f"more than {largest:,} bytes {url}")
    if kind == "response" and (said := _said_length(record)) is not None:
        notes["shorter_than_said"] += len(body) < said
    if not body.strip():
        return Drop(place, "empty", url)
    if mime in _HTML:
        return Document(place, name, frame.offset, page=body, charset=charset, **facts)
    if mime == "text/plain":
        text, wrong = decode(body, charset)
        notes["not_utf8"] += wrong
        return Document(place, name, frame.offset, text=text, **facts)
    return Drop(place, "no_text_type", f"{mime} {url}")


def _said_length(record: Any) -> int | None:
    """The HTTP length of a body that is stored as it was sent."""
    headers = record.http_headers
    if not headers or headers.get("Transfer-Encoding") or headers.get("Content-Encoding"):
        return None
    said = (headers.get("Content-Length") or "").strip()
    return int(said) if said.isascii() and said.isdigit() and len(said) < 19 else None


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError("web archives need the extra crawl; install it: pip install 'ntk_jax[crawl]'") from None
