"""What a run made, for other programs: an arm's adapter for peft, its weights merged into the model's (or its whole
model, where all the weights were trained) for everything that reads Hugging Face folders, and records as JSONL, Parquet
or a Hugging Face dataset. Which arms there are, and whose records, a pipeline knows."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntk_jax.engine.export import Wanted
from ntk_jax.engine.progress import Progress
from ntk_jax.errors import UserError, note
from ntk_jax.models.hub import has_wrapped_names, resolve
from ntk_jax.models.merge import merge_adapter
from ntk_jax.models.peft import CONFIG, WEIGHTS
from ntk_jax.pipelines.common.inputs import folder_hashes
from ntk_jax.pipelines.common.weights import FOLDERS
from ntk_jax.report.amounts import count, metric
from ntk_jax.selection.formats import check_format, write_dataset, write_parquet
from ntk_jax.storage.atomic import make_folder, new_folder, read_json, refuse_existing, write_bytes, write_json


@dataclass(frozen=True)
class Records:
    """Of a stage that is done. read() gives them, a line of JSON each. whose: they are, for people. in_columns(record):
    as Parquet and datasets hold it."""

    read: Callable[[], bytes]
    whose: str
    in_columns: Callable[[Any], Any] = lambda record: record


@dataclass(frozen=True)
class Trained:
    """An arm of a stage that is done. fingerprint: the stage's. place: the arm's folder. parameters: lora or all."""

    name: str
    fingerprint: Mapping[str, Any]
    place: Path
    parameters: str = "lora"


@dataclass(frozen=True)
class Source:
    """What a run has of an arm. config: the run's, with the section model. trained, records: give what is wanted of it,
    before anything is written, or raise UserError: there is none, or its stage is not done."""

    config: Any
    trained: Callable[[], Trained]
    records: Callable[[], Records]


def own_places(folder: Path, name: str, *, adapter: bool, merged: bool, selection: bool) -> Wanted:
    """Where everything of an arm goes, of what there is, where no target was named: beside the stages of the run."""
    own = folder / "export" / name
    targets = {"adapter": own / "adapter", "merged": own / "merged", "selection": own / "selection.parquet"}
    there = {"adapter": adapter, "merged": merged, "selection": selection}
    return Wanted(name, **{key: str(target) if there[key] else None for key, target in targets.items()})


def export_arm(source: Source, wanted: Wanted) -> Iterator[str]:
    """Writes what is wanted of an arm and gives a line for each when it is there. Everything is looked at before
    anything is written.

    Raises UserError: another base model than the one trained on, a target that exists, or a disk that is full; and as
    the source's functions.
    """
    for target in (wanted.adapter, wanted.merged):
        if target:
            refuse_existing(target)
    _refuse_shared(wanted)
    suffix = check_format(wanted.selection) if wanted.selection else ""
    config = source.config
    trained = source.trained() if wanted.adapter or wanted.merged else None
    records = source.records() if wanted.selection else None
    if trained and wanted.merged and trained.parameters == "lora":
        _check_base(config, trained.fingerprint)
    if records and wanted.selection:
        yield _selection(records, wanted.selection, suffix)
    if trained and wanted.adapter:
        yield _adapter(trained, wanted.adapter, config.model.path)
    if trained and wanted.merged:
        write = _merged if trained.parameters == "lora" else _copied
        yield write(trained, wanted.merged, config)


def choose(name: str, names: Iterable[str], why: str, adapter: str | None) -> str:
    """The name, where it is one of the trained arms. why: what is wrong with another. adapter: that the base has.

    Raises UserError: it is not, or it is the base.
    """
    found = list(names)
    if name in found:
        return name
    if name == "base":
        why = "is the model as it was, " + "without an adapter"
    if name == "base" and adapter:
        why = "is the model with model.adapter, which nj.merge_adapter(model, adapter, out) merges"
    raise UserError(f"--arm: {name} {why}; choose from {', '.join(found) or 'none'}")


def refuse_adapter(wanted: Wanted, section: str) -> None:
    """Raises UserError: an adapter is wanted of arms whose weights were all trained. section: that says so."""
    if wanted.adapter:
        raise UserError(
            f"--adapter: the arms of this run have none, for all their weights were trained ({section}.parameters = "
            "all); take --merged DIR, the whole model"
        )


def _refuse_shared(wanted: Wanted) -> None:
    """Raises UserError: one result would lie in the place of another, or in its folder."""
    targets = {
        f"--{key}": Path(place).absolute()
        for key in ("adapter", "merged", "selection")
        if (place := getattr(wanted, key))
    }
    for (one, a), (other, b) in itertools.combinations(targets.items(), 2):
        if a == b or a in b.parents or b in a.parents:
            raise UserError(f"{one} {a} and {other} {b} share a folder; give each a place of its own")


def _check_base(config: Any, fingerprint: Mapping[str, Any]) -> None:
    """Raises UserError: the model at its path is not the one that the arms were trained on."""
    path = config.model.path
    try:
        found = folder_hashes([path])[path]
    except UserError as error:
        raise UserError(f"{error}; or say where the run's model lies now: --model.path=DIR") from None
    if found != fingerprint.get(f"input.model.{fingerprint.get('model.path')}"):
        raise UserError(
            f"{path} is not the model that this run was trained on (its files have other checksums); restore it, or "
            "give it as --model.path=DIR"
        )


def _selection(found: Records, target: str, suffix: str) -> str:
    text = found.read()
    records = [json.loads(line) for line in text.splitlines()]  # of bytes: a text may hold other ends of lines
    make_folder(Path(target).parent)
    if suffix == ".jsonl":
        write_bytes(target, text)
    else:
        write = write_parquet if suffix == ".parquet" else write_dataset
        write(target, [found.in_columns(record) for record in records])
    kind = {".jsonl": "JSONL", ".parquet": "Parquet"}.get(suffix, "Hugging Face dataset")
    return f"Selection: {target} ({kind}, {count(len(records))} records, {found.whose})"


def _adapter(arm: Trained, target: str, base: str) -> str:
    source = arm.place / FOLDERS["lora"]
    if has_wrapped_names(resolve(base)):
        note(f"{base}: transformers does not read the names of its tensors (such as _orig_mod.); take --merged instead")
    settings = read_json(source / CONFIG) | _base_name(base)
    with new_folder(target) as place:
        shutil.copyfile(source / WEIGHTS, place / WEIGHTS)
        write_json(place / CONFIG, settings)
    return f"Adapter: {target} (PEFT, rank {settings['r']}, arm {arm.name}, of {settings['base_model_name_or_path']})"


def _base_name(base: str) -> dict[str, str]:
    """What adapter_config.json says of the base model: a folder by its whole path, so that peft finds it from anywhere;
    a hub id with its revision."""
    if base.startswith("builtin:") or Path(base).expanduser().is_dir():
        return {"base_model_name_or_path": str(resolve(base).resolve())}
    name, _, revision = base.partition("@")
    return {"base_model_name_or_path": name, **({"revision": revision} if revision else {})}


def _merged(arm: Trained, target: str, config: Any) -> str:
    shown = Progress("merge", None, "tensors")
    try:
        found = merge_adapter(
            config.model.path,
            arm.place / FOLDERS["lora"],
            target,
            progress=shown,
            ignore_config_keys=config.model.ignore_config_keys,
        )
    finally:
        shown.close()
    text = (
        f"Merged: {target} ({metric(found.size, 'B')} in {count(len(found.files))} file(s), {count(found.adapted)} of "
        f"{count(found.tensors)} tensors changed, arm {arm.name})"
    )
    if config.model.quantization:
        text += (
            f". The run held the layers in {config.model.quantization}; the update was added to the checkpoint's own "
            "weights, so its answers differ from the run's by that rounding"
        )
    return text


def _copied(arm: Trained, target: str, config: Any) -> str:
    """The arm's own model, which has its base's weights in it: nothing is left to merge."""
    source = arm.place / FOLDERS["all"]
    with new_folder(target) as place:
        shutil.copytree(source, place, dirs_exist_ok=True)
    files = list(source.glob("*.safetensors"))
    size = metric(sum(file.stat().st_size for file in files), "B")
    return f"Merged: {target} ({size} in {count(len(files))} file(s), all weights were trained, arm {arm.name})"
