"""NTK-Selector from end to end: the stages in order, what each depends on, and how a run goes on after a kill.

| stage      | reads                          | writes (in its own folder)                                      |
|------------|--------------------------------|------------------------------------------------------------------|
| warmup     | domain                         | adapter/, second_moment.safetensors, history.jsonl, data.json    |
| gradient   | domain, warmup                 | direction.safetensors, summary.json                              |
| preselect  | pool, warmup                   | candidates.npy (only with `votes`), summary.json                 |
| score      | pool, warmup, gradient, preselect | scores.zarr, data.json, summary.json                          |
| select     | pool, score                    | selection.jsonl, random.jsonl, summary.json, examples.json       |
| finetune   | domain, select                 | <arm>/adapter, <arm>/history.jsonl, <arm>/summary.json           |
| evaluate   | finetune                       | results.json, predictions/<arm>/                                 |
| report     | everything                     | index.html                                                       |

Each folder gets a `manifest.json` last, with the fingerprint of all that the stage depends on: a stage whose
manifest matches (and whose files have their checksums) is skipped, one without is resumed, a mismatch stops with the
differing keys named.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import yaml

from ntk_jax.config import Config, to_tree
from ntk_jax.data.sources import source_hashes
from ntk_jax.errors import UserError
from ntk_jax.models.hub import resolve
from ntk_jax.progress import Progress
from ntk_jax.report.page import write_report
from ntk_jax.stages import arms, choice, kernel
from ntk_jax.stages.context import MakeProgress, Run
from ntk_jax.storage.atomic import write_json, write_text
from ntk_jax.storage.hashing import hash_model, sha256_file
from ntk_jax.storage.run import begin, commit, lock, verify
from ntk_jax.training.optimizer import check_config

Facts = dict[str, Any]


def _report(run: Run, folder: Path) -> Facts:
    return {"page": write_report(run.folder).name}


# Each stage with the sections of the config it brings in; it also depends on everything the stages before it do.
_STAGES: dict[str, tuple[Callable[[Run, Path], Facts], tuple[str, ...]]] = {
    "warmup": (kernel.warmup, ("seed", "model", "lora", "data.domain", "data.domain_limit", "warmup")),
    "gradient": (kernel.gradient, ("score",)),
    "preselect": (kernel.preselect, ("data.pool", "data.pool_limit", "preselect")),
    "score": (kernel.score, ()),
    "select": (choice.select, ("select", "report")),
    "finetune": (arms.finetune, ("finetune", "evaluate.arms")),
    "evaluate": (arms.evaluate, ("evaluate",)),
    "report": (_report, ()),
}
STAGES = tuple(_STAGES)


def run(
    config: Config,
    *,
    until: str | None = None,
    only: str | None = None,
    progress: MakeProgress = Progress,
) -> Path:
    """Runs all stages (up to and with `until`), or `only` one whose predecessors are done. Returns the run directory.

    Raises UserError for a user's mistake; everything already written is kept, and the same call goes on from there.
    """
    names = (only,) if only else STAGES[: STAGES.index(until) + 1] if until else STAGES
    _check(config, names)
    folder = Path(config.out)
    with lock(folder):
        this = Run(config, folder, progress)
        inputs = _input_hashes(config)
        write_text(folder / "config.yaml", yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True))
        write_json(folder / "provenance.json", _provenance(config, inputs))
        for name in STAGES[: STAGES.index(only)] if only else ():
            # The report is the exception: it shows whatever is there.
            if only != "report" and not _needed_done(config, name, folder, inputs):
                raise UserError(f"stage {only} needs stage {name}, which is not done in {folder}; run it first")
        _check_inputs(this, names)
        for name in names:
            _run_stage(this, name, inputs)
    return folder


def _run_stage(this: Run, name: str, inputs: dict[str, Any]) -> None:
    function, _ = _STAGES[name]
    folder = this.folder / name
    fingerprint = _fingerprint(this.config, name, inputs)
    # The report is cheap and its code may have improved: it is always written anew.
    if begin(folder, fingerprint) == "done" and name != "report":
        verify(folder)
        this.make_progress(name, None, "")(1, 1, "done before")
        return
    commit(folder, fingerprint, function(this, folder))


def _needed_done(config: Config, name: str, folder: Path, inputs: dict[str, Any]) -> bool:
    place = folder / name
    if not place.exists() or begin(place, _fingerprint(config, name, inputs)) != "done":
        return False
    verify(place)
    return True


def _check(config: Config, names: Sequence[str]) -> None:
    """What can be known to fail before anything is loaded, so that it does not fail after hours."""
    for key, value, mend in (
        ("out", config.out, "give a run directory with --out DIR"),
        ("model.path", config.model.path, "give a Hugging Face directory, a hub id, or builtin:model"),
        ("data.domain", config.data.domain, "give the file of the domain's examples"),
        ("data.pool", config.data.pool, "give the files of the general pool"),
    ):
        if not value:
            raise UserError(f"{key} is not set; {mend}")
    arms.check_arms(config)
    if config.warmup.max_steps != 0:
        check_config(Run.train_config(config.warmup))
    if "finetune" in names:
        check_config(Run.train_config(config.finetune))
    if config.preselect.method == "votes" and (config.preselect.keep or config.select.count) < config.select.count:
        raise UserError(
            f"preselect.keep = {config.preselect.keep} is below select.count = {config.select.count}; keep more"
        )
    if "evaluate" in names and not config.evaluate.files:
        raise UserError(
            "evaluate.files is empty; give at least one multiple-choice file, or stop with --until finetune"
        )


def _check_inputs(this: Run, names: Sequence[str]) -> None:
    """Reads what later stages will read, so that a bad line is found before hours of work and not after them: its
    mend changes the file, and with it the fingerprint of everything computed from it."""
    pending = [name for name in names if not (this.folder / name / "manifest.json").exists()]
    if {"preselect", "score", "select"} & set(pending) and this.config.select.count > len(this.pool_ordinals):
        raise UserError(
            f"select.count = {this.config.select.count} is larger than the pool ({len(this.pool_ordinals)} examples); "
            "lower it or add data"
        )
    if "evaluate" in pending:
        arms.check_questions(this.config)


def _fingerprint(config: Config, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Flat {key: value} of all that decides the stage's bytes: config keys so far and hashes of its inputs."""
    tree = _flatten(to_tree(config))
    sections = [s for stage in STAGES[: STAGES.index(name) + 1] for s in _STAGES[stage][1]]
    keys = {key: value for key, value in tree.items() if any(key == s or key.startswith(s + ".") for s in sections)}
    kinds = ["model", "domain"]
    kinds += ["pool"] if STAGES.index(name) >= STAGES.index("preselect") else []
    kinds += ["evaluate"] if STAGES.index(name) >= STAGES.index("evaluate") else []
    return {**keys, **{f"input.{kind}.{path}": digest for kind in kinds for path, digest in inputs[kind].items()}}


def _input_hashes(config: Config) -> dict[str, dict[str, str]]:
    """SHA-256 of every input, by kind and path."""
    model = {config.model.path: hash_model(resolve(config.model.path))}
    if config.model.adapter:
        model[config.model.adapter] = hash_model(config.model.adapter)
    if config.score.direction not in ("mean_gradient", "adam"):
        if not Path(config.score.direction).is_file():
            raise UserError(
                f"score.direction = {config.score.direction!r} is neither mean_gradient, adam nor an existing file"
            )
        model[config.score.direction] = sha256_file(Path(config.score.direction))
    return {
        "model": model,
        "domain": source_hashes(config.data.domain),
        "pool": source_hashes(config.data.pool),
        "evaluate": source_hashes(config.evaluate.files) if config.evaluate.files else {},
    }


def _provenance(config: Config, inputs: dict[str, Any]) -> dict[str, Any]:
    names = ("ntk_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "tensorstore")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a package"
    return {
        "versions": versions,
        "devices": [str(device) for device in jax.devices()],
        "processes": jax.process_count(),
        "seeds": {"seed": config.seed},
        "command": sys.argv,
        "hashes": inputs,
    }


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
