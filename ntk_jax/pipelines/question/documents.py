"""The documents of a run of questions: records with a text, and text files, of which each is one document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ntk_jax.data.formats import Reading
from ntk_jax.data.sources import read, sample_indices, source_names
from ntk_jax.errors import UserError, listed, shown
from ntk_jax.pipelines.question.config import QuestionConfig

FIELDS = ("text", "title", "id", "source")


def check_documents(config: QuestionConfig) -> None:
    """Raises UserError: columns of no field of a document, or for a file that is not named."""
    reading = reading_of_documents(config)
    if reading.by_pattern:
        reading.check_patterns(source_names(config.documents.files, reading))


def reading_of_documents(config: QuestionConfig) -> Reading:
    """How documents.files are read; `text` of documents.columns is what a record calls its response. Raises UserError:
    columns of no field of a document."""
    columns = config.documents.columns
    if columns and all(isinstance(value, Mapping) for value in columns.values()):
        columns = {pattern: _columns(own, f" of {pattern}") for pattern, own in columns.items()}
    elif columns:
        columns = _columns(columns, "")
    return Reading("auto", columns, "documents.", documents=True)


def _columns(given: Mapping[str, Any], of: str) -> dict[str, Any]:
    for field in given:
        if field not in FIELDS:
            raise UserError(f"documents.columns{of}: a document has no {shown(field)}; it has {', '.join(FIELDS)}")
    if "text" not in given:
        raise UserError(f"documents.columns{of}: text is missing; say which column holds the text")
    found = {field: source for field, source in given.items() if field != "text"}
    return {"prompt": "''", "response": given["text"], **found}


def read_documents(config: QuestionConfig) -> Iterator[dict[str, Any]]:
    """The documents of the files that are asked for, one at a time. Raises UserError: none is."""
    section = config.documents
    where = section.where or {}
    values: dict[str, set[str]] = {key: set() for key in where}
    matched = dict.fromkeys(where, 0)
    for one in read(section.files, reading_of_documents(config)):
        for key, value in where.items():
            if not matched[key]:
                values[key].add(shown(one.get(key)))
            if one.get(key) != value:
                break
            matched[key] += 1
        else:
            yield one
    for key, value in where.items():
        if not matched[key]:
            raise UserError(
                f"documents.where: no document has {key} = {shown(value)}; there are {listed(sorted(values[key]))}"
            )


def sampled_documents(config: QuestionConfig) -> Iterator[dict[str, Any]]:
    """Those of them that documents.limit leaves."""
    limit = config.documents.limit
    if limit is None:
        return read_documents(config)
    return documents_at(config, sample_indices(sum(1 for _ in read_documents(config)), limit, config.seed))


def documents_at(config: QuestionConfig, places: np.ndarray | None) -> Iterator[dict[str, Any]]:
    """The documents at these places; None: all."""
    wanted = None if places is None else set(places.tolist())
    return (one for place, one in enumerate(read_documents(config)) if wanted is None or place in wanted)
