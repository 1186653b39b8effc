"""Text files as rows: JSON lines, a JSON array, CSV and TSV, each plain or compressed, with the line of each row.

Everything streams. A row is handed on as a function that parses it, so that rows nobody asks for need not be parsed;
of JSON lines only the line ends are then looked at.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ntk_jax.data.decoding import decode
from ntk_jax.errors import UserError, shown

Row = tuple[int, int, Callable[[], Any]]  # number of the row, for ids; its line; the function that parses it

COMPRESSED = (".gz", ".xz", ".zst")
JSON = (".jsonl", ".ndjson", ".json")
TABLES = {".csv": ",", ".tsv": "\t"}
TEXT = (".txt", ".md")
LARGEST_TEXT = 1 << 26  # bytes of a file that is read as one text
DEEPEST = 100  # objects and lists inside each other; far below what Python's own stack holds
_CHUNK = 1 << 20  # characters of a JSON array read at a time
_CELL = 1 << 27  # characters: far more than a text, and less than what a forgotten quote would gather
_SPACE = " \t\n\r"
_MMLU = ("question", "A", "B", "C", "D", "answer")  # the tables of its first release have no header


def plain_name(path: Path) -> str:
    """The name without the ending of a compression, in small letters."""
    name = path.name.lower()
    return next((name.removesuffix(ending) for ending in COMPRESSED if name.endswith(ending)), name)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a text file by the ending of its name. Raises UserError: unreadable, damaged, no UTF-8 text, a line
    that is not JSON, a table whose rows do not fit its header."""
    ending = Path(plain_name(path)).suffix
    line = [0]  # the last one that was read whole, for messages
    try:
        with open_bytes(path) as file:
            if ending in TABLES or _first(file) == b"[":
                with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
                    yield from (
                        _table(path, text, TABLES[ending], line) if ending in TABLES else _array(path, text, line)
                    )
            else:
                yield from _json_lines(path, file, line)
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{path}: the compressed file is damaged after line {line[0]} ({error}); copy it anew"
        ) from None
    except UnicodeDecodeError:
        after = f" after line {line[0]}" if line[0] else ""
        raise UserError(f"{path}: not UTF-8 text{after}; save the file as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}:{line[0] + 1}: not a table ({error}); correct the quotes of this row") from None
    except OSError as error:
        if path.name.lower().endswith(".zst") and error.errno is None:  # the library has no kind of its own for it
            raise UserError(
                f"{path}: the compressed file is damaged after line {line[0]} ({error}); copy it anew"
            ) from None
        raise UserError(f"cannot read {path}: {error.strerror or error}; correct its path or its permissions") from None


def read_text(path: Path) -> str:
    """All of a text file, in UTF-8, UTF-16 with its mark, or Windows-1252. Raises UserError: unreadable, damaged, or
    larger than `LARGEST_TEXT`."""
    try:
        with open_bytes(path) as file:
            body = file.read(LARGEST_TEXT + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's own; libraries' have no number
            raise UserError(f"cannot read {path}: {error.strerror}; correct its path or its permissions") from None
        raise UserError(f"{path}: the compressed file is damaged ({error}); copy it anew") from None
    if len(body) > LARGEST_TEXT:
        raise UserError(f"{path}: more than {LARGEST_TEXT:,} bytes are no single document; cut it into several files")
    return decode(body, None)[0]


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, uncompressed."""
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if name.endswith(".xz"):
        return lzma.open(path, "rb")
    if name.endswith(".zst"):
        import pyarrow

        with open(path, "rb"):  # Python's own error where it cannot be opened
            pass
        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    return open(path, "rb")


def parse_json(text: str) -> Any:
    """What the JSON text says; a key that an object has twice is refused, and what is nested deeper than `DEEPEST`.

    Raises ValueError (JSONDecodeError where it is not JSON); RecursionError.
    """
    found = _DECODER.decode(text)
    _refuse_deep(found, text.count("[") + text.count("{"))
    return found


def _first(file: IO[bytes]) -> bytes:
    """The first character that is no white space. One that is [ begins an array; other files have a record a line."""
    start: bytes = file.peek(64)  # type: ignore[attr-defined]
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _json_lines(path: Path, file: IO[bytes], line: list[int]) -> Iterator[Row]:
    for number, text in enumerate(file, start=1):
        if number == 1:
            text = text.removeprefix(b"\xef\xbb\xbf")  # the mark some editors put at the start
        line[0] = number
        if not text.isspace() and text:
            yield number, number, functools.partial(_parse_line, path, number, text)


def _parse_line(path: Path, number: int, line: bytes) -> Any:
    try:
        return parse_json(line.decode("utf8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        if line.strip() in (b"{", b"}") and plain_name(path).endswith(".json"):
            raise UserError(
                f"{path}:{number}: the file is no list of records; write one array of them, or one object on each line"
            ) from None
        raise UserError(
            f"{path}:{number}: not JSON ({error.msg}, column {error.colno}); correct or remove the line"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deep, a key twice, or a number of too many digits
        raise UserError(f"{path}:{number}: cannot be read as JSON ({error}); correct or remove the line") from None


class _Twice(ValueError):
    """An object with the same key twice: parsers disagree which of the values it has."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _refuse_deep(value: Any, most: int) -> None:
    """most: no value can be deeper; few texts have so many brackets, and only these are looked at."""
    level, depth = [value] if most > DEEPEST else [], 0
    while level:
        depth += 1
        if depth > DEEPEST + 1:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        inner = [item for item in level if isinstance(item, (dict, list))]
        level = [child for item in inner for child in (item.values() if isinstance(item, dict) else item)]


# -- one array -----------------------------------------------------------------------------------------------------


class _Text:
    """A text that is read as far as it is looked at. start: where the part that matters begins; line: its line."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.text, self.start, self.line, self.whole = file, "", 0, 1, False

    def more(self) -> bool:
        """Doubles what is there, so that a long record is looked at a few times only; False at the end."""
        rest = self.text[self.start :]
        added = self.file.read(max(_CHUNK, len(rest)))
        self.text, self.start, self.whole = rest + added, 0, not added
        return bool(added)

    def skip(self, end: int) -> None:
        """Goes on behind this place."""
        self.line += self.text.count("\n", self.start, end)
        self.start = end

    def next(self) -> str:
        """The next character that is no white space, without going behind it; empty at the end."""
        while True:
            end = self.start
            while end < len(self.text) and self.text[end] in _SPACE:
                end += 1
            self.skip(end)
            if end < len(self.text):
                return self.text[end]
            if not self.more():
                return ""


def _array(path: Path, file: IO[str], line: list[int]) -> Iterator[Row]:
    text = _Text(file)
    text.next()
    text.skip(text.start + 1)  # the bracket that made it an array
    number = 0
    while True:
        found = text.next()
        line[0] = text.line
        if found == "]" and not number:
            break
        if found != "{":
            what = "the array ends in the middle" if not found else f"a record must begin here, found {shown(found)}"
            raise UserError(f"{path}:{text.line}: {what}; an array holds one object for each record")
        number, begun = number + 1, text.line
        record = _element(path, text)
        yield number, begun, functools.partial(_given, record)
        found = text.next()
        if found == "]":
            break
        if found != ",":
            what = (
                "the array ends in the middle"
                if not found
                else f"expected , or ] behind a record, found {shown(found)}"
            )
            raise UserError(f"{path}:{text.line}: not JSON ({what}); correct the file")
        text.skip(text.start + 1)
    text.skip(text.start + 1)
    if text.next():
        raise UserError(f"{path}:{text.line}: there is text behind the end of the array; remove it")


def _element(path: Path, text: _Text) -> Any:
    """The record that begins at the start of the text."""
    while True:
        try:
            found, end = _DECODER.raw_decode(text.text, text.start)
            _refuse_deep(found, text.text.count("[", text.start, end) + text.text.count("{", text.start, end))
        except json.JSONDecodeError as error:
            # Where the text that is there breaks off, the record goes on in what was not read yet.
            broken_off = error.msg.startswith("Unterminated string") or error.pos >= len(text.text) - 12
            if broken_off and not text.whole:
                text.more()
                continue
            line = text.line + text.text.count("\n", text.start, error.pos)
            raise UserError(f"{path}:{line}: not JSON ({error.msg}); correct the record") from None
        except (RecursionError, ValueError) as error:
            raise UserError(f"{path}:{text.line}: cannot be read as JSON ({error}); correct the record") from None
        text.skip(end)
        return found


def _given(value: Any) -> Any:
    return value


# -- tables --------------------------------------------------------------------------------------------------------


def _table(path: Path, file: IO[str], delimiter: str, line: list[int]) -> Iterator[Row]:
    csv.field_size_limit(_CELL)
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    for cells in rows:
        begun, line[0] = line[0] + 1, rows.line_num
        if not cells:
            continue
        if any("\0" in cell for cell in cells):
            raise UserError(f"{path}:{begun}: a byte of a table is zero, which is no text; save the file as UTF-8")
        if header is None:
            if len(cells) != len(_MMLU) or cells[-1] not in _MMLU[1:5] or tuple(cells[1:5]) == _MMLU[1:5]:
                header = _header(path, begun, cells)
                continue
            header = list(_MMLU)
        if len(cells) != len(header):
            raise UserError(
                f"{path}:{begun}: the row has {len(cells)} cells and the header {len(header)}; correct its quotes"
            )
        number += 1
        yield number, begun, functools.partial(_row, header, cells)


def _row(header: list[str], cells: list[str]) -> dict[str, str]:
    return dict(zip(header, cells, strict=True))


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    twice = [cell for cell in cells if cells.count(cell) > 1]
    if twice:
        raise UserError(
            f"{path}:{line}: two columns are called {shown(twice[0])}; the first row gives each its own name"
        )
    other = next((mark for mark in ";|\t," if mark in cells[0]), "") if len(cells) == 1 else ""
    if other:
        raise UserError(
            f"{path}:{line}: the columns are separated by {shown(other)}; write a .csv with commas, or a .tsv"
        )
    return cells
