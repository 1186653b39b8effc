"""provenance.json: the versions, devices, seeds and inputs that a run directory was made with."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

from ntk_jax.storage.atomic import read_json, write_json
from ntk_jax.storage.reading import Found

_PACKAGES = ("ntk_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "tensorstore")


def versions() -> dict[str, str]:
    """The version of Python and of every package that results may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def record_provenance(
    folder: Path, pipeline: str, stage: str, seed: int | None, inputs: Mapping[str, Mapping[str, str]]
) -> None:
    """Writes provenance.json, and in it which environments computed each stage: one, unless a stage was resumed under
    other versions or on other devices. inputs: {kind: {path: SHA-256}}."""
    here = {
        "versions": versions(),
        "devices": [str(device) for device in jax.devices()],
        "processes": jax.process_count(),
        "command": sys.argv,
    }
    path = folder / "provenance.json"
    before = read_json(path, dict) if path.exists() else Found()
    stages = before.part("stages")
    known = stages.get(stage, [])
    others = [environment for environment in known if environment != here] if isinstance(known, list) else []
    stages[stage] = [*others, here]
    # The inputs and seeds of several pipelines in the same folder stay beside each other.
    hashes = {kind: dict(found) for kind, found in before.part("hashes").items() if isinstance(found, dict)}
    for kind, found in inputs.items():
        if found:
            hashes[kind] = {**hashes.get(kind, {}), **found}
    seeds = before.part("seeds") | ({} if seed is None else {pipeline: seed})
    write_json(path, {**here, "seeds": seeds, "hashes": hashes, "stages": stages})
