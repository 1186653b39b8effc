"""Formats of other people's files: which columns of each hold what, and how a file is recognised by its first record.

Only a shape that is well known and whole is recognised. Where another column might as well be the prompt, the response
or a part of them, nothing is guessed: the columns must be given.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ntk_jax.data.mapping import RECORDS, Columns, columns_of
from ntk_jax.errors import UserError, listed, shown

FORMATS = ("auto", "records", "alpaca", "sharegpt", "openai", "text")

_LETTERS = ("A", "B", "C", "D")
_OPTIONS = ("opa", "opb", "opc", "opd")
_SCIQ = ("correct_answer", "distractor1", "distractor2", "distractor3")


@dataclass(frozen=True)
class _Shape:
    """A known format. needs: columns that its rows have. also: columns that would be doubtful elsewhere."""

    name: str
    needs: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def columns(self) -> Columns:
        return Columns(self.name, tuple(self.fields.items()))


_ALPACA = {"prompt": "{instruction}\n\n{input?}", "response": "output"}
_DOLLY = {"prompt": "{instruction}\n\n{context}", "response": "response"}
_ORCA = {"prompt": "question", "response": "response", "system": "system_prompt?"}
_SQUAD = {"prompt": "{context}\n\n{question}", "response": "answers.text.0"}
_TALK = {"messages": "conversations", "system": "system?"}


def _pair(prompt: str, response: str) -> _Shape:
    return _Shape(f"{prompt} and {response}", (prompt, response), {"prompt": prompt, "response": response})


def _choice(name: str, prompt: str, choices: Any, answer: str, also: tuple[str, ...] = ()) -> _Shape:
    needs = (prompt.split("{")[-1].rstrip("}"), *([choices] if isinstance(choices, str) else choices), answer)
    return _Shape(name, tuple(dict.fromkeys(needs)), {"prompt": prompt, "choices": choices, "answer": answer}, also)


_SHAPES = (
    _Shape("records", ("prompt", "response")),
    _Shape("records", ("prompt", "choices", "answer")),
    _Shape("openai", ("messages",), {"messages": "messages"}),
    _Shape("sharegpt", ("conversations",), _TALK, also=("system",)),
    _Shape("alpaca", ("instruction", "output"), _ALPACA, also=("input",)),
    _Shape("alpaca", ("instruction", "input", "output", "text"), _ALPACA),
    _Shape("dolly", ("instruction", "context", "response"), _DOLLY),
    _Shape("question and response", ("question", "response"), _ORCA, also=("system_prompt",)),
    _Shape("squad", ("context", "question", "answers"), _SQUAD),
    _Shape("text", ("text",), {"prompt": "''", "response": "text"}),
    _pair("instruction", "response"),
    _pair("prompt", "completion"),
    _pair("question", "answer"),
    _pair("query", "response"),
    _pair("input", "output"),
    _pair("inputs", "targets"),
    _pair("problem", "solution"),
    _choice("mmlu", "question", "choices", "answer"),
    _choice("mmlu", "question", _LETTERS, "answer"),
    _choice("arc", "question", "choices", "answerKey"),
    _choice("openbookqa", "question_stem", "choices", "answerKey"),
    _choice("hellaswag", "ctx", "endings", "label"),
    _choice("piqa", "goal", ("sol1", "sol2"), "label"),
    _choice("sciq", "{support?}\n\n{question}", _SCIQ, "correct_answer", also=("support",)),
    _choice("medmcqa", "question", _OPTIONS, "cop"),
    _choice("medqa", "question", "options", "answer_idx", also=("answer",)),
    _choice("mmlu_pro", "question", "options", "answer_index", also=("answer",)),
)

# Names that columns with a prompt, a response, a part of them or a conversation have; beside a known format they are
# doubtful.
_PROMPTS = (
    "prompt",
    "question",
    "instruction",
    "query",
    "problem",
    "goal",
    "ctx",
    "question_stem",
    "input",
    "inputs",
    "text",
)
_RESPONSES = ("response", "completion", "output", "answer", "solution", "correct_answer", "chosen", "best_answer") + (
    ("long_answer", "answers", "target", "targets", "summary", "label", "labels")
)
_PARTS = ("context", "contexts", "passage", "article", "support", "history", "system", "system_prompt", "role")
_TALKS = ("messages", "conversations", "conversation")
_CHOICES = ("choices", "options", "endings", "answerKey")
_DOUBTFUL = {*_PROMPTS, *_RESPONSES, *_PARTS, *_TALKS, *_CHOICES, "parent_id"}


@dataclass(frozen=True)
class Reading:
    """How the files of a set are read. format: one of `FORMATS`. columns: {field: source} for all of them, or
    {pattern: {field: source}} for those whose name matches; the others are read by `format`.

    key: what the config calls these settings, with a full stop, for messages. documents: the records are documents, so
    that a text file is one, its text the response.
    Raises UserError: an unknown format or field; columns for all files beside a format, which they would replace.
    """

    format: str = "auto"
    columns: Mapping[str, Any] | None = None
    key: str = ""
    documents: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"{self.key}format = {shown(self.format)} is not one of {', '.join(FORMATS)}")
        if self.columns is not None and not isinstance(self.columns, Mapping):
            raise UserError(
                f"{self.key}columns must be a mapping such as {{prompt: question}}, got {shown(self.columns)}"
            )
        if self.columns and not self.by_pattern and self.format != "auto":
            raise UserError(
                f"{self.key}columns say all that {self.key}format = {self.format} would; leave one of them out"
            )
        for pattern, columns in self._given().items():
            self._own(pattern, columns)

    @property
    def by_pattern(self) -> bool:
        """Whether the columns are given for some files, by their names."""
        return bool(self.columns) and all(isinstance(value, Mapping) for value in (self.columns or {}).values())

    def _given(self) -> dict[str, Mapping[str, Any]]:
        columns = self.columns or {}
        return {str(k): v for k, v in columns.items()} if self.by_pattern else {"": columns} if columns else {}

    def _own(self, pattern: str, columns: Mapping[str, Any]) -> Columns:
        return columns_of("columns", columns, f"{self.key}columns" + (f" of {pattern}" if pattern else ""))

    def own_columns(self, names: Sequence[str]) -> Columns | None:
        """The columns given for a file. names: what it is called, as it was given and as it was found."""
        for pattern, columns in self._given().items():
            if not pattern or any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names):
                return self._own(pattern, columns)
        return None

    def columns_for(self, row: Any, where: str, names: Sequence[str] = ()) -> Columns:
        """How the rows of a file are read whose first is `row`. Raises UserError: it is of no known format."""
        own = self.own_columns(names)
        if own is None:
            return recognise(row, where, self.format, self.key) if isinstance(row, Mapping) else RECORDS
        return own

    @property
    def for_patterns(self) -> Reading:
        """The same where files are named one by one, and `auto` for all others."""
        return dataclasses.replace(self, format="auto", columns=self.columns if self.by_pattern else None)

    def check_patterns(self, names: Iterable[Iterable[str]]) -> None:
        """Raises UserError: a pattern that is the name of none of these files, which would not be read as was meant."""
        found = [tuple(each) for each in names]
        for pattern in self._given():
            matching = (name == pattern or fnmatch.fnmatchcase(name, pattern) for each in found for name in each)
            if pattern and not any(matching):
                there = listed(each[0] for each in found)
                raise UserError(f"{self.key}columns: no file is called {shown(pattern)}; the files are {there}")


AUTO = Reading()


def recognise(row: Mapping[str, Any], where: str, format: str = "auto", key: str = "") -> Columns:
    """The columns of a file whose first record is `row`. key: as of `Reading`. Raises UserError: a column is missing,
    or it is not clear which of them hold what."""
    if format == "records":
        return RECORDS
    if format != "auto":
        return _named(row, where, format)
    if "messages" in row and "response" not in row and ("prompt" in row or _speaks_sharegpt(row["messages"])):
        return _named(row, where, "sharegpt" if _speaks_sharegpt(row["messages"]) else "openai")
    found = [shape for shape in _SHAPES if all(key in row for key in shape.needs)]
    if found and found[0].name in ("records", "openai"):  # these two may stand in one file
        return RECORDS
    # A shape that has all columns of another one and more is meant.
    found = [
        s for s in found if not any(set(s.needs) < {*other.needs, *other.also} for other in found if other is not s)
    ]
    if len(found) == 1:
        shape = found[0]
        known = {*shape.needs, *shape.also}
        others = [key for key in row if key in _DOUBTFUL - known and row[key] is not None]
        if not others:
            return dataclasses.replace(shape.columns, doubtful=frozenset(_DOUBTFUL - known))
    raise _unclear(row, where, key)


def _named(row: Mapping[str, Any], where: str, format: str) -> Columns:
    shape = next(shape for shape in _SHAPES if shape.name == format)
    if format == "sharegpt" and "conversations" not in row:
        shape = _Shape("sharegpt", ("messages",), {"messages": "messages", "system": "system?"})
    missing = [key for key in shape.needs if key not in row]
    if missing:
        raise UserError(f"{where}: the format {format} has a column {missing[0]}; the columns are {listed(row)}")
    return shape.columns


def _speaks_sharegpt(messages: Any) -> bool:
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, Mapping) and {"from", "value"} <= set(first)


def _unclear(row: Mapping[str, Any], where: str, key: str) -> UserError:
    """What is missing in a record, or what might be meant, with the columns to write down."""
    lists = [name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)]
    if len(row) == 1 and lists and lists[0] not in _TALKS:
        return UserError(f"{where}: the records are under the key {shown(lists[0])}; write that list alone to a file")
    talks = [name for name in (*_TALKS, "chosen") if name in lists]
    prompts = [name for name in _PROMPTS if name in row]
    responses = [name for name in _RESPONSES if name in row and name not in lists]
    mapping = f"{{prompt: {(prompts or ['...'])[0]}, response: {(responses or ['...'])[0]}}}"
    if talks and not responses:
        mapping = f"{{messages: {talks[0]}}}"
    missing = "response" if "prompt" in row else "prompt"
    what = f'the record has no "{missing}"; a record is {{"prompt", "response"}} or {{"messages"}}'
    if prompts and responses or talks:
        what = "it is not clear which columns hold the prompt and the response"
    found = listed(sorted(map(str, row)))
    return UserError(f"{where}: {what}; keys found: {found}; say which, such as {key}columns: {mapping}")
