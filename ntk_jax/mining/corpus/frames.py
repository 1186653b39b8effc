"""Where the records of a WARC file begin and end, found without trust in its lengths or in its compression.

A reader that believes a file loses its rest to one bad gzip member, hands on a record that was cut short as if it were
whole, and swallows the next records where a Content-Length is too large. Here the end of each record is compared with
what must follow it. A record that does not fit is a fault, and reading goes on at the next record.
"""

from __future__ import annotations

import mmap
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ntk_jax.errors import UserError

MEMBER = b"\x1f\x8b\x08"  # how a gzip member begins
LARGEST = 1 << 26  # bytes of a record; what says that it is larger is searched for the next record instead
_BEGIN = re.compile(rb"WARC/1\.[01]\r?\n")
_NEXT = re.compile(rb"\r?\n\r?\n(?=WARC/1\.[01]\r?\n)")
_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(\d{1,18})[ \t]*\r?$")
_BLANK = re.compile(rb"\r?\n\r?\n")
_HEADER = 1 << 16  # bytes that the header of a record may have
_PIECE = 1 << 16


@dataclass(frozen=True)
class Frame:
    """One record. offset: of its gzip member in the file, or of the record itself. inside: bytes of the member before
    it. data: the record with its header. fault: why it cannot be used (`corrupt_member`, `cut_short`, `wrong_length`,
    `no_record`), then data is what there is of it."""

    offset: int
    inside: int
    data: bytes
    fault: str | None = None


def read_frames(path: Path, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
    """The records whose member, or who themselves, begin in the bytes [start, stop) of a file, compressed or not.

    Raises UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if not size:
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                stop = size if stop is None else min(stop, size)
                yield from (_members if _is_compressed(data) else _plain)(data, start, stop)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; correct its path or permissions") from None


def _is_compressed(data: mmap.mmap) -> bool:
    """By how the file begins; where that is damaged, by whether a member with a record comes later."""
    if data[:2] == MEMBER[:2]:
        return True
    return not _BEGIN.match(data) and not _NEXT.search(data) and _next_member(data, 0) >= 0


# -- gzip ----------------------------------------------------------------------------------------------------------


def _members(data: mmap.mmap, start: int, stop: int) -> Iterator[Frame]:
    place = start if start == 0 else _next_member(data, start)
    while 0 <= place < stop:
        member = _Member(data, place)
        try:
            yield from _split(member, place)
            member.skip()
            whole, end = member.ended, member.end
        except zlib.error:
            yield Frame(place, 0, b"", "corrupt_member")
            whole, end = False, place + 1
        if whole and data[end : end + 3] == MEMBER:
            place = end
        else:
            if whole and end < len(data):
                yield Frame(end, 0, b"", "corrupt_member")  # something stands where a member should begin
            place = _next_member(data, end if whole else place + 1)


def _next_member(data: mmap.mmap, start: int) -> int:
    """Where the next member that holds a record begins, -1 where none does. Compressed bytes look like the beginning of
    a member once in 16 million; few of these can be uncompressed, and none gives a record."""
    place = data.find(MEMBER, start)
    while place >= 0:
        try:
            if _BEGIN.match(zlib.decompressobj(31).decompress(data[place : place + _PIECE], 64)):
                return place
        except zlib.error:
            pass
        place = data.find(MEMBER, place + 1)
    return -1


class _Member:
    """The bytes of one gzip member, uncompressed as they are asked for. end: where it ends in the file; ended: whether
    that was reached (a file that was cut has no end)."""

    def __init__(self, data: mmap.mmap, place: int) -> None:
        self.data, self.end, self.ended = data, place, False
        self.stream = zlib.decompressobj(31)

    def read(self) -> bytes:
        """The next bytes, empty at the end."""
        while not self.ended:
            piece = self.stream.unconsumed_tail or self.data[self.end : self.end + _PIECE]
            if not piece:
                return b""
            fresh = not self.stream.unconsumed_tail
            found = self.stream.decompress(piece, 1 << 20)
            if fresh:
                self.end += len(piece)
            if self.stream.eof:
                self.ended, self.end = True, self.end - len(self.stream.unused_data)
            if found:
                return found
        return b""

    def skip(self) -> None:
        """Goes to the end."""
        while self.read():
            pass


# -- no compression ------------------------------------------------------------------------------------------------


class _Bytes:
    """The bytes of a file from a place on. That the file was cut cannot be seen: `ended` is never true."""

    def __init__(self, data: mmap.mmap, place: int) -> None:
        self.data, self.end, self.ended = data, place, False

    def read(self) -> bytes:
        found = self.data[self.end : self.end + (1 << 20)]
        self.end += len(found)
        return found


def _plain(data: mmap.mmap, start: int, stop: int) -> Iterator[Frame]:
    if start:
        # the empty lines before a record may stand in front of `start`
        found = _NEXT.search(data, max(start - 4, 0))
        while found and found.end() < start:
            found = _NEXT.search(data, found.end())
        if not found:
            return
        start = found.end()
    for frame in _split(_Bytes(data, start), start):
        if start + frame.inside >= stop:
            return
        yield Frame(start + frame.inside, 0, frame.data, frame.fault)


# -- records -------------------------------------------------------------------------------------------------------


class _Window:
    """A stream of which as much is held as is looked at. text[at:] is what is ahead; passed: bytes before that."""

    def __init__(self, source: _Member | _Bytes) -> None:
        self.source, self.text, self.at, self.passed = source, b"", 0, 0

    def have(self, count: int) -> bool:
        """Reads until so many bytes are ahead; False where the stream ends before."""
        parts, size = [self.text[self.at :]], len(self.text) - self.at
        if size >= count:
            return True
        while size < count and (piece := self.source.read()):
            parts.append(piece)
            size += len(piece)
        self.text, self.at = b"".join(parts), 0
        return size >= count

    def skip(self, count: int) -> None:
        self.at += count
        self.passed += count

    def skip_to_record(self, start: int) -> None:
        """Goes to the next record that begins behind `start` bytes from here, or to the end."""
        self.skip(start)
        while True:
            found = _NEXT.search(self.text, self.at)
            if found:
                self.skip(found.end() - self.at)
                return
            self.skip(max(len(self.text) - self.at - 16, 0))  # the empty lines may go on in what comes
            if not self.have(len(self.text) - self.at + 1):
                self.skip(len(self.text) - self.at)
                return


def _split(source: _Member | _Bytes, offset: int) -> Iterator[Frame]:
    """The records of a stream. Ends with the stream; raises zlib.error where it cannot be uncompressed."""
    window = _Window(source)
    while window.have(1):
        if window.text[window.at] in b"\r\n":
            window.skip(1)
            continue
        window.have(_HEADER)
        inside, head = window.passed, window.text[window.at : window.at + _HEADER]
        blank = _BLANK.search(head)
        if not _BEGIN.match(head) or not blank:
            begun = head.startswith(b"WARC/1."[: len(head)])
            cut = begun and len(head) < _HEADER and not source.ended and not blank
            window.skip_to_record(min(1, len(head)))
            yield Frame(offset, inside, head, "cut_short" if cut else "no_record")
            continue
        declared = _LENGTH.search(head, 0, blank.end())
        end = blank.end() + int(declared[1]) if declared else LARGEST + 1
        fault = "wrong_length" if end > LARGEST else _fault(window, blank.end(), end)
        if fault:
            window.skip_to_record(blank.start())
            yield Frame(offset, inside, head, fault)
        else:
            found = window.text[window.at : window.at + end]
            window.skip(end)
            yield Frame(offset, inside, found)


def _fault(window: _Window, body: int, end: int) -> str | None:
    """What is wrong with a record whose content is said to be the bytes [body, end) ahead."""
    window.have(end + 64)  # of a member that ends here, its checksum too
    ahead = memoryview(window.text)[window.at :]
    inner = _NEXT.search(ahead, body)
    if len(ahead) < end:
        return "wrong_length" if inner or window.source.ended else "cut_short"
    behind = bytes(ahead[end : end + 64]).lstrip(b"\r\n")
    cut = any(line.startswith(behind) for line in (b"WARC/1.0\r\n", b"WARC/1.1\r\n"))  # in the next one's first line
    if not cut and not _BEGIN.match(behind):
        return "wrong_length"
    if inner and inner.start() < end:  # records inside? Not if the page is said to reach beyond them.
        http = _BLANK.search(ahead, body, body + _HEADER)
        said = _LENGTH.search(ahead, body, http.end()) if http else None
        if not http or not said or http.end() + int(said[1]) <= inner.start():
            return "wrong_length"
    return None
