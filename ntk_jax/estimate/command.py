"""`ntk-jax estimate`: gathers the grounds, adds the stages up, prints the table and what it rests on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ntk_jax.config import Config
from ntk_jax.errors import UserError
from ntk_jax.estimate.costs import Work, Workload, whole_pool, works
from ntk_jax.estimate.disk import disk_of, facts_of_disk
from ntk_jax.estimate.facts import Facts
from ntk_jax.estimate.measure import measured_rate
from ntk_jax.estimate.memory import peak_memory
from ntk_jax.estimate.rates import Rate, device_memory, stated_rate, why_no_rate
from ntk_jax.estimate.shape import abstract_run, device_count
from ntk_jax.estimate.text import as_text
from ntk_jax.estimate.workload import domain_examples, pool_examples, questions
from ntk_jax.pipeline import check_settings, stages_of
from ntk_jax.stages.context import Run
from ntk_jax.stages.sketch import check_sketch_width
from ntk_jax.storage.atomic import write_json
from ntk_jax.training.flops import matrix_parameters


def estimate(config: Config, *, json: str | None = None, measure: bool = False) -> None:
    """Prints the estimate; json: also writes it there. Nothing else is written, and nothing is downloaded.

    Raises UserError: settings that cannot work together, a number that is neither here nor given, a damaged file.
    """
    found = estimate_run(config, measure=measure)
    if json is not None:
        write_json(Path(json), found)
    print(as_text(found))


def estimate_run(config: Config, *, measure: bool = False) -> dict[str, Any]:
    """The estimate as JSON values: see `_result`."""
    check_settings(config, stages_of(config))
    facts = Facts()
    run = abstract_run(config, facts)
    if "sketch" in stages_of(config):
        check_sketch_width(run)
    load = Workload(pool_examples(run, facts), domain_examples(run, facts), questions(run, facts))
    if config.select.count > load.pool.records:
        raise UserError(
            f"select.count = {config.select.count} is larger than the pool ({load.pool.records} examples); lower it or "
            "add data"
        )
    found = works(run, load, facts)
    rate = measured_rate(run, load, facts) if measure else stated_rate(config, facts)
    facts.assume(
        "memory", None, "weights, adapter, optimizer and live activations, without XLA's workspace", "a model of the "
        "compiled steps, estimate/memory.py; within a factor of 2 of the CPU compiler's account of small shapes",
    )  # fmt: skip
    return _result(run, load, found, rate, facts)


def _result(run: Run, load: Workload, found: list[Work], rate: Rate | None, facts: Facts) -> dict[str, Any]:
    """{"model", "devices", "device_memory", "rate", "stages": [...], "total", "whole_pool", "disk", "grounds": [...]}.
    Hours are device-hours, None without a rate; memory is of the fullest device; bytes and FLOPs are plain numbers."""
    config, devices = run.config, device_count(run)
    disks = {stage: disk_of(run, stage, load) for stage in stages_of(config)}
    rows: list[dict[str, Any]] = []
    for work in found:
        rows.append(
            {
                "stage": work.stage,
                "arm": work.arm,
                "examples": round(work.examples),
                "tokens": round(work.tokens),
                "flops": work.flops,
                "flops_with_padding": work.computed,
                "device_hours": _hours(work, rate),
                "memory": peak_memory(run, work.stage, load.pool, load.questions),
            }
        )
    hours = [row["device_hours"] for row in rows]
    disk = facts_of_disk(disks)
    total = {
        "tokens": sum(row["tokens"] for row in rows),
        "flops": sum(row["flops"] for row in rows),
        "flops_with_padding": sum(row["flops_with_padding"] for row in rows),
        "device_hours": None if rate is None else sum(hour for hour in hours if hour is not None),
        "memory": max(row["memory"] for row in rows),
        "disk": disk["kept"],
        "disk_peak": disk["peak"],
    }
    whole = whole_pool(run, load)
    return {
        "model": config.model.path,
        "stages": rows,
        "total": total,
        "disk": {stage: dataclasses.asdict(value) for stage, value in disks.items()},
        "whole_pool": {
            "examples": round(whole.examples),
            "tokens": round(whole.tokens),
            "flops": whole.flops,
            "flops_of_4_p": 4.0 * matrix_parameters(run.base.config) * whole.tokens,
            "device_hours": _hours(whole, rate),
            "device_hours_at_peak": None if rate is None or rate.peak is None else whole.flops / rate.peak / 3600,
            "reported": config.estimate.reported,
            "objective": config.score.objective,
        },
        "devices": devices,
        "device_memory": device_memory(config),
        "rate": None if rate is None else dataclasses.asdict(rate),
        "no_rate": why_no_rate(config) if rate is None else None,
        "grounds": [dataclasses.asdict(fact) for fact in facts.found],
    }


def _hours(work: Work, rate: Rate | None) -> float | None:
    if rate is None:
        return None
    return work.computed / (rate.forward if work.kind == "forward" else rate.backward) / 3600
