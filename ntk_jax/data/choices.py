"""The choices of a question and the right one, in the ways that people write them down."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

AMBIGUOUS = -(2**40)  # of `index_of`: no index


def labelled(choices: Any) -> tuple[Any, list[Any] | None]:
    """(texts, their labels or None) of a list of texts, `{"text": [...], "label": [...]}`, a list of `{"text",
    "label"}`, or `{"A": text, "B": text}`, where null is no choice. Anything else comes back as it is."""
    if isinstance(choices, Mapping):
        texts, labels = choices.get("text"), choices.get("label")
        if isinstance(texts, (list, tuple)) and isinstance(labels, (list, tuple)) and len(texts) == len(labels):
            return list(texts), list(labels)
        given = {key: text for key, text in choices.items() if text is not None}
        if given and list(given) == list(string.ascii_uppercase[: len(given)]):
            return list(given.values()), list(given)
        return choices, None
    listed = isinstance(choices, (list, tuple)) and len(choices) > 0
    if listed and all(isinstance(choice, Mapping) and {"text", "label"} <= set(choice) for choice in choices):
        return [choice["text"] for choice in choices], [choice["label"] for choice in choices]
    return choices, None


def index_of(answer: Any, choices: Sequence[str], labels: Sequence[Any] | None) -> int | None:
    """The place of the right choice, from 0: of an index (also 1.0), a label, a letter, a choice's text, or an index
    as text; None for anything else, `AMBIGUOUS` for a text that may mean two choices."""
    if isinstance(answer, bool):
        return None
    if labels is not None:
        found = [place for place, label in enumerate(labels) if str(label) == str(answer).strip()]
        if found:
            return found[0] if len(found) == 1 else AMBIGUOUS
    if isinstance(answer, int):
        return answer
    if isinstance(answer, float):
        return int(answer) if answer.is_integer() else None
    if not isinstance(answer, str):
        return None
    text = answer.strip()
    meant = {place for place, choice in enumerate(choices) if choice == answer or choice.strip() == text}
    if len(text) == 1 and text.upper() in string.ascii_uppercase[: len(choices)]:
        meant.add(string.ascii_uppercase.index(text.upper()))
    if text.isascii() and text.isdecimal() and len(text) < 4 and (int(text) < len(choices) or not meant):
        meant.add(int(text))
    if len(meant) > 1:
        return AMBIGUOUS
    return meant.pop() if meant else None
