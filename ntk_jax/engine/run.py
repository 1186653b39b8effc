"""Runs a pipeline, or one of its stages: plans, then does what the plan says, stage by stage.

Each stage writes into its own folder of the run directory, and gets a `manifest.json` last, with the fingerprint of all
that it depends on: a stage whose manifest matches (and whose files have their checksums) is skipped, one without is
resumed, a mismatch stops with the differing keys named.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ntk_jax.engine import clock
from ntk_jax.engine.config import read_tree, to_tree
from ntk_jax.engine.plan import Command, Plan, check_settings, make_plan, stages_asked, write_plan
from ntk_jax.engine.progress import Progress
from ntk_jax.engine.provenance import record_provenance
from ntk_jax.engine.shards import standing
from ntk_jax.engine.stage import Job, MakeProgress, Pipeline
from ntk_jax.errors import UserError
from ntk_jax.parallel import hosts
from ntk_jax.report.page import write_report
from ntk_jax.storage import bucket
from ntk_jax.storage.atomic import make_folder, write_text
from ntk_jax.storage.run import begin, close_empty, commit, lock, lock_shard, starting


def run(
    pipeline: Pipeline,
    config: Any,
    command: Command | None = None,
    *,
    parts: Mapping[str, Any] | None = None,
    progress: MakeProgress = Progress,
) -> Path:
    """Runs what the command asks for; by default all stages of this config, and then the report. Returns the run
    directory; of one in a bucket, its working copy.

    parts: {pipeline: function that makes its part of the report}; None writes no report.

    Raises UserError for a user's mistake; everything already written is kept, and the same call goes on from there.
    ValueError: the stage asked for has no blocks to compute in shards.
    """
    command = command or Command()
    _refuse_distributed(pipeline, command)
    names = stages_asked(pipeline, config, command)
    stores = pipeline.stage(names[0]).stores(config) if command.only and names else ()
    if (command.shard or command.merge) and names and not stores:
        raise ValueError(f"{command.only} has no blocks to compute in shards")
    check_settings(pipeline, config, names)  # before so much as a folder is made
    folder, hold = _hold(config, command)
    if not names:
        return folder
    remote = bucket.is_address(config.out)
    with contextlib.ExitStack() as held:
        copy = hosts.broadcast(lambda: held.enter_context(hold))  # one of several processes holds the folder for all
        job = Job(folder, progress, command.shard)
        progress("inputs", None, "")(1, 1, "reading the model and the data")  # a large model takes its time
        state = pipeline.open(config, job)
        plan = make_plan(pipeline, config, command, folder, state)
        if not command.shard:
            hosts.broadcast(functools.partial(_write_head, plan, folder))
        for name in names:
            if plan.states[name] == "done":
                progress(name, None, "")(1, 1, "done before")
                continue
            alone = bucket.starting(copy, name) if remote else starting(folder)
            with alone if command.shard else contextlib.nullcontext():
                hosts.broadcast(functools.partial(_begin, plan, folder, name))
            place = make_folder(folder / name)
            hosts.wait_until_visible(place / "fingerprint.json")
            try:
                facts = pipeline.stage(name).function(state, place)
            except UserError:
                if plan.states[name] == "new" and not command.shard:
                    hosts.broadcast(functools.partial(close_empty, place))
                raise
            if facts is not None:
                sign = plan.signs[name]
                hosts.broadcast(
                    functools.partial(commit, place, sign.fingerprint, facts, sign.shown, sign.kept, sign.parts)
                )
            if remote:
                bucket.push_all(copy)
        if pipeline.beside and not command.shard:
            hosts.broadcast(functools.partial(pipeline.beside, config, folder))
        if parts is not None and not command.only and not command.until:
            hosts.broadcast(lambda: str(write_report(folder, parts)))
            if remote:
                bucket.push_all(copy)
        hosts.barrier("the end")
    return folder


def report(config: Any, parts: Mapping[str, Any]) -> Path:
    """Writes the page of a run directory, from what is there, and reads nothing else. Returns as `run`.

    Raises UserError: the folder is no run directory, is in use, or the page cannot be written.
    """
    if hosts.is_distributed():
        raise UserError("report runs in one process; start it alone, not as one of a launcher's tasks")
    folder, hold = _hold(config, Command(only="report"))
    with hold as copy:
        write_report(folder, parts)
        if bucket.is_address(config.out):
            bucket.push_all(copy)
    return folder


def progress_of_shards(pipeline: Pipeline, config: Any, folder: Path, name: str) -> str:
    """How much of a stage is there, after a shard of it. folder: the run directory, or the shard's working copy."""
    stores, place = pipeline.stage(name).stores(config), folder / name
    if bucket.is_address(config.out):  # what other shards wrote meanwhile is there and not here
        return f"{name}: this shard is in {config.out}; close the stage with --merge when all are"
    closed = "the stage is closed" if (place / "manifest.json").exists() else "close the stage with --merge"
    return f"{name}: {standing(place, stores)} are there; {closed}"


def _refuse_distributed(pipeline: Pipeline, command: Command) -> None:
    if hosts.is_distributed() and (command.shard or not pipeline.distributed):
        name = command.only or pipeline.command
        raise UserError(
            f"{name}{' --shard' if command.shard else ''} runs in one process; start it alone, without --coordinator "
            "and not as one of a launcher's tasks"
        )


def _hold(config: Any, command: Command) -> tuple[Path, contextlib.AbstractContextManager[Any]]:
    """The run directory (of one in a bucket, its working copy), and what holds it for this process once entered."""
    if not config.out:
        raise UserError("out is not set; give a run directory with --out DIR")
    shard = command.shard
    name = f"{command.only}-{shard.index}-of-{shard.count}" if shard else ""
    folder = bucket.run_folder(config.out, name)
    if bucket.is_address(config.out):
        return folder, bucket.opened(config.out, name)
    if shard:
        return folder, lock_shard(folder, str(command.only), shard.index, shard.count)
    return folder, lock(folder)


def _begin(plan: Plan, folder: Path, name: str) -> None:
    """Opens a stage and says what computes it. Of two shards that start with different settings, the second is refused
    here, before it writes what they have in common."""
    if begin(folder / name, *plan.signs[name]) == "new":
        clock.forget(folder, name)
    if plan.command.shard:
        _write_head(plan, folder)
    record_provenance(folder, plan.pipeline.name, name, getattr(plan.config, "seed", None), plan.inputs)


def _write_head(plan: Plan, folder: Path) -> None:
    """config.yaml, which keeps the sections of other pipelines that run in the same folder, and plan.json."""
    path = folder / "config.yaml"
    before = read_tree(path) if path.exists() else {}
    tree = {**before, **to_tree(plan.config)}
    write_text(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    write_plan(plan, folder)
