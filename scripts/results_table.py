"""The tables of docs/results.md, from finished run directories: one block per config, one row per seed.

    python scripts/results_table.py runs/real_emotions-* --watch t0_imdb,t0_rotten_tomatoes,t0_dbpedia_14 tweet_emotion
    python scripts/results_table.py docs/results/real_emotions-{0,1,2}

Each argument of --watch is a comma-separated group of families whose share of the pool and of each selection is
printed.

In place of a run directory, NAME-SEED stands for the files NAME-SEED.results.json, .selection.json and, if it is there,
.score.json that earlier runs left in docs/results. Their arm `selected` is the one that select.methods now names: it is
shown under its method, `kernel` for the scores of the kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from ntk_jax.errors import UserError


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("runs", nargs="+", type=Path)
    arguments.add_argument("--watch", nargs="*", default=[])
    options = arguments.parse_args()
    runs = [read(folder) for folder in options.runs]
    accuracy_table(runs)
    paired_table(runs)
    budget_table(runs)
    for group in options.watch:
        share_table(runs, group.split(","))
    picked_table(runs)


def read(place: Path) -> dict[str, Any]:
    """{seed, results: evaluate/results.json, methods: the first is what the controls are compared with, families, rho,
    lengths: Spearman of the first method's scores with the length of the span and of the example}."""
    if not place.is_dir():
        return read_earlier(place)
    select, score = load(place / "select/summary.json"), place / "score/summary.json"
    first = select["by_method"][select["methods"][0]]
    return {
        "seed": yaml.safe_load((place / "config.yaml").read_text(encoding="utf8"))["seed"],
        "results": load(place / "evaluate/results.json"),
        "methods": select["methods"],
        "families": select["families"],
        "rho": load(score)["rho"] if score.exists() else None,
        "lengths": [first["spearman_span_length"], first["spearman_total_length"]],
    }


def read_earlier(place: Path) -> dict[str, Any]:
    """The same from the files of an earlier run, which had one method and the random control."""
    parts = {name: place.parent / f"{place.name}.{name}.json" for name in ("results", "selection", "score")}
    selection, score = load(parts["selection"]), load(parts["score"]) if parts["score"].exists() else {}
    method = "sketch" if selection["method"].startswith("sketch:") else "kernel"
    results = renamed(load(parts["results"]), {"selected": method})
    families = [
        {**family, "selected": {method: family["selected"], "random": family["random"]}}
        for family in selection["families"]
    ]
    return {
        "seed": place.name.rpartition("-")[2],
        "results": results,
        "methods": [method, "random"],
        "families": families,
        "rho": score.get("rho"),
        "lengths": [score.get("spearman_span_length"), score.get("spearman_total_length")],
    }


def renamed(results: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The results with other names of arms."""
    new = lambda name: names.get(name, name)  # noqa: E731
    return {
        **results,
        "arms": [{**arm, "name": new(arm["name"])} for arm in results["arms"]],
        "tasks": [
            {**task, "results": {new(arm): found for arm, found in task["results"].items()}}
            for task in results["tasks"]
        ],
        "average": {new(arm): found for arm, found in results["average"].items()},
        "paired": [{**pair, "a": new(pair["a"]), "b": new(pair["b"])} for pair in results["paired"]],
    }


def load(path: Path) -> dict[str, Any]:
    """A JSON file. Raises UserError: it is not there."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there; give a finished run directory, or NAME-SEED of docs/results") from None
    return found


def accuracy_table(runs: list[dict[str, Any]]) -> None:
    arms = [arm["name"] for arm in runs[0]["results"]["arms"]]
    for kind in ("raw", "normalized"):
        print(f"Accuracy, {kind} likelihood, % (bootstrap interval over the questions):\n")
        print("| seed | task (chance) | " + " | ".join(arms) + " |\n" + "|---" * (len(arms) + 2) + "|")
        for run in runs:
            for task in run["results"]["tasks"]:
                cells = [cell(task["results"][arm][kind]) for arm in arms]
                name = f"{task['name']} ({100 * task['chance']:.1f})"
                print(f"| {run['seed']} | {name} | " + " | ".join(cells) + " |")
        means = [mean([100 * run["results"]["average"][arm][kind]["accuracy"] for run in runs]) for arm in arms]
        print("| mean | | " + " | ".join(f"**{value:.1f}**" for value in means) + " |\n")


def paired_table(runs: list[dict[str, Any]]) -> None:
    first = runs[0]["methods"][0]
    print(f"domain + {first} minus the other arm, points (paired bootstrap interval):\n")
    print("| seed | other arm | raw | normalized |\n|---|---|---|---|")
    for run in runs:
        pairs = {(p["a"], p["b"], p["kind"]): p for p in run["results"]["paired"]}
        for control in (arm["name"] for arm in run["results"]["arms"]):
            if control != first:
                cells = [difference(pairs, first, control, kind) for kind in ("raw", "normalized")]
                print(f"| {run['seed']} | {control} | " + " | ".join(cells) + " |")
    print()


def difference(pairs: dict[tuple[str, str, str], dict[str, float]], a: str, b: str, kind: str) -> str:
    """a minus b, from the pair in either order; nothing where neither is there."""
    if (a, b, kind) in pairs:
        pair = pairs[a, b, kind]
        value, low, high = pair["difference"], pair["low"], pair["high"]
    elif (b, a, kind) in pairs:
        pair = pairs[b, a, kind]
        value, low, high = -pair["difference"], -pair["high"], -pair["low"]
    else:
        return "–"
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def budget_table(runs: list[dict[str, Any]]) -> None:
    print("Training budget of each arm:\n")
    print("| seed | arm | examples | steps | tokens | label tokens (domain's part) | FLOPs |")
    print("|---" * 7 + "|")
    for run in runs:
        for arm in run["results"]["arms"]:
            labels = "–"
            if arm.get("label_tokens"):  # earlier runs did not count them
                labels = f"{arm['label_tokens']:,} ({100 * arm['domain_label_tokens'] / arm['label_tokens']:.0f}%)"
            numbers = f"{arm['examples']:,} | {arm['steps']:,} | {arm['tokens']:,} | {labels} | {arm['flops']:.2e}"
            print(f"| {run['seed']} | {arm['name']} | {numbers} |")
    print()


def share_table(runs: list[dict[str, Any]], group: list[str]) -> None:
    print(f"Share of {', '.join(group)}, %:\n")
    methods = runs[0]["methods"]
    print("| seed | of the pool | " + " | ".join(f"by {method}" for method in methods) + " |")
    print("|---" * (len(methods) + 2) + "|")
    for run in runs:
        columns = [{f["name"]: f["pool"] for f in run["families"]}]
        columns += [{f["name"]: f["selected"][method] for f in run["families"]} for method in methods]
        cells = []
        for column in columns:
            inside = sum(count for name, count in column.items() if name in group)
            cells.append(f"{100 * inside / sum(column.values()):.1f} ({inside})")
        print(f"| {run['seed']} | " + " | ".join(cells) + " |")
    print()


def picked_table(runs: list[dict[str, Any]]) -> None:
    print(f"What {runs[0]['methods'][0]} picked, and how its scores follow length (Spearman over the pool):\n")
    print("| seed | ten largest families of the selection (of pool) | ρ of the head | span length | total length |")
    print("|---|---|---|---|---|")
    for run in runs:
        first = run["methods"][0]
        counts = sorted(((f["selected"][first], f["name"], f["pool"]) for f in run["families"]), key=lambda c: -c[0])
        picked = ", ".join(f"{name} {count} ({pool})" for count, name, pool in counts[:10] if count)
        rho = "–" if run["rho"] is None else f"{run['rho']:,.0f}"
        lengths = " | ".join("–" if value is None else f"{value:+.2f}" for value in run["lengths"])
        print(f"| {run['seed']} | {picked} | {rho} | {lengths} |")


def cell(entry: dict[str, Any]) -> str:
    return f"{100 * entry['accuracy']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"results_table.py: {error}")
