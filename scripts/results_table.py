"""The tables of docs/results.md, from finished run directories: one block per config, one row per seed.

    python scripts/results_table.py runs/real_emotions-* --watch t0_imdb,t0_rotten_tomatoes,t0_dbpedia_14 tweet_emotion

Each argument of --watch is a comma-separated group of families whose share of the pool, of the selection and of the
random control is printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml


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


def read(folder: Path) -> dict[str, Any]:
    load = lambda name: json.loads((folder / name).read_text(encoding="utf8"))  # noqa: E731
    return {
        "config": yaml.safe_load((folder / "config.yaml").read_text(encoding="utf8")),
        "results": load("evaluate/results.json"),
        "select": load("select/summary.json"),
        "score": load("score/summary.json"),
    }


def accuracy_table(runs: list[dict[str, Any]]) -> None:
    arms = [arm["name"] for arm in runs[0]["results"]["arms"]]
    for kind in ("raw", "normalized"):
        print(f"Accuracy, {kind} likelihood, % (bootstrap interval over the questions):\n")
        print("| seed | task (chance) | " + " | ".join(arms) + " |\n" + "|---" * (len(arms) + 2) + "|")
        for run in runs:
            for task in run["results"]["tasks"]:
                cells = [cell(task["results"][arm][kind]) for arm in arms]
                name = f"{task['name']} ({100 * task['chance']:.1f})"
                print(f"| {run['config']['seed']} | {name} | " + " | ".join(cells) + " |")
        means = [mean([100 * run["results"]["average"][arm][kind]["accuracy"] for run in runs]) for arm in arms]
        print("| mean | | " + " | ".join(f"**{value:.1f}**" for value in means) + " |\n")


def paired_table(runs: list[dict[str, Any]]) -> None:
    print("Selected minus the control, points (paired bootstrap interval):\n")
    print("| seed | control | raw | normalized |\n|---|---|---|---|")
    for run in runs:
        pairs = {(p["a"], p["b"], p["kind"]): p for p in run["results"]["paired"]}
        for control in ("base", "domain", "random"):
            cells = []
            for kind in ("raw", "normalized"):
                pair = pairs[("selected", control, kind)]
                cells.append(f"{100 * pair['difference']:+.1f} [{100 * pair['low']:+.1f}, {100 * pair['high']:+.1f}]")
            print(f"| {run['config']['seed']} | {control} | " + " | ".join(cells) + " |")
    print()


def budget_table(runs: list[dict[str, Any]]) -> None:
    print("Training budget of each arm:\n")
    print("| seed | arm | examples | steps | tokens | FLOPs |\n|---|---|---|---|---|---|")
    for run in runs:
        for arm in run["results"]["arms"]:
            numbers = f"{arm['examples']:,} | {arm['steps']:,} | {arm['tokens']:,} | {arm['flops']:.2e}"
            print(f"| {run['config']['seed']} | {arm['name']} | {numbers} |")
    print()


def share_table(runs: list[dict[str, Any]], group: list[str]) -> None:
    print(f"Share of {', '.join(group)}, %:\n")
    print("| seed | of the pool | of the selection | of the random control |\n|---|---|---|---|")
    for run in runs:
        families = run["select"]["families"]
        cells = []
        for column in ("pool", "selected", "random"):
            inside = sum(f[column] for f in families if f["name"] in group)
            cells.append(f"{100 * inside / sum(f[column] for f in families):.1f} ({inside})")
        print(f"| {run['config']['seed']} | " + " | ".join(cells) + " |")
    print()


def picked_table(runs: list[dict[str, Any]]) -> None:
    print("What was picked, and how scores follow length (Spearman over the pool):\n")
    print("| seed | ten largest families of the selection (of pool) | ρ of the head | span length | total length |")
    print("|---|---|---|---|---|")
    for run in runs:
        families = sorted(run["select"]["families"], key=lambda f: -f["selected"])[:10]
        picked = ", ".join(f"{f['name']} {f['selected']} ({f['pool']})" for f in families if f["selected"])
        score = run["score"]
        lengths = f"{score['spearman_span_length']:+.2f} | {score['spearman_total_length']:+.2f}"
        print(f"| {run['config']['seed']} | {picked} | {score['rho']:,.0f} | {lengths} |")


def cell(entry: dict[str, Any]) -> str:
    return f"{100 * entry['accuracy']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
