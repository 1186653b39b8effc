"""The plan of a command: which stages it runs, what decides each, and how far each is. Made before anything is written.

`make_plan` opens, compares and refuses; `engine/run.py` then only does what the plan says.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ntk_jax.engine.config import flatten, to_tree
from ntk_jax.engine.shards import Shard, refuse_missing
from ntk_jax.engine.stage import Pipeline
from ntk_jax.errors import UserError
from ntk_jax.parallel import hosts
from ntk_jax.storage.atomic import read_json, write_json
from ntk_jax.storage.reading import Found
from ntk_jax.storage.run import State, look, shards_asked, verify

FILE = "plan.json"
SCHEMA = 1
FINISHED = ("done", "refresh")  # what may be built upon


@dataclass(frozen=True)
class Command:
    """What was asked for. only: a single stage. until: the last stage of a run. shard: compute only these blocks of
    `only`. merge: close `only`, whose blocks are all there."""

    only: str | None = None
    until: str | None = None
    shard: Shard | None = None
    merge: bool = False


class Sign(NamedTuple):
    """What decides a stage's results, what only decides how they are shown, what is kept beside them, and what decides
    a part of them each: flat {key: value}."""

    fingerprint: dict[str, Any]
    shown: dict[str, Any]
    kept: dict[str, Any]
    parts: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """stages: in order, those to be run. states: of these. signs: what decides each. inputs: {kind: {path: SHA-256}} of
    all that they read."""

    pipeline: Pipeline
    config: Any
    command: Command
    stages: tuple[str, ...]
    states: Mapping[str, State]
    signs: Mapping[str, Sign]
    inputs: Mapping[str, Mapping[str, str]]

    @property
    def pending(self) -> tuple[str, ...]:
        """The stages that are not done."""
        return tuple(name for name in self.stages if self.states[name] != "done")


def stages_asked(pipeline: Pipeline, config: Any, command: Command) -> tuple[str, ...]:
    """The stages of a command, in order; none where the config has no use for the single stage asked for.

    Raises UserError: `until` is no stage of a run of this config.
    """
    whole = pipeline.of(config)
    if command.only:
        return (command.only,) if command.only in whole else ()
    if not command.until:
        return whole
    if command.until not in whole:
        raise UserError(
            f"--until {command.until}: a run of this config has no such stage; its stages are {', '.join(whole)}"
        )
    return whole[: whole.index(command.until) + 1]


def check_settings(pipeline: Pipeline, config: Any, stages: tuple[str, ...]) -> None:
    """Raises UserError for settings that cannot work together: known before anything is loaded, so that they do not
    come out after hours."""
    for check in (pipeline.check, *(pipeline.stage(name).check for name in stages)):
        if check:
            check(config)


def make_plan(pipeline: Pipeline, config: Any, command: Command, folder: Path, state: Any) -> Plan:
    """The plan of a command over a run directory, which it only reads. state: what the stages will be handed.

    Raises UserError: inputs that cannot be read, a stage that was made from something else (the differing keys are
    named), a stage before that is not done, a damaged result, blocks that are missing.
    """
    stages = stages_asked(pipeline, config, command)
    earlier = pipeline.before(config, command.only) if command.only else ()
    # Later stages that were begun must fit too: the plan that is written says how their results were made.
    later = [name for name in pipeline.of(config) if name not in (*earlier, *stages)]
    later = hosts.broadcast(lambda: [name for name in later if (folder / name / "fingerprint.json").exists()])
    inputs = _input_hashes(pipeline, config, (*earlier, *stages, *later))
    signs = {name: _sign(pipeline, config, name, inputs) for name in (*earlier, *stages, *later)}
    hosts.require_equal("config or inputs", json.dumps(signs, sort_keys=True, default=str))
    states = hosts.broadcast(lambda: {name: look(folder / name, *signs[name]) for name in signs})
    for name in earlier:
        if states[name] not in FINISHED:
            raise UserError(f"stage {command.only} needs stage {name}, which is not done in {folder}; run it first")
    for name in (*earlier, *stages):
        if states[name] in FINISHED:
            hosts.broadcast(functools.partial(verify, folder / name))
    plan = Plan(
        pipeline,
        config,
        command,
        stages,
        {name: states[name] for name in stages},
        signs,
        inputs,
    )
    if command.merge and plan.pending:
        stage, stores = folder / stages[0], pipeline.stage(stages[0]).stores(config)
        hosts.broadcast(lambda: refuse_missing(stage, stores, shards_asked(folder, stage.name)))
    for name in plan.pending:
        check = pipeline.stage(name).check_inputs
        if check:
            check(state, command.merge)
    return plan


def same_results(pipeline: Pipeline, a: Any, b: Any) -> tuple[str, ...]:
    """The stages, in order, of which two configs make the same results from the same files: what a run of `b` may take
    over from one of `a`. Everything that these stages build on is among them."""
    same: list[str] = []
    for name in (name for name in pipeline.of(b) if name in pipeline.of(a)):
        signs = [_sign(pipeline, config, name, {kind: {} for kind in pipeline.inputs(config)}) for config in (a, b)]
        decided = [
            (
                pipeline.before(config, name),
                [pipeline.stage(stage).kinds(config) for stage in (*pipeline.before(config, name), name)],
                sign.fingerprint,
            )
            for config, sign in zip((a, b), signs, strict=True)
        ]
        enough = signs[1].kept.items() <= signs[0].kept.items()
        # A stage may only show what an earlier one is decided by: then it is the earlier one that differs.
        if decided[0] == decided[1] and enough and set(decided[0][0]) <= set(same):
            same.append(name)
    return tuple(same)


def write_plan(plan: Plan, folder: Path) -> None:
    """Writes plan.json: for each pipeline of the run directory its title, its resolved config, the stages that this
    config uses and the pipeline's own facts. It is what the report reads."""
    pipeline, config = plan.pipeline, plan.config
    entry = {
        "title": pipeline.title,
        "config": to_tree(config),
        "stages": [
            {"name": name, "title": pipeline.stage(name).title, "after": list(pipeline.stage(name).after(config))}
            for name in pipeline.of(config)
        ],
        "facts": pipeline.facts(config) if pipeline.facts else {},
    }
    path = folder / FILE
    before = read_json(path, dict) if path.exists() else Found()
    write_json(path, {"schema": SCHEMA, "pipelines": {**before.part("pipelines"), pipeline.name: entry}})


def _sign(pipeline: Pipeline, config: Any, name: str, inputs: Mapping[str, Mapping[str, str]]) -> Sign:
    """Of a stage: settings and hashes of inputs that decide its bytes, its own and those of the stages it builds on;
    and its own settings that only decide what it shows or keeps."""
    settings = flatten(to_tree(config)) | (pipeline.resolved(config) if pipeline.resolved else {})
    stages = [pipeline.stage(stage) for stage in (*pipeline.before(config, name), name)]
    kinds = dict.fromkeys(kind for stage in stages for kind in stage.kinds(config))
    decides = _chosen(settings, [key for stage in stages for key in stage.keys(config)])
    of_parts = [kind for kind in kinds if any(kind in stage.parts for stage in stages)]
    whole = _hashes(inputs, [kind for kind in kinds if kind not in of_parts])
    shown = _chosen(settings, pipeline.stage(name).shows)
    kept = _chosen(settings, pipeline.stage(name).keeps(config))
    return Sign(
        {key: value for key, value in decides.items() if key not in shown} | whole,
        shown,
        kept,
        _hashes(inputs, of_parts),
    )


def _hashes(inputs: Mapping[str, Mapping[str, str]], kinds: list[str]) -> dict[str, str]:
    return {f"input.{kind}.{path}": digest for kind in kinds for path, digest in inputs[kind].items()}


def _chosen(settings: Mapping[str, Any], sections: Any) -> dict[str, Any]:
    """The settings that are one of these keys or in one of these sections."""
    return {key: value for key, value in settings.items() if any(key == s or key.startswith(s + ".") for s in sections)}


def _input_hashes(pipeline: Pipeline, config: Any, stages: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """SHA-256 of every input of these stages, by kind and path."""
    kinds = dict.fromkeys(kind for name in stages for kind in pipeline.stage(name).kinds(config))
    ways: Mapping[str, Callable[[], dict[str, str]]] = pipeline.inputs(config)
    return {kind: ways[kind]() for kind in kinds}
