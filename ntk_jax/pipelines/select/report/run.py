"""The files of a select run as the sections want them: arms and methods in the plan's order, and what each recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.report.amounts import finite
from ntk_jax.report.reading import Pipeline, RunDirectory, mapping, records
from ntk_jax.storage import arrays

NAME = "select"
COLORS = ("c-grey", "c-green", "c-blue", "c-orange", "c-purple", "c-red", "c-olive")
KINDS = ("normalized", "raw")  # of likelihood, the one that leads first
EXACT = "ntk:"  # how the labels of methods begin that rank by exact scores
SKETCHED = "sketch:"  # and of those that rank by sketches of the same gradients
LOW_RANK = "low_rank:"  # and by the main directions of these


@dataclass(frozen=True)
class Arm:
    """One of the models compared; `color` is a CSS class, by its place among the arms."""

    name: str
    title: str
    color: str

    @property
    def folder(self) -> str:
        """Its folder in finetune/."""
        kind, _, path = self.name.partition(":")
        return f"file-{PurePosixPath(path).stem}" if kind == "file" else self.name


@dataclass(frozen=True)
class Method:
    """One way to select, and what select/summary.json says of its selection."""

    name: str
    title: str
    label: str
    found: dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """Score and length in tokens of pool examples, [N] each; `what` says of which part of an example."""

    score: np.ndarray
    length: np.ndarray
    what: str


@dataclass(frozen=True)
class SelectRun:
    """Everything that this part of the page shows."""

    directory: RunDirectory
    plan: Pipeline
    arms: tuple[Arm, ...]
    methods: tuple[Method, ...]
    results: dict[str, Any]  # evaluate/results.json
    summary: dict[str, Any]  # select/summary.json
    domain_data: dict[str, Any]
    pool_data: dict[str, Any]
    trained: dict[str, dict[str, Any]] = field(default_factory=dict)  # what is known of each arm's training

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The evaluated tasks."""
        return records(self.results.get("tasks"))

    @property
    def losses(self) -> dict[str, Any]:
        """What was found of held-out loss; empty where it was not taken."""
        return mapping(self.results.get("loss"))

    @property
    def loss_tasks(self) -> list[dict[str, Any]]:
        """The tasks whose loss was taken."""
        return records(self.losses.get("tasks"))

    @property
    def generated(self) -> dict[str, Any]:
        """What was found of generated answers; empty where none were asked for."""
        return mapping(self.results.get("generated"))

    @property
    def evaluated(self) -> list[Arm]:
        """The arms with results, in the plan's order."""
        seen = {str(arm.get("name")) for arm in records(self.results.get("arms"))}
        seen |= set(mapping(self.results.get("average")))
        seen |= {name for task in self.tasks for name in mapping(task.get("results"))}
        return [arm for arm in self.arms if arm.name in seen]

    @property
    def first(self) -> Method | None:
        """The method whose selection the page looks at closely."""
        return self.methods[0] if self.methods else None

    @property
    def found(self) -> dict[str, Any]:
        """What the selection of the first method recorded."""
        return self.first.found if self.first else {}

    def title(self, arm: str) -> str:
        """What an arm is called."""
        return next((a.title for a in self.arms if a.name == arm), arm)

    def setting(self, section: str, key: str) -> Any:
        """A value of the resolved config."""
        return self.plan.setting(section, key)

    def rho(self) -> float | None:
        """ρ = ‖Wᵀ1‖² / ‖W‖²_F of the model's head."""
        found = (
            self.directory.json(f"{stage}/summary.json").get("rho")
            for stage in ("score", "gradient", "sketch", "subspace")
        )
        return next((r for r in map(finite, found) if r is not None), None)

    def objective(self) -> str:
        """The scalar that was differentiated."""
        recorded = self.directory.json("gradient/summary.json").get("objective")
        return str(recorded or self.setting("score", "objective") or "not recorded")

    def differentiating(self) -> list[Method]:
        """The methods whose ranking comes from gradients of the objective."""
        return [m for m in self.methods if m.label.startswith((EXACT, SKETCHED, LOW_RANK))]


def select_run(directory: RunDirectory) -> SelectRun:
    """The select pipeline of a run directory whose plan has one."""
    plan = directory.pipelines[NAME]
    results, summary = directory.json("evaluate/results.json"), directory.json("select/summary.json")
    arms = _arms(plan, results)
    evaluated = {str(arm.get("name")): arm for arm in records(results.get("arms"))}
    trained = {
        arm.name: {
            **directory.json(f"finetune/{arm.folder}/summary.json"),
            **{k: v for k, v in evaluated.get(arm.name, {}).items() if v is not None},
        }
        for arm in arms
    }
    # Where votes pre-select, the scoring stages see only what was left.
    stages = [
        stage
        for stage in ("preselect", "score", "sketch", "low_rank", "less", "embed", "losses", "pool")
        if plan.has(stage)
    ]
    pool = (directory.json(f"{stage}/data.json") for stage in stages)
    return SelectRun(
        directory=directory,
        plan=plan,
        arms=arms,
        methods=_methods(plan, summary),
        results=results,
        summary=summary,
        domain_data=directory.json("warmup/data.json") or directory.json("select/domain.json"),
        pool_data=next((data for data in pool if data), {}),
        trained=trained,
    )


def _arms(plan: Pipeline, results: dict[str, Any]) -> tuple[Arm, ...]:
    """The arms of the plan; those that only the results name follow."""
    named: dict[str, str] = {}
    for arm in [*records(plan.facts.get("arms")), *records(results.get("arms"))]:
        if isinstance(arm.get("name"), str):
            named.setdefault(arm["name"], str(arm.get("title") or arm["name"]))
    # Grey belongs to the first arm alone; past the last colour the others come round again.
    colors = [COLORS[i if i < len(COLORS) else 1 + (i - 1) % (len(COLORS) - 1)] for i in range(len(named))]
    return tuple(Arm(name, title, color) for (name, title), color in zip(named.items(), colors, strict=True))


def _methods(plan: Pipeline, summary: dict[str, Any]) -> tuple[Method, ...]:
    found = mapping(summary.get("by_method"))
    named = {m["name"]: m for m in records(plan.facts.get("methods")) if isinstance(m.get("name"), str)}
    for name in found:
        named.setdefault(name, {"name": name})
    return tuple(
        Method(
            name,
            str(m.get("title") or name),
            str(mapping(found.get(name)).get("label") or m.get("label") or name),
            mapping(found.get(name)),
        )
        for name, m in named.items()
    )


def scores_and_lengths(run: SelectRun) -> Scores | None:
    """All scores of the first method with response lengths from the store; where it ranks by something else, or the
    run was kept without its store, the sample with whole lengths that `select` recorded; else None."""
    directory, method = run.directory, run.first
    home, manifest = (directory.folder / "score" / name for name in ("scores.zarr", "manifest.json"))
    if method is not None and method.label.startswith(EXACT) and home.is_dir() and manifest.is_file():
        try:
            store = arrays.open_store(home)
            score, span, status = (arrays.read(store, name) for name in ("score", "span", "status"))
            kept = (status == 0) & np.isfinite(score) & (span > 0)
            if kept.any():
                return Scores(score[kept].astype(np.float64), span[kept], "response")
        except (UserError, KeyError) as error:
            directory.problems.append(f"score/scores.zarr cannot be read ({error})")
    sample = mapping(run.found.get("scatter"))
    length, value = sample.get("tokens"), sample.get("score")
    if not isinstance(length, list) or not isinstance(value, list):
        return None
    points = [(finite(v), finite(n)) for v, n in zip(value, length, strict=False)]
    known = np.array([(v, n) for v, n in points if v is not None and n is not None and n > 0])
    return Scores(known[:, 0], known[:, 1], "example") if len(known) else None
