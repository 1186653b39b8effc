"""Questions on the page with their rounds side by side: what was asked, what both answered, how far apart that was, and
why a question was kept or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntk_jax.report.amounts import NOTHING, count, finite, general
from ntk_jax.report.layout import render
from ntk_jax.report.markup import Html
from ntk_jax.report.reading import RunDirectory, mapping, records
from ntk_jax.report.shown import MOST_SHOWN, Shown, cut

TEMPLATES = Path(__file__).with_name("templates")
FOLD = 420  # characters of a text from which on it opens on demand
VERDICT = "Verdict"
KEPT, NOT_KEPT = "ask/questions.jsonl", "ask/traces.jsonl"


@dataclass(frozen=True)
class Round:
    """A column. accepted: the words of its badge, nothing where it took no place. fault: why it cannot be kept. cells:
    {row: texts}."""

    title: str
    accepted: str
    fault: str
    cells: dict[str, list[str]]


@dataclass(frozen=True)
class Question:
    """A question with its rounds. head: what stands in its line, the first part bold. passages: (name, text). rows:
    those that any round has something in."""

    head: tuple[str, ...]
    passages: Sequence[tuple[str, str]]
    rounds: Sequence[Round]
    rows: Sequence[str]


def questions(run: RunDirectory) -> Shown:
    """Some of the kept questions, and some that were not kept."""
    most = examples(run)
    kept, others = run.json_lines(KEPT), run.json_lines(NOT_KEPT)
    if not most or not (kept or others):
        return Shown(leads=["Raise report.examples to see questions here."] if not most else [])
    places = spread(len(kept), most)
    chosen = _by_reason(others, max(1, most // 2))
    texts = _passages(run, [*(kept[n].get("trace") for n in places), *chosen])
    more = []
    if places:
        shown = [_kept(kept[n], texts) for n in places]
        lead = (
            f"{count(len(shown))} of {count(len(kept))} kept questions, evenly over their ranks. A round marked as "
            "accepted took the place of the one before; the one marked as kept is trained on, with the expert's answer."
        )
        more.append(_render("Kept questions, round by round", lead, shown, True))
    if chosen:
        shown = [_question(one, texts, (str(one.get("not_kept") or "not kept"),)) for one in chosen]
        lead = f"{count(len(shown))} of {count(len(others))} that were not kept: some of every reason, in turn."
        more.append(_render("Not kept, and why", lead, shown, False))
    return Shown(more=more)


def examples(run: RunDirectory) -> int:
    """How many are shown."""
    found = finite(run.pipelines["question"].setting("report", "examples"))
    return MOST_SHOWN if found is None else max(0, round(found))


def spread(total: int, most: int) -> list[int]:
    """At most so many places below total, evenly, the first and the last among them where there are two."""
    if total <= most or most < 2:
        return list(range(min(total, most)))
    return sorted({round(n * (total - 1) / (most - 1)) for n in range(most)})


def _by_reason(traces: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Traces of every reason in turn, the commonest reason first; those with rounds before those without."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for trace in traces:
        groups[str(trace.get("not_kept"))].append(trace)
    ranked = sorted(groups.values(), key=lambda group: -len(group))
    ordered = [sorted(group, key=lambda trace: -len(records(trace.get("rounds")))) for group in ranked]
    found = []
    for turn in range(max((len(group) for group in ordered), default=0)):
        found += [group[turn] for group in ordered if turn < len(group)]
    return found[:most]


def _passages(run: RunDirectory, traces: Sequence[Any]) -> dict[str, tuple[str, str]]:
    """{chunk: (name, text)} of the chunks that these are about."""
    wanted = {str(name) for trace in traces for name in mapping(trace).get("chunks") or ()}
    found = {}
    for chunk in run.json_lines("chunk/chunks.jsonl"):
        if str(chunk.get("id")) in wanted:
            name = f"Passage {chunk.get('id')}" + (f", {chunk['title']}" if chunk.get("title") else "")
            found[str(chunk["id"])] = (name, cut(chunk.get("text")))
    return found


def _kept(record: dict[str, Any], texts: dict[str, tuple[str, str]]) -> Question:
    trace = mapping(record.get("trace"))
    gaps = [gap for one in records(trace.get("rounds")) if (gap := finite(one.get("gap"))) is not None]
    gap = finite(record.get("gap"))
    grew = f"gap {general(gaps[0])} → {general(gap)}" if gaps and gaps[0] != gap else f"gap {general(gap)}"
    head = (f"Rank {count(record.get('rank'))}", grew, f"round {count(record.get('round'))}")
    return _question(trace, texts, head, record)


def _question(
    trace: dict[str, Any],
    texts: dict[str, tuple[str, str]],
    head: tuple[str, ...],
    record: dict[str, Any] | None = None,
) -> Question:
    chunks = [str(name) for name in trace.get("chunks") or ()]
    more = [str(trace.get("kind") or ""), *chunks, f"{count(trace.get('calls'))} calls"]
    more += [f"stopped: {trace['stopped']}"] if trace.get("stopped") else []
    versions = records(trace.get("rounds"))
    final = _final(versions, record)
    rounds = [_round(version, number == final) for number, version in enumerate(versions)]
    rows = [name for name in _ROWS if any(one.cells[name] or (name == VERDICT and one.fault) for one in rounds)]
    return Question(
        tuple(cut(part) for part in (*head, *more) if part), [texts[c] for c in chunks if c in texts], rounds, rows
    )


def _final(versions: Sequence[dict[str, Any]], record: dict[str, Any] | None) -> int | None:
    """The place of the version that is kept."""
    if record is None:
        return None
    found = [
        number
        for number, version in enumerate(versions)
        if version.get("accepted") and version.get("round") == record.get("round")
    ]
    return found[-1] if found else None


def _round(version: dict[str, Any], final: bool) -> Round:
    expert = mapping(version.get("expert"))
    signals = {name: finite(value) for name, value in mapping(version.get("signals")).items()}
    measured = ", ".join(f"{name.replace('_', ' ')} {general(value)}" for name, value in signals.items())
    gap = finite(version.get("gap"))
    accepted = bool(version.get("accepted"))
    target = version.get("target")
    cells = {
        "Feedback that led to it": _texts(version.get("feedback")),
        "Question": _texts(version.get("question")) or ["(no question)"],
        "Target": ["(no answer)"] if target == "" and expert else _texts(target),
        "Expert": [] if not expert else [*_texts(expert.get("text")), *_notes(expert)],
        "Expert's quotes": [f"“{cut(quote)}”" for quote in expert.get("quotes") or ()],
        "Gap": [general(gap)] if gap is not None else [],
        "Signals": _texts(measured),
        "Judges": [cut(f"{name}: {said or '(nothing)'}") for name, said in mapping(version.get("verdicts")).items()],
        VERDICT: ["kept" if final else "accepted"] if accepted else [],
        "Calls": [
            f"{count(version.get('calls'))} ({count(version.get('prompt_tokens'))} tokens in, "
            f"{count(version.get('completion_tokens'))} out)"
        ],
    }
    badge = "kept" if final else "accepted" if accepted else ""
    fault = "" if accepted else str(version.get("fault") or "")
    return Round(f"Round {count(version.get('round', NOTHING))}", badge, cut(fault), cells)


_ROWS = (
    *("Feedback that led to it", "Question", "Target", "Expert", "Expert's quotes"),
    *("Gap", "Signals", "Judges", VERDICT, "Calls"),
)


def _notes(expert: dict[str, Any]) -> list[str]:
    found = ["(by the expert's word the passage does not answer it)"] if expert.get("stated") is False else []
    return [*found, *(["(cut at the most tokens)"] if expert.get("cut") else [])]


def _texts(value: Any) -> list[str]:
    return [cut(value)] if value not in (None, "") else []


def _render(title: str, lead: str, asked: Sequence[Question], open: bool) -> Html:
    return render("rounds.html", TEMPLATES, title=title, lead=lead, asked=asked, open=open, fold=FOLD, verdict=VERDICT)
