"""How many solved examples stood before the questions of an evaluation, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ntk_jax.report.amounts import count, finite
from ntk_jax.report.reading import mapping, records
from ntk_jax.report.text import label


def shot_lines(results: Mapping[str, Any]) -> list[str]:
    """A line for all tasks and one for each that had to do with fewer, from results.json; none without shots."""
    found = mapping(results.get("shots"))
    number, tasks = finite(found.get("count")), records(found.get("tasks"))
    if not number or not tasks:
        return []
    files = ", ".join(f"{label(task.get('name'))} from {task.get('file')}" for task in tasks)
    lines = [f"Few-shot: {count(number)} solved example{'s' * (number != 1)} before each question ({files})."]
    for task in tasks:
        fewer = {key: finite(value) or 0.0 for key, value in mapping(task.get("fewer")).items()}
        said = [f"{count(value)} ({key})" for key, value in fewer.items() if value]
        if said:
            name = label(task.get("name"))
            lines.append(f"{name}: fewer before {', '.join(said)} records, which would have been too long.")
    return lines
