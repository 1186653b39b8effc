"""`ntk-jax export`: what a run made, in formats that other programs read.

It reads the run directory alone, with the settings that are kept there, so that a run exports what it computed whatever
has become of the config since. Which stages have what to give, the pipeline knows.
"""

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
class Wanted:
    """What to write and where; None: not wanted, and with no target at all everything goes into `export/<arm>/` of the
    run. arm: whose; None: that of the run's first method."""

    arm: str | None = None
    adapter: str | None = None
    merged: str | None = None
    selection: str | None = None


def export(
    run: str, wanted: Wanted, pipelines: Sequence[Pipeline], *, out: str | None = None, overrides: Sequence[str] = ()
) -> Iterator[str]:
    """Exports from a run directory (a folder, an address in a bucket, or the config whose `out` it is). Gives a line
    for each thing that was written.

    Raises UserError: no such run, a stage that is not done (it is named), a target that exists, or as the pipeline's
    function.
    """
    for text in overrides:
        if not text.startswith("--model.path="):
            raise UserError(f"{text}: a run is exported as it was made; the one key that may be given is --model.path")
    place = _place(run, out)
    if bucket.is_address(place) and not (wanted.adapter or wanted.merged or wanted.selection):
        raise UserError(
            f"{place}: say where to write: --adapter DIR, --merged DIR, --selection PATH, or several of them"
        )
    folder = bucket.run_folder(place)
    with bucket.opened(place) if bucket.is_address(place) else contextlib.nullcontext():
        plan = read_json(folder / FILE) if (folder / FILE).is_file() else {}
        found = next((p for p in pipelines if p.export and p.name in plan.get("pipelines", {})), None)
        if found is None or found.export is None:
            titles = ", ".join(pipeline.title for pipeline in pipelines if pipeline.export)
            raise UserError(f"{place} is no run directory of {titles} (by its {FILE}); give the folder of `out`")
        others = [pipeline.config.resolve() for pipeline in pipelines if pipeline is not found]
        config = load_config(folder / "config.yaml", found.config.resolve(), overrides, others)
        yield from found.export(dataclasses.replace(config, out=place), folder, wanted)


def require_done(folder: Path, stage: str) -> dict[str, Any]:
    """The fingerprint of a finished stage whose files are as it wrote them. Raises UserError: it is not finished (what
    to type is said), or a file was damaged."""
    manifest = read_manifest(folder / stage)
    if manifest is None:
        raise UserError(
            f"{folder}: stage {stage} is not done, so there is nothing to export from it; run `ntk-jax {stage} CONFIG` "
            "first"
        )
    verify(folder / stage)
    fingerprint: dict[str, Any] = manifest["fingerprint"]
    return fingerprint


def _place(run: str, out: str | None) -> str:
    """The run directory that is meant."""
    if Path(run).is_dir() or bucket.is_address(run):
        if out is not None:
            raise UserError(
                f"{run} is the run directory already; leave --out out (results go to --adapter and the like)"
            )
        return run
    if not Path(run).exists():
        raise UserError(f"there is neither a run directory nor a config at {run}; give one of them")
    place = out if out is not None else read_tree(run).get("out")
    if not isinstance(place, str) or not place:
        raise UserError(f"{run} names no run directory; give it instead of the config, or as --out DIR")
    return place
