"""Reads a run directory of any pipelines, forgiving everything but a folder that is not one.

A report is most wanted when a run went wrong or is half done, so a missing, half-written or damaged file becomes
a line in `RunDirectory.problems` (shown on the page) and an empty value, never an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntk_jax.errors import UserError
from ntk_jax.report.amounts import finite

SCHEMA = 1  # of plan.json


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline; `state` is done, unfinished or missing."""

    name: str
    title: str
    state: str


@dataclass(frozen=True)
class Pipeline:
    """What plan.json says of one pipeline: its resolved config, its stages in order, and facts for people."""

    name: str
    title: str
    config: dict[str, Any]
    stages: tuple[Stage, ...]
    facts: dict[str, Any]

    def setting(self, section: str, key: str) -> Any:
        """A value of the resolved config; None where the plan does not have it."""
        return mapping(self.config.get(section)).get(key)

    def has(self, stage: str) -> bool:
        """Whether this config uses the stage."""
        return any(item.name == stage for item in self.stages)


@dataclass
class RunDirectory:
    """The files of a run directory. An empty dict or list stands for a file that is not there."""

    folder: Path
    pipelines: dict[str, Pipeline]
    provenance: dict[str, Any]
    config_text: str
    problems: list[str] = field(default_factory=list)
    _read: dict[str, Any] = field(default_factory=dict)

    def json(self, path: str, kind: type = dict) -> Any:
        """The value in a JSON file, or an empty `kind`."""
        if path not in self._read:
            self._read[path] = _json(self.folder, path, kind, self.problems)
        return self._read[path]

    def json_lines(self, path: str) -> list[dict[str, Any]]:
        """The objects in a file of JSON lines; a line cut short by a kill is skipped and mentioned."""
        if path not in self._read:
            self._read[path] = _json_lines(self.folder, path, self.problems)
        return self._read[path]

    def stage(self, name: str) -> Stage | None:
        """The stage of that name, whichever pipeline uses it: pipelines share folders of the same name."""
        return next((s for p in self.pipelines.values() for s in p.stages if s.name == name), None)

    def missing(self, stage: str, what: str) -> str:
        """Plain words for a part that cannot be shown because its stage has not (fully) run."""
        found = self.stage(stage)
        if found is None:
            return f"No {what}: the stage “{stage}” is not part of this run."
        if found.state == "done":
            return f"No {what}: the stage “{found.title}” is done but did not record it."
        why = "was started and is not finished" if found.state == "unfinished" else "has not run"
        return f"No {what} yet: the stage “{found.title}” {why}."


def records(value: Any) -> list[dict[str, Any]]:
    """The dicts in a list; anything else is an empty list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def mapping(value: Any) -> dict[str, Any]:
    """The value when it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def numbers(items: Any) -> list[float] | None:
    """A list of finite numbers, or None when it is anything else or empty."""
    if not isinstance(items, list) or not items:
        return None
    values = [finite(item) for item in items]
    return None if any(v is None for v in values) else [v for v in values if v is not None]


def read_run(folder: Path) -> RunDirectory:
    """Reads the run directory. Raises UserError when `folder` is none, or was made by another version."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run directory; give the --out folder of a run")
    if not (folder / "plan.json").is_file():
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder}: not a run directory (no plan.json in it); give the --out folder of a run")
        raise UserError(
            f"{folder}: made by an earlier version (no plan.json in it); report it with that version, or make the run "
            "anew in another folder"
        )
    problems: list[str] = []
    plan = _json(folder, "plan.json", dict, problems)
    if plan and plan.get("schema") != SCHEMA:
        raise UserError(
            f"{folder}: plan.json has schema {plan.get('schema')!r}, this version reads {SCHEMA}; use the version that "
            "made it"
        )
    return RunDirectory(
        folder=folder,
        pipelines=dict(_pipelines(folder, plan)),
        provenance=_json(folder, "provenance.json", dict, problems),
        config_text=_text(folder / "config.yaml"),
        problems=problems,
    )


def _pipelines(folder: Path, plan: dict[str, Any]) -> Iterator[tuple[str, Pipeline]]:
    for name, entry in mapping(plan.get("pipelines")).items():
        listed = [s for s in records(mapping(entry).get("stages")) if _is_folder_name(s.get("name"))]
        yield (
            name,
            Pipeline(
                name=name,
                title=str(mapping(entry).get("title") or name),
                config=mapping(mapping(entry).get("config")),
                stages=tuple(
                    Stage(s["name"], str(s.get("title") or s["name"]), _state(folder / s["name"])) for s in listed
                ),
                facts=mapping(mapping(entry).get("facts")),
            ),
        )


def _is_folder_name(name: Any) -> bool:
    """A damaged plan must not lead out of the run directory."""
    return isinstance(name, str) and bool(name) and not set(name) & set("/\\\x00") and name not in (".", "..")


def _state(home: Path) -> str:
    """A stage is done when its manifest is there: it is written last."""
    try:
        if (home / "manifest.json").is_file():
            return "done"
        return "unfinished" if home.is_dir() and any(home.iterdir()) else "missing"
    except (OSError, ValueError):
        return "missing"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf8", errors="replace")
    except OSError:
        return ""


def _json(folder: Path, path: str, kind: type, problems: list[str]) -> Any:
    try:
        value = json.loads((folder / path).read_text(encoding="utf8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path} cannot be read ({type(error).__name__}); what it holds is missing from this page")
        return kind()
    if not isinstance(value, kind):
        problems.append(f"{path} holds a {type(value).__name__}, not a {kind.__name__}; it is left out")
        return kind()
    return value


def _json_lines(folder: Path, path: str, problems: list[str]) -> list[dict[str, Any]]:
    try:
        lines = (folder / path).read_text(encoding="utf8", errors="replace").split("\n")
    except (OSError, ValueError):
        return []
    kept, broken = [], 0
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            kept.append(row)
        else:
            broken += 1
    if broken:
        problems.append(f"{path}: {broken} line(s) could not be read and are left out")
    return kept
