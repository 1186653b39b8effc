"""Prints what `ntk-jax diagnose` found in one or more run directories as Markdown tables, for docs/diagnosis.md.

python scripts/diagnosis_table.py runs/diagnose-quickstart runs/diagnose-llama7m
python scripts/diagnosis_table.py --audit runs/diagnose-quickstart
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.pipelines.diagnose.figures_stability import trajectories

# Columns: what they are called, and how they are written.
OF_THE_EXACT = {"coherence": ("1ᵀΘ1 / tr Θ", ".0f"), "pseudo_cosine": ("pseudo, cosine", ".3f")}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("runs", nargs="+", type=Path)
    arguments.add_argument("--audit", action="store_true", help="only the audit table of each run")
    options = arguments.parse_args()
    for run in options.runs:
        folder = run / "diagnose" if (run / "diagnose").is_dir() else run
        parts = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        print(f"### {run.name}\n")
        makers = (audit,) if options.audit else (stability, cross_output, prediction, regression)
        for maker in makers:
            print(_written(maker, parts), "\n", sep="")


def _written(maker: Callable[[dict[str, Any]], str], parts: dict[str, Any]) -> str:
    """The table of one part, or why there is none."""
    name = maker.__name__
    if name not in parts:
        return f"{name}: not there, the diagnosis has not come so far"
    return f"{name}: {parts[name]['skipped']}" if "skipped" in parts[name] else maker(parts)


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def stability(parts: dict[str, Any]) -> str:
    """A row a step: means over trajectories, each against its own warm-up, the second checkpoint."""
    part = parts["stability"]
    paths = list(trajectories(part).values())
    names = list(part["score_spearman"])
    # The sum-of-logits kernel has no cross terms to look at, and is itself the pseudo kernel.
    exact = OF_THE_EXACT if all(point["coherence"] is not None for point in part["points"]) else {}
    header = ["step", "cos_F", "centred", "effective rank", "moved", "gap", *(name for name, _ in exact.values())]
    header += [f"Spearman {name} (top-{part['top']})" for name in names]
    warm = [path[min(1, len(path) - 1)] for path in paths]
    rows = []
    for place in range(min(map(len, paths))):
        at = [path[place] for path in paths]
        own = list(zip(warm, at, strict=True))
        points = [part["points"][i] for i in at]
        row = [
            part["points"][at[0]]["step"],
            f"{_over(part['kernel_cosine'], own):.3f}",
            f"{_over(part['kernel_alignment'], own):.3f}",
        ]
        row += [f"{np.mean([p['effective_rank'] for p in points]):.1f}"]
        row += [f"{np.mean([p['linearization'][key] for p in points]):.2f}" for key in ("moved", "gap")]
        row += [f"{np.mean([p[key] for p in points]):{form}}" for key, (_, form) in exact.items()]
        row += [
            f"{_signed(_over(ranks, own))} ({100 * _over(part['score_overlap'][name], own):.0f}%)"
            for name, ranks in part["score_spearman"].items()
        ]
        rows.append(row)
    lines = [table(header, rows)]
    pairs = [(i, j) for n, i in enumerate(warm) for j in warm[n + 1 :]]
    if pairs:
        found = [f"{name} {_signed(_over(part['score_spearman'][name], pairs))}" for name in names]
        lines.append(
            f"\nBetween LoRA seeds at the warm-up: cos_F {_over(part['kernel_cosine'], pairs):.3f}; Spearman "
            + ", ".join(found)
        )
    if "score_spearman_less_length" in part:
        lines.append("\n" + less_length(part, paths, warm, pairs))
    names = list(part["rankings"])
    header = ["Spearman at the warm-up", *names]
    rows = [[a, *(_signed(part["rankings"][a][b]) for b in names)] for a in names[:-1]]
    lines.append("\n" + table(header, rows))
    return "\n".join(lines)


def less_length(part: dict[str, Any], paths: list[list[int]], warm: list[int], between: list[tuple[int, int]]) -> str:
    """Rankings at the warm-up against others with the length of the response taken out, and how they follow it."""
    pairs = {"with the first": [(at, path[0]) for at, path in zip(warm, paths, strict=True)]}
    pairs |= {"with the last": [(at, path[-1]) for at, path in zip(warm, paths, strict=True)], "between seeds": between}
    places = {"the first": [path[0] for path in paths], "the warm-up": warm, "the last": [path[-1] for path in paths]}
    header = ["Spearman at the warm-up, length taken out", *pairs, *(f"with length at {name}" for name in places)]
    rows = []
    for name, matrix in part["score_spearman_less_length"].items():
        # A checkpoint with itself says nothing.
        row = [_signed(_over(matrix, which)) if all(i != j for i, j in which) else "–" for which in pairs.values()]
        lengths = [part["score_spearman_length"][name]]
        row += [_signed(_over(lengths, [(0, at) for at in which])) for which in places.values()]
        rows.append([name, *row])
    return table(header, rows)


def _over(matrix: Any, pairs: list[tuple[int, int]]) -> float:
    """The mean entry; NaN where one is not defined, or there is none."""
    if not pairs:
        return float("nan")
    return float(np.mean([np.nan if matrix[i][j] is None else matrix[i][j] for i, j in pairs]))


def _signed(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:+.2f}"


def cross_output(parts: dict[str, Any]) -> str:
    part = parts["cross_output"]
    rows = [
        [
            name,
            *(
                f"{part[name][key]:.3g}"
                for key in ("mean", "mean_magnitude", "root_mean_square", "positive_share", "coherence")
            ),
        ]
        for name in ("plain", "centered")
    ]
    header = ["logits", "mean cosine", "mean size", "root mean square", "share above 0", "1ᵀΘ1 / tr Θ"]
    return f"ρ = {part['rho']:.4g}, V = {part['outputs']}, 1/√D = {part['isotropic']:.3f}\n\n" + table(header, rows)


def prediction(parts: dict[str, Any]) -> str:
    part = parts["prediction"]
    known = {name: found for name, found in part["spearman"].items() if found["value"] is not None}
    rows = []
    for name, found in sorted(known.items(), key=lambda item: -item[1]["value"]):
        interval = "" if found["low"] is None else f" [{found['low']:+.2f}, {found['high']:+.2f}]"
        rows.append([name, f"{found['value']:+.2f}{interval}"])
    families = [group["family"] for group in sorted(part["groups"], key=lambda group: -group["drop"])]
    return table([f"score, {len(part['groups'])} groups", "Spearman with the measured loss drop"], rows) + (
        f"\n\n{100 * part['improved']:.0f}% of the groups lowered the held-out loss ({part['loss_before']:.3f} nats); "
        f"best: {', '.join(dict.fromkeys(families[:8]))}; worst: {', '.join(dict.fromkeys(families[-5:]))}"
    )


def audit(parts: dict[str, Any]) -> str:
    part = parts["audit"]
    rows = []
    for line in part["lines"]:
        own = ""
        if "own" in line:
            own = f"{line['own_scaled_error']:.3f} / {line['own_spearman_scores']:.3f}"
        rows.append(
            [line["name"], f"{line['error']:.3g}", f"{line['scaled_error']:.3f}", f"{line['spearman_pairs']:.3f}",
             f"{line['spearman_scores']:.3f}", own, f"{line['flops']:.2e}", f"{line['seconds']:.2f}"]
        )  # fmt: skip
    header = ["kernel", "error", "rescaled", "Spearman, pairs", "Spearman, scores", "own original", "FLOPs", "seconds"]
    return f"{part['domain']} domain × {part['pool']} pool examples, {part['tokens']:,} tokens\n\n" + table(
        header, rows
    )


def regression(parts: dict[str, Any]) -> str:
    part = parts["regression"]
    rows = [["base model", f"{100 * part['base']['accuracy']:.1f}"]]
    rows += [
        [f"fine-tuned, {f['trajectory']}, step {f['step']}", f"{100 * f['accuracy']:.1f}"] for f in part["fine_tuned"]
    ]
    rows += [
        [f"kernel ridge, {f['objective']} at the {f['at']}, λ = {f['ridge']:g}", f"{100 * f['accuracy']:.1f}"]
        for f in part["kernels"]
    ]
    title = (
        f"accuracy, {part['test']} questions (chance {100 * part['chance']:.1f}, majority {100 * part['majority']:.1f})"
    )
    return table(["model", title], rows)


if __name__ == "__main__":
    main()
