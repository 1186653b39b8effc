"""What a figure of the diagnosis is, and the files that the figures are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ntk_jax.report.markup import Html

DIAGNOSES = ("stability", "cross_output", "prediction", "worth", "audit", "regression")  # the JSON files of diagnose/
COLORS = ("c-blue", "c-orange", "c-green", "c-purple", "c-grey")

Parts = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Shown:
    """A figure of the diagnosis: `key` names its file."""

    key: str
    title: str
    drawing: Html
    how: str
    found: str


def there(parts: Parts, name: str) -> dict[str, Any] | None:
    """A part that was computed; None where it is not there or was skipped."""
    part = parts.get(name)
    return part if part and "skipped" not in part else None
