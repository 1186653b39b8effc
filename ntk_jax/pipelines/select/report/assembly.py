"""Puts the select pipeline's part of the page together: the answer first, then why, then how."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from ntk_jax.pipelines.select.report.cost import cost
from ntk_jax.pipelines.select.report.direction import direction
from ntk_jax.pipelines.select.report.evaluation import evaluation
from ntk_jax.pipelines.select.report.examples import examples
from ntk_jax.pipelines.select.report.findings import pool_sentence
from ntk_jax.pipelines.select.report.run import SelectRun, select_run
from ntk_jax.pipelines.select.report.scores import lengths, scores
from ntk_jax.pipelines.select.report.selection import families
from ntk_jax.pipelines.select.report.training import data, training
from ntk_jax.pipelines.select.report.verdict import verdict
from ntk_jax.pipelines.select.report.warnings import warnings
from ntk_jax.report.amounts import NOTHING, count, finite
from ntk_jax.report.layout import Fact, Part
from ntk_jax.report.reading import RunDirectory


def part(directory: RunDirectory) -> Part:
    """What a select run puts on the page, finished or not."""
    run = select_run(directory)
    sections = [evaluation(run), families(run), scores(run), lengths(run), examples(run)]
    sections += [cost(run), training(run), data(run), direction(run)]
    return Part(
        kicker=f"{run.plan.title} run",
        title=f"{names(run.setting('data', 'domain'))} with {name(run.setting('model', 'path'))}",
        facts=_facts(run),
        verdict=verdict(run),
        warnings=warnings(run),
        sections=[section for section in sections if section is not None],
    )


def _facts(run: SelectRun) -> list[Fact]:
    kept = run.domain_data.get("kept")
    limit = run.setting("data", "domain_limit")
    domain = f"{count(kept)} examples" if finite(kept) is not None else ""
    domain += f", data.domain_limit = {count(limit)}" if finite(limit) is not None else ""
    facts = [
        Fact("Model", name(run.setting("model", "path"))),
        *_proxy(run),
        Fact("Domain", names(run.setting("data", "domain")), domain.removeprefix(", ")),
        Fact("Pool", names(run.setting("data", "pool")), _pool_note(run)),
        Fact("Selected (N)", count(run.summary.get("count", run.setting("select", "count")))),
        Fact("Methods", ", ".join(method.title for method in run.methods) or NOTHING),
    ]
    if any(run.plan.has(stage) for stage in ("gradient", "sketch", "subspace")):
        how = [run.setting("score", key) for key in ("normalize", "span")]
        known = [str(value) for value in how if value is not None]
        facts.append(Fact("Objective", run.objective(), " over ".join(known)))
    if run.plan.has("gradient"):
        facts.append(Fact("Direction", run.setting("score", "direction") or NOTHING))
    if run.plan.has("sketch") or run.plan.has("less"):
        facts.append(Fact("Sketches", f"K = {count(run.setting('sketch', 'dim'))}"))
    if run.plan.has("preselect"):
        facts.append(Fact("Pre-selection", run.setting("preselect", "method") or NOTHING))
    seed, repeat = (run.plan.config.get(key) for key in ("seed", "repeat_seed"))
    again = "" if repeat in (None, seed) else f"{repeat} of random selections and training"
    return [*facts, Fact("Seed", NOTHING if seed is None else seed, again)]


def _proxy(run: SelectRun) -> list[Fact]:
    path = run.setting("proxy", "path")
    if not path:
        return []
    itself = "the model itself; " if path == run.setting("model", "path") else ""
    return [Fact("Selected by", name(path), f"{itself}lengths of the domain and of the pool are in its tokens")]


def _pool_note(run: SelectRun) -> str:
    """How much of the pool's files was looked at, could be used, and was scored."""
    parts = [pool_sentence(run)]
    usable = run.summary.get("pool", run.pool_data.get("kept"))
    parts.append(f"{count(usable)} usable" if finite(usable) is not None else None)
    scored = run.summary.get("scored")
    parts.append(f"{count(scored)} scored" if finite(scored) and scored != usable else None)
    if pool_sentence(run) is None and finite(run.setting("data", "pool_limit")) is not None:
        parts.insert(0, f"data.pool_limit = {count(run.setting('data', 'pool_limit'))}")
    return ", ".join(p for p in parts if p)


def name(path: Any) -> str:
    """The last part of a path, or that it is not recorded."""
    text = str(path or "").rstrip("/")
    return PurePosixPath(text).name or text or "not recorded"


def names(paths: Any, most: int = 3) -> str:
    """Short names of the files: stems without the split and the compression."""
    listed = [paths] if isinstance(paths, str) else list(paths) if isinstance(paths, list) else []
    found = []
    for path in listed:
        short = name(path)
        for ending in (".gz", ".xz", ".jsonl", ".parquet", ".arrow", ".train"):
            short = short.removesuffix(ending)
        if "*" in short:  # a glob says little without the folder it is in
            parent = PurePosixPath(str(path)).parent.name
            short = f"{parent}/{short}" if parent else short
        found.append(short)
    if not found:
        return "not recorded"
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
