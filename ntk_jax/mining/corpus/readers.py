"""Streams the documents of a shard, whatever its files are."""

from __future__ import annotations

import functools
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntk_jax.data import columns, files
from ntk_jax.data.decoding import clean, decode
from ntk_jax.errors import UserError, listed, shown
from ntk_jax.mining.corpus.documents import Document, Drop
from ntk_jax.mining.corpus.files import Piece
from ntk_jax.mining.corpus.warc import read_warc

_STRIPE = 16  # rows that stay together when a file is divided
_SCALE = 1 << 32


@dataclass(frozen=True)
class Reading:
    """How files are read.

    text_key, title_key, url_key, id_key, source_key: of records; only the text must be there. verify_digests: of web
    archives. largest: bytes of a page or of a text file; what is larger is dropped and counted."""

    text_key: str = "text"
    title_key: str = "title"
    url_key: str = "url"
    id_key: str = "id"
    source_key: str = "source"
    verify_digests: bool = True
    largest: int = 1 << 23


def read_piece(piece: Piece, reading: Reading, notes: Counter[str]) -> Iterator[Document | Drop]:
    """The documents of a part of a file, and what of it cannot be used. notes: see `read_warc`.

    Raises UserError: the file cannot be read at all, or its first record has no text under the key.
    """
    path = Path(piece.path)
    if piece.kind == "warc":
        yield from read_warc(
            path,
            piece.name,
            piece.start,
            piece.stop,
            notes=notes,
            verify_digests=reading.verify_digests,
            largest_page=reading.largest,
        )
    elif piece.kind == "rows":
        yield from _rows(piece, reading)
    elif piece.start == 0:  # a file that is one document belongs to the shard with its beginning
        yield _single(path, piece, reading, notes)


def _single(path: Path, piece: Piece, reading: Reading, notes: Counter[str]) -> Document | Drop:
    try:
        with files.open_bytes(path) as file:
            body = file.read(reading.largest + 1)
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; correct its path or its permissions") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        return Drop(piece.name, "damaged_file", str(error)[:200])
    if len(body) > reading.largest:
        return Drop(piece.name, "too_large", f"more than {reading.largest:,} bytes")
    if not body.strip():
        return Drop(piece.name, "empty")
    if piece.kind == "page":
        return Document(piece.name, piece.name, 0, page=body)
    text, wrong = decode(body, None)
    notes["not_utf8"] += wrong
    return Document(piece.name, piece.name, 0, text=text, title=path.name.split(".")[0])


# -- rows ----------------------------------------------------------------------------------------------------------


def _rows(piece: Piece, reading: Reading) -> Iterator[Document | Drop]:
    """Rows cannot be found by bytes where a file is compressed, so every shard passes over all rows and parses its own.
    Whose a row is depends on nothing but its number and the part's bounds."""
    low, high = (edge * _SCALE // piece.size for edge in (piece.start, piece.stop))
    rows, first = _numbered(piece), True
    while True:
        try:
            number, parse = next(rows)
        except StopIteration:
            return
        except UserError as error:
            if piece.stop == piece.size:  # one of the shards of a damaged file counts the damage
                yield Drop(piece.name, "damaged_file", str(error))
            return
        # multiples of the golden ratio fall evenly into any division of an interval (Knuth, volume 3, 6.4)
        own = low <= (number - 1) // _STRIPE * 2654435769 % _SCALE < high
        if not own and not first:
            continue
        try:
            row = parse()
        except UserError as error:
            if own:
                yield Drop(f"{piece.name}-{number}", "unreadable_row", str(error))
            continue
        if first:
            _check_keys(row, piece, reading)
            first = False
        if own:
            yield _row(row, number, piece, reading)


def _numbered(piece: Piece) -> Iterator[tuple[int, Callable[[], Any]]]:
    path, remote = Path(piece.path), columns.remote_kind(piece.path)
    if remote or columns.is_columnar(path):
        found = columns.read_remote(remote, piece.path) if remote else columns.read_file(path)
        yield from ((number, functools.partial(_given, row)) for number, row in enumerate(found, 1))
    else:
        yield from ((number, parse) for number, _, parse in files.read_rows(path))


def _given(row: Any) -> Any:
    return row


def _check_keys(row: Any, piece: Piece, reading: Reading) -> None:
    if not isinstance(row, Mapping) or reading.text_key not in row:
        keys = listed(sorted(map(str, row))) if isinstance(row, Mapping) else "it is no object"
        raise UserError(
            f'{piece.path}: its records have no "{reading.text_key}"; say which key holds the text; keys found: {keys}'
        )


def _row(row: Any, number: int, piece: Piece, reading: Reading) -> Document | Drop:
    place = f"{piece.name}-{number}"
    text = row.get(reading.text_key) if isinstance(row, Mapping) else None
    if not isinstance(text, str):
        return Drop(place, "no_text", f"the text is {shown(text)}")
    if len(text.encode("utf8", "surrogatepass")) > reading.largest:
        return Drop(place, "too_large", f"more than {reading.largest:,} bytes", text[:500])
    if not text.strip():
        return Drop(place, "empty")

    def field(key: str) -> str:
        value = row.get(key)
        return clean(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""

    return Document(
        place,
        piece.name,
        number,
        text=clean(text),
        url=field(reading.url_key),
        title=field(reading.title_key),
        date=field("date"),
        record_id=field(reading.id_key),
        source=field(reading.source_key),
    )
