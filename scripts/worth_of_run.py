"""The scores of a finished run against the metagradient of some of its candidates, and, with --subsets, against the
losses after training on random halves of them (LDS); nothing else of a diagnosis.

    python scripts/worth_of_run.py runs/mine --candidates 96 --domain 16 --held-out 40 --out worth.json
    python scripts/worth_of_run.py runs/mine --candidates 96 --domain 16 --held-out 40 --again worth.json \
      --objectives cross_entropy --directions domain domain-adam unseen --out more.json

`ntk-jax diagnose` does the same beside stability and figures; where a model takes a second for an example this alone is
minutes. Candidates are a seeded sample of those that any method of the run has a score for; they are fine-tuned on
beside domain examples, `--epochs` passes from the warm-up's adapter, or from a fresh one as `finetune` trains, at the
learning rate of `warmup` if none is given. Held out are records of the first of `evaluate.files`.

--objectives are kernels at the warm-up's adapter, or at a fresh one (--at), along mean gradients (--directions) of
domain examples, a sixth of them or up to four times as many (few, many), as many with each other's responses, of which
some are the same (shuffled), of records of the evaluation file that are neither held out nor trained on (unseen), of
the held-out ones themselves, which no ranker knows, or of random pool examples that are no candidates (pool);
NAME-adam: divided by the root of Adam's second moments of the warm-up.

A killed one goes on where it was, in OUT.way, which is deleted at the end; `seconds` are then of the last go. What was
lost on each subset stays in OUT.subsets: with --again and --subsets other scores are held against the same trainings.
LDS is also given with the response's length taken out (`partial`).

Where --again is of another training (rate, start, --repeat-seed), its metagradients are a score as well, which says how
far worth itself agrees over trainings. Two repeats with a correlation of r: a score that knew the mean of all repeats
would have about the root of r with each.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
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
from ntk_jax.pipelines.common.arrays import load_tree
from ntk_jax.pipelines.common.rankings import read_rankings
from ntk_jax.storage.atomic import make_folder, read_json, write_text
from ntk_jax.training.datamodels import ranker_worth

ADAM = "-adam"
LENGTH = "response characters"
EARLIER = "metagradient of --again"  # with its sign turned, as all scores
TARGETS = ("domain", "few", "many", "shuffled", "unseen", "held-out", "pool")
DIRECTIONS = tuple(name + metric for name in TARGETS for metric in ("", ADAM))


def main() -> None:
    try:
        measure(parsed())
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def measure(options: argparse.Namespace) -> None:
    make_folder(options.out.parent)
    config = yaml.safe_load((options.run / "config.yaml").read_text(encoding="utf8"))
    ranked = read_rankings(str(options.run))
    warm = model = nj.load_model(config["model"]["path"], adapter=str(options.run / "warmup" / "adapter"))
    if options.start == "fresh":
        model = with_lora(model, initial_lora(model.lora, seed_of(options)))
    candidates = sampled_candidates(options, config, ranked)
    held_out, unseen = evaluated(options, config)
    training = nj.TrainConfig(
        epochs=options.epochs,
        batch_size=options.batch,
        learning_rate=options.learning_rate or config["warmup"]["learning_rate"],
        tokens_per_microbatch=options.microbatch or config["warmup"]["tokens_per_microbatch"],
    )
    settings: dict[str, Any] = {
        "fixed": sampled(config["data"]["domain"], options.domain, options.seed),
        "training": training,
        "seed": seed_of(options),
    }
    way = options.out.with_name(options.out.name + ".way")  # a killed one goes on there
    begun = time.monotonic()
    earlier = output_of(options, candidates) if options.again else {}
    trained = is_same(earlier, options, training)
    if trained:
        facts = {key: earlier[key] for key in ("loss", "flops")}
        values = metagradients_of(earlier)
    else:
        found = nj.metagradient(model, candidates, held_out, progress=say, keep=way, **settings)
        values = found.values
        facts = {"loss": {"before": found.before, "after": found.after}, "flops": found.flops}
    before = {} if trained or not earlier else {EARLIER: -metagradients_of(earlier)}
    ids = [record["id"] for record in candidates]
    scores = scores_of(earlier) | before | ranked.of(ids)
    for name, folder in options.rankings:
        scores |= {f"{method} of {name}": values for method, values in read_rankings(folder).of(ids).items()}
    scores[LENGTH] = np.array([float(len(record["response"])) for record in candidates])
    domain = sampled(config["data"]["domain"], options.direction, options.seed + 1)
    targets = {
        "domain": domain,
        "few": sampled(config["data"]["domain"], max(1, options.direction // 6), options.seed + 1),
        "many": sampled(config["data"]["domain"], 4 * options.direction, options.seed + 1),
        "shuffled": shuffled(domain, options.seed + 1),
        "unseen": unseen,
        "held-out": held_out,
        "pool": others_of(candidates, config["data"]["pool"], options),
    }
    scores |= scored_here(options, config, warm, candidates, targets)
    worth = ranker_worth(scores, values, top=options.top, seed=options.seed)
    for name, one in earlier.get("scores", {}).items():
        if "lds" in one and trained:
            worth.setdefault(name, {})["lds"] = one["lds"]
    if options.subsets:
        everything = scores | {"metagradient": -values}
        given = (model, candidates, held_out, everything)
        how = {
            "subsets": options.subsets,
            "control": scores[LENGTH],
            "progress": say,
            "keep": subsets_kept(options, training),
            **settings,
        }
        foreseen = nj.lds(*given, **how)
        worth["metagradient"] = {}
        for name, kept in foreseen.items():
            worth[name]["lds"] = kept
    result = {
        "run": str(options.run),
        "options": {key: value for key, value in vars(options).items() if key not in ("run", "out", "again")},
        "training": dataclasses.asdict(training),
        **facts,
        "helpful": float((values < 0).mean()),
        "unshuffled": kept_responses(domain, targets["shuffled"]),
        "seconds": time.monotonic() - begun,
        "scores": worth,
        "candidates": [
            {"id": record["id"], "task": record.get("task"), "metagradient": value}
            | {"scores": {name: known(values[place]) for name, values in scores.items()}}
            for place, (record, value) in enumerate(zip(candidates, values.tolist(), strict=True))
        ],
    }
    write_text(options.out, json.dumps(result, indent=1))
    shutil.rmtree(way, ignore_errors=True)
    print(json.dumps({key: result[key] for key in ("loss", "helpful", "seconds", "scores")}, indent=1))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    for name, default, about in (
        ("candidates", 96, "pool examples"),
        ("domain", 16, "domain examples trained on beside them"),
        ("held-out", 40, "records whose loss is measured"),
        ("batch", 16, "examples of a step"),
        ("direction", 48, "examples whose mean gradient --objectives are scored along"),
        ("top", 10, "N of the precision of the top"),
        ("epochs", 1, "passes"),
        ("seed", 0, "of the samples, the order and the fresh adapter"),
        ("microbatch", 0, "tokens that are computed at once; 0: warmup.tokens_per_microbatch"),
        ("longest", 0, "characters of a candidate's prompt and response together, at most; 0: any"),
        ("subsets", 0, "random halves of the candidates to train on, for LDS"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=about)
    parser.add_argument("--repeat-seed", type=int, help="another one of the order and the fresh adapter alone")
    parser.add_argument("--learning-rate", type=float, default=0.0, help="0: the warm-up's")
    parser.add_argument(
        "--start", choices=("warm", "fresh"), default="warm", help="the warm-up's adapter, or a fresh one"
    )
    parser.add_argument("--objectives", nargs="*", default=[], help="scored here too")
    parser.add_argument("--at", choices=("warm", "fresh"), default="warm", help="the adapter that they are scored at")
    parser.add_argument(
        "--directions", nargs="+", default=["domain"], choices=DIRECTIONS, help="that they are scored along"
    )
    parser.add_argument(
        "--rankings",
        nargs="+",
        default=[],
        type=named,
        metavar="NAME=DIR",
        help="other finished runs over the same pool, such as of a smaller model, whose scores are held against it too",
    )
    parser.add_argument("--cosines", nargs="*", default=[], help="objectives whose gradients' mean cosines are, too")
    parser.add_argument(
        "--again",
        type=Path,
        help="an earlier output, whose scores are kept, and its metagradients: as they are where the training is the "
        "same, else as one more score",
    )
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def named(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, folder


def say(done: int, total: int, note: str = "subsets") -> None:
    """Progress in a line."""
    print(f"{done}/{total} {note}", flush=True)


def output_of(options: argparse.Namespace, candidates: list[dict[str, Any]]) -> dict[str, Any]:
    """An earlier output. Raises UserError: its scores are of another run, of other candidates or other targets."""
    found = read_json(options.again, dict)
    made = {"run": found["run"], **found["options"]}
    for name in ("run", "seed", "direction", "held_out"):
        given = getattr(options, name)
        if made[name] != (str(given) if name == "run" else given):
            raise UserError(f"--again {options.again}: its {name.replace('_', '-')} is {made[name]}, and not {given}")
    if [one["id"] for one in found["candidates"]] != [record["id"] for record in candidates]:
        raise UserError(f"--again {options.again}: it has other candidates; give the options it was made with")
    return dict(found)


def subsets_kept(options: argparse.Namespace, training: nj.TrainConfig) -> Path:
    """The folder of the losses on subsets, one a training; begins with those that --again has of the same."""
    of = {
        **dataclasses.asdict(training),
        "tokens_per_microbatch": None,
        "seed": seed_of(options),
        **{name: getattr(options, name) for name in ("start", "domain", "candidates", "longest", "held_out")},
    }
    name = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:8]
    own, *earlier = (path.with_name(path.name + ".subsets") / name for path in (options.out, options.again) if path)
    for folder in earlier:
        if folder.is_dir() and folder != own:
            shutil.copytree(folder, own, dirs_exist_ok=True)
    return Path(own)


def is_same(output: dict[str, Any], options: argparse.Namespace, training: nj.TrainConfig) -> bool:
    """Whether its metagradients are of the training that is asked for, however much of it is computed at once."""
    sizes = {"tokens_per_microbatch": training.tokens_per_microbatch}
    return bool(output) and (
        output["training"] | sizes == dataclasses.asdict(training) | sizes
        and all(output["options"][name] == getattr(options, name) for name in ("start", "domain"))
        and training_seed(options.seed, output["options"].get("repeat_seed")) == seed_of(options)
    )


def training_seed(seed: int, repeat: int | None) -> int:
    """Of the order and the fresh adapter."""
    return seed if repeat is None else repeat


def seed_of(options: argparse.Namespace) -> int:
    return training_seed(options.seed, options.repeat_seed)


def metagradients_of(output: dict[str, Any]) -> np.ndarray:
    """[M] of an output's candidates."""
    return np.array([one["metagradient"] for one in output["candidates"]], float)


def scores_of(output: dict[str, Any]) -> dict[str, np.ndarray]:
    """{score: [M]} of an output's candidates."""
    candidates = output.get("candidates", [])
    names = candidates[0]["scores"] if candidates else ()
    return {name: np.array([one["scores"][name] for one in candidates], float) for name in names}


def evaluated(options: argparse.Namespace, config: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Of the first evaluation file the records whose loss is measured, and a sample of the others."""
    files = config["evaluate"]["files"][:1]
    held_out = sampled(files, options.held_out, options.seed)
    return held_out, others_of(held_out, files, options)


def others_of(taken: list[dict[str, Any]], files: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A seeded sample, as large as --direction, of the records of some files that are not among those taken."""
    ids = {record["id"] for record in taken}
    others = [dict(record) for file in files for record in nj.read_records(file) if record["id"] not in ids]
    chosen = sample_indices(len(others), options.direction, options.seed)
    return others if chosen is None else [others[i] for i in chosen]


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
    options: argparse.Namespace,
    config: dict[str, Any],
    warm: nj.Model,
    candidates: list[dict[str, Any]],
    targets: dict[str, list[dict[str, Any]]],
) -> dict[str, np.ndarray]:
    """{score: [M]}: kernels along mean gradients of the targets, and mean cosines with each of the domain's gradients
    at the warm-up's adapter (sketched to at most 4,096 numbers)."""
    fresh = options.at == "fresh"
    model = with_lora(warm, initial_lora(warm.lora, seed_of(options))) if fresh else warm
    span = nj.Span(max_length=config["model"]["max_length"], overflow="truncate")
    sizes: dict[str, Any] = {"span": span, "batch_tokens": options.microbatch or config["score"]["batch_tokens"]}
    found = {}
    for objective in options.objectives:
        directions = {}
        for name in options.directions:
            examples = targets[name.removesuffix(ADAM)]
            if not examples:
                raise UserError(f"--directions {name}: there are no other records; lower --held-out or --candidates")
            directions[name] = nj.mean_gradient(model, examples, objective=objective, allow_fresh_lora=fresh, **sizes)
            if name.endswith(ADAM):
                moments = load_tree(options.run / "warmup" / "second_moment.safetensors", warm.lora)
                directions[name] = nj.adam_preconditioned(directions[name], moments)
        along = nj.stack_directions(list(directions.values()))
        values = np.asarray(nj.directional_scores(model, candidates, along, objective=objective, **sizes), float)
        for name, each in zip(directions, values.T, strict=True):
            found[f"{objective}, {'here' if name == 'domain' else name}" + (", fresh" if fresh else "")] = each
    for objective in options.cosines:
        size = sum(leaf.size for leaf in jax.tree.leaves(warm.lora))
        dim = min(4096, 1 << (size.bit_length() - 1))
        kept: dict[str, Any] = {"objective": objective, "dim": dim, "projection": "kronecker", **sizes}
        a, b = (np.asarray(nj.sketch(warm, examples, **kept)) for examples in (candidates, targets["domain"]))
        a, b = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-30) for z in (a, b))
        usable = np.isfinite(b).all(axis=1) & b.any(axis=1)
        if not usable.any():
            raise UserError(f"--cosines {objective}: no domain example has a gradient that is not zero")
        found[f"cosine, {objective}, here"] = np.asarray(a @ b[usable].mean(axis=0), float)
    return found


def shuffled(examples: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The same prompts and the same responses, each beside another's, in a circle of a seeded order."""
    order = np.random.default_rng(seed).permutation(len(examples))
    responses = {int(place): examples[other]["response"] for place, other in zip(order, np.roll(order, 1), strict=True)}
    return [{**example, "response": responses[place]} for place, example in enumerate(examples)]


def kept_responses(examples: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    """The share that has the same response in both."""
    return float(np.mean([one["response"] == other["response"] for one, other in zip(examples, others, strict=True)]))


def sampled(files: list[str], count: int, seed: int) -> list[dict[str, Any]]:
    """A seeded sample of the records of some files."""
    records = [dict(record) for file in files for record in nj.read_records(file)]
    chosen = sample_indices(len(records), count, seed)
    return records if chosen is None else [records[i] for i in chosen]


if __name__ == "__main__":
    main()
