"""The pipelines, one folder each: what a pipeline is. Its config, its table of stages, its costs, its part of the
report.

A pipeline may import all below it (`engine` and down) and `pipelines/common`, and no other pipeline. This file is the
list of them; it and the tables of stages import nothing slow, because `ntk-jax --help` reads them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ntk_jax.engine.stage import Pipeline

# In the order of `ntk-jax --help`. Each is a folder here with a `stages.py` that holds its PIPELINE.
NAMES = ("select", "mine", "question", "diagnose", "kernel")


def pipeline(name: str) -> Pipeline:
    """The pipeline of a name in `NAMES`."""
    return importlib.import_module(f"ntk_jax.pipelines.{name}.stages").PIPELINE


def all_pipelines() -> tuple[Pipeline, ...]:
    """All of them, in order."""
    return tuple(map(pipeline, NAMES))


def report_parts() -> dict[str, Callable[..., Any]]:
    """The function of each pipeline that makes its part of the report, by the pipeline's name."""
    return {found.name: found.part for found in all_pipelines() if found.part}


def run(name: str, config: Any, command: Any = None, **options: Any) -> Any:
    """Runs a pipeline, or what `command` asks of it, as `engine.run.run` does, and writes the report at its end."""
    from ntk_jax.engine import run as engine

    return engine.run(pipeline(name), config, command, parts=report_parts(), **options)
