"""Reads the small files that people wrote, copied or damaged: whatever is wrong with one is one line that names it.

Every JSON or text file of a user or of a run directory comes through here, so that no caller needs to know in how many
ways a file can be bad: absent, a folder, not UTF-8, far too large, cut short, nested without end, of another kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ntk_jax.errors import UserError

LARGEST = 2**30  # bytes of a text file; a tokenizer's has up to 2**25


class Found(dict[str, Any]):
    """An object of a JSON file. A key that is not there is a UserError that names the file."""

    place: str = ""
    remedy: str = ""

    def part(self, key: str) -> dict[str, Any]:
        """The object under a key, empty where the key is not there."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise UserError(f"{self.place} is damaged, its {key} must be an object; {self.remedy}")
        return value

    def __missing__(self, key: object) -> Any:
        raise UserError(f"{self.place} is damaged, it lacks {key}; {self.remedy}")


def read_text(path: str | Path, remedy: str, largest: int = LARGEST) -> str:
    """The text of a UTF-8 file. remedy: what to do about a bad one. Raises UserError."""
    path = Path(path)
    try:
        if path.stat().st_size > largest:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, more than any file of its kind; {remedy}")
        return path.read_bytes().decode("utf8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {remedy}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged, it is not UTF-8 text (byte {error.start}); {remedy}") from None
    except UserError:
        raise
    except ValueError as error:  # a path that no file can have
        raise UserError(f"cannot read {str(path)!r}: {error}; {remedy}") from None


def read_json(path: str | Path, remedy: str, kind: type = object) -> Any:
    """The value in a JSON file; objects are `Found`. kind: dict or list where it must be one. Raises UserError."""
    return parse_json(read_text(path, remedy), str(path), remedy, kind)


def read_json_lines(path: str | Path, remedy: str) -> list[Found]:
    """The objects in a file of JSON lines. Raises UserError, naming the line."""
    lines = read_text(path, remedy).split("\n")
    return [
        parse_json(line, f"{path}, line {number},", remedy, dict)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def parse_json(text: str | bytes, place: str, remedy: str, kind: type = object) -> Any:
    """The value of a JSON text, as `read_json`. place: how a message calls the text."""

    try:
        value = json.loads(text, object_hook=lambda pairs: described(pairs, place, remedy))
    except RecursionError:
        raise UserError(f"{place} is damaged, it is nested too deeply; {remedy}") from None
    except ValueError as error:
        raise UserError(f"{place} is damaged, it is not JSON ({error}); {remedy}") from None
    if _half_a_pair(text):
        raise UserError(f"{place} is damaged, it holds half a surrogate pair, which is no text; {remedy}")
    if not isinstance(value, kind):
        wanted = "object" if kind is dict else kind.__name__
        raise UserError(f"{place} is damaged, it must hold a JSON {wanted}; {remedy}")
    return value


def described(pairs: Mapping[str, Any], place: str, remedy: str) -> Found:
    """The pairs as an object that was found in a file."""
    found = Found(pairs)
    found.place, found.remedy = place, remedy
    return found


_SURROGATES = re.compile(r"(\\u[dD][89abAB]..)?\\u[dD][c-fC-F]..|(\\u[dD][89abAB]..)")


def _half_a_pair(text: str | bytes) -> bool:
    """Whether JSON spells half of a surrogate pair, which Python reads and cannot write."""
    text = text if isinstance(text, str) else text.decode("utf8", "replace")
    return "\\u" in text and any(found[2] or not found[1] for found in _SURROGATES.finditer(text.replace("\\\\", "")))
