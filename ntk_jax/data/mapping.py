"""How columns of a file become what a record has: each field is taken from a column, a path into one, or a template.

    question              the column of that name
    answers.text.0        an entry inside a column: keys of objects and places in lists, from 0
    {instruction}\\n{input}   a text with columns in it; {{ and }} stand for braces
    'yes'                 that text itself
    [sol1, sol2]          a list of these, for choices

A question mark behind a name (`input?`, `{input?}`) says that records may be without it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ntk_jax.errors import UserError, listed, shown

FIELDS = ("prompt", "response", "messages", "choices", "answer", "id", "source", "task", "system", "title")

Getter = Callable[[Mapping[str, Any], str], Any]  # (row, where it stands) -> value, None where there is none
_PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[^{}]+")


@dataclass(frozen=True)
class Columns:
    """name: of the format, for people. fields: (field of a record, where it comes from); none: a row is a record as it
    is. doubtful: columns without which the format was recognised; a row that has one may mean something else."""

    name: str
    fields: tuple[tuple[str, Any], ...] = ()
    doubtful: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False)

    def __str__(self) -> str:
        taken = ", ".join(f"{field}: {_shown(source)}" for field, source in self.fields)
        return f"{self.name} ({taken})" if taken else self.name

    @functools.cached_property
    def getters(self) -> dict[str, Getter]:
        """A function for each field. Raises ValueError: a source that cannot be read."""
        found = {field: getter(source) for field, source in self.fields}
        sources = dict(self.fields)
        if isinstance(sources.get("choices"), tuple) and sources.get("answer") in sources["choices"]:
            # The right one would always stand in the same place; sorted by their texts, the place says nothing.
            take = found["choices"]
            found["choices"] = lambda row, where: sorted(take(row, where), key=str)
        return found


RECORDS = Columns("records")


def columns_of(name: str, given: Mapping[Any, Any], where: str) -> Columns:
    """The columns that a user wrote down. Raises UserError: an unknown field, a source that is no text."""
    for field in given:
        if field not in FIELDS:
            near = difflib.get_close_matches(str(field), FIELDS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"they are {', '.join(FIELDS)}"
            raise UserError(f"{where}: a record has no {shown(field)}; {remedy}")
    if "messages" in given and ({"prompt", "response"} & set(given)):
        raise UserError(f"{where}: give messages, or prompt and response, not both")
    found = Columns(name, tuple((str(field), _source(source, field, where)) for field, source in given.items()))
    try:
        _ = found.getters
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return found


def _source(source: Any, field: Any, where: str) -> Any:
    if isinstance(source, int) and not isinstance(source, bool):
        source = str(source)  # YAML reads the column 0 as a number
    if isinstance(source, list) and field == "choices":
        return tuple(_source(item, None, where) for item in source)
    if not isinstance(source, str) or not source:
        raise UserError(f"{where}: {field} = {shown(source)} must be the name of a column, a path or a template")
    return source


def getter(source: Any) -> Getter:
    """The function that takes a field's value out of a row. Raises ValueError: a template with a single brace."""
    if isinstance(source, tuple):
        each = [getter(item) for item in source]
        return lambda row, where: [get(row, where) for get in each]
    if len(source) > 1 and source[0] == source[-1] == "'":
        return lambda row, where: source[1:-1]
    if "{" in source or "}" in source:
        return _template(source)
    return _path(source)


def _path(source: str) -> Getter:
    name, optional = (source[:-1], True) if source.endswith("?") else (source, False)
    steps = name.split(".")

    def get(row: Mapping[str, Any], where: str) -> Any:
        if name in row:  # a column whose name has a dot in it
            return row[name]
        if source in row:
            return row[source]
        value: Any = row
        for number, step in enumerate(steps):
            if isinstance(value, Mapping) and step in value:
                value = value[step]
            elif isinstance(value, (list, tuple)) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            elif optional or (value is None and number):
                return None
            else:
                raise _absent(name, row, where)
        return value

    return get


def _template(source: str) -> Getter:
    parts: list[tuple[str, Getter | None]] = []
    end = 0
    for match in _PART.finditer(source):
        if match.start() != end:
            break
        end = match.end()
        text = {"{{": "{", "}}": "}"}.get(match[0], match[0])
        parts.append((text, _path(match[1].strip()) if match[1] else None))
    if end != len(source):
        raise ValueError(f"the template {shown(source)} has a single brace; write {{column}}, and {{{{ for a brace")

    def get(row: Mapping[str, Any], where: str) -> str:
        """An empty column takes the white space before it along, or behind it where it comes first."""
        text, bare = "", False
        for literal, path in parts:
            value = literal if path is None else _text(path(row, where), literal, where)
            if path is not None and not value:
                text, bare = text.rstrip(), True
            else:
                text += value.lstrip() if bare and not text else value
                bare = False
        return text

    return get


def _text(value: Any, name: str, where: str) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    if isinstance(value, (Mapping, list, tuple)):
        raise UserError(f"{where}: {name} in a template must be a text or a number, got {shown(value)}")
    return "" if value is None else str(value)


def _absent(name: str, row: Mapping[str, Any], where: str) -> Exception:
    near = difflib.get_close_matches(name, list(map(str, row)), n=2)
    remedy = f"did you mean {' or '.join(near)}?" if near else f"its columns are {listed(row)}"
    return UserError(f"{where}: there is no column {shown(name)}; {remedy}")


def _shown(source: Any) -> str:
    if isinstance(source, tuple):
        return f"[{', '.join(map(_shown, source))}]"
    return '"' + source.replace("\n", "\\n") + '"' if "{" in source else source
