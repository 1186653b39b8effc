"""A finished run directory with the settings that it was made with, whatever has become of the config since: what
`export` and `search` read."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntk_jax.engine.config import load_config, read_tree
from ntk_jax.engine.plan import FILE
from ntk_jax.engine.stage import Pipeline
from ntk_jax.errors import UserError
from ntk_jax.storage import bucket
from ntk_jax.storage.atomic import read_json
from ntk_jax.storage.run import read_manifest, verify


@dataclass(frozen=True)
class Finished:
    """A run that is there. place: as it was given, a folder or an address in a bucket. folder: here."""

    pipeline: Pipeline
    config: Any
    place: str
    folder: Path


def place_of(run: str, out: str | None = None) -> str:
    """The run directory that is meant: a folder, an address in a bucket, or the `out` of a config."""
    if Path(run).is_dir() or bucket.is_address(run):
        if out is not None:
            raise UserError(f"{run} is the run directory already; leave --out out (results go elsewhere)")
        return run
    if not Path(run).exists():
        raise UserError(f"there is neither a run directory nor a config at {run}; give one of them")
    place = out if out is not None else read_tree(run).get("out")
    if not isinstance(place, str) or not place:
        raise UserError(f"{run} names no run directory; give it instead of the config, or as --out DIR")
    return place


@contextlib.contextmanager
def opened(
    place: str, pipelines: Sequence[Pipeline], able: Sequence[Pipeline], overrides: Sequence[str] = (), key: str = ""
) -> Iterator[Finished]:
    """The run at a place, for as long as it is read. able: the pipelines whose runs will do. key: the one key of its
    config that overrides may name, for what lies somewhere else now.

    Raises UserError: no such run, or another override.
    """
    for text in overrides:
        if not text.startswith(f"--{key}="):
            raise UserError(f"{text}: a run is read as it was made; the one key that may be given is --{key}")
    folder = bucket.run_folder(place)
    with bucket.opened(place) if bucket.is_address(place) else contextlib.nullcontext():
        plan = read_json(folder / FILE) if (folder / FILE).is_file() else {}
        found = next((pipeline for pipeline in able if pipeline.name in plan.get("pipelines", {})), None)
        if found is None:
            titles = ", ".join(pipeline.title for pipeline in able)
            raise UserError(f"{place} is no run directory of {titles} (by its {FILE}); give the folder of `out`")
        others = [pipeline.config.resolve() for pipeline in pipelines if pipeline is not found]
        config = load_config(folder / "config.yaml", found.config.resolve(), overrides, others)
        yield Finished(found, dataclasses.replace(config, out=place), place, folder)


def require_done(folder: Path, stage: str) -> dict[str, Any]:
    """The fingerprint of a finished stage whose files are as it wrote them. Raises UserError: it is not finished (what
    to type is said), or a file was damaged."""
    manifest = read_manifest(folder / stage)
    if manifest is None:
        raise UserError(
            f"{folder}: stage {stage} is not done, so there is nothing to read from it; run `ntk-jax {stage} CONFIG` "
            "first"
        )
    verify(folder / stage)
    fingerprint: dict[str, Any] = manifest["fingerprint"]
    return fingerprint
