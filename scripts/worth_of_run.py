"""The scores of a finished run against the metagradient of some of its candidates, and, with --subsets, against the
losses after training on random halves of them (LDS); nothing else of a diagnosis.

    python scripts/worth_of_run.py runs/mine --candidates 96 --domain 16 --held-out 40 --out worth.json

`ntk-jax diagnose` does the same beside stability, subsets and figures; where a model takes a second for an example this
alone is minutes. Candidates are a seeded sample of those that any method of the run has a score for; they are
fine-tuned on beside domain examples, `--epochs` passes from the warm-up's adapter, or from a fresh one as `finetune`
trains, with the settings of `warmup`. Held out are records of the first of `evaluate.files`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

import ntk_jax as nj
from ntk_jax.data.sources import sample_indices
from ntk_jax.errors import UserError
from ntk_jax.models.lora import initial_lora
from ntk_jax.models.model import with_lora
from ntk_jax.pipelines.common.rankings import read_rankings
from ntk_jax.storage.atomic import make_folder
from ntk_jax.training.datamodels import ranker_worth


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    for name, default, about in (
        ("candidates", 96, "pool examples"),
        ("domain", 16, "domain examples trained on beside them"),
        ("held-out", 40, "records whose loss is measured"),
        ("batch", 16, "examples of a step"),
        ("direction", 48, "domain examples whose mean gradient --objectives are scored along"),
        ("top", 10, "N of the precision of the top"),
        ("epochs", 1, "passes"),
        ("seed", 0, "of the samples and the order"),
        ("microbatch", 0, "tokens that are computed at once; 0: warmup.tokens_per_microbatch"),
        ("longest", 0, "characters of a candidate's prompt and response together, at most; 0: any"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=about)
    parser.add_argument("--learning-rate", type=float, default=0.0, help="0: the warm-up's")
    parser.add_argument("--subsets", type=int, default=0, help="random halves of the candidates to train on, for LDS")
    parser.add_argument(
        "--start", choices=("warm", "fresh"), default="warm", help="the warm-up's adapter, or a fresh one"
    )
    parser.add_argument("--objectives", nargs="*", default=[], help="scored here too, at the warm-up's adapter")
    parser.add_argument("--cosines", nargs="*", default=[], help="objectives whose gradients' mean cosines are, too")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    make_folder(options.out.parent)
    config = yaml.safe_load((options.run / "config.yaml").read_text(encoding="utf8"))
    ranked = read_rankings(str(options.run))
    warm = model = nj.load_model(config["model"]["path"], adapter=str(options.run / "warmup" / "adapter"))
    if options.start == "fresh":
        model = with_lora(model, initial_lora(model.lora, options.seed))
    candidates = sampled_candidates(options, config, ranked)
    domain = sampled(config["data"]["domain"], options.domain, options.seed)
    held_out = sampled(config["evaluate"]["files"][:1], options.held_out, options.seed)
    training = nj.TrainConfig(
        epochs=options.epochs,
        batch_size=options.batch,
        learning_rate=options.learning_rate or config["warmup"]["learning_rate"],
        tokens_per_microbatch=options.microbatch or config["warmup"]["tokens_per_microbatch"],
    )
    begun = time.monotonic()
    found = nj.metagradient(
        model,
        candidates,
        held_out,
        fixed=domain,
        training=training,
        seed=options.seed,
        progress=lambda done, total, note: print(f"{done}/{total} {note}", flush=True),
    )
    scores: dict[str, Any] = ranked.of([record["id"] for record in candidates])
    scores["response characters"] = np.array([float(len(record["response"])) for record in candidates])
    scores |= scored_here(options, config, warm, candidates)
    worth = ranker_worth(scores, found.values, top=options.top, seed=options.seed)
    if options.subsets:
        foreseen = nj.lds(
            model,
            candidates,
            held_out,
            scores | {"metagradient": -found.values},
            fixed=domain,
            training=training,
            subsets=options.subsets,
            seed=options.seed,
            progress=lambda done, total: print(f"{done}/{total} subsets", flush=True),
        )
        worth["metagradient"] = {}
        for name, kept in foreseen.items():
            worth[name]["lds"] = kept
    result = {
        "run": str(options.run),
        "options": {key: value for key, value in vars(options).items() if key not in ("run", "out")},
        "training": dataclasses.asdict(training),
        "loss": {"before": found.before, "after": found.after},
        "helpful": float((found.values < 0).mean()),
        "flops": found.flops,
        "seconds": time.monotonic() - begun,
        "scores": worth,
        "candidates": [
            {"id": record["id"], "task": record.get("task"), "metagradient": value}
            | {"scores": {name: known(values[place]) for name, values in scores.items()}}
            for place, (record, value) in enumerate(zip(candidates, found.values.tolist(), strict=True))
        ],
    }
    options.out.write_text(json.dumps(result, indent=1), encoding="utf8")
    print(json.dumps({key: result[key] for key in ("loss", "helpful", "seconds", "scores")}, indent=1))


def known(score: float) -> float | None:
    """As JSON has it, to seven digits."""
    return float(f"{score:.7g}") if np.isfinite(score) else None


def sampled_candidates(options: argparse.Namespace, config: dict[str, Any], ranked: Any) -> list[dict[str, Any]]:
    """Of those that any method has a score for and that are short enough, in pool order."""
    known = np.any([np.isfinite(values) for values in ranked.scores.values()], axis=0)
    ids = {name for name, place in ranked.place.items() if known[place]}
    files = (record for pattern in config["data"]["pool"] for record in nj.read_records(pattern))
    there = [dict(record) for record in files if record["id"] in ids]
    if options.longest:
        there = [record for record in there if len(record["prompt"]) + len(record["response"]) <= options.longest]
    chosen = sample_indices(len(there), options.candidates, options.seed)
    return there if chosen is None else [there[i] for i in chosen]


def scored_here(
    options: argparse.Namespace, config: dict[str, Any], warm: nj.Model, candidates: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    """{objective: [M]} along the mean gradient of a part of the domain, or the mean cosine with each of its gradients
    (sketched to at most 4,096 numbers), at the warm-up's adapter."""
    targets = sampled(config["data"]["domain"], options.direction, options.seed + 1)
    span = nj.Span(max_length=config["model"]["max_length"], overflow="truncate")
    sizes: dict[str, Any] = {"span": span, "batch_tokens": options.microbatch or config["score"]["batch_tokens"]}
    found = {}
    for objective in options.objectives:
        direction = nj.mean_gradient(warm, targets, objective=objective, **sizes)
        values = nj.directional_scores(warm, candidates, direction, objective=objective, **sizes)
        found[f"{objective}, here"] = np.asarray(values, float)
    for objective in options.cosines:
        size = sum(leaf.size for leaf in jax.tree.leaves(warm.lora))
        dim = min(4096, 1 << (size.bit_length() - 1))
        kept: dict[str, Any] = {"objective": objective, "dim": dim, "projection": "kronecker", **sizes}
        a, b = (np.asarray(nj.sketch(warm, examples, **kept)) for examples in (candidates, targets))
        a, b = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-30) for z in (a, b))
        usable = np.isfinite(b).all(axis=1) & b.any(axis=1)
        if not usable.any():
            raise UserError(f"--cosines {objective}: no domain example has a gradient that is not zero")
        found[f"cosine, {objective}, here"] = np.asarray(a @ b[usable].mean(axis=0), float)
    return found


def sampled(files: list[str], count: int, seed: int) -> list[dict[str, Any]]:
    """A seeded sample of the records of some files."""
    records = [dict(record) for file in files for record in nj.read_records(file)]
    chosen = sample_indices(len(records), count, seed)
    return records if chosen is None else [records[i] for i in chosen]


if __name__ == "__main__":
    main()
