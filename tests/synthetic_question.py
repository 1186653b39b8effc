"""Makes a run directory of questions by the package's own loop and comparison over a scripted world, with hostile text
put into what models wrote, for its part of the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from scripted_world import Scripted, likelihood, world

from ntk_jax.evaluation.accuracy import compare
from ntk_jax.evaluation.loss import compare_losses
from ntk_jax.pipelines.question import ask
from ntk_jax.questions.calibration import calibrate_agreement
from ntk_jax.questions.keep import Candidate, Limits, keep
from ntk_jax.questions.loop import Settings, Voices, search
from ntk_jax.questions.records import reason_of, record_of, trace_of
from ntk_jax.questions.slots import plan_slots
from ntk_jax.questions.voice import Voice

HOSTILE = (
    "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" </pre></details></table> \x00 \ud800 مرحبا"
)
LONG = "It holds where the lessee has paid, and not otherwise. " * 30
STAGES = (("chunk", "Chunks"), ("ask", "Questions"), ("train", "Training"), ("evaluate", "Evaluation"))
FILES = ("chunk/summary.json", "ask/summary.json", "train/summary.json", "evaluate/results.json")
TOKENS = {"adversarial": 5_120, "static": 5_230}
POINTS = {"adversarial@2": 2_010, "static@2": 2_080}
ROUNDS = ("round-0", "round-1")
TITLES = {"base": "base model", "adversarial": "adversarial questions", "static": "Questions without feedback"}


def make(folder: Path, seed: int = 0) -> Path:
    """Writes a whole finished run and returns its folder."""
    stages = [{"name": name, "title": title} for name, title in STAGES]
    roles = {"expert": f"expert {HOSTILE}", "generator": "expert", "judge": "judge", "target": "models/small"}
    config = {"seed": seed, "report": {"examples": 4}, "evaluate": {"general": ["general.jsonl"]}}
    facts = {"roles": roles, "same": False}
    entry = {"title": "Adversarial questions", "config": config, "stages": stages, "facts": facts}
    write(folder / "plan.json", {"schema": 1, "pipelines": {"question": entry}})
    write(folder / "provenance.json", {"versions": {"ntk_jax": "0.1.0"}})
    (folder / "config.yaml").write_text("seed: 0\n")
    _ask(folder, seed)
    write(folder / "train/summary.json", _train())
    write(folder / "evaluate/results.json", results())
    for name, _ in STAGES:
        write(folder / name / "manifest.json", {})
    return folder


def write(path: Path, value: Any) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """A file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _ask(folder: Path, seed: int) -> None:
    made = world(seed, 4)
    chunks = made.chunks
    roles = ("generator", "expert", "target", "reviser", "judge")
    voices = Voices(*(Voice(role, Scripted(made, f"{role} model")) for role in roles))
    slots, parts = plan_slots(chunks, 3, {}, seed)
    found = search(
        slots, voices, Settings(rounds=2, seed=seed), target=likelihood(made), focuses=parts
    )  # fmt: skip
    verified = [trace.standing for trace in found.traces]
    candidates = [Candidate(n, slots[n], one) for n, one in enumerate(verified) if one is not None]
    kept = keep(candidates, Limits(count=len(candidates) + 2))
    ranks = {one.ordinal: rank for rank, one in enumerate(kept.candidates, 1)}
    records = [
        record_of(one, found.traces[one.ordinal], rank=ranks[one.ordinal], method="adversarial")
        for one in kept.candidates
    ]
    why = {n: kept.dropped.get(n) or reason_of(trace) for n, trace in enumerate(found.traces) if n not in ranks}
    summary = ask._summary(found, kept, verified, why, chunks)
    items = [(one["prompt"], "a passage", one["response"]) for one in records]
    summary |= {
        "generation": 1,
        "target": None,
        "voices": {voice.role: voice.account() for voice in vars(voices).values()},
        "calibrations": [
            {"of": of, "role": role, **calibrate_agreement(items, seed)}
            for of, role in (
                ("gap", "judge"),
                ("answers", "judge"),
                ("answers", "second_judge"),
                ("unanswerable", "judge"),
            )
        ],
    }
    summary["voices"]["expert"]["failures"] = {"the model declined": 3, HOSTILE: 1}
    records[0]["trace"]["rounds"][0]["target"] = HOSTILE
    records[0]["trace"]["rounds"][0]["feedback"] = LONG
    others = [trace_of(found.traces[n], reason) for n, reason in why.items()]
    others.append({**records[0]["trace"], "not_kept": HOSTILE})
    dropped = [dataclasses.asdict(chunk) for chunk in chunks]
    dropped[0]["text"] += HOSTILE
    write_lines(folder / "chunk/chunks.jsonl", dropped)
    write(folder / "chunk/summary.json", _chunks(len(chunks)))
    write_lines(folder / "ask/questions.jsonl", records)
    write_lines(folder / "ask/traces.jsonl", others)
    static = [{"id": "s", "prompt": HOSTILE, "response": "Yes.", "document_id": "doc-1", "method": "static"}]
    write_lines(folder / "ask/static.jsonl", static)
    account = {"attempts": 431, "spent": 0.734, "reserved": 0.0, "prompt_tokens": 140_211, "completion_tokens": 301_877}
    write(
        folder / "ask/summary.json",
        {
            "questions": len(records),
            "generations": [summary],
            "methods": _methods(),
            "llm": {"expert": {**account, "outcomes": {"reply": 429, "busy": 2}}},
            "seconds": 812.0,
        },
    )


def _chunks(count: int) -> dict[str, Any]:
    return {
        "documents": 9,
        "used": 6,
        "trained": [f"doc-{n}" for n in range(count)],
        "unseen": ["doc-8", HOSTILE],
        "chunks": count,
        "all_chunks": 31,
        "words": 2_410,
        "dropped": {"empty": 2, "mostly symbols": 1},
        "shortened": 1,
        "notes": {"one line": 3},
        "seconds": 1.0,
    }


def _methods() -> dict[str, Any]:
    voice = {"model": "expert model", "form": "json", "calls": 40, "repaired": 2, "cut": 1, "cached": 0}
    voice |= {"prompt_tokens": 9_000, "completion_tokens": 2_000, "failures": {"no question": 4}}
    counts = {
        "records": 17,
        "tokens": 1_204,
        "asked_tokens": 2_400,
        "missing_tokens": 1_196,
        "documents": 4,
        "chunks": 4,
    }
    none = {**dict.fromkeys(counts, 0), "asked_tokens": 2_400, "missing_tokens": 2_400}
    return {
        "static": {"title": TITLES["static"], **counts, "dropped": {"no quote": 3}, "voice": voice, "failed": None},
        "entities": {
            **{"title": "Relations of entities", **none, "dropped": {}, "voice": {**voice, "calls": 5}},
            "failed": f"no record of entities came of 5 calls: {HOSTILE}",
        },
    }


def _train() -> dict[str, Any]:
    arms = []
    for name, tokens in {**TOKENS, **dict.fromkeys(ROUNDS, 5_090)}.items():
        facts = {"examples": 11, "examples_seen": 44, "steps": 4, "points": [2, 4], "tokens": tokens}
        cost = {"label_tokens": 2_300, "flops": 2e12, "seconds": 31.0, "final_loss": 1.25}
        arms.append({"name": name, "title": TITLES.get(name, name), **facts, **cost})
    return {"tokens": 5_000, "arms": arms}


def results(right: dict[str, int] | None = None) -> dict[str, Any]:
    """As an evaluation writes it: yes or no on trained and unseen documents, and the loss of a general file. right: of
    how many of twelve unseen questions each arm finds the answer."""
    right = right or {"base": 6, "adversarial": 9, "static": 6, "round-0": 6, "round-1": 7}
    order = ["base", "static", "adversarial", *ROUNDS, *POINTS]
    by_arm = {arm: right.get(arm, right[arm.split("@")[0]]) for arm in order}
    found = compare(
        {
            arm: {"test (trained documents)": _answers(n + 1), "test (unseen documents)": _answers(n)}
            for arm, n in by_arm.items()
        },
        bootstrap=50,
    )
    found["loss"] = compare_losses(
        {arm: {"general": _losses(0.1 * (arm.startswith("static")))} for arm in order}, bootstrap=50
    )
    arms: list[dict[str, Any]] = [{"name": "base", "title": TITLES["base"], "tokens": 0}]
    for arm in ("static", "adversarial", *ROUNDS):
        arms.append({"name": arm, "title": TITLES.get(arm, arm), "tokens": TOKENS.get(arm, 5_090)})
    arms += [{"name": arm, "arm": arm[:-2], "step": 2, "tokens": tokens} for arm, tokens in POINTS.items()]
    return {**found, "arms": arms, "general": ["general"]}


def _answers(right: int) -> list[dict[str, Any]]:
    """Twelve questions, half of them of each answer, on three documents."""
    rows = []
    for number in range(12):
        truth = number % 2
        given = truth if number < right else 1 - truth
        one = {"id": f"q{number}", "choices": ["No", "Yes"], "answer": truth, "raw": given, "normalized": given}
        rows.append({**one, "group": f"contract {number % 3}"})
    return rows


def _losses(more: float) -> list[dict[str, Any]]:
    return [{"id": f"g{number}", "loss": 2.0 + 0.1 * number + more, "tokens": 10 + number} for number in range(8)]
