"""A config of `ntk-jax question` over several seeds, and what it found, with intervals over the seeds.

    python scripts/experiment_questions.py configs/question_legal.yaml --out runs/questions --seeds 0 1 2 \
        --spans ../shared/data/legal/cuad_master.jsonl.gz -- --documents.chunks=24

Runs the command once for each seed into OUT/seed-N, which goes on where it was stopped, then writes OUT/results.json
and OUT/results.md: questions by outcome, the gap before and after rewriting, the tokens that arms are trained on, the
share of annotated spans that the questions of each method reach (--spans: records with `document_id` and `spans`),
accuracy and balanced accuracy by raw likelihood (the pages of the runs have both kinds), and held-out loss of every
arm. The seed draws documents, chunks, questions and the order of training. Intervals are over seeds, mean ± t s /
√seeds, of differences to `base` too; an arm that some seeds have not, because its method brought nothing there, says of
how many seeds it is.
Options behind -- go to the command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measurement as ms
import numpy as np
from scipy.special import stdtrit

from ntk_jax.data.sources import read
from ntk_jax.errors import UserError
from ntk_jax.questions.reach import reached, spans_of
from ntk_jax.storage.atomic import write_json, write_text

ASKING = ("questions", "static")  # files of records whose answers have quotes


def main() -> None:
    own, rest = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--spans", help="records with document_id and spans")
    options = parser.parse_args(own)
    if len(set(options.seeds)) < len(options.seeds):
        raise UserError("--seeds: give each seed once")
    runs = {}
    for seed in options.seeds:
        folder = options.out / f"seed-{seed}"
        command = [sys.executable, "-m", "ntk_jax", "question", options.config, f"--seed={seed}", f"--out={folder}"]
        if subprocess.run([*command, *rest], check=False).returncode:
            raise UserError(f"seed {seed} did not end well; correct what it says and run again, it goes on")
        runs[seed] = folder
    spans = spans_of(read(options.spans)) if options.spans else None
    line = " ".join(["python", "scripts/experiment_questions.py", *sys.argv[1:]])
    found = {"command": line, "seeds": options.seeds, **gathered(runs, spans)}
    write_json(options.out / "results.json", found)
    write_text(options.out / "results.md", tables(found))
    print(tables(found))


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


def gathered(runs: Mapping[int, Path], spans: Any) -> dict[str, Any]:
    """Everything that the tables show, of all seeds."""
    asked = [json.loads((folder / "ask" / "summary.json").read_text()) for folder in runs.values()]
    outcomes: Counter[str] = Counter()
    for one in asked:
        outcomes.update(one["generations"][0]["outcomes"])
    pairs = [pair for one in asked for pair in one["generations"][0]["gains"]]
    values: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    tokens: dict[str, list[int]] = defaultdict(list)
    for folder in runs.values():
        for arm in json.loads((folder / "train" / "summary.json").read_text())["arms"]:
            tokens[arm["name"]].append(arm["tokens"])
        for measure, of_task in measures(json.loads((folder / "evaluate" / "results.json").read_text())).items():
            for task, of_arm in of_task.items():
                for arm, value in of_arm.items():
                    values[measure][task].setdefault(arm, []).append(value)
    return {
        "outcomes": dict(outcomes.most_common()),
        "gap_first": [pair[0] for pair in pairs],
        "gap_kept": [pair[1] for pair in pairs],
        "methods": {
            name: {
                key: [one["methods"][name][key] for one in asked if name in one["methods"]]
                for key in ("records", "tokens", "missing_tokens")
            }
            for name in sorted({name for one in asked for name in one["methods"]})
        },
        "training_tokens": dict(tokens),
        "reach": reach(runs, spans) if spans is not None else {},
        "evaluation": {
            measure: {task: dict(arms) for task, arms in tasks.items()} for measure, tasks in values.items()
        },
    }


def reach(runs: Mapping[int, Path], spans: Any) -> dict[str, list[float]]:
    """{method: of each seed the share of the spans in the chunks' documents that its quotes reach}."""
    found: dict[str, list[float]] = defaultdict(list)
    for folder in runs.values():
        documents = set(json.loads((folder / "chunk" / "summary.json").read_text())["trained"])
        own = {name: one for name, one in spans.items() if name in documents}
        for name in ASKING:
            path = folder / "ask" / f"{name}.jsonl"
            if not path.exists():
                continue
            quotes: dict[str, list[str]] = defaultdict(list)
            for line in path.read_text().splitlines():
                record = json.loads(line)
                quotes[record["document_id"]] += record["quotes"]
            about = reached(own, quotes)
            if about["spans"]:
                found[name].append(about["share"])
    return dict(found)


def measures(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """{measure: {task: {arm: value}}} of an evaluation."""
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for task in results["tasks"]:
        found["accuracy"][task["name"]] = {arm: one["raw"]["accuracy"] for arm, one in task["results"].items()}
        balanced = {arm: one["raw"]["balanced"] for arm, one in task["results"].items() if "balanced" in one["raw"]}
        if balanced:
            found["balanced accuracy"][task["name"]] = {arm: one["accuracy"] for arm, one in balanced.items()}
    for task in results.get("loss", {}).get("tasks", ()):
        found["held-out loss"][task["name"]] = {arm: one["by_example"]["loss"] for arm, one in task["results"].items()}
    return found


def with_interval(values: Sequence[float]) -> str:
    """The mean with its interval over seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


def tables(found: Mapping[str, Any]) -> str:
    """All of it in Markdown."""
    first, kept = found["gap_first"], found["gap_kept"]
    lines = [f"`{found['command']}`", "", "| outcome | slots |", "|---|---|"]
    lines += [f"| {reason} | {count} |" for reason, count in found["outcomes"].items()]
    if first:
        grew = sum(b > a for a, b in zip(first, kept, strict=True))
        lines += [
            "",
            f"Gap of the {len(first)} kept questions: {np.mean(first):.3f} as first asked, {np.mean(kept):.3f} as "
            f"kept; {grew} were rewritten to a larger one.",
        ]
    lines += ["", "| method | records | tokens | missing tokens |", "|---|---|---|---|"]
    for name, one in found["methods"].items():
        each = [", ".join(f"{value:,}" for value in one[key]) for key in ("records", "tokens", "missing_tokens")]
        lines.append(f"| {name} | {' | '.join(each)} |")
    lines += ["", "| arm | training tokens |", "|---|---|"]
    lines += [f"| {name} | {', '.join(f'{n:,}' for n in each)} |" for name, each in found["training_tokens"].items()]
    if found["reach"]:
        lines += ["", "| method | share of annotated spans reached |", "|---|---|"]
        lines += [f"| {name} | {with_interval(values)} |" for name, values in found["reach"].items()]
    for measure, tasks in found["evaluation"].items():
        for task, arms in tasks.items():
            lines += ["", f"{measure}, {task}", "", "| arm | mean | less base |", "|---|---|---|"]
            for arm, values in arms.items():
                same = len(values) == len(arms.get("base", ()))
                less = [a - b for a, b in zip(values, arms["base"], strict=True)] if same else []
                shown = with_interval(less) if less and arm != "base" else ""
                few = "" if same else f" ({len(values)} of {len(found['seeds'])} seeds)"
                lines.append(f"| {arm}{few} | {with_interval(values)} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    ms.command_line(main)
