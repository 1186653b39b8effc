"""The one line about a file that cannot be read: what is in other people's files may be anything, and is quoted."""

from __future__ import annotations

from typing import Any

from ntk_jax.errors import UserError

MOST = 300  # characters: a line that people read, whatever the file holds


def refused(text: str) -> UserError:
    """The error with this text on one line: control characters are escaped, and a long one loses its middle, for its
    beginning says where and its end what to do."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(line) > MOST:
        line = f"{line[:190]} ... {line[len(line) - MOST + 195 :]}"
    return UserError(line)


def short(value: Any, most: int = 60) -> str:
    """A value as Python writes it, cut where it is long."""
    if isinstance(value, (str, bytes, list, tuple)):
        value = value[:most]  # the rest is cut anyway, and may be megabytes
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def listed(names: Any, most: int = 100) -> str:
    """Names in a sentence, as many as there is room for."""
    found = ", ".join(map(str, names)) or "none"
    return found if len(found) <= most else found[: most - 3].rpartition(",")[0] + ", ..."
