"""Makes a run directory with plausible numbers, unicode, HTML-hostile text and very long prompts, for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ntk_jax.storage import arrays

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" </pre></details><!-- --> \x00 \ud800"
USEFUL = ("tweet_emotion", "семейство Ω")
LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
FAMILIES = 59
POOL = 24_000
SELECTED = 900
DROPPED = 3  # rows of the score store that were not scored
ARMS = (
    ("base", "base model"),
    ("domain", "domain only"),
    ("kernel", "domain + kernel"),
    ("random", "domain + random"),
)
METHODS = (("kernel", "NTK kernel score", "ntk:sum_logits"), ("random", "random", "random"))
STAGES = (
    ("warmup", "Warm-up"),
    ("gradient", "Domain gradient"),
    ("preselect", "Pre-selection"),
    ("score", "Scoring"),
    ("select", "Selection"),
    ("align", "Alignment"),
    ("finetune", "Fine-tuning"),
    ("evaluate", "Evaluation"),
)


def make(folder: Path, seed: int = 0) -> Path:
    """Writes a whole finished run and returns its folder."""
    rng = np.random.default_rng(seed)
    _text(folder / "config.yaml", yaml.safe_dump(_config(seed), sort_keys=False, allow_unicode=True))
    _json(folder / "plan.json", {"schema": 1, "pipelines": {"select": _plan(seed)}})
    hashes = {f"data/general/{name}.train.jsonl.gz": f"{i:064x}" for i, name in enumerate(("aqua", "esnli", "ecqa"))}
    _json(
        folder / "provenance.json",
        {
            "command": ["ntk-jax", "run", "configs/real_emotions.yaml", "--seed=0"],
            "versions": {"python": "3.11.2", "jax": "0.10.2", "flax": "0.12.8", "ntk_jax": "0.1.0"},
            "devices": [{"platform": "cpu", "kind": "cpu", "count": 1}],
            "seeds": {"run": seed},
            "hashes": hashes,
        },
    )
    _json(folder / "warmup/data.json", _statistics(1000, 998, {"no response tokens": 2}, 87, 4))
    _history(folder / "warmup/history.jsonl", rng, 24, 4.4, 3.1)
    _json(folder / "warmup/summary.json", {"steps": 24, "tokens": 216_300, "flops": 8.8e12, "seconds": 61.5})
    leaves = {
        f"layers/{name}/{part}": float(norm)
        for name, norm in zip(
            ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            (0.031, 0.027, 0.42, 0.38, 0.12, 0.17, 0.51),
            strict=True,
        )
        for part, norm in (("a", norm * 0.2), ("b", norm))
    }
    norm = float(np.sqrt(sum(v * v for v in leaves.values())))
    _json(
        folder / "gradient/summary.json",
        {
            "objective": "sum_logits",
            "rho": 3812.4,
            "norm": norm,
            "leaf_norms": leaves,
            "examples": 998,
            "tokens": 87_000,
            "flops": 3.3e12,
            "seconds": 40.0,
        },
    )
    _json(
        folder / "preselect/summary.json",
        {
            "method": "votes",
            "keep": 3600,
            "neighbours": 900,
            "candidates": 3600,
            "votes_histogram": {"edges": [0, 10, 100, 1000], "counts": [23300, 600, 100]},
            "tokens": 5_437_998,
            "flops": 7.4e13,
            "seconds": 300.1,
        },
    )
    _scores(folder, rng)
    for arm, end, tokens, labels in (
        ("domain", 2.6, 1_310_720, 29_000),
        ("random", 2.9, 5_104_331, 26_424),
        ("kernel", 2.4, 2_201_118, 3_940),
    ):
        _history(folder / f"finetune/{arm}/history.jsonl", rng, 450, 4.2, end)
        summary = {
            "steps": 450,
            "examples": 1000 if arm == "domain" else 1000 + SELECTED,
            "tokens": tokens,
            "label_tokens": labels,
            "domain_label_tokens": labels if arm == "domain" else 1_931,
            "flops": tokens * 6.8e6 * 6,
            "seconds": tokens / 2100,
            "final_loss": end,
        }
        _json(folder / f"finetune/{arm}/summary.json", summary)
    _json(folder / "evaluate/results.json", _results(rng))
    for stage, _ in STAGES:
        _json(folder / stage / "manifest.json", {"schema": 1, "fingerprint": {}, "facts": {}})
    return folder


def _plan(seed: int) -> dict[str, Any]:
    return {
        "title": "NTK-Selector",
        "config": _config(seed),
        "stages": [{"name": name, "title": title, "after": []} for name, title in STAGES],
        "facts": {
            "arms": [{"name": name, "title": title} for name, title in ARMS],
            "methods": [{"name": name, "title": title, "label": label} for name, title, label in METHODS],
        },
    }


def _config(seed: int) -> dict[str, Any]:
    return {
        "out": "runs/emotions",
        "seed": seed,
        "model": {"path": "models/llama-7m", "dtype": "float32", "max_length": 512, "overflow": "drop"},
        "data": {
            "domain": ["psychological/goemotions_ekman.train.jsonl.gz"],
            "pool": ["general/*.jsonl.gz", "general_decoys/*.jsonl.gz"],
        },
        "score": {"objective": "sum_logits", "span": "response", "normalize": "mean", "direction": "mean_gradient"},
        "preselect": {"method": "votes", "keep": 3600, "neighbours": 900},
        "select": {"count": SELECTED, "methods": [name for name, *_ in METHODS]},
        "evaluate": {"arms": [name for name, _ in ARMS], "bootstrap": 1000, "confidence": 0.95},
        "report": {"examples": 20, "group_by": "task", "useful": list(USEFUL)},
        "comment": HOSTILE.replace("\x00", "").replace("\ud800", ""),
    }


def _statistics(records: int, kept: int, dropped: dict[str, int], mean: int, span: int) -> dict[str, Any]:
    def lengths(middle: int) -> dict[str, int]:
        return {
            "5": middle // 3,
            "25": middle * 2 // 3,
            "50": middle,
            "75": middle * 3 // 2,
            "95": middle * 3,
            "max": 512,
        }

    return {
        "records": records,
        "kept": kept,
        "truncated": 0,
        "dropped": dropped,
        "tokens": kept * mean,
        "span_tokens": kept * span,
        "lengths": lengths(mean),
        "span_lengths": lengths(span),
    }


def _history(path: Path, rng: np.random.Generator, steps: int, start: float, end: float) -> None:
    rows = []
    for step in range(1, steps + 1):
        loss = end + (start - end) * np.exp(-4 * step / steps) + rng.normal(0, 0.12)
        norm = 0.8 + 0.5 * np.exp(-step / 30) + abs(rng.normal(0, 0.15))
        rows.append(
            {
                "step": step,
                "loss": float(loss),
                "learning_rate": 1e-3 * (1 - step / steps),
                "grad_norm": float(norm),
                "tokens": 9000 + step,
            }
        )
    _text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _scores(folder: Path, rng: np.random.Generator) -> None:
    """The score store, the summaries made from it, and the examples."""
    names = [
        "tweet_emotion",
        "семейство Ω",
        "t0_" + HOSTILE.replace("\ud800", "")[:40],
        "常識推論",
        "a_family_whose_name_is_much_too_long_for_any_figure_of_ours",
        "t0_imdb",
    ]
    names += [f"{kind}_task_{i:02d}" for i in range(FAMILIES - len(names)) for kind in [("cot", "t0", "niv2")[i % 3]]]
    weight = rng.lognormal(0, 1.1, FAMILIES)
    family = np.sort(rng.choice(FAMILIES, POOL, p=weight / weight.sum()))
    middle = rng.lognormal(2.6, 1.2, FAMILIES)
    span = np.maximum(1, rng.lognormal(np.log(middle[family]), 0.5)).astype(np.int32)
    total = span + rng.integers(20, 400, POOL).astype(np.int32)
    liked = np.isin(family, [0, 1]) * 2.0e-7
    score = (8e-7 / np.sqrt(span) + liked + rng.normal(0, 6e-8, POOL)).astype(np.float32)
    store = arrays.create(
        folder / "score/scores.zarr",
        {"score": ((), np.float32), "status": ((), np.uint8), "length": ((), np.int32), "span": ((), np.int32)},
        POOL,
        8000,
    )
    for block in range(store.blocks):
        a, b = store.block_range(block)
        status = (np.arange(a, b) < DROPPED).astype(np.uint8)
        block_of = {"score": score[a:b], "status": status, "length": total[a:b], "span": span[a:b]}
        arrays.write_block(store, block, block_of)
    order = np.argsort(-score, kind="stable")[:SELECTED]
    chosen = np.zeros(POOL, bool)
    chosen[order] = True
    control = np.zeros(POOL, bool)
    control[rng.permutation(POOL)[:SELECTED]] = True
    counts, edges = np.histogram(score, bins=60)
    picked, _ = np.histogram(score[chosen], bins=edges)
    families = [
        {
            "name": names[i],
            "pool": int(inside.sum()),
            "selected": {"kernel": int((inside & chosen).sum()), "random": int((inside & control).sum())},
            "mean_score": float(score[inside].mean()),
            "median_tokens": float(np.median(total[inside])),
        }
        for i in range(FAMILIES)
        for inside in [family == i]
        if inside.any()
    ]
    histogram = {"edges": edges.tolist(), "pool": counts.tolist(), "selected": picked.tolist()}
    _json(
        folder / "score/data.json", _statistics(POOL + 1207, POOL, {"too long": 1200, "no response tokens": 7}, 210, 24)
    )
    _json(
        folder / "score/summary.json",
        {
            "scored": POOL,
            "tokens": int(total.sum()),
            "flops": 4.1e14,
            "seconds": 812.4,
            "rho": 3812.4,
            "direction_norm": 0.83,
        },
    )
    useful = np.isin(family, [0, 1])
    selections = {"kernel": chosen, "random": control}
    by_method: dict[str, dict[str, Any]] = {
        name: {
            "label": label,
            "count": SELECTED,
            "threshold": None,
            "useful_share": float(useful[selections[name]].mean()),
            "median_tokens": float(np.median(total[selections[name]])),
            "median_span": float(np.median(span[selections[name]])),
            "spearman_span_length": None,
            "spearman_total_length": None,
            "histogram": None,
            "scatter": None,
        }
        for name, _, label in METHODS
    }
    by_method["kernel"] |= {
        "threshold": float(score[order[-1]]),
        "histogram": histogram,
        "spearman_span_length": -0.81,
        "spearman_total_length": -0.42,
        "scatter": {"tokens": total[:1500].tolist(), "score": score[:1500].tolist()},
    }
    _json(
        folder / "select/summary.json",
        {
            "methods": list(by_method),
            "count": SELECTED,
            "pool": POOL,
            "pool_records": POOL + 1207,
            "pool_total": 216_926,
            "scored": POOL,
            "useful": list(USEFUL),
            "useful_share_pool": float(useful.mean()),
            "median_tokens_pool": float(np.median(total)),
            "median_span_pool": float(np.median(span)),
            "families": families,
            "by_method": by_method,
        },
    )
    examples = []
    for rank, i in enumerate(order[:20], start=1):
        prompt = [
            "Tweet: “Worry is a down payment”\nWhich emotion?\n- anger\n- joy\nAnswer:",
            HOSTILE,
            "كيف حالك اليوم؟ " * 30,
            "A very long prompt. " * 400,
            "短いが多い\n" * 30,
        ][rank % 5]
        aligned = {
            "id": f"goemotions-{rank}",
            "prompt": "Comment: " + "I can't believe it! " * (rank % 9) + "\nEmotion:",
            "response": LABELS[rank % 7],
            "kernel": float(score[i] * 1.7),
        }
        examples.append(
            {
                "rank": rank,
                "id": f"pool-{i:05d}",
                "family": names[family[i]],
                "score": float(score[i]),
                "prompt": prompt,
                "response": "joy " * (rank % 4 + 1),
                "tokens": int(total[i]),
                "aligned": aligned,
            }
        )
    _json(folder / "align/examples.json", examples)


def _results(rng: np.random.Generator) -> dict[str, Any]:
    """Three tasks; the domain arm collapses onto one label on the first, length-normalised."""
    centre = {"base": 0.231, "domain": 0.262, "kernel": 0.384, "random": 0.331}
    tasks: list[dict[str, Any]] = []
    for name, questions, labels in (
        ("goemotions_ekman", 700, LABELS),
        ("dreaddit_stress", 414, ("no", "yes")),
        ("mmlu_psychological", 545, tuple("ABCD")),
    ):
        truth = {
            label: int(n)
            for label, n in zip(labels, rng.multinomial(questions, np.ones(len(labels)) / len(labels)), strict=True)
        }
        results: dict[str, Any] = {}
        for arm, accuracy in centre.items():
            results[arm] = {}
            for kind in ("raw", "normalized"):
                at = accuracy + (0.25 if len(labels) == 2 else 0.0) + float(rng.normal(0, 0.012))
                predicted = {
                    label: int(n)
                    for label, n in zip(
                        labels, rng.multinomial(questions, rng.dirichlet(np.ones(len(labels)) * 6)), strict=True
                    )
                }
                if (name, arm, kind) == ("goemotions_ekman", "domain", "normalized"):
                    at, predicted = 0.057, {"surprise": 665, "joy": 35}
                results[arm][kind] = {"accuracy": at, "low": at - 0.034, "high": at + 0.036, "predicted": predicted}
        tasks.append(
            {
                "name": name,
                "questions": questions,
                "dropped": {"too long": 7},
                "truncated": 134 if name == "dreaddit_stress" else 2,
                "choices": len(labels),
                "chance": 1 / len(labels),
                "results": results,
                "truth": truth,
            }
        )
    average = {
        arm: {
            kind: {"accuracy": mean, "low": mean - 0.021, "high": mean + 0.021}
            for kind in ("raw", "normalized")
            for mean in [float(np.mean([task["results"][arm][kind]["accuracy"] for task in tasks]))]
        }
        for arm in centre
    }
    names = list(centre)
    paired = [
        {"a": a, "b": b, "difference": d, "low": d - 0.026, "high": d + 0.027, "kind": kind}
        for i, a in enumerate(names)
        for b in names[:i]
        for kind in ("raw", "normalized")
        for d in [average[a][kind]["accuracy"] - average[b][kind]["accuracy"]]
    ]
    titles = dict(ARMS)
    trained = {
        "base": (0, 0, 0, 0, 0, 0.0),
        "domain": (1000, 450, 1_310_720, 29_000, 29_000, 5.35e13),
        "kernel": (1900, 450, 2_201_118, 3_940, 1_931, 8.98e13),
        "random": (1900, 450, 5_104_331, 26_424, 1_931, 2.08e14),
    }
    keys = ("examples", "steps", "tokens", "label_tokens", "domain_label_tokens", "flops")
    arms = [{"name": arm, "title": titles[arm], **dict(zip(keys, trained[arm], strict=True))} for arm in centre]
    return {"arms": arms, "tasks": tasks, "average": average, "paired": paired, "confidence": 0.95, "bootstrap": 1000}


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf8")


def _json(path: Path, value: Any) -> None:
    _text(path, json.dumps(value))
