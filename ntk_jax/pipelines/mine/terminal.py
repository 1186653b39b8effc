"""What a mining run ends with in the terminal: what there is of each stage, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.pipelines.common.terminal import evaluation_lines, interval, number, stage_lines
from ntk_jax.report.text import align


def terminal(folder: str | Path) -> str:
    """The lines of all stages that are there."""
    return stage_lines(Path(folder), _PARTS)


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
        shown = [interval(each.get(key), 3) for key in ("precision", "recall")]
        limit, average = f"{each['threshold']:.3f}", number(each.get("average_precision"))
        rows.append([name, limit, f"{each['taken']:,}", *shown, average])
    text = f"Mined: {found['taken']:,} of {found['chunks']:,} chunks, {found['words']:,} words"
    return [f"{text}: {folder / 'mined.jsonl'}", *align(rows, rules_before={1})]


def _audit(found: dict[str, Any], folder: Path) -> list[str]:
    rows = [["domain", "judge agrees", "of", "accepts planted wrong labels", "of", "precision at least"]]
    for name, each in found["domains"].items():
        agreed = each["agreed"] / each["judged"] if each["judged"] else None
        accepted = each["accepted"] / each["planted"] if each["planted"] else None
        shown = [number(agreed), f"{each['judged']:,}", number(accepted), f"{each['planted']:,}"]
        rows.append([name, *shown, number(each["precision_at_least"])])
    return [f"Audit by {found['judge']}:", *align(rows, rules_before={1})]


def _pretrain(found: dict[str, Any], folder: Path) -> list[str]:
    rows = [["arm", "tokens", *(f"perplexity of {name}" for name in found["held_out"])]]
    for arm in found["arms"]:
        shown = [interval(arm["perplexity"].get(name)) for name in found["held_out"]]
        rows.append([arm["title"], f"{arm['tokens']:,}", *shown])
    return ["Continual pre-training:", *align(rows, rules_before={1})]


_PARTS = {
    "seeds": _seeds,
    "corpus": _corpus,
    "label": _label,
    "classify": _classify,
    "audit": _audit,
    "pretrain": _pretrain,
    "evaluate": evaluation_lines,
}
