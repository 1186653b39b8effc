"""What a stage and a pipeline are: records that the command line, the plan, `estimate`, `doctor` and the report read.

Their functions are named by address ("package.module:function") and imported when they are called: the tables are read
by `ntk-jax --help`, which must not wait for jax.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntk_jax.engine.shards import Shard

MakeProgress = Callable[[str, int | None, str], Callable[..., None]]
Facts = dict[str, Any]


@dataclass(frozen=True)
class Address:
    """A function by its address, "ntk_jax.pipelines.select.score:score"."""

    text: str

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.resolve()(*arguments, **options)

    def resolve(self) -> Any:
        """The function itself (or the class)."""
        module, _, name = self.text.partition(":")
        return getattr(importlib.import_module(module), name)


def nothing(_: Any) -> tuple[str, ...]:
    """Of a config: no stages, no stores."""
    return ()


@dataclass(frozen=True)
class Stage:
    """A stage: what it is called, what it computes, and what decides its results.

    name: its folder in the run directory and its sub-command. title: for people. help: a line. description: what it
    reads and writes.
    function(state, folder) -> facts for the manifest, or None where only a shard of its blocks was computed and the
    stage stays open. state: what `Pipeline.open` made.
    after(config) -> names of the stages it builds on.
    reads: sections or keys of the config that decide its results and those of the stages after it (or a function of the
    config that gives them). inputs: kinds of files that do likewise (or such a function). parts: kinds of which
    each file decides a part of its results of its own, so that some can be added and left out.
    shows: keys that decide only what it writes for people: when one of them changes the stage
    is run again over what is there, and no stage after it is touched.
    keeps(config) -> keys that decide only what it keeps beside its results, for a stage that reads them too: results
    with more beside them serve a run that asks for less, and no stage after it is touched.
    stores(config) -> names of the array stores whose blocks several processes may fill (`--shard`).
    check(config) raises UserError for settings that cannot work. check_inputs(state, closing) reads what later stages
    will read and raises UserError, before anything is written; closing: all blocks are there, nothing is computed.
    cost(load) -> `engine.costs.Cost`; load: what `Pipeline.load` made.
    """

    name: str
    title: str
    help: str
    description: str
    function: Address
    after: Callable[[Any], tuple[str, ...]] = nothing
    reads: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    inputs: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    parts: tuple[str, ...] = ()
    shows: tuple[str, ...] = ()
    keeps: Callable[[Any], tuple[str, ...]] = nothing
    stores: Callable[[Any], tuple[str, ...]] = nothing
    check: Address | None = None
    check_inputs: Address | None = None
    cost: Address | None = None

    def kinds(self, config: Any) -> tuple[str, ...]:
        """The kinds of files that decide its results under this config, those of parts of them last."""
        return (*(self.inputs(config) if callable(self.inputs) else self.inputs), *self.parts)

    def keys(self, config: Any) -> tuple[str, ...]:
        """What it reads of this config."""
        return self.reads(config) if callable(self.reads) else self.reads


@dataclass(frozen=True)
class Job:
    """What a command was asked to do, for the functions of stages: where, how to say how far it is, which blocks."""

    folder: Path
    progress: MakeProgress
    shard: Shard | None = None  # None: all blocks, and the stage is closed


@dataclass(frozen=True)
class Pipeline:
    """A pipeline: its stages in order, and how the engine comes by what they share.

    name: in a config's `pipeline` and in plan.json.
    command: the sub-command that runs all stages.
    title, help, description: as of a stage.
    config: the dataclass of its settings.
    open(config, job) -> the state that its stages are handed; nothing slow happens before a stage asks for it.
    inputs(config) -> {kind: function that gives {path: SHA-256}}; only kinds that the stages of a command read are
    asked. final(config) -> the stages that the others lead up to; a run has these and all that they build on.
    check(config) raises UserError for what has no default and is not set.
    resolved(config) -> {key: value} of settings whose default is computed, as they enter fingerprints.
    facts(config) -> what plan.json keeps for the report.
    part(run directory) -> its part of the report.
    beside(config, folder): writes what the config asks for beside the stages, from what they hold, at a run's end.
    terminal(folder) -> the lines that a run ends with, and the stages in `spoken` too.
    load(config, grounds) -> what costs are computed from, by default the state.
    measure(load, grounds) -> a rate measured here; notes(load, rate) -> (values, lines) to add to an estimate.
    doctor(config) -> [(name, function that returns what it found or raises UserError)].
    export(config, folder, wanted) -> a line for each thing when it is written; wanted: `engine.export.Wanted`.
    search(config, folder, index) -> a function (text, k) that gives (score, chunk) of the k chunks nearest to a text.
    distributed: whether several processes may run it over one mesh.
    """

    name: str
    command: str
    title: str
    help: str
    description: str
    config: Address
    stages: tuple[Stage, ...]
    open: Address
    inputs: Address
    final: Callable[[Any], tuple[str, ...]]
    check: Address | None = None
    resolved: Callable[[Any], dict[str, Any]] | None = None
    facts: Address | None = None
    part: Address | None = None
    beside: Address | None = None
    terminal: Address | None = None
    load: Address | None = None
    measure: Address | None = None
    notes: Address | None = None
    doctor: Address | None = None
    export: Address | None = None
    search: Address | None = None
    spoken: tuple[str, ...] = ()
    distributed: bool = False

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def before(self, config: Any, name: str) -> tuple[str, ...]:
        """All stages that a stage builds on under this config, in order."""
        found: set[str] = set()
        waiting = list(self.stage(name).after(config))
        while waiting:
            parent = waiting.pop()
            if parent not in found:
                found.add(parent)
                waiting += self.stage(parent).after(config)
        return self._in_order(found)

    def of(self, config: Any) -> tuple[str, ...]:
        """The stages of a run of this config, in order."""
        final = self.final(config)
        return self._in_order({*final, *(parent for name in final for parent in self.before(config, name))})

    def _in_order(self, names: set[str]) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages if stage.name in names)
