"""What a run of NTK-Selector made, for other programs: an arm's adapter for peft, its weights merged into the model's
for everything that reads Hugging Face folders, and a method's selection as JSONL, Parquet or a Hugging Face dataset."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ntk_jax.engine.export import Wanted
from ntk_jax.engine.finished import require_done
from ntk_jax.engine.progress import Progress
from ntk_jax.errors import UserError, note
from ntk_jax.models.hub import has_wrapped_names, resolve
from ntk_jax.models.merge import merge_adapter
from ntk_jax.models.peft import CONFIG, WEIGHTS
from ntk_jax.pipelines.common.inputs import folder_hashes
from ntk_jax.pipelines.select.arms import Arm, arms
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.report.amounts import count, metric
from ntk_jax.selection.formats import check_format, write_dataset, write_parquet
from ntk_jax.storage.atomic import make_folder, new_folder, read_json, refuse_existing, write_bytes, write_json


def export(config: SelectConfig, folder: Path, wanted: Wanted) -> Iterator[str]:
    """Writes what is wanted and gives a line for each when it is there. Everything is looked at before anything is
    written.

    Raises UserError: a stage that is not done or was damaged, no such arm, another base model than the one trained on,
    a target that exists, or a disk that is full.
    """
    name = wanted.arm or config.select.methods[0]
    if not (wanted.adapter or wanted.merged or wanted.selection):
        own = folder / "export" / name
        chosen = str(own / "selection.parquet") if name in config.select.methods else None
        wanted = Wanted(name, str(own / "adapter"), str(own / "merged"), chosen)
    for target in (wanted.adapter, wanted.merged):
        if target:
            refuse_existing(target)
    _refuse_shared(wanted)
    suffix = check_format(wanted.selection) if wanted.selection else ""
    trained = _arm(config, name) if wanted.adapter or wanted.merged else None
    fingerprint = require_done(folder, "finetune") if trained else {}
    if wanted.selection:
        if name not in config.select.methods:
            raise UserError(
                f"--selection: {name} is no method of this run, which has {', '.join(config.select.methods)}; give one "
                "of them as --arm"
            )
        require_done(folder, "select")
    if wanted.merged:
        _check_base(config, fingerprint)
    if wanted.selection:
        yield _selection(folder / "select" / f"{name}.jsonl", wanted.selection, suffix)
    if trained and wanted.adapter:
        yield _adapter(folder, trained, wanted.adapter, config.model.path)
    if trained and wanted.merged:
        yield _merged(folder, trained, wanted.merged, config)


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


def _arm(config: SelectConfig, name: str) -> Arm:
    """The trained arm of a name, which may be that of its folder."""
    found = [arm for arm in arms(config) if arm.trained]
    for arm in found:
        if name in (arm.name, f"file:{arm.file}"):
            return arm
    why = "was not fine-tuned in this run"
    if name == "base":
        why = "is the model as it was, " + "without an adapter"
    if name == "base" and config.model.adapter:
        why = "is the model with model.adapter, which nj.merge_adapter(model, adapter, out) merges"
    raise UserError(f"--arm: {name} {why}; choose from {', '.join(arm.name for arm in found) or 'none'}")


def _check_base(config: SelectConfig, fingerprint: Mapping[str, Any]) -> None:
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


def _selection(source: Path, target: str, suffix: str) -> str:
    records = [json.loads(line) for line in source.read_text(encoding="utf8").splitlines()]
    make_folder(Path(target).parent)
    if suffix == ".jsonl":
        write_bytes(target, source.read_bytes())
    elif suffix == ".parquet":
        write_parquet(target, records)
    else:
        write_dataset(target, records)
    kind = {".jsonl": "JSONL", ".parquet": "Parquet"}.get(suffix, "Hugging Face dataset")
    return f"Selection: {target} ({kind}, {count(len(records))} records, method {source.stem})"


def _adapter(folder: Path, arm: Arm, target: str, base: str) -> str:
    source = folder / "finetune" / arm.name / "adapter"
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


def _merged(folder: Path, arm: Arm, target: str, config: SelectConfig) -> str:
    shown = Progress("merge", None, "tensors")
    try:
        found = merge_adapter(
            config.model.path,
            folder / "finetune" / arm.name / "adapter",
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
