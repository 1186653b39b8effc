"""The runs of an experiment: what its YAML says (see `experiment.py`), read, checked and multiplied out."""

from __future__ import annotations

import copy
import glob
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ntk_jax.engine.config import build, read_tree
from ntk_jax.engine.plan import same_results
from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.inputs import evaluation_files
from ntk_jax.pipelines.select.arms import arms
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.stages import PIPELINE

KEYS = ("base", "out", "models", "domains", "seeds", "seeds_of", "methods", "arms", "overrides", "variants", "worth")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
BASE = "base"  # the variant without overrides
SEEDS_OF = ("everything", "repeats")


@dataclass(frozen=True)
class Run:
    """One `ntk-jax run`. variant: BASE, or one of `variants`. tree: its config. after: the run whose copy it starts
    from; None: it makes its scores itself."""

    name: str
    model: str
    domain: str
    seed: int
    variant: str
    tree: dict[str, Any]
    after: str | None

    @property
    def base(self) -> str:
        """The name of the run of this model, domain and seed without a variant."""
        return self.name.partition("+")[0]

    @property
    def folder(self) -> Path:
        return Path(self.tree["out"])

    @property
    def config(self) -> SelectConfig:
        found: SelectConfig = build(SelectConfig, self.tree, self.name)
        return found

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.tree, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Experiment:
    """out: where everything goes. runs: in order, each behind the run it starts from. seeds_of: one of SEEDS_OF. worth:
    overrides of a diagnosis of every run that makes its own scores; None: none is made."""

    out: Path
    runs: tuple[Run, ...]
    models: tuple[str, ...]
    domains: tuple[str, ...]
    seeds: tuple[int, ...]
    seeds_of: str
    variants: tuple[str, ...]
    worth: dict[str, Any] | None

    def run(self, name: str) -> Run:
        return next(run for run in self.runs if run.name == name)


def read_experiment(path: Path, overrides: Sequence[str] = (), out: Path | None = None) -> Experiment:
    """An experiment from its file. overrides: `--section.key=value` for all of its runs; out: in place of the file's.

    Raises UserError: the file cannot be read, a key or a name that cannot be, a run whose config cannot be.
    """
    tree = read_tree(path)
    for key in tree:
        if key not in KEYS:
            raise UserError(f"{path}: an experiment has no key {key}; it has {', '.join(KEYS)}")
    place = out or Path(str(tree.get("out") or ""))
    if str(place) == ".":
        raise UserError(f"{path}: out is missing; give the folder that the runs go to")
    models = {k: v if isinstance(v, Mapping) else {"model.path": v} for k, v in _named(path, tree, "models").items()}
    domains = _named(path, tree, "domains")
    variants = {BASE: {}, **_named(path, tree, "variants", needed=False)}
    seeds = tree.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds):
        raise UserError(f"{path}: seeds = {seeds}; give a list of seeds, each once")
    seeds_of = tree.get("seeds_of", SEEDS_OF[0])
    if seeds_of not in SEEDS_OF:
        raise UserError(f"{path}: seeds_of = {seeds_of}; choose from {', '.join(SEEDS_OF)}")
    common = _common(path, tree)
    last = merged(*(_override(text) for text in overrides))
    runs: list[Run] = []
    for model, of_model in models.items():
        for domain, of_domain in domains.items():
            for seed in seeds:
                head = f"{model}/{domain}/seed-"
                scored = seed if seeds_of == "everything" else seeds[0]  # the seed of the scores
                for variant, of_variant in variants.items():
                    name = f"{head}{seed}" + ("" if variant == BASE else f"+{variant}")
                    own = {"seed": scored, "out": str(place / "runs" / name)}
                    own |= {} if seed == scored else {"repeat_seed": seed}
                    about = {"{model}": model, "{domain}": domain, "{seed}": str(scored)}
                    whole = merged(common, of_model, of_domain, last, of_variant)
                    if "repeat_seed" in whole:
                        raise UserError(
                            f"{path}: repeat_seed is the experiment's to set; give seeds and seeds_of: repeats"
                        )
                    whole = _filled(merged(whole, own), about)
                    _leave_arms_out(whole, merged(of_variant))
                    sources = [f"{head}{seed}", f"{head}{scored}+{variant}"]
                    if variant == BASE:
                        sources = [f"{head}{scored}"]
                    run = Run(name, model, domain, seed, variant, whole, None)
                    _ = run.config  # raises what is wrong with it
                    known = [one for one in runs if one.name in sources]
                    # Of those that make the scores or the selection that it shares, the first of the best.
                    source = max(known, key=lambda one: len(_same_stages(one, run)), default=None)
                    runs.append(replace(run, after=source.name if source else None))
    worth = tree.get("worth")
    if worth is not None and not isinstance(worth, dict):
        raise UserError(f"{path}: worth is a mapping of settings of `ntk-jax diagnose`, {{}} for its defaults")
    names = (tuple(models), tuple(domains), tuple(seeds), seeds_of, tuple(variants))
    return Experiment(place, tuple(runs), *names, None if worth is None else merged(worth))


def mark_path(out: Path, name: str) -> Path:
    """Where it is kept that a process ended well, and with which config."""
    return out / "done" / f"{name}.json"


def data_files(config: SelectConfig) -> dict[str, list[int]]:
    """{path: [bytes, time of its last change in ns]} of the files that lie here and a run reads records from."""
    evaluated = evaluation_files(config) if config.evaluate.files else []
    of_arms = _files_of_arms(config).values()
    found = {}
    for name in (*config.data.domain, *config.data.pool, *evaluated, *config.select.clean.decontaminate, *of_arms):
        path = Path(name).expanduser()
        inside = path.rglob("*") if path.is_dir() else map(Path, glob.iglob(str(path), recursive=True))
        for file in [path] if path.is_file() else inside:
            if file.is_file():
                found[str(file)] = [file.stat().st_size, file.stat().st_mtime_ns]
    return dict(sorted(found.items()))


def shared_stages(experiment: Experiment, run: Run) -> tuple[str, ...]:
    """The stages that a variant or a repeat takes over from the run it starts from."""
    return _same_stages(experiment.run(run.after), run) if run.after else ()


def _same_stages(a: Run, b: Run) -> tuple[str, ...]:
    """Where arms of the same name are of other files, the trainings of one are none of the other."""
    same = same_results(PIPELINE, a.config, b.config)
    before, now = _files_of_arms(a.config), _files_of_arms(b.config)
    fit = all(before.get(name, file) == file for name, file in now.items())
    return same if fit else tuple(stage for stage in same if "arms" not in _inputs_of(stage, b.config))


def _files_of_arms(config: SelectConfig) -> dict[str, str]:
    return {arm.name: arm.file for arm in arms(config) if arm.file}


def _inputs_of(stage: str, config: SelectConfig) -> set[str]:
    """The kinds of files that decide a stage's results, its own and those of the stages it builds on."""
    return {kind for name in (*PIPELINE.before(config, stage), stage) for kind in PIPELINE.stage(name).kinds(config)}


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, later ones over earlier ones; a key may be dotted, `finetune.loss`."""
    found: dict[str, Any] = {}
    for tree in trees:
        _into(found, tree)
    return found


def _leave_arms_out(tree: dict[str, Any], variant: Mapping[str, Any]) -> None:
    """Of the arms that hold for all runs, those that the other methods of a variant make."""
    arms = tree.get("evaluate", {}).get("arms")
    if arms and "methods" in variant.get("select", {}) and "arms" not in variant.get("evaluate", {}):
        made = {"base", "domain", *tree["select"]["methods"]}
        tree["evaluate"]["arms"] = [arm for arm in arms if arm in made or str(arm).startswith("file:")]


def _filled(value: Any, about: Mapping[str, str]) -> Any:
    """A tree in whose texts {model}, {domain} and {seed} are those of the run."""
    if isinstance(value, dict):
        return {key: _filled(each, about) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, about) for each in value]
    if isinstance(value, str):
        for name, text in about.items():
            value = value.replace(name, text)
    return value


def _into(found: dict[str, Any], tree: Mapping[str, Any]) -> None:
    for key, value in tree.items():
        head, _, rest = str(key).partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, Mapping):
            inner = found.get(head)
            found[head] = inner if isinstance(inner, dict) else {}
            _into(found[head], value)
        else:
            found[head] = copy.deepcopy(value)


def _common(path: Path, tree: Mapping[str, Any]) -> dict[str, Any]:
    """The base config with what holds for all runs."""
    base = tree.get("base", {})
    if isinstance(base, str):
        base = read_tree(path.parent / base)
    if not isinstance(base, Mapping) or not isinstance(tree.get("overrides") or {}, Mapping):
        raise UserError(f"{path}: base is the path of a config beside this file or a mapping, overrides a mapping")
    asked = {"select.methods": tree.get("methods"), "evaluate.arms": tree.get("arms")}
    given = {key: value for key, value in asked.items() if value is not None}
    return merged(base, tree.get("overrides") or {}, given)


def _named(path: Path, tree: Mapping[str, Any], key: str, needed: bool = True) -> dict[str, Any]:
    found = tree.get(key) or {}
    if not isinstance(found, dict) or (needed and not found):
        raise UserError(f"{path}: {key} is missing; give a mapping of names to settings")
    for name, value in found.items():
        if not NAME.fullmatch(str(name)) or (key == "variants" and name == BASE):
            raise UserError(
                f"{path}: {key}: {name!r} cannot be a name; use letters, digits, _ . - (a variant: not base)"
            )
        if not isinstance(value, Mapping) and not (key == "models" and isinstance(value, str)):
            raise UserError(f"{path}: {key}.{name} is a mapping of settings such as data.domain: [FILE]")
    return {str(name): value for name, value in found.items()}


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.removeprefix("--").partition("=")
    if not text.startswith("--") or not equals:
        raise UserError(f"{text!r}: a setting of all runs is given as --section.key=value, behind --")
    try:
        return {key: yaml.safe_load(value)}
    except yaml.YAMLError:
        raise UserError(f"{text!r}: {value!r} is not YAML; quote it") from None
