"""`ntk-jax doctor`: a list of what works on this machine and, with a config, whether its files fit together.

Which checks there are beside those of the machine and of the run directory, a pipeline says.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ntk_jax.engine.plan import check_settings
from ntk_jax.engine.stage import Pipeline
from ntk_jax.errors import TryAgain, UserError
from ntk_jax.storage import bucket

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tensorflow-datasets", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Doubt:
    """What a check found that is no failure and should be looked at."""

    text: str


Check = tuple[str, Callable[[], "str | Doubt"]]  # its name, and what finds out; it raises UserError where it failed


def examine(numerics: Callable[[], Iterable[Check]], pipeline: Pipeline | None = None, config: Any = None) -> None:
    """Prints one line a check; raises UserError at the end if any failed. numerics: the checks of how this machine
    computes, made once a device is known to be there. pipeline, config: whose settings and files are looked at."""
    failed = _failed([("python", _python), ("packages", _packages)])
    no_device = _failed([("devices", _devices)])
    failed += no_device
    if not no_device:
        failed += _failed(numerics())
        if pipeline is not None:
            failed += _failed(_of_config(pipeline, config))
    if failed:
        raise UserError(f"{failed} check{'s' if failed > 1 else ''} failed; see the lines marked FAIL")


def _failed(checks: Iterable[Check]) -> int:
    """Prints a line for each check and counts those that failed."""
    failed = 0
    for name, function in checks:
        try:
            found = function()
            detail, word = (found.text, "LOOK") if isinstance(found, Doubt) else (found, "ok")
        except (UserError, TryAgain) as error:
            detail, word = str(error), "FAIL"
            failed += 1
        print(f"{word:<5} {name:<24} {detail}", flush=True)
    return failed


def _of_config(pipeline: Pipeline, config: Any) -> Sequence[Check]:
    own: Sequence[Check] = pipeline.doctor(config) if pipeline.doctor else ()
    return [
        ("settings", lambda: _settings(pipeline, config)),
        ("run directory", lambda: _run_directory(config.out)),
        *own,
    ]


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"


def _packages() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"{name} is not installed; run pip install ntk_jax again in this environment") from None
    return ", ".join(found)


def _devices() -> str:
    try:
        devices = jax.devices()
    except RuntimeError as error:  # a driver or plug-in that does not start
        first = str(error).splitlines()[0]
        raise UserError(f"jax finds no device: {first}; set JAX_PLATFORMS=cpu or repair the driver") from None
    kinds = sorted({f"{device.platform} ({device.device_kind})" for device in devices})
    memory = (devices[0].memory_stats() or {}).get("bytes_limit") if devices[0].platform != "cpu" else None
    each = f", {memory / 2**30:.0f} GiB for jax on each" if memory else ""
    return f"{len(devices)} × {', '.join(kinds)}{each}"


def _settings(pipeline: Pipeline, config: Any) -> str:
    stages = pipeline.of(config)
    check_settings(pipeline, config, stages)
    return f"fit together; a run has the stages {', '.join(stages)}"


def _run_directory(out: str) -> str:
    if not out:
        raise UserError("none: give --out DIR, or set `out` in the config")
    place = bucket.run_folder(out).absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file; give another --out")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{existing} is not writable; give another --out")
    free = shutil.disk_usage(existing).free / 2**30
    if bucket.is_address(out):
        count = bucket.look_at(out)
        there = f"{count:,} objects" if count else "new"
        return f"{out} ({there}), working copy {place}, {free:,.0f} GiB free"
    return f"{out} ({'exists' if existing == place else 'new'}), {free:,.0f} GiB free"
