"""What a mining run ends with in the terminal: what there is of each stage, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.pipelines.common.shots import shot_lines
from ntk_jax.report.balanced import balanced_lines
from ntk_jax.report.text import align, plain
from ntk_jax.storage.atomic import read_json


def terminal(folder: str | Path) -> str:
    """The lines of all stages that are there."""
    folder = Path(folder)
    parts = []
    for name, lines in _PARTS.items():
        path = folder / name / ("results.json" if name == "evaluate" else "summary.json")
        if path.exists() and (folder / name / "manifest.json").exists():
            parts.append("\n".join(lines(read_json(path, dict), folder)))
    return "\n\n".join(plain(part) for part in parts)


def _seeds(found: dict[str, Any], folder: Path) -> list[str]:
    each = ", ".join(f"{count:,} of {name}" for name, count in found["domains"].items())
    lines = [f"Seeds: {found['seeds']:,} ({each})"]
    written = found["written"]
    if written and written["failures"]:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in written["failures"].items())
        lines.append(f"Replies that were not usable: {reasons}")
    if written and written["shortfall"]:
        missing = ", ".join(f"{count:,} of {name}" for name, count in written["shortfall"].items())
        lines.append(f"Fewer than asked for: {missing}")
    return lines


def _corpus(found: dict[str, Any], folder: Path) -> list[str]:
    sample = f", {found['sampled']:,} of them a sample that is mined" if "sampled" in found else ""
    lines = [
        f"Corpus: {found['kept']:,} of {found['documents']:,} documents, {found['chunks']:,} chunks of "
        f"{found['words']:,} words{sample}"
    ]
    drops = ", ".join(f"{count:,} {reason}" for reason, count in found["drops"].items() if count)
    return [*lines, *([f"Dropped: {drops}"] if drops else [])]


def _label(found: dict[str, Any], folder: Path) -> list[str]:
    lines = [f"Labelled set: {found['labelled']:,} chunks"]
    for name, each in found["domains"].items():
        if "threshold" in each:
            kept = f"keeps {each['kept']:,} of {each['total']:,}"
            lines.append(f"  {name}: threshold {each['threshold']:.3f} {kept} ({each['how']})")
    return lines


def _classify(found: dict[str, Any], folder: Path) -> list[str]:
    rows = [["domain", "threshold", "chunks taken", "held-out precision", "recall", "average precision"]]
    for name, each in found["domains"].items():
        shown = [_interval(each.get(key), 3) for key in ("precision", "recall")]
        limit, average = f"{each['threshold']:.3f}", _number(each.get("average_precision"))
        rows.append([name, limit, f"{each['taken']:,}", *shown, average])
    text = f"Mined: {found['taken']:,} of {found['chunks']:,} chunks, {found['words']:,} words"
    return [f"{text}: {folder / 'mined.jsonl'}", *align(rows, rules_before={1})]


def _audit(found: dict[str, Any], folder: Path) -> list[str]:
    rows = [["domain", "judge agrees", "of", "accepts planted wrong labels", "of", "precision at least"]]
    for name, each in found["domains"].items():
        agreed = each["agreed"] / each["judged"] if each["judged"] else None
        accepted = each["accepted"] / each["planted"] if each["planted"] else None
        shown = [_number(agreed), f"{each['judged']:,}", _number(accepted), f"{each['planted']:,}"]
        rows.append([name, *shown, _number(each["precision_at_least"])])
    return [f"Audit by {found['judge']}:", *align(rows, rules_before={1})]


def _pretrain(found: dict[str, Any], folder: Path) -> list[str]:
    rows = [["arm", "tokens", *(f"perplexity of {name}" for name in found["held_out"])]]
    for arm in found["arms"]:
        shown = [_interval(arm["perplexity"].get(name)) for name in found["held_out"]]
        rows.append([arm["title"], f"{arm['tokens']:,}", *shown])
    return ["Continual pre-training:", *align(rows, rules_before={1})]


def _evaluate(found: dict[str, Any], folder: Path) -> list[str]:
    rows = [["task", "measure", *(str(arm["title"]) for arm in found["arms"])]]
    parts = [(found, "accuracy", "normalized"), (found.get("loss", {}), "loss", "by_example")]
    for part, measure, kind in [*parts, (found.get("generated", {}), "accuracy", None)]:
        for task in part.get("tasks", []):
            cells = [task["results"][arm["name"]] for arm in found["arms"]]
            shown = [cell if kind is None else cell[kind] for cell in cells]
            what = "generated answers" if kind is None else measure
            rows.append([task["name"], what, *(_interval(each | {"value": each[measure]}, 3) for each in shown)])
    balanced = balanced_lines(found, [(str(arm["name"]), str(arm["title"])) for arm in found["arms"]])
    about = ["Balanced accuracy:", *balanced] if balanced else []
    return ["Evaluation:", *align(rows, rules_before={1}), *about, *shot_lines(found)]


def _interval(found: dict[str, Any] | None, digits: int = 2) -> str:
    if not found or found["value"] is None:
        return ""
    value, low, high = (_number(found[key], digits) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _number(value: Any, digits: int = 3) -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}"


_PARTS = {
    "seeds": _seeds,
    "corpus": _corpus,
    "label": _label,
    "classify": _classify,
    "audit": _audit,
    "pretrain": _pretrain,
    "evaluate": _evaluate,
}
