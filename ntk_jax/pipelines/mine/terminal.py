"""What a mining run ends with in the terminal: what there is of each stage, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        lines.append("Fewer than asked for: " + ", ".join(f"{n:,} of {name}" for name, n in written["shortfall"].items()))
    return lines


def _corpus(found: dict[str, Any], folder: Path) -> list[str]:
    lines = [f"Corpus: {found['chunks']:,} chunks of {found['documents']:,} documents ({found['read']:,} read)"]
    lines += [f"  dropped: {count:,} {reason}" for reason, count in found["drops"].items()]
    return lines


def _label(found: dict[str, Any], folder: Path) -> list[str]:
    lines = [f"Labelled set: {found['chunks']:,} chunks"]
    for name, each in found["thresholds"].items():
        share = f"keeps {each['keeps']:,} of {each['of']:,}"
        lines.append(f"  {name}: threshold {each['value']:.3f}, {share} ({each['how']})")
    return lines


def _classify(found: dict[str, Any], folder: Path) -> list[str]:
    rows = [["domain", "threshold", "mined", "held-out precision", "recall", "average precision"]]
    for name, count in found["domains"].items():
        figures = found["figures"].get(name, {})
        shown = [_number(figures.get(key)) for key in ("precision", "recall", "average precision")]
        rows.append([name, f"{found['thresholds'][name]:.3f}", f"{count:,}", *shown])
    text = f"Mined: {found['mined']:,} of {found['chunks']:,} chunks, {found['words']:,} words"
    return [f"{text}: {folder / 'mined.jsonl'}", *align(rows, rules_before={1})]


def _audit(found: dict[str, Any], folder: Path) -> list[str]:
    rows = [["domain", "judge agrees", "judged", "accepts planted wrong labels", "planted", "precision at least"]]
    for each in found["table"]:
        rows.append(
            [
                each["domain"],
                _number(each["agreement"]),
                f"{each['judged']:,}",
                _number(each["false accepts"]),
                f"{each['planted']:,}",
                _number(each["precision at least"]),
            ]
        )
    return [f"Audit by {found['judge']}:", *align(rows, rules_before={1})]


def _pretrain(found: dict[str, Any], folder: Path) -> list[str]:
    rows = [["arm", "tokens", *(f"perplexity of {name}" for name in found["held_out"])]]
    for arm in found["arms"]:
        shown = [_interval(arm["perplexity"].get(name)) for name in found["held_out"]]
        rows.append([arm["title"], f"{arm['tokens']:,}", *shown])
    return ["Continual pre-training:", *align(rows, rules_before={1})]


def _interval(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    return f"{_number(found['value'], 2)} ({_number(found['low'], 2)} to {_number(found['high'], 2)})"


def _number(value: Any, digits: int = 3) -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}"


_PARTS = {
    "seeds": _seeds,
    "corpus": _corpus,
    "label": _label,
    "classify": _classify,
    "audit": _audit,
    "pretrain": _pretrain,
}
