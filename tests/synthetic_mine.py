"""Makes a run directory of mining with plausible numbers and hostile text, for its part of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.mining.seeds.coverage import coverage
from ntk_jax.mining.seeds.dimensions import DIMENSIONS
from ntk_jax.mining.seeds.lexical import compare_lexical
from ntk_jax.mining.seeds.plan import plan_seeds
from ntk_jax.mining.seeds.seed import Seed

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" </pre></details> \x00 \ud800 مرحبا"
DOMAINS = {"medicine": "diseases, drugs and patients", "law": "courts, contracts and rights"}
STAGES = (
    ("seeds", "Seeds"),
    ("corpus", "Corpus"),
    ("embed", "Embedding"),
    ("label", "Labels"),
    ("classify", "Classifier"),
    ("audit", "Audit"),
    ("pretrain", "Continual pre-training"),
    ("evaluate", "Evaluation"),
)
SOURCES = {
    "MedQuAD": (2000, 3100),
    "textbooks": (900, 5200),
    "CUAD": (500, 4100),
    "books": (80, 6400),
    HOSTILE: (9, 40),
}
ARMS = {
    "base": "base model",
    "general": "general text only",
    "random": "random documents",
    "dsir": "DSIR",
    "dopamine": "DoPAMine",
}
LLM = {
    "attempts": 431,
    "spent": 0.734,
    "reserved": 0.0,
    "prompt_tokens": 140_211,
    "completion_tokens": 301_877,
    "outcomes": {"answered": 429, "time-out": 2},
}
FILES = (
    *(f"{name}/summary.json" for name in ("seeds", "corpus", "embed", "label", "classify", "audit", "pretrain")),
    "evaluate/results.json",
)


def make(folder: Path, seed: int = 0) -> Path:
    """Writes a whole finished run and returns its folder."""
    rng = np.random.default_rng(seed)
    stages = [{"name": name, "title": title} for name, title in STAGES]
    config = {"seed": seed, "pretrain": {"tokens": 2_000_000, "confidence": 0.95}}
    entry = {"title": "DoPAMine", "config": config, "stages": stages, "facts": {"domains": DOMAINS}}
    write(folder / "plan.json", {"schema": 1, "pipelines": {"mine": entry}})
    write(folder / "provenance.json", {"versions": {"ntk_jax": "0.1.0"}})
    (folder / "config.yaml").write_text("seed: 0\n")
    write(folder / "seeds/summary.json", _seeds())
    write(folder / "corpus/summary.json", _corpus())
    write(folder / "embed/summary.json", _embed())
    write(folder / "label/summary.json", _labels(rng))
    write(folder / "classify/summary.json", _classify(rng))
    write(folder / "audit/summary.json", _audit())
    write(folder / "pretrain/summary.json", _pretrain(rng))
    write(folder / "evaluate/results.json", _results())
    for name, _ in STAGES:
        write(folder / name / "manifest.json", {})
    return folder


def write(path: Path, value: Any) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _seeds() -> dict[str, Any]:
    slots = plan_seeds(list(DOMAINS), per_domain=120, two_domain_share=0.1, dimensions=DIMENSIONS)
    seeds = [
        Seed(
            s.id,
            "text",
            s.domains,
            {
                "origin": "written",
                "type": s.type,
                "length": s.length.name,
                "demeanour": s.demeanour,
                "topic": f"topic {i % 90}",
            },
        )
        for i, s in enumerate(slots)
        if s.type != "contract"
    ]
    return {
        "origins": {"written": len(seeds), "document": 20},
        "written": {
            "written": len(seeds),
            "planned": len(slots),
            "asked": 410,
            "repaired": 21,
            "format": "json",
            "failures": {"not JSON": 44, "the text repeats itself": 9, "fewer than 20 words": 3, HOSTILE: 1},
            "shortfall": {"medicine": 7},
        },
        "duplicates": {"nearly the same embedding": 12},
        "coverage": coverage(seeds, list(DOMAINS), DIMENSIONS, {"law": ["bail", "wills"]}),
        "seconds": 812.0,
        "llm": LLM,
    }


def _corpus() -> dict[str, Any]:
    return {
        "documents": 31_200,
        "kept": 9_870,
        "chunks": 18_840,
        "words": 3_391_200,
        "sampled": None,
        "drops": {
            "another language": 8_211,
            "the same text": 5_003,
            "fewer than 15 words": 4_120,
            "nearly the same text": 2_410,
            "too many symbols": 901,
            "page took longer than 5 s": 12,
            "shares 13 words with an evaluation file": 7,
        },
        "faults": {"a damaged member": 2, "a record shorter than its length": 1},
        "sources": {name: {"documents": n, "chunks": chunks} for name, (n, chunks) in SOURCES.items()},
        "dropped": [{"reason": "too many symbols", "source": "books", "text": HOSTILE * 3}],
        "seconds": 93.0,
    }


def _embed() -> dict[str, Any]:
    hits = [
        {"score": 0.61 - 0.05 * i, "source": "MedQuAD", "title": "Fever", "text": f"{HOSTILE} {i}"} for i in range(3)
    ]
    return {
        "encoder": "all-MiniLM-L6-v2",
        "dim": 384,
        "max_tokens": 256,
        "note": None,
        "chunks": 18_840,
        "windows": 21_004,
        "seeds": 240,
        "neighbours": 200,
        "lexical": compare_lexical(
            {"seeds": ["A short text of a nurse. It ends."], "corpus": ["Some other words here."]}
        ),
        "nearest": [
            {"id": "medicine-00001", "domains": ["medicine"], "text": "A nurse.", "type": "email", "hits": hits},
            {"id": "law-own-3", "domains": ["law"], "text": HOSTILE, "origin": "document", "hits": []},
        ],
        "tokens": 4_100_000,
        "flops": 1.7e14,
        "seconds": 1411.0,
    }


def _histogram(values: np.ndarray, bins: int = 40) -> dict[str, Any]:
    counts, edges = np.histogram(values, bins=bins)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _curve(rng: np.random.Generator, spread: float) -> dict[str, Any]:
    """Precision and recall of scores that part a fifth from the rest, the more the smaller `spread`."""
    right = rng.random(400) < 0.2
    scores = 1 / (1 + np.exp(-(right * 3 - 1.5) - spread * rng.standard_normal(400)))
    order = np.argsort(-scores)
    true = np.cumsum(right[order])
    return {
        "threshold": scores[order].tolist(),
        "precision": (true / np.arange(1, 401)).tolist(),
        "recall": (true / true[-1]).tolist(),
    }


def _labels(rng: np.random.Generator) -> dict[str, Any]:
    domains = {}
    for name, threshold in (("medicine", 0.42), ("law", 0.36)):
        cosines = np.concatenate([rng.normal(0.12, 0.08, 17_000), rng.normal(0.38, 0.09, 1_840)])
        domains[name] = {
            "threshold": threshold,
            "how": "at most 20% of what it keeps is expected from the scores below the mode, 0.118",
            "kept": int((cosines >= threshold).sum()),
            "total": len(cosines),
            "histogram": _histogram(cosines),
            **({"curve": _curve(rng, 1.5), "judged": 200} if name == "law" else {}),
            "counts": {"positive": 610, "hard negative": 900, "random negative": 930, "over the cap of its seed": 77},
        }
    return {"source": "seeds", "labelled": 4_470, "domains": domains, "seconds": 3.0}


def _classify(rng: np.random.Generator) -> dict[str, Any]:
    interval = {"value": 0.91, "low": 0.88, "high": 0.94}
    domains = {
        name: {
            "threshold": 0.62,
            "precision": interval,
            "recall": {"value": 0.83, "low": 0.79, "high": 0.87},
            "average_precision": 0.93,
            "base_rate": 0.2,
            "positives": 122,
            "curve": _curve(rng, spread),
            "histogram": _histogram(np.concatenate([rng.beta(0.5, 6, 16_000), rng.beta(6, 1, 2_840)])),
            "taken": 2_310,
            "sources": {
                source: {"taken": taken, "probability": 0.88}
                for source, taken in (("MedQuAD", 1900), ("textbooks", 390), ("books", 20))
            },
        }
        for name, spread in (("medicine", 0.8), ("law", 1.4))
    }
    example = {
        "domains": ["medicine", "law"],
        "probability": {"medicine": 0.97, "law": 0.71},
        "score": 0.55,
        "seed": "medicine-00001",
        "source": "MedQuAD",
        "title": HOSTILE,
        "file": "corpus/medquad.jsonl.xz",
        "offset": 12_345,
        "url": "https://example.org/?a=1&b=<2>",
        "text": HOSTILE * 40,
    }
    return {
        "kind": "head",
        "train": 3_576,
        "held_out": 894,
        "chunks": 18_840,
        "taken": 4_402,
        "documents": 3_001,
        "words": 791_000,
        "mined_tokens": 1_020_000,
        "several": 218,
        "near_duplicates": 31,
        "domains": domains,
        "examples": [example] * 3,
        "seconds": 44.0,
        "flops": 2.1e11,
    }


def _audit() -> dict[str, Any]:
    one = {"judged": 100, "agreed": 88, "low": 0.8, "high": 0.93, "planted": 25, "accepted": 3, "unreadable": 2}
    return {
        "judge": "SmolLM2-135M-Instruct",
        "agreement": {"value": 0.64, "low": 0.57, "high": 0.7},
        "accepts_known": {"value": 0.9, "low": 0.7, "high": 0.97},
        "false_accept": {"value": 0.32, "low": 0.21, "high": 0.46},
        "domains": {"medicine": one, "law": {**one, "agreed": 40, "low": 0.31, "high": 0.5, "accepted": 13}},
        "examples": [{"domain": "law", "planted": True, "accepted": True, "comment": HOSTILE, "text": HOSTILE}],
        "llm": LLM,
        "seconds": 61.0,
    }


def _pretrain(rng: np.random.Generator) -> dict[str, Any]:
    sets = []
    for name, levels in (("medicine", (21.0, 20.9, 20.1, 18.7, 17.6)), ("web", (18.0, 17.9, 18.0, 18.9, 18.2))):
        results = {
            arm: {
                key: {"value": scale * level, "low": scale * (level - 0.6), "high": scale * (level + 0.7)}
                for key, scale in (("loss", 0.15), ("perplexity", 1.0), ("bits_per_byte", 0.05))
            }
            for arm, level in zip(ARMS, levels, strict=True)
        }
        pairs = []
        for j, a in enumerate(ARMS):
            for i, b in enumerate(list(ARMS)[:j]):
                d = float(np.log(levels[j] / levels[i]))
                pairs.append({"a": a, "b": b, "difference": d, "low": d - 0.02, "high": d + 0.02})
        sets.append(
            {"name": name, "documents": 210, "tokens": 91_000, "bytes": 402_000, "results": results, "paired": pairs}
        )
    rows = [_arm(name, title, number, rng) for number, (name, title) in enumerate(ARMS.items())]
    return {"held_out": ["medicine", "web"], "general": ["web"], "arms": rows, "sets": sets}


def _arm(name: str, title: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
    if name == "base":
        return {"name": name, "title": title, "share": 0.0, "tokens": 0, "curve": []}
    curve = []
    for i in range(9):
        levels = {
            "medicine": 21 - 1.1 * number * (1 - np.exp(-i / 3)) + 0.05 * rng.standard_normal(),
            "web": 18 + 0.12 * i * (number % 3),
        }
        bounded = {key: {"value": value, "low": value - 1, "high": value + 1} for key, value in levels.items()}
        curve.append({"step": 30 * i, "tokens": 250_000 * i, "perplexity": bounded})
    sources: dict[str, Any] = {"general": {"share": 0.75, "tokens": 1_500_000, "passes": 0.2, "text_tokens": 9_000_000}}
    if name != "general":
        sources[name] = {"share": 0.25, "tokens": 500_000, "passes": 1.19, "text_tokens": 420_000}
    facts = {"title": title, "share": 0.25, "sources": sources, "steps": 244, "tokens": 2_000_000}
    return {"name": name, **facts, "curve": curve, "seconds": 700.0, "flops": 9e14}


def _results() -> dict[str, Any]:
    task = {
        arm: {kind: {"accuracy": 0.3 + 0.02 * i, "low": 0.2, "high": 0.5} for kind in ("raw", "normalized")}
        for i, arm in enumerate(ARMS)
    }
    loss = {
        arm: {kind: {"loss": 2.4 - 0.1 * i, "low": 2.0, "high": 2.6} for kind in ("by_example", "by_token")}
        for i, arm in enumerate(ARMS)
    }
    return {
        "arms": [{"name": arm, "title": title} for arm, title in ARMS.items()],
        "tasks": [{"name": "medqa", "questions": 80, "results": task}],
        "average": task,
        "loss": {
            "tasks": [{"name": "notes", "results": loss}],
            "average": loss,
            "paired": [
                {"a": "dopamine", "b": "dsir", "kind": "by_example", "difference": 0.2, "low": 0.1, "high": 0.3},
                {"a": "dsir", "b": "base", "kind": "by_example", "difference": -0.2, "low": -0.3, "high": -0.1},
            ],
        },
        "generated": {
            "tasks": [
                {
                    "name": "sums",
                    "questions": 50,
                    "results": {
                        arm: {"accuracy": 0.44, "low": 0.3, "high": 0.58, "unread": 7, "cut": 1} for arm in ARMS
                    },
                }
            ],
            "paired": [{"a": "dopamine", "b": "base", "difference": 0.06, "low": 0.02, "high": 0.1}],
        },
        "paired": [
            {"a": "dopamine", "b": "random", "kind": kind, "difference": 0.05, "low": -0.01, "high": 0.11}
            for kind in ("raw", "normalized")
        ],
        "confidence": 0.95,
    }
