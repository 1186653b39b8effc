"""What a record is, and the check that every record passes once on its way in.

A record is a plain dict, `{"id", "source", "prompt", "response"}` or `{"id", "source", "messages": [...]}`; multiple
choice adds `"choices"` and `"answer"`. Extra keys are carried through untouched, so that a selection trains anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ntk_jax.data.choices import AMBIGUOUS, index_of, labelled
from ntk_jax.data.mapping import RECORDS, Columns
from ntk_jax.data.talk import turn_of
from ntk_jax.errors import UserError, listed, shown

Record = dict[str, Any]

_SHAPE = '{"prompt", "response"} or {"messages"}'
_TAKEN = ("prompt", "response", "messages", "choices", "answer")  # by a record, whatever else a file calls so
_OURS = ("id", "source", *_TAKEN)


def check_record(
    obj: Any,
    where: str,
    *,
    default_id: str | None = None,
    default_source: str | None = None,
    columns: Columns = RECORDS,
) -> Record:
    """Returns the record in `obj`, with `id` and `source` filled in, or says what is wrong with it.

    where: the file and line (or row), for messages. default_id, default_source: used when the record has none.
    columns: which of its columns hold what. All columns stay; one whose name a record has for something else goes
    under "original". Choices may have labels, answers be letters, texts or labels, messages have the keys of ShareGPT;
    `choices.labelled` and `choices.index_of` say which.
    A null under a known key counts as absent, because columnar files have every key in every row. A multiple-choice
    record without a response (a last message of the assistant) gets the right choice as its response.
    Raises UserError: not an object, a key missing, a wrong type, an empty id, an answer outside the choices.
    """
    if not isinstance(obj, Mapping):
        raise UserError(f"{where}: a record is a JSON object, found {_kind(obj)}; put one object on each line")
    record = {key: value for key, value in obj.items() if value is not None or key not in _OURS}
    _take(record, columns, obj, where)
    _fill_name(record, "id", default_id, where)
    _fill_name(record, "source", default_source, where)
    if "choices" in record:
        _check_choices(record, where)
    if "messages" in record:
        if "prompt" in record:
            raise UserError(f'{where}: the record has both "messages" and "prompt"; keep one of them')
        _check_messages(record, where)
    _keep_original(record, obj, columns)
    if "messages" in record:
        if record["messages"][-1]["role"] != "assistant":  # a question: `_check_messages` lets no other end so
            answer = {"role": "assistant", "content": record["choices"][record["answer"]]}
            record["messages"] = [*record["messages"], answer]
        return record
    if "choices" in record and "prompt" in record:
        record.setdefault("response", record["choices"][record["answer"]])
    for key in ("prompt", "response"):
        if key not in record:
            found = listed(sorted(map(str, obj)))
            raise UserError(f'{where}: the record has no "{key}"; a record is {_SHAPE}; keys found: {found}')
        _check_text(record[key], key, where)
    return record


def _take(record: Record, columns: Columns, row: Mapping[str, Any], where: str) -> None:
    """Fills the fields that `columns` name, and puts away what would contradict them."""
    if not columns.fields:
        return
    made = {field: value for field, get in columns.getters.items() if (value := get(row, where)) is not None}
    if others := sorted(key for key in columns.doubtful & row.keys() if row[key] is not None):
        raise UserError(
            f"{where}: the record has the column {others[0]}, and the file's first one, which was read as "
            f"{columns.name}, has not; say which hold what, such as columns: {{prompt: ..., response: ...}}"
        )
    system = made.pop("system", None)
    for key in ("prompt", "response") if "messages" in made else ("messages",):
        record.pop(key, None)
    record.update(made)
    if isinstance(record.get("prompt"), list) and isinstance(record.get("response"), list):  # two parts of one talk
        record["messages"] = [*record.pop("prompt"), *record.pop("response")]
    if system is None or system == "":
        return
    turn = {"role": "system", "content": system}
    talk = record.get("messages")
    if isinstance(talk, list) and talk and isinstance(talk[0], Mapping):
        if turn_of(talk[0]).get("role") != "system":
            record["messages"] = [turn, *talk]
    elif "prompt" in record:
        record["messages"] = [turn, {"role": "user", "content": record.pop("prompt")}]
        if "response" in record:
            record["messages"].append({"role": "assistant", "content": record.pop("response")})


def _keep_original(record: Record, row: Mapping[str, Any], columns: Columns) -> None:
    """Puts columns whose name now stands for something else under "original", and one of that name too."""
    moved = {}
    for key in (*_TAKEN, *(name for name, _ in columns.fields if name not in _TAKEN)):
        value = row.get(key)
        if value is not None and record.get(key) is not value and record.get(key) != value:
            moved[key] = value
    if moved:
        record["original"] = {**({"original": row["original"]} if "original" in row else {}), **moved}


def family_of(record: Mapping[str, Any], group_by: str = "auto") -> str:
    """The name of the group a record is counted under: its `task` if it has one, else its `source`.

    group_by: `auto`, or the key that names the group; a record without that key counts under "(none)".
    """
    if group_by == "auto":
        value = record.get("task") if record.get("task") is not None else record.get("source")
    else:
        value = record.get(group_by)
    return "(none)" if value is None else str(value)


def response_text(record: Mapping[str, Any]) -> str:
    """The text the model is to produce: the response, or the last message if that is the assistant's."""
    if "messages" not in record:
        return record["response"]
    last = record["messages"][-1]
    return last["content"] if last["role"] == "assistant" else ""


def prompt_text(record: Mapping[str, Any]) -> str:
    """The text before the response, for people to read: the prompt, or the messages with their roles."""
    if "messages" not in record:
        return record["prompt"]
    messages = record["messages"]
    before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if len(before) == 1:
        return before[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in before)


def _fill_name(record: Record, key: str, default: str | None, where: str) -> None:
    value = record.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # numbered ids are common and harmless
    elif isinstance(value, float) and math.isfinite(value) and key == "id":
        value = str(int(value)) if value.is_integer() else str(value)  # a column of numbers some of which are missing
    if value is None:
        raise UserError(f'{where}: the record has no "{key}"; give it one')
    _check_text(value, key, where)
    if not value:
        raise UserError(f'{where}: "{key}" is empty; give the record one')
    record[key] = value


def _check_choices(record: Record, where: str) -> None:
    choices, labels = labelled(record["choices"])
    answer = record.get("answer")
    if not isinstance(choices, (list, tuple)) or len(choices) < 2:
        raise UserError(f'{where}: "choices" must be a list of at least two texts, got {shown(choices)}')
    if any(isinstance(choice, (int, float)) and not isinstance(choice, bool) for choice in choices):
        choices = [_written(choice) for choice in choices]
    for choice in choices:
        _check_text(choice, "choices", where)
        if not choice.strip():
            raise UserError(f'{where}: "choices" holds an empty text; give every choice a text')
    record["choices"] = choices
    if answer is None:
        raise UserError(f'{where}: the record has "choices" but no "answer"; give the right choice\'s index, from 0')
    index = index_of(answer, choices, labels)
    if index is None:
        raise UserError(
            f'{where}: "answer" must be the index of the right choice (an integer), its letter, label or text, '
            f"got {shown(answer)}"
        )
    if index == AMBIGUOUS:
        raise UserError(
            f"{where}: \"answer\" is {shown(answer)}, a choice's text and another one's place; give its index"
        )
    if not 0 <= index < len(choices):
        raise UserError(f'{where}: "answer" is {shown(answer)}, but there are {len(choices)} choices, counted from 0')
    record["answer"] = index


def _written(choice: Any) -> Any:
    return str(choice) if isinstance(choice, (int, float)) and not isinstance(choice, bool) else choice


def _check_messages(record: Record, where: str) -> None:
    messages = record["messages"]
    if not isinstance(messages, (list, tuple)) or not messages:
        raise UserError(f'{where}: "messages" must be a list of {{"role", "content"}}, got {shown(messages)}')
    for message in messages:
        if not isinstance(message, Mapping):
            raise UserError(f'{where}: each of "messages" must be an object, got {shown(message)}')
    turns = [turn_of(message) for message in messages]
    if any(turn is not message for turn, message in zip(turns, messages, strict=True)):
        messages = record["messages"] = turns
    for message in messages:
        for key in ("role", "content"):
            if key not in message:
                raise UserError(f'{where}: a message has no "{key}"; a message is {{"role", "content"}}')
            _check_text(message[key], f"messages.{key}", where)
    if messages[-1]["role"] != "assistant" and "choices" not in record:
        role = shown(messages[-1]["role"])[1:-1]
        raise UserError(f"{where}: the last message is the {role}'s; end with the assistant's response")
    if messages[-1]["role"] == "assistant" and len(messages) < 2:
        raise UserError(f'{where}: "messages" holds the response only; put at least one message before it')


def _check_text(value: Any, key: str, where: str) -> None:
    if not isinstance(value, str):
        raise UserError(f'{where}: "{key}" must be text, got {shown(value)}')
    if not value.isascii():
        try:
            value.encode("utf8")
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair; no tokenizer can read it
            raise UserError(
                f'{where}: "{key}" holds half a surrogate pair, which is no text; correct the escape'
            ) from None


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value"}.get(
        type(value), "null" if value is None else type(value).__name__
    )
