"""`ntk-jax estimate`: adds up what the stages of a run will cost, and prints it with all that it rests on."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

from ntk_jax.engine.costs import Cost, Grounds, Work
from ntk_jax.engine.estimate_text import as_text
from ntk_jax.engine.plan import check_settings
from ntk_jax.engine.progress import Progress
from ntk_jax.engine.rates import Rate, device_memory, stated_rate, why_no_rate
from ntk_jax.engine.stage import Job, Pipeline
from ntk_jax.errors import UserError
from ntk_jax.storage.atomic import write_json


def estimate(pipeline: Pipeline, config: Any, *, json: str | None = None, measure: bool = False) -> None:
    """Prints the estimate; json: also writes it there. Nothing else is written, and nothing is downloaded.

    Raises UserError: settings that cannot work together, a number that is neither here nor given, a damaged file.
    """
    found = estimate_run(pipeline, config, measure=measure)
    if json is not None:
        write_json(Path(json), found)
    print(as_text(found))


def estimate_run(pipeline: Pipeline, config: Any, *, measure: bool = False) -> dict[str, Any]:
    """{"pipeline", "devices", "device_memory", "process_memory", "rate", "no_rate", "stages": [...], "total", "disk",
    "notes": {...}, "lines": [...], "grounds": [...]} as JSON values. Hours are device-hours, None without a rate;
    memory is of the fullest device, on CPUs with that of the process; bytes and FLOPs are plain numbers.

    Raises UserError as `estimate`; and where a stage of the pipeline states no cost.
    """
    names = pipeline.of(config)
    silent = [name for name in names if pipeline.stage(name).cost is None]
    if silent:
        raise UserError(f"pipeline {pipeline.name}: its stage {silent[0]} states no cost, so nothing can be estimated")
    check_settings(pipeline, config, names)
    grounds = Grounds()
    load = pipeline.load(config, grounds) if pipeline.load else pipeline.open(config, Job(Path(config.out), Progress))
    costs: dict[str, Cost] = {}
    for name in names:
        cost = pipeline.stage(name).cost
        assert cost is not None
        costs[name] = cost(load)
    rate = _rate(pipeline, config, load, grounds, measure)
    return _result(pipeline, config, load, costs, rate, grounds)


def _rate(pipeline: Pipeline, config: Any, load: Any, grounds: Grounds, measure: bool) -> Rate | None:
    if measure:
        if pipeline.measure is None:
            raise UserError(f"--measure: pipeline {pipeline.name} has no step to measure")
        return pipeline.measure(load, grounds)
    if not hasattr(config, "estimate"):
        return None
    return stated_rate(config.estimate, config.model.dtype, grounds)


def _result(
    pipeline: Pipeline, config: Any, load: Any, costs: dict[str, Cost], rate: Rate | None, grounds: Grounds
) -> dict[str, Any]:
    section = getattr(config, "estimate", None)
    resident = _resident_memory()
    on_host = jax.devices()[0].platform == "cpu" and getattr(section, "device", None) is None
    grounds.known(
        "memory of a process",
        resident,
        f"{resident / 1e9:.1f} GB beside the arrays, " + ("in the column of memory" if on_host else "on the host"),
        "of this process, with what it has loaded",
    )
    rows: list[dict[str, Any]] = [
        {
            "stage": name,
            "title": pipeline.stage(name).title,
            "help": pipeline.stage(name).help,
            "part": work.part,
            "examples": round(work.examples),
            "tokens": round(work.tokens),
            "flops": work.flops,
            "flops_with_padding": work.computed,
            "device_hours": hours_of(work, rate),
            "memory": round(work.memory + (resident if on_host else 0)),
        }
        for name, cost in costs.items()
        for work in cost.works
    ]
    kept = sum(cost.disk.kept for cost in costs.values())
    total = {
        **{key: sum(row[key] for row in rows) for key in ("tokens", "flops", "flops_with_padding")},
        "device_hours": None if rate is None else sum(row["device_hours"] or 0.0 for row in rows),
        "memory": max((row["memory"] for row in rows), default=0),
        "disk": kept,
        "disk_peak": kept + max((cost.disk.passing for cost in costs.values()), default=0.0),
    }
    notes, lines = pipeline.notes(load, rate) if pipeline.notes else ({}, [])
    return {
        "pipeline": pipeline.name,
        "stages": rows,
        "total": total,
        "disk": {name: dataclasses.asdict(cost.disk) for name, cost in costs.items()},
        **notes,
        "lines": lines,
        "devices": getattr(load, "devices", 1),
        "device_memory": device_memory(section),
        "process_memory": resident,
        "rate": None if rate is None else dataclasses.asdict(rate),
        "no_rate": why_no_rate(section, config.model.dtype) if rate is None and section else None,
        "grounds": [dataclasses.asdict(ground) for ground in grounds.found],
    }


def hours_of(work: Work, rate: Rate | None) -> float | None:
    """Device-hours of a piece of work, None without a rate."""
    if rate is None:
        return None
    return work.computed / (rate.forward if work.kind == "forward" else rate.backward) / 3600


def _resident_memory() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
