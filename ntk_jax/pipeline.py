"""NTK-Selector from end to end: the stages in order, what each depends on, and how a run goes on after a kill.

| stage      | reads                          | writes (in its own folder)                                      |
|------------|--------------------------------|------------------------------------------------------------------|
| warmup     | domain                         | adapter/, second_moment.safetensors, history.jsonl, data.json    |
| gradient   | domain, warmup                 | direction.safetensors, summary.json                              |
| preselect  | pool, warmup                   | summary.json; with `votes` hidden.zarr, candidates.npy, data.json |
| score      | pool, warmup, gradient, preselect | scores.zarr, data.json, summary.json                          |
| sketch     | pool, domain, warmup, preselect | pool.zarr, domain.zarr, data.json, summary.json                 |
| select     | pool, score or sketch          | selection.jsonl, random.jsonl, summary.json, examples.json       |
| finetune   | domain, select                 | <arm>/adapter, <arm>/history.jsonl, <arm>/summary.json           |
| evaluate   | finetune                       | results.json, predictions/<arm>/                                 |
| report     | everything                     | index.html                                                       |

Two more belong to no run of all stages and build on none: `kernel` reads kernel.a and kernel.b and writes kernel.npz,
`diagnose` reads domain, pool and questions and writes what `stages/diagnose.py` lists.

preselect (with votes), score and sketch can be filled by several processes, each with its share of the blocks; the
stage is closed by one that finds all blocks there (`stages/share.py`).

Each folder gets a `manifest.json` last, with the fingerprint of all that the stage depends on: a stage whose
manifest matches (and whose files have their checksums) is skipped, one without is resumed, a mismatch stops with the
differing keys named. A run takes one way to its selection: gradient and score if select.by is `score`, else sketch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import yaml

from ntk_jax.config import Config, ScoreSection, to_tree
from ntk_jax.data.sources import source_hashes
from ntk_jax.errors import UserError
from ntk_jax.models.hub import resolve
from ntk_jax.parallel import hosts
from ntk_jax.progress import Progress
from ntk_jax.report.page import write_report
from ntk_jax.stages import arms, diagnose, domain, kernel, pool, selection, sketch
from ntk_jax.stages.context import MakeProgress, Run
from ntk_jax.stages.share import Share, refuse_missing, standing
from ntk_jax.storage import bucket
from ntk_jax.storage.atomic import make_folder, read_json, write_json, write_text
from ntk_jax.storage.hashing import hash_model, sha256_file
from ntk_jax.storage.run import begin, commit, lock, lock_shard, look, shards_asked, starting, verify
from ntk_jax.training.checkpoints import discard_checkpoints
from ntk_jax.training.optimizer import check_config

Facts = dict[str, Any]


def _report(run: Run, folder: Path) -> Facts:
    return hosts.broadcast(lambda: {"page": write_report(run.folder).name})


@dataclass(frozen=True)
class Stage:
    """A stage, and what decides its results: its own settings and inputs, and those of the stages it builds on.

    reads: sections or keys of the config, which decide this stage's results and those of the stages after it.
    shows: keys that decide only what this stage writes for people, so that no later stage depends on them.
    alone: no part of a run of all stages.
    stores: the array stores whose blocks several processes may share.
    """

    function: Callable[[Run, Path], Facts | None]  # None: its share of the blocks is done, the stage is not
    after: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    shows: tuple[str, ...] = ()
    alone: bool = False
    stores: tuple[str, ...] = ()


# No gradient depends on how the score computes attention; a score does, by rounding, as on its batch_tokens.
_SCORE = tuple(f"score.{field.name}" for field in dataclasses.fields(ScoreSection) if field.name != "attention")

_STAGES = {
    "warmup": Stage(
        domain.warmup, (), ("seed", "model", "lora", "data.domain", "data.domain_limit", "warmup"), ("model", "domain")
    ),
    "gradient": Stage(domain.gradient, ("warmup",), _SCORE, ("direction",)),
    "preselect": Stage(
        pool.preselect,
        ("warmup",),
        ("data.pool", "data.pool_limit", "preselect", "score.batch_tokens", "score.block_examples"),
        ("pool",),
        stores=("hidden.zarr",),
    ),
    "score": Stage(pool.score, ("gradient", "preselect"), ("score.attention",), stores=("scores.zarr",)),
    "sketch": Stage(
        sketch.sketch,
        ("preselect",),
        tuple(f"score.{key}" for key in ("objective", "span", "normalize", "parameters", "probes", "batch_tokens"))
        + ("sketch",),
        stores=("pool.zarr", "domain.zarr"),
    ),
    "select": Stage(selection.select, ("score", "sketch"), ("select",), shows=("report", "score.attention")),
    "finetune": Stage(arms.finetune, ("select",), ("finetune", "evaluate.arms")),
    "evaluate": Stage(arms.evaluate, ("finetune",), ("evaluate",), ("evaluate",)),
    "report": Stage(_report, ("evaluate",)),
    "kernel": Stage(
        kernel.kernel,
        (),
        ("seed", "model", "lora", "kernel", "score.span", "score.parameters"),
        ("model", "kernel.a", "kernel.b"),
        alone=True,
    ),
    "diagnose": Stage(
        diagnose.diagnose,
        (),
        (
            *("seed", "model", "lora", "data", "warmup", "diagnose", "evaluate.files", "report.group_by"),
            *("score.span", "score.normalize", "score.probes", "score.batch_tokens"),
        ),
        ("model", "adapters", "domain", "pool", "evaluate"),
        alone=True,
    ),
}
# Keys that run directories of earlier versions lack, with their defaults.
_LATER = {"model.quantization": None, "score.attention": "xla"}
STAGES = tuple(name for name, stage in _STAGES.items() if not stage.alone)
SHARED = tuple(name for name, stage in _STAGES.items() if stage.stores)


def stages_of(config: Config) -> tuple[str, ...]:
    """The stages of a run of this config, in order."""
    unused = ("sketch",) if config.select.by == "score" else ("gradient", "score")
    return tuple(name for name in STAGES if name not in unused)


def run(
    config: Config,
    *,
    until: str | None = None,
    only: str | None = None,
    share: Share | None = None,
    merge: bool = False,
    progress: MakeProgress = Progress,
) -> Path:
    """Runs all stages (up to and with `until`), or `only` one whose predecessors are done. Returns the run directory;
    of one in a bucket, its working copy.

    `only="report"` shows whatever is there and reads nothing but the run directory.
    share: compute only these blocks of `only`, one of SHARED, and leave it open; other shares may run meanwhile.
    merge: close `only`, if all its blocks are there.
    Raises UserError for a user's mistake; everything already written is kept, and the same call goes on from there.
    """
    if hosts.is_distributed() and (share or only in ("kernel", "diagnose", "report")):
        raise UserError(
            f"{only}{' --shard' if share else ''} runs in one process; start it alone, without --coordinator and not "
            "as one of a launcher's tasks"
        )
    shard = f"{only}-{share.index}-of-{share.count}" if share else ""
    folder, remote = bucket.run_folder(config.out, shard), bucket.is_address(config.out)
    hold: contextlib.AbstractContextManager[Any]
    if remote:
        hold = bucket.opened(config.out, shard)
    else:
        hold = lock_shard(folder, str(only), share.index, share.count) if share else lock(folder)
    if only == "report":
        with hold:
            write_report(folder)
        return folder
    whole = stages_of(config)
    if until and until not in whole:
        raise UserError(
            f"--until {until}: a run with select.by = {config.select.by} has no such stage; its stages are "
            f"{', '.join(whole)} (`ntk-jax {until}` runs it alone)"
        )
    names = (only,) if only else whole[: whole.index(until) + 1] if until else whole
    _check_given(config, names)
    check_settings(config, names)
    if (share or merge) and only not in SHARED:
        raise ValueError(f"only {', '.join(SHARED)} have blocks to share, not {only}")
    if share and not _stores(config, names[0]):
        return folder
    with contextlib.ExitStack() as held:
        copy = hosts.broadcast(lambda: held.enter_context(hold))  # one of several processes holds the directory for all
        this = Run(kernel.on_one_copy(config) if set(names) == {"kernel"} else config, folder, progress, share)
        inputs = _input_hashes(config, names)
        earlier = _before(config, only) if only else ()
        fingerprints = {name: _fingerprint(config, name, inputs) for name in (*earlier, *names)}
        # Everything is compared before anything is written: a refused command leaves the run as it was.
        hosts.require_equal("config or inputs", json.dumps(fingerprints, sort_keys=True, default=str))
        looked = [name for name in (*earlier, *names) if name != "report"]
        states = hosts.broadcast(lambda: {name: look(folder / name, fingerprints[name]) for name in looked})
        for name in earlier:
            if states[name] != "done":
                raise UserError(f"stage {only} needs stage {name}, which is not done in {folder}; run it first")
        for name, state in states.items():
            if state == "done":
                hosts.broadcast(functools.partial(verify, folder / name))
        if merge and states[names[0]] != "done":
            stage, stores = folder / names[0], _stores(config, names[0])
            hosts.broadcast(lambda: refuse_missing(stage, stores, shards_asked(folder, stage.name)))
        _check_inputs(this, [name for name in names if states.get(name) != "done"], closing=merge)
        if not share:
            _write_config(config, folder)
        for name in names:
            if states.get(name) == "done":
                progress(name, None, "")(1, 1, "done before")
                continue
            alone = bucket.starting(copy, name) if remote else starting(folder)
            with alone if share else contextlib.nullcontext():
                if name != "report":  # the report is cheap and its code may have improved: it is always written anew
                    hosts.broadcast(functools.partial(begin, folder / name, fingerprints[name]))
                if share:  # behind `begin`, which refuses the second of two shards that start with different settings
                    _write_config(config, folder)
                hosts.broadcast(functools.partial(_record_provenance, config, folder, inputs, name))
            place = make_folder(folder / name)
            if name != "report":
                hosts.wait_until_visible(place / "fingerprint.json")
            facts = _STAGES[name].function(this, place)
            if facts is not None:
                hosts.broadcast(functools.partial(commit, place, fingerprints[name], facts))
            if name == "warmup":
                discard_checkpoints(place)  # they were there to go on from
            if remote:
                bucket.push_all(copy)
        hosts.barrier("the end")
    return folder


def _write_config(config: Config, folder: Path) -> None:
    write_text(folder / "config.yaml", yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True))


def shared_line(config: Config, folder: Path, name: str) -> str:
    """How much of a stage is there, after a share of it. folder: the run directory, or the share's working copy."""
    folder, stores = folder / name, _stores(config, name)
    if not stores:
        return f"{name}: preselect.method = none leaves nothing to share; --merge closes the stage"
    if bucket.is_address(config.out):  # what other shares wrote meanwhile is there and not here
        return f"{name}: this share is in {config.out}; close the stage with --merge when all are"
    closed = "the stage is closed" if (folder / "manifest.json").exists() else "close the stage with --merge"
    return f"{name}: {standing(folder, stores)} are there; {closed}"


def _stores(config: Config, name: str) -> tuple[str, ...]:
    """The stores of a stage under this config."""
    return () if name == "preselect" and config.preselect.method == "none" else _STAGES[name].stores


def _before(config: Config, name: str) -> tuple[str, ...]:
    """All stages that a stage builds on, in order."""
    parents = _STAGES[name].after
    if name == "select":  # it takes one of the two
        parents = ("score",) if config.select.by == "score" else ("sketch",)
    found = {stage for parent in parents for stage in (*_before(config, parent), parent)}
    return tuple(stage for stage in STAGES if stage in found)


def _check_given(config: Config, names: Sequence[str]) -> None:
    """Raises UserError for what has no default and is not set."""
    data: tuple[tuple[str, Any, str], ...] = (
        ("data.domain", config.data.domain, "give the file of the domain's examples"),
        ("data.pool", config.data.pool, "give the files of the general pool"),
    )
    if set(names) == {"kernel"}:
        data = (("kernel.a", config.kernel.a, "give the files of the examples whose kernel is asked for"),)
    for key, value, mend in (
        ("out", config.out, "give a run directory with --out DIR"),
        ("model.path", config.model.path, "give a Hugging Face directory, a hub id, or builtin:model"),
        *data,
    ):
        if not value:
            raise UserError(f"{key} is not set; {mend}")
    if "evaluate" in names and not config.evaluate.files:
        raise UserError(
            "evaluate.files is empty; give at least one multiple-choice file, or stop with --until finetune"
        )


def check_settings(config: Config, names: Sequence[str] = STAGES) -> None:
    """Raises UserError for settings that cannot work together: known before anything is loaded, so that it does not
    come out after hours."""
    if set(names) == {"kernel"}:
        kernel.check_kernel(config)
        return
    if "diagnose" in names:
        diagnose.check_diagnose(config)
    arms.check_arms(config)
    if config.warmup.max_steps != 0:
        check_config(Run.train_config(config.warmup), "warmup")
    if "finetune" in names:
        check_config(Run.train_config(config.finetune), "finetune")
    pool.check_score(config)
    if "sketch" in names:
        sketch.check_sketch(config)


def _check_inputs(this: Run, pending: Sequence[str], closing: bool) -> None:
    """Reads what later stages will read, so that a bad line is found before hours of work and not after them: its
    mend changes the file, and with it the fingerprint of everything computed from it. closing: all blocks of the stage
    are there, and nothing will be computed, so this machine needs no accelerator."""
    if {"preselect", "score", "select"} & set(pending) and this.config.select.count > len(this.pool_ordinals):
        raise UserError(
            f"select.count = {this.config.select.count} is larger than the pool ({len(this.pool_ordinals)} examples); "
            "lower it or add data"
        )
    if "evaluate" in pending or ("diagnose" in pending and this.config.evaluate.files):
        arms.check_questions(this.config)
    if {"score", "select"} & set(pending) and not closing:
        pool.check_attention(this)
    if "gradient" in pending:
        _ = this.differentiated  # loads the model, and refuses a pattern that matches none of its parameters
    if "diagnose" in pending:
        diagnose.check_diagnose_inputs(this)
    if "kernel" in pending:
        kernel.checked_examples(this)
    if "sketch" in pending:
        sketch.check_sketch_width(this)


def _fingerprint(config: Config, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Flat {key: value} of all that decides the stage's bytes: settings and hashes of inputs, its own and those of
    the stages it builds on. Keys that came later are left out at their default, so that earlier runs go on."""
    tree = _flatten(to_tree(config)) | pool.resolved_votes(config)
    tree = {key: value for key, value in tree.items() if key not in _LATER or value != _LATER[key]}
    stages = [_STAGES[stage] for stage in (*_before(config, name), name)]
    sections = [key for stage in stages for key in stage.reads] + list(_STAGES[name].shows)
    keys = {key: value for key, value in tree.items() if any(key == s or key.startswith(s + ".") for s in sections)}
    kinds = [kind for stage in stages for kind in stage.inputs]
    return {**keys, **{f"input.{kind}.{path}": digest for kind in kinds for path, digest in inputs[kind].items()}}


def _input_hashes(config: Config, names: Sequence[str] = STAGES) -> dict[str, dict[str, str]]:
    """SHA-256 of every input, by kind and path."""
    model = {config.model.path: hash_model(resolve(config.model.path))}
    if config.model.adapter:
        model[config.model.adapter] = hash_model(resolve(config.model.adapter))
    if set(names) == {"kernel"}:
        sides = (("kernel.a", config.kernel.a), ("kernel.b", config.kernel.b))
        return {"model": model, **{side: source_hashes(files) if files else {} for side, files in sides}}
    direction = {}
    if config.score.direction not in ("mean_gradient", "adam"):
        if not Path(config.score.direction).is_file():
            raise UserError(
                f"score.direction = {config.score.direction!r} is neither mean_gradient, adam nor an existing file"
            )
        direction[config.score.direction] = sha256_file(Path(config.score.direction))
    return {
        "model": model,
        "adapters": {path: hash_model(resolve(path)) for path in config.diagnose.adapters}
        if "diagnose" in names
        else {},
        "direction": direction,
        "domain": source_hashes(config.data.domain),
        "pool": source_hashes(config.data.pool),
        "evaluate": source_hashes(config.evaluate.files) if config.evaluate.files else {},
    }


def _record_provenance(config: Config, folder: Path, inputs: dict[str, Any], stage: str) -> None:
    """Writes provenance.json, and in it which environments computed each stage: one, unless a stage was resumed under
    other versions or on other devices."""
    names = ("ntk_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "tensorstore")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a package"
    here = {
        "versions": versions,
        "devices": [str(device) for device in jax.devices()],
        "processes": jax.process_count(),
        "command": sys.argv,
    }
    path = folder / "provenance.json"
    before = read_json(path) if path.exists() else {}
    stages = before.get("stages", {})
    others = [environment for environment in stages.get(stage, []) if environment != here]
    stages[stage] = [*others, here]
    # The inputs of a kernel and of a run in the same folder stay beside each other.
    hashes = {kind: found for kind, found in {**before.get("hashes", {}), **inputs}.items() if found}
    write_json(path, {**here, "seeds": {"seed": config.seed}, "hashes": hashes, "stages": stages})


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
