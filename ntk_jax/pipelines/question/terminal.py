"""What a run of questions ends with in the terminal: what there is of each stage, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ntk_jax.pipelines.common.terminal import evaluation_lines, number, stage_lines
from ntk_jax.pipelines.question.report_arms import ROUND
from ntk_jax.pipelines.question.report_ask import gains_of, judge_of, right_of, wrong_of
from ntk_jax.report.text import align, label

_REASONS = 8  # that are named, the commonest


def terminal(folder: str | Path) -> str:
    """The lines of all stages that are there."""
    return stage_lines(Path(folder), _PARTS)


def _chunk(found: dict[str, Any], folder: Path) -> list[str]:
    lines = [
        f"Documents: {found['used']:,} of {found['documents']:,} used; {len(found['trained']):,} are asked about, "
        f"{len(found['unseen']):,} kept unseen",
        f"Chunks: {found['chunks']:,} of {found['all_chunks']:,}, {found['words']:,} words",
    ]
    return [*lines, *([f"Dropped: {_counted(found['dropped'])}"] if any(found["dropped"].values()) else [])]


def _ask(found: dict[str, Any], folder: Path) -> list[str]:
    lines = [f"Questions: {found['questions']:,} kept: {folder / 'questions.jsonl'}"]
    several = len(found["generations"]) > 1
    for one in found["generations"]:
        lines += _generation(one, f"Generation {one['generation']}: " if several else "")
    lines += _methods(found["methods"])
    for role, account in found["llm"].items():
        lines.append(
            f"Spent on {role}: {account['spent']:.4g} for {account['attempts']:,} attempts, "
            f"{account['prompt_tokens']:,} tokens in and {account['completion_tokens']:,} out"
        )
    return lines


def _generation(one: dict[str, Any], which: str) -> Iterator[str]:
    yield f"{which}{one['kept']:,} kept of {one['slots']:,} looked for ({one['verified']:,} verified)"
    others = {reason: count for reason, count in one["outcomes"].items() if reason != "kept"}
    if others:
        yield f"  not kept: {_counted(others)}"
    if one["shortfall"]:
        yield f"  {one['shortfall']:,} are missing of those that were asked for"
    missing = {kind: count for kind, count in one["missing_kinds"].items() if count}
    if missing:
        yield f"  missing of their kind: {', '.join(f'{count:,} {kind}' for kind, count in missing.items())}"
    before, after = gains_of(one)
    signal = one["measure"]["signal"] if one["measure"] else "none"
    share = f"{one['revised'] / one['kept']:.0%}" if one["kept"] else "none"
    yield (
        f"  mean gap ({signal}) of the kept questions: {number(before) or 'none'} as first measured, "
        f"{number(after) or 'none'} as kept; {share} of them were rewritten"
    )
    rows = [["role", "form", "calls", "tokens in", "tokens out", "failed"]]
    for role, voice in one["voices"].items():
        counts = [f"{voice[key]:,}" for key in ("calls", "prompt_tokens", "completion_tokens")]
        rows.append([role.replace("_", " "), voice["form"] or "", *counts, f"{sum(voice['failures'].values()):,}"])
    yield from (f"  {line}" for line in align(rows, rules_before={1}))
    for about in one["calibrations"]:
        rates, who = [_share(about[key]) for key in ("false_accept", "false_reject")], judge_of(about)
        text = f"  the {who} takes {rates[0]} of planted {wrong_of(about)}, {rates[1]} of {right_of(about)}"
        yield text + ("; it says nothing" if about["void"] else "")


def _methods(found: dict[str, Any]) -> list[str]:
    if not found:
        return []
    rows = [["method", "records", "tokens", "missing", "calls"]]
    for one in found.values():
        numbers = [one["records"], one["tokens"], one["missing_tokens"], one["voice"]["calls"]]
        rows.append([label(one["title"], 50), *(f"{value:,}" for value in numbers)])
    failed = [f"{one['title']} brought nothing: {one['failed']}" for one in found.values() if one["failed"]]
    return ["Other methods:", *align(rows, rules_before={1}), *failed]


def _train(found: dict[str, Any], folder: Path) -> list[str]:
    rows = [["arm", "records", "steps", "tokens", "label tokens"]]
    for arm in found["arms"]:
        numbers = [f"{arm[key]:,}" for key in ("examples", "steps", "tokens", "label_tokens")]
        rows.append([label(arm["title"], 50), *numbers])
    of = " of all the weights" if found.get("parameters") == "all" else ""
    return [f"Training{of}, {found['tokens']:,} tokens an arm to within a step:", *align(rows, rules_before={1})]


def _evaluate(found: dict[str, Any], folder: Path) -> list[str]:
    """Arms at their ends; the page has those on their way and those of a round."""
    ends = [arm for arm in found["arms"] if "arm" not in arm and not arm["name"].startswith(ROUND)]
    return evaluation_lines(found, folder, ends)


def _counted(reasons: dict[str, int]) -> str:
    ranked = sorted(((count, label(reason, 70)) for reason, count in reasons.items() if count), key=lambda one: -one[0])
    more = sum(count for count, _ in ranked[_REASONS:])
    shown = [f"{count:,} × {reason}" for count, reason in ranked[:_REASONS]]
    return "; ".join([*shown, *([f"{more:,} for other reasons"] if more else [])])


def _share(value: float | None) -> str:
    return "an unknown share" if value is None else f"{value:.0%}"


_PARTS = {"chunk": _chunk, "ask": _ask, "train": _train, "evaluate": _evaluate}
