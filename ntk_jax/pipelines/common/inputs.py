"""What a fingerprint and a plan hold of the models that a run reads, and which files an evaluation reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ntk_jax.data.sources import source_names
from ntk_jax.data.templates import template_file
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import task_files
from ntk_jax.evaluation.shots import check_shots, shot_source
from ntk_jax.models.hub import read_config, resolve
from ntk_jax.pipelines.common.sections import ModelSection
from ntk_jax.storage.hashing import hash_model, sha256_file


def model_hashes(section: ModelSection) -> dict[str, str]:
    """SHA-256 of the model, of the adapter it starts from and of a chat template in a file, by the names the config
    gives them."""
    hashes = folder_hashes([section.path, *([section.adapter] if section.adapter else [])])
    template = template_file(section.template_options or {})
    return hashes | ({str(template): sha256_file(template)} if template else {})


def folder_hashes(paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of folders in Hugging Face or PEFT format."""
    return {path: hash_model(resolve(path)) for path in paths}


def facts(config: Any) -> dict[str, Any]:
    """What plan.json keeps of a config's model, for the report: the keys of its config.json that this run ignores."""
    section = config.model
    if not section.ignore_config_keys:
        return {}
    return {"ignored_config_keys": list(read_config(resolve(section.path), section.ignore_config_keys).ignored_keys)}


def evaluation_files(config: Any) -> list[str]:
    """The files of evaluate.files, and those that their shots are drawn from. Raises UserError as `task_files` and
    `shot_source`."""
    section = config.evaluate
    tasks = task_files(section.files) if section.files and section.shots else {}
    sources = []
    try:
        if tasks:
            check_shots(list(tasks), section.shot_files)
        for name, file in tasks.items():
            sources.append(shot_source(name, file, section.shot_files))
            source_names(sources[-1])
    except UserError as error:
        prefix = "" if str(error).startswith("shot") else "shot_files: "
        raise UserError(f"evaluate.{prefix}{error}") from None
    return list(dict.fromkeys([*section.files, *map(str, sources)]))
