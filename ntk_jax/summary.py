"""The table that `run` ends with, and the lines that `kernel` ends with, made from the files of a run directory.

Of a run only `evaluate/results.json` and `select/summary.json` are read; what is not there yet is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ntk_jax.report.diagnosis_figures import figures
from ntk_jax.report.reading import DIAGNOSES
from ntk_jax.storage.atomic import read_json


def summarize(folder: str | Path) -> str:
    """The closing text of a run: accuracies with intervals, paired differences, the selection, the report's place."""
    folder = Path(folder)
    parts = []
    if (folder / "evaluate" / "results.json").exists():
        parts.append(evaluation_table(read_json(folder / "evaluate" / "results.json")))
    if (folder / "select" / "summary.json").exists():
        parts.append(selection_lines(read_json(folder / "select" / "summary.json")))
    if (folder / "report" / "index.html").exists():
        parts.append(f"Report: {folder / 'report' / 'index.html'}")
    return "\n\n".join(parts)


def evaluation_table(results: dict[str, Any]) -> str:
    """Accuracy in percent with its interval: a row a task, a column an arm; then what each arm was trained on."""
    arms = results["arms"]
    names = [arm["name"] for arm in arms]
    rows = [["task", "questions", "chance", *(arm["title"] for arm in arms)]]
    for task in results["tasks"]:
        cells = [_accuracy(task["results"][name]["normalized"]) for name in names]
        rows.append([task["name"], f"{task['questions']:,}", f"{100 * task['chance']:.1f}", *cells])
    average = results["average"]
    rows.append(["average", "", "", *(_accuracy(average[name]["normalized"]) for name in names)])
    rows.append(["average, raw", "", "", *(_accuracy(average[name]["raw"]) for name in names)])
    for key, label in (("examples", "training examples"), ("steps", "training steps"), ("tokens", "training tokens")):
        rows.append([label, "", "", *(_count(arm.get(key)) for arm in arms)])
    rows.append(["training FLOPs", "", "", *(_flops(arm.get("flops")) for arm in arms)])

    percent = f"{100 * results['confidence']:g}%"
    lines = [f"Accuracy in %, choices by likelihood per token [{percent} bootstrap interval]; raw: by whole likelihood"]
    lines += align(rows, rules_before={1, 1 + len(results["tasks"]), 3 + len(results["tasks"])})
    for task in results["tasks"]:
        if task["truncated"]:
            share = f"{task['truncated']:,} of its {task['questions']:,} questions"
            lines.append(f"{task['name']}: {share} lost the start of their prompt to model.max_length")
        for reason, number in task["dropped"].items():
            lines.append(f"{task['name']}: {number:,} more questions are left out ({reason})")
    titles = {arm["name"]: arm["title"] for arm in arms}
    for pair in results.get("paired", []):
        low, high = 100 * pair["low"], 100 * pair["high"]
        lines.append(
            f"{titles.get(pair['a'], pair['a'])} minus {titles.get(pair['b'], pair['b'])}, paired, {pair['kind']}: "
            f"{100 * pair['difference']:+.1f} [{low:+.1f}, {high:+.1f}] points"
        )
    return "\n".join(lines)


def selection_lines(summary: dict[str, Any]) -> str:
    """How many were selected, the largest families among them, and the share of useful ones where that is known."""
    count, families = summary["count"], summary["families"]
    pool = sum(family["pool"] for family in families)
    lines = [f"Selected {count:,} of {pool:,} pool examples"]
    useful, base = summary.get("useful_share_selected"), summary.get("useful_share_pool")
    if useful is not None and base is not None:
        lines[0] += f"; {100 * useful:.1f}% are of useful families, {100 * base:.1f}% of the pool are"
    largest = sorted((f for f in families if f.get("selected")), key=lambda f: (-f["selected"], f["name"]))[:8]
    rows = [["family", "selected", "share", "share of the pool"]]
    for family in largest:
        share, pool_share = family["selected"] / max(count, 1), family["pool"] / max(pool, 1)
        rows.append([family["name"], f"{family['selected']:,}", f"{100 * share:.1f}%", f"{100 * pool_share:.1f}%"])
    return "\n".join([*lines, *align(rows, rules_before={1})])


def kernel_lines(folder: str | Path) -> str:
    """What `kernel` made, from its kernel/summary.json: the file, its shape, and the examples that are not in it."""
    place = Path(folder) / "kernel"
    summary = read_json(place / "summary.json")
    shape = " × ".join(f"{size:,}" for size in summary["shape"])
    lines = [
        f"Kernel: {place / 'kernel.npz'}, {summary['kind']}, {shape}, over {summary['parameter_count']:,} parameters"
    ]
    if summary["largest_eigenvalue"] is not None:
        lines.append(f"Eigenvalues: from {summary['smallest_eigenvalue']:.3g} to {summary['largest_eigenvalue']:.3g}")
    for side, reasons in summary["left_out"].items():
        lines += [f"kernel.{side}: {count:,} examples are left out ({reason})" for reason, count in reasons.items()]
    for side, count in summary["truncated"].items():
        if count:
            lines.append(f"kernel.{side}: {count:,} examples lost the start of their prompt to model.max_length")
    return "\n".join(lines)


def diagnosis_lines(folder: str | Path) -> str:
    """What `diagnose` found, a sentence for each figure, and where the figures are."""
    place = Path(folder) / "diagnose"
    parts = {path.stem: read_json(path) for path in sorted(place.glob("*.json")) if path.stem in DIAGNOSES}
    lines = [f"{item.title} {item.found}" for item in figures(parts)]
    return "\n".join([*lines, f"Figures: {place / 'figures'}; `ntk-jax report` puts them on the page"])


def _accuracy(result: dict[str, float]) -> str:
    return f"{100 * result['accuracy']:.1f} [{100 * result['low']:.1f}, {100 * result['high']:.1f}]"


def _count(value: int | None) -> str:
    return f"{value:,}" if value else "-"


def _flops(value: float | None) -> str:
    return f"{value:.2e}" if value else "-"


def align(rows: Sequence[Sequence[str]], rules_before: set[int]) -> list[str]:
    """Columns of equal width, the first to the left and the others to the right, with rules before some rows."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        if number in rules_before:
            lines.append("  ".join("-" * width for width in widths))
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
