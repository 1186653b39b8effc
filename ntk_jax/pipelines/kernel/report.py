"""The kernel matrix on the page and in the terminal: its kind and shape, and the examples that are not in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.report.amounts import count, finite, general
from ntk_jax.report.layout import Fact, Part, Section, Table, render
from ntk_jax.report.reading import RunDirectory, mapping
from ntk_jax.report.text import plain
from ntk_jax.storage.atomic import read_json

NAME = "kernel"
_TEMPLATES = Path(__file__).with_name("templates")


def part(run: RunDirectory) -> Part:
    """What a kernel puts on the page, finished or not."""
    plan, summary = run.pipelines[NAME], run.json("kernel/summary.json")
    html = render(
        "kernel.html",
        _TEMPLATES,
        missing=None if summary else run.missing(NAME, "kernel"),
        words=_words(summary),
        sides=_sides(summary, run.json("kernel/data.json")) if summary else None,
    )
    facts = [Fact("Kind", summary.get("kind", "")), Fact("Shape", _shape(summary))] if summary else []
    facts += [Fact("Parameters", summary.get("parameters", ""))] if summary.get("parameters") else []
    return Part(
        kicker=plan.title,
        title=f"Kernel matrix, {_shape(summary)}" if summary else "Kernel matrix",
        facts=facts,
        sections=[Section("kernel", "Kernel", html)],
    )


def terminal(folder: str | Path) -> str:
    """What `kernel` made, from its kernel/summary.json: the file, its shape, and the examples that are not in it."""
    place = Path(folder) / "kernel"
    summary = read_json(place / "summary.json")
    shape, size = _shape(summary), f"{summary['parameter_count']:,} parameters"
    lines = [f"{summary['kind']}, {shape}, over {size}"]
    if summary["largest_eigenvalue"] is not None:
        lines.append(f"Eigenvalues: from {summary['smallest_eigenvalue']:.3g} to {summary['largest_eigenvalue']:.3g}")
    for side, reasons in summary["left_out"].items():
        lines += [f"kernel.{side}: {number:,} examples are left out ({reason})" for reason, number in reasons.items()]
    for side, number in summary["truncated"].items():
        if number:
            lines.append(f"kernel.{side}: {number:,} examples lost the start of their prompt to model.max_length")
    return f"Kernel: {place / 'kernel.npz'}, " + plain("\n".join(lines))  # a path stays as it is


def _shape(summary: dict[str, Any]) -> str:
    shape = summary.get("shape")
    return " × ".join(count(size) for size in shape) if isinstance(shape, list) else "unknown shape"


def _words(summary: dict[str, Any]) -> list[str]:
    """The file and its extreme eigenvalues."""
    if not summary:
        return []
    kind, size = summary.get("kind", "a kernel"), count(summary.get("parameter_count"))
    words = [f"kernel/kernel.npz: {kind}, {_shape(summary)}, over {size} parameters."]
    low, high = (finite(summary.get(f"{which}_eigenvalue")) for which in ("smallest", "largest"))
    if low is not None and high is not None:
        words.append(f"Eigenvalues from {general(low)} to {general(high)}.")
    elif summary.get("a_is_b"):
        words.append("The matrix is too large for its eigenvalues to be computed.")
    return words


def _sides(summary: dict[str, Any], data: dict[str, Any]) -> Table:
    """What became of the examples of each side."""
    left_out, truncated = mapping(summary.get("left_out")), mapping(summary.get("truncated"))
    rows = []
    for side in sorted({*left_out, *truncated, *data}):
        account = mapping(data.get(side))
        reasons = ", ".join(f"{count(n)} {why}" for why, n in sorted(mapping(left_out.get(side)).items()))
        row = [side, reasons or "none", count(account.get("records")), count(account.get("kept"))]
        rows.append([*row, count(truncated.get(side))])
    header = ["Side", "Left out", "Records", "In the matrix", "Truncated"]
    return Table(header, rows, "What was read and what became of it", text_columns=2)
