"""A second opinion on what was mined, with wrong labels planted by which that opinion itself is judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.mining.audit import Audit, Share, audit_sample
from ntk_jax.mining.audit import audit as ask_judge
from ntk_jax.pipelines.mine import chunks
from ntk_jax.pipelines.mine.classify import SHOWN, taken
from ntk_jax.pipelines.mine.config import mined_names
from ntk_jax.pipelines.mine.seeds import seeds_of
from ntk_jax.pipelines.mine.state import MineRun
from ntk_jax.storage.atomic import read_json, write_json, write_lines


def audit(run: MineRun, folder: Path) -> Facts:
    """Writes verdicts.jsonl and summary.json."""
    clock, section, domains = Clock(run.job.folder, "audit"), run.config.audit, mined_names(run.config)
    chosen, found = taken(run)
    facts = read_json(run.job.folder / "classify" / "summary.json", dict)["domains"]
    found = found[:, : len(domains)]
    assigned = np.zeros(found.shape, bool)
    assigned[chosen] = found[chosen] >= np.array([facts[name]["threshold"] for name in domains], np.float32)
    seeds = seeds_of(run)
    known = {
        name: [place for place, seed in enumerate(seeds) if name in seed.domains][: section.chunks] for name in domains
    }
    items = audit_sample(
        assigned,
        domains,
        probabilities=found,
        per_domain=section.chunks,
        planted=section.planted,
        known=known,
        seed=run.config.seed,
    )
    places = np.unique([item.ordinal for item in items if item.kind != "known"])
    texts = dict(zip(places.tolist(), (c["text"] for c in chunks.read_chosen(run, places)), strict=True))
    progress = clock.ticking(run.job.progress("audit", len(items), "verdicts"))
    result = ask_judge(
        run.client,
        items,
        run.domains,
        lambda chunk: texts[chunk],
        known_text=lambda place: seeds[place].text,
        max_tokens=section.max_tokens,
        progress=progress,
    )
    write_lines(folder / "verdicts.jsonl", (json.dumps(row, ensure_ascii=False) for row in result.rows))
    asked = [row for row in result.rows if row["kind"] != "known"]
    summary = {
        "judge": result.judge,
        "agreement": _interval(result.shares["all"]["labelled"]),
        "false_accept": _interval(result.shares["all"]["planted"]),
        "accepts_known": _interval(result.shares["all"]["known"]),
        "domains": {name: _domain(result, name) for name in domains if name in result.shares},
        "examples": [_example(row, texts) for row in asked[: run.config.report.examples]],
        "failures": dict(result.failures),
        "llm": run.spend(),
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"verdicts": len(result.rows)}


def _interval(share: Share) -> dict[str, float]:
    low, high = share.interval
    return {"value": share.value, "low": low, "high": high}


def _domain(result: Audit, name: str) -> dict[str, Any]:
    labelled, planted = result.shares[name]["labelled"], result.shares[name]["planted"]
    low, high = labelled.interval
    return {
        "judged": labelled.judged,
        "agreed": labelled.right,
        "low": low,
        "high": high,
        "planted": planted.judged,
        "accepted": planted.right,
        "unreadable": sum(share.unread for share in result.shares[name].values()),
        "precision_at_least": result.precision_at_least(name),
    }


def _example(row: Mapping[str, Any], texts: Mapping[int, str]) -> dict[str, Any]:
    return {
        "domain": row["domain"],
        "planted": row["kind"] == "planted",
        "accepted": row["verdict"] == "yes",
        "comment": row["reason"],
        "text": texts[row["chunk"]][:SHOWN],
    }
