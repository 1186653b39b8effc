"""Reads a run directory into one `Run`, forgiving everything but a folder that is not one.

A report is most wanted when a run went wrong or is half done, so a missing, half-written or damaged file becomes
a line in `Run.problems` (shown on the page) and an empty value, never an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ntk_jax.errors import UserError
from ntk_jax.report.amounts import finite
from ntk_jax.storage import arrays

# Stage folders in the order they run, with the name people read.
STAGES = {
    "warmup": "Warm-up",
    "gradient": "Domain gradient",
    "preselect": "Pre-selection",
    "score": "Scoring",
    "sketch": "Sketching",
    "select": "Selection",
    "finetune": "Fine-tuning",
    "evaluate": "Evaluation",
}
DIAGNOSES = ("stability", "cross_output", "prediction", "audit", "regression")
ARM_TITLES = {
    "base": "Base model",
    "domain": "Domain only",
    "random": "Domain + random",
    "selected": "Domain + NTK-selected",
}


@dataclass(frozen=True)
class Scores:
    """Score and length in tokens of pool examples, [N] each; `what` says of which part of an example."""

    score: np.ndarray
    length: np.ndarray
    what: str


@dataclass(frozen=True)
class Run:
    """Everything the page shows. An empty dict or list stands for a file that is not there."""

    folder: Path
    config: dict[str, Any]
    config_text: str
    provenance: dict[str, Any]
    state: dict[str, str]  # stage -> done, unfinished, missing or unused
    domain_data: dict[str, Any]
    pool_data: dict[str, Any]
    warmup: dict[str, Any]  # what the warm-up's manifest records: steps, tokens, flops
    warmup_history: list[dict[str, Any]]
    gradient: dict[str, Any]
    preselect: dict[str, Any]
    score: dict[str, Any]  # of the stage that `scoring` names
    select: dict[str, Any]
    examples: list[dict[str, Any]]
    scores: Scores | None
    arms: dict[str, dict[str, Any]]  # finetune/<arm>/summary.json
    histories: dict[str, list[dict[str, Any]]]  # finetune/<arm>/history.jsonl
    results: dict[str, Any]
    diagnose: dict[str, dict[str, Any]]  # the JSON files of diagnose/, by name; empty where it did not run
    problems: list[str] = field(default_factory=list)

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """A value of config.yaml, or the default when it is not written there."""
        part = self.config.get(section)
        value = part.get(key) if isinstance(part, Mapping) else None
        return default if value is None else value

    def arm_title(self, name: str) -> str:
        """What an arm is called on the page."""
        for arm in records(self.results.get("arms")):
            if arm.get("name") == name and arm.get("title"):
                title = str(arm["title"])
                return title[0].upper() + title[1:]
        return ARM_TITLES.get(name, name)

    @property
    def scoring(self) -> str:
        """The stage that the selection was made from."""
        return scoring_stage(self.config)

    @property
    def selection(self) -> dict[str, Any]:
        """The summaries of scoring and selection in one; what `select` says wins."""
        return {**self.score, **{key: value for key, value in self.select.items() if value is not None}}


def scoring_stage(config: Mapping[str, Any]) -> str:
    """`score`, or `sketch` where the config selects by sketches."""
    return "score" if mapping(config.get("select")).get("by", "score") == "score" else "sketch"


def records(value: Any) -> list[dict[str, Any]]:
    """The dicts in a list; anything else is an empty list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def mapping(value: Any) -> dict[str, Any]:
    """The value when it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def read_run(folder: Path) -> Run:
    """Reads the run directory. Raises UserError when `folder` is not one (no config.yaml)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run directory; give the --out folder of a run")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run directory (no config.yaml in it); give the --out folder of a run")
    problems: list[str] = []
    config_text, config = _config(folder / "config.yaml", problems)
    arms = [path.name for path in _folders(folder / "finetune")]

    def load(path: str, kind: type = dict) -> Any:
        return _json(folder, path, kind, problems)

    select, scoring = load("select/summary.json"), scoring_stage(config)
    return Run(
        folder=folder,
        config=config,
        config_text=config_text,
        provenance=load("provenance.json"),
        state=_state(folder, config),
        domain_data=load("warmup/data.json"),
        pool_data=load("preselect/data.json") or load(f"{scoring}/data.json"),  # with votes, that sees only candidates
        warmup=mapping(load("warmup/manifest.json").get("facts")) if (folder / "warmup").is_dir() else {},
        warmup_history=_history(folder, "warmup/history.jsonl", problems),
        gradient=load("gradient/summary.json"),
        preselect=load("preselect/summary.json"),
        score=load(f"{scoring}/summary.json"),
        select=select,
        examples=records(load("select/examples.json", list)),
        scores=_scores(folder, scoring, select, problems),
        arms={arm: load(f"finetune/{arm}/summary.json") for arm in arms},
        histories={arm: _history(folder, f"finetune/{arm}/history.jsonl", problems) for arm in arms},
        results=load("evaluate/results.json"),
        diagnose={name: load(f"diagnose/{name}.json") for name in DIAGNOSES} if (folder / "diagnose").is_dir() else {},
        problems=problems,
    )


def _state(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """A stage is done when its manifest is there: it is written last."""
    state = {}
    unused = {"sketch"} if scoring_stage(config) == "score" else {"gradient", "score"}
    if mapping(config.get("preselect")).get("method", "none") == "none":
        unused.add("preselect")
    for stage in STAGES:
        home = folder / stage
        if stage in unused:
            state[stage] = "unused"
        elif (home / "manifest.json").is_file():
            state[stage] = "done"
        else:
            state[stage] = "unfinished" if home.is_dir() and any(home.iterdir()) else "missing"
    return state


def _folders(path: Path) -> list[Path]:
    """Sub-folders, the known arms first and in the usual order, so that tables and figures agree."""
    order = list(ARM_TITLES)
    found = [child for child in path.iterdir() if child.is_dir()] if path.is_dir() else []
    return sorted(found, key=lambda p: (order.index(p.name) if p.name in order else len(order), p.name))


def _config(path: Path, problems: list[str]) -> tuple[str, dict[str, Any]]:
    text = path.read_text(encoding="utf8", errors="replace")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append("config.yaml is not valid YAML; its text is shown below, its values are not used")
        tree = None
    return text, mapping(tree)


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


def _history(folder: Path, path: str, problems: list[str]) -> list[dict[str, Any]]:
    """The lines with a step and a loss; a line cut short by a kill is skipped and mentioned."""
    try:
        lines = (folder / path).read_text(encoding="utf8", errors="replace").splitlines()
    except OSError:
        return []
    kept, broken = [], 0
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and finite(row.get("step")) is not None:
            kept.append(row)
        else:
            broken += 1
    if broken:
        problems.append(f"{path}: {broken} line(s) could not be read and are left out of the curve")
    return kept


def _scores(folder: Path, scoring: str, select: Mapping[str, Any], problems: list[str]) -> Scores | None:
    """All scores with response lengths from the store; where a run was kept without its store, or selected by sketches,
    the sample of scores with whole lengths that `select` recorded; else None."""
    home = folder / "score" / "scores.zarr"
    if scoring == "score" and home.is_dir() and (folder / "score" / "manifest.json").is_file():
        try:
            store = arrays.open_store(home)
            score, span, status = (arrays.read(store, name) for name in ("score", "span", "status"))
            kept = (status == 0) & np.isfinite(score) & (span > 0)
            if kept.any():
                return Scores(score[kept].astype(np.float64), span[kept], "response")
        except (UserError, KeyError) as error:
            problems.append(f"score/scores.zarr cannot be read ({error})")
    sample = mapping(select.get("scatter"))
    length, value = sample.get("tokens"), sample.get("score")
    if not isinstance(length, list) or not isinstance(value, list):
        return None
    points = [(finite(v), finite(n)) for v, n in zip(value, length, strict=False)]
    known = np.array([(v, n) for v, n in points if v is not None and n is not None and n > 0])
    return Scores(known[:, 0], known[:, 1], "example") if len(known) else None
