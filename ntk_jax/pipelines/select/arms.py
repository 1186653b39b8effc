"""The arms that are trained and compared.

| arm         | trained on                            | why                                                       |
|-------------|---------------------------------------|-----------------------------------------------------------|
| `base`      | nothing                               | where the model starts                                    |
| `domain`    | D                                     | as many optimiser steps as the others: more of the same   |
| a method    | D + the N that the method selected    | `random` and `length_matched` are the controls            |
| `file:PATH` | D + the records of any file           | a selection made elsewhere, trained with the same budget  |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntk_jax.errors import UserError
from ntk_jax.pipelines.common import inputs
from ntk_jax.pipelines.common.reading import formats
from ntk_jax.pipelines.select.config import SelectConfig, arms_of
from ntk_jax.selection.rankers import RANKERS

FILE = "file:"


@dataclass(frozen=True)
class Arm:
    """name: its folder. title: for people. method, file: where its pool examples come from; neither: from nowhere."""

    name: str
    title: str
    method: str | None = None
    file: str | None = None

    @property
    def trained(self) -> bool:
        """Whether it is trained at all."""
        return self.name != "base"


def arms(config: SelectConfig) -> list[Arm]:
    """The arms of a run, in order."""
    return [_arm(name) for name in arms_of(config)]


def check(config: SelectConfig) -> None:
    """Raises UserError for arms that do not exist, or of which two are the same."""
    names = arms_of(config)
    known = ("base", "domain", *config.select.methods)
    if "selected" in names and "selected" not in RANKERS:
        raise UserError(
            f"evaluate.arms = {list(names)}: an arm has the name of its method, such as {config.select.methods[0]}, "
            "not selected"
        )
    for name in names:
        if name.startswith(FILE) and not name.removeprefix(FILE):
            raise UserError(f"evaluate.arms: {name} names no file; give file:PATH")
        if not name.startswith(FILE) and name not in known:
            add = f"; add {name} to select.methods" if name in RANKERS else ""
            raise UserError(f"evaluate.arms: there is no arm {name}; choose from {', '.join(known)}, or file:PATH{add}")
    folders = [_arm(name).name for name in names]
    if not names or len(set(folders)) < len(folders):
        raise UserError(
            f"evaluate.arms = {list(names)}: give at least one arm, each once, and files of different names"
        )


def facts(config: SelectConfig) -> dict[str, Any]:
    """What plan.json keeps of the model, the arms and the methods, for the report."""
    from ntk_jax.pipelines.select.select import label_of

    return inputs.facts(config) | {
        "formats": formats(config),
        "arms": [{"name": arm.name, "title": arm.title} for arm in arms(config)],
        "methods": [
            {"name": method, "title": RANKERS[method].title, "label": label_of(config, method)}
            for method in config.select.methods
        ],
    }


def _arm(name: str) -> Arm:
    if name == "base":
        return Arm(name, "base model")
    if name == "domain":
        return Arm(name, "domain only")
    if name.startswith(FILE):
        path = name.removeprefix(FILE)
        stem = re.sub(
            r"\.(jsonl|json|ndjson|csv|tsv|gz|xz|zst|parquet|arrow)\b", "", Path(path.removeprefix("builtin:")).name
        )
        return Arm(f"file-{stem}", f"domain + {Path(path).name}", file=path)
    return Arm(name, f"domain + {name}", method=name)
