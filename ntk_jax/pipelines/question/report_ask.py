"""What was looked for and found, on the page: documents and chunks, what became of the questions, how the gap went from
round to round, and how far the judge of the gap can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ntk_jax.pipelines.question.figures import before_and_after, gaps_by_round
from ntk_jax.report.amounts import NOTHING, count, finite, general, percent
from ntk_jax.report.figures_bars import reason_bars
from ntk_jax.report.layout import Cell, Figure, Table
from ntk_jax.report.reading import RunDirectory, mapping, records
from ntk_jax.report.shown import Shown, Text, percent_of

CHUNK, ASK = "chunk/summary.json", "ask/summary.json"
UNITS = {
    "nll": "nats a token",
    "judge": "0 the same, 1 contradictory",
    "both": "standard deviations of the first round",
    "band": "0 to 1",
}
_SPREAD = (
    *(("n", "Measured"), ("mean", "Mean"), ("sd", "Deviation"), ("median", "Median")),
    *(("least", "Least"), ("most", "Most")),
)
_MOST_NAMES = 200  # documents that are named


def generations(run: RunDirectory) -> list[dict[str, Any]]:
    """What was found against each target, the base model first."""
    return records(run.json(ASK).get("generations"))


def named(run: RunDirectory, found: dict[str, Any]) -> str:
    """Of a generation, behind a title; nothing where there is one alone."""
    return f", generation {count(found.get('generation'))}" if len(generations(run)) > 1 else ""


def unit_of(found: dict[str, Any]) -> str:
    """Of a generation's gaps."""
    return UNITS.get(str(mapping(found.get("measure")).get("signal")), "gap")


def gains_of(found: dict[str, Any]) -> tuple[float | None, float | None]:
    """The mean gaps of a generation's kept questions, of the first versions that were measured and of the kept ones."""
    known = [pair for value in found.get("gains") or () if (pair := _pair(value)) is not None]
    if not known:
        return None, None
    return sum(a for a, _ in known) / len(known), sum(b for _, b in known) / len(known)


def documents(run: RunDirectory) -> Shown:
    """What was read, dropped, kept unseen and cut."""
    found = run.json(CHUNK)
    trained, unseen = _names(found.get("trained")), _names(found.get("unseen"))
    leads = [
        f"{count(found.get('documents'))} documents were read and {count(found.get('used'))} of them used: questions "
        f"are asked about {count(len(trained))}, {count(len(unseen))} are kept unseen, to be evaluated on.",
        f"{count(found.get('chunks'))} chunks of {count(found.get('words'))} words are asked about, of "
        f"{count(found.get('all_chunks'))} that there are; {count(found.get('shortened'))} had to be cut further, "
        "for the model could not have held them beside a question and its answer.",
    ]
    if notes := mapping(found.get("notes")):
        said = "; ".join(f"{count(n)} × {what}" for what, n in notes.items())
        leads.append(f"Noted of documents: {said}.")
    dropped = {why: n for why, n in mapping(found.get("dropped")).items() if finite(n)}
    how = "Documents without a chunk, by the reason that came first."
    figures = [reason_bars("Documents that were dropped", dropped, "documents", how)] if dropped else []
    folds = [
        (title, Table(["Document"], [[name] for name in names[:_MOST_NAMES]], title))
        for title, names in (("Documents that are asked about", trained), ("Documents that are kept unseen", unseen))
        if names
    ]
    return Shown(leads=leads, figures=figures, folds=folds)


def _names(value: Any) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else []


def outcomes(run: RunDirectory) -> Shown:
    """What became of every question that was looked for."""
    figures, rows, kinds, leads = [], [], [], []
    for found in generations(run):
        which, slots = named(run, found), found.get("slots")
        if reasons := mapping(found.get("outcomes")):
            how = "Every question that was looked for: kept, or why not, by the reason of the try that came furthest."
            figures.append(reason_bars(f"What became of the questions{which}", reasons, "questions", how))
        chunks = percent_of(found.get("chunks_with_questions"), found.get("chunks"))
        target = found.get("target") or "the model as it was"
        row = [count(found.get("generation")), str(target), count(slots), percent_of(found.get("verified"), slots)]
        rows.append([*row, percent_of(found.get("kept"), slots), count(found.get("shortfall")), chunks])
        missing = mapping(found.get("missing_kinds"))
        for kind, n in {**dict.fromkeys(missing, 0), **mapping(found.get("kinds"))}.items():
            kinds.append([f"{kind}{which}", count(n), count(missing.get(kind, 0))])
        if finite(found.get("shortfall")):
            leads.append(f"{count(found['shortfall'])} questions are missing of those that were asked for{which}.")
        if stopped := mapping(found.get("stopped")):
            said = ", ".join(f"{count(n)} by {why}" for why, n in stopped.items())
            leads.append(f"Why nothing further was tried{which}: {said}.")
    header = ["Generation", "Target", "Looked for", "Verified", "Kept", "Missing", "Chunks with a question"]
    tables = [Table(header, rows, "Questions that were looked for, verified and kept", text_columns=2)] if rows else []
    if kinds:
        caption = "Kept questions by kind; missing are those of its share that plain questions stand in for"
        tables.append(Table(["Kind", "Kept", "Missing"], kinds, caption))
    return Shown(leads=leads, figures=figures, tables=tables)


def rounds(run: RunDirectory) -> Shown:
    """The gaps of every round, and those of the kept questions before and after."""
    figures, rows, gaps = [], [], []
    leads: list[str] = []
    for found in generations(run):
        which, unit, every = named(run, found), unit_of(found), records(found.get("rounds"))
        drawing = gaps_by_round(every, unit=unit, description=f"Gaps by round{which}")
        if drawing is not None:
            how = (
                "The mean gap of the questions that a round tried and measured, its whisker one standard deviation to "
                "either side. Later rounds try the open questions alone, so rows are of different questions."
            )
            figures.append(Figure(f"Gaps by round{which}", drawing, how))
        pairs = [pair for value in found.get("gains") or () if (pair := _pair(value)) is not None]
        if pairs:
            figures.append(_before_and_after(pairs, unit, which))
        for one in every:
            row = [f"{count(one.get('round'))}{which}", count(one.get("tried")), count(one.get("accepted"))]
            rows.append([*row, *_spread(one.get("gaps"))])
        for key, what in (
            ("gap_before", "the first question of each"),
            ("gap_after", "the question that stands in the end"),
            ("gap_kept", "those that are kept"),
        ):
            gaps.append([f"{what}{which}", *_spread(found.get(key))])
        leads += _gap_lines(found, which, unit)
    spread = [name for _, name in _SPREAD]
    tables = [
        Table(["Round", "Tried", "Accepted", *spread], rows, "Gaps that each round measured"),
        Table(["Questions", *spread], gaps, "Gaps before and after"),
    ]
    return Shown(leads=leads, figures=figures, tables=tables if rows else [])


def _gap_lines(found: dict[str, Any], which: str, unit: str) -> Iterator[str]:
    before, after = (mapping(found.get(key)).get("mean") for key in ("gap_before", "gap_after"))
    yield (
        f"The mean gap went from {general(before)} to {general(after)} ({unit}){which}; "
        f"{percent_of(found.get('revised'), found.get('kept'))} of the kept questions were rewritten at least once."
    )
    slope = finite(mapping(found.get("measure")).get("slope"))
    if slope:
        yield (
            f"Longer answers have other means a token{which}: {general(slope)} nats for each unit of log tokens are "
            "taken off."
        )


def _pair(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    before, after = finite(value[0]), finite(value[1])
    return None if before is None or after is None else (before, after)


def _before_and_after(pairs: list[tuple[float, float]], unit: str, which: str) -> Figure:
    title = f"Kept questions before and after{which}"
    grew = sum(after > before for before, after in pairs)
    rise = sum(after - before for before, after in pairs) / len(pairs)
    return Figure(
        title,
        before_and_after(pairs, unit=unit, description=title),
        "A dot is a kept question: the gap of the first version that was measured, and of the one that is kept. On the "
        "dashed line are those that were kept as they came; below it are those whose first version had a wider gap "
        "but could not be kept.",
        f"The gap of {percent_of(grew, len(pairs))} of {count(len(pairs))} grew; on average by {general(rise)}.",
    )


def _spread(value: Any) -> list[str]:
    found = mapping(value)
    return [count(found.get("n")), *(general(found.get(key)) for key, _ in _SPREAD[1:])]


def coverage(run: RunDirectory) -> Shown:
    """How many kept questions every chunk has."""
    kept = run.json_lines("ask/questions.jsonl")
    chunks = [str(one.get("id")) for one in run.json_lines("chunk/chunks.jsonl")]
    of = dict.fromkeys(chunks, 0)
    for record in kept:
        for name in record.get("chunks") or ():
            of[str(name)] = of.get(str(name), 0) + 1
    if not of:
        return Shown(missing=("No chunks are recorded.",))
    numbers: dict[int, int] = {}
    for n in of.values():
        numbers[n] = numbers.get(n, 0) + 1
    rows = [[count(n), percent_of(numbers[n], len(of))] for n in sorted(numbers)]
    empty = [name for name, n in of.items() if not n]
    reached = len(of) - len(empty)
    leads = [f"{percent_of(reached, len(of))} of {count(len(of))} chunks have a kept question."]
    folds = []
    if empty:
        title = "Chunks without a kept question"
        folds.append((title, Table(["Chunk"], [[name] for name in empty[:_MOST_NAMES]], title)))
    table = Table(["Kept questions of a chunk", "Chunks"], rows, "Chunks by how many kept questions take them")
    return Shown(leads=leads, tables=[table], folds=folds)


def calibrations(run: RunDirectory) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(generation, what was found of one of its judges), where it was looked at."""
    return [(found, about) for found in generations(run) for about in records(found.get("calibrations"))]


_JUDGED = {"gap": "the gap", "answers": "answers", "unanswerable": "unanswerable questions"}


def judge_of(about: dict[str, Any]) -> str:
    """Which judge, and of what."""
    who = "second judge" if about.get("role") == "second_judge" else "judge"
    return f"{who} of {_JUDGED.get(str(about.get('of')), 'answers')}"


def judge(run: RunDirectory) -> Shown:
    """What judges say of pairs that are known to say the same or not."""
    leads, tables, texts = [], [], []
    for found, about in calibrations(run):
        which = f" as {judge_of(about)}{named(run, found)}"
        leads.append(
            f"{about.get('judge')}{which} takes {_share(about, 'false_accept')} of {wrong_of(about)} (false accepts) "
            f"and {_share(about, 'false_reject')} of {right_of(about)} (false rejects); "
            f"informedness {general(about.get('informedness'))}, where 1 is always right and 0 is what chance says."
        )
        if about.get("void"):
            leads.append("It says nothing: whatever rests on its word is noise.")
        rows = [
            [
                str(kind),
                count(mapping(one).get("n")),
                count(mapping(one).get("read")),
                general(mapping(one).get("mean")),
                percent(mapping(one).get("different")),
            ]
            for kind, one in mapping(about.get("kinds")).items()
        ]
        if about.get("of") == "gap":
            header = ["Planted pair", "Asked", "Verdict read", "Mean divergence", "Called different"]
            caption = f"What is said of planted pairs{which}; different from {general(about.get('threshold'))} on"
        else:
            what = "question" if about.get("of") == "unanswerable" else "answer"
            header = [f"Planted {what}", "Asked", "Verdict read", "Refused"]
            caption = f"What is said of planted {what}s{which}"
            rows = [[*row[:3], row[4]] for row in rows]
        tables.append(Table(header, rows, caption))
        if failures := mapping(about.get("failures")):
            lines = "\n".join(f"{count(n)} × {why}" for why, n in failures.items())
            texts.append((f"Pairs without a verdict{which}", [Text(("why",), (("reasons", lines),))]))
    return Shown(leads=leads, tables=tables, texts=texts)


def wrong_of(about: dict[str, Any]) -> str:
    """What a judge takes wrongly, and for what."""
    if about.get("of") == "unanswerable":
        return "questions that their passage answers for unanswerable"
    return "wrong or vague answers for right"


def right_of(about: dict[str, Any]) -> str:
    """What it refuses wrongly, and for what."""
    return "questions on other passages for answered" if about.get("of") == "unanswerable" else "right ones for wrong"


def _share(about: dict[str, Any], key: str) -> str:
    value, between = finite(about.get(key)), about.get(f"{key}_interval")
    if value is None:
        return NOTHING
    low, high = (finite(end) for end in between) if isinstance(between, list) and len(between) == 2 else (None, None)
    return percent(value) + (f" ({percent(low)} to {percent(high)})" if low is not None and high is not None else "")


def role_rows(run: RunDirectory) -> list[list[object]]:
    """Role and model of everybody who was to be asked, by the plan."""
    names = {"second_judge": "second judge"}
    roles = mapping(run.pipelines["question"].facts.get("roles"))
    return [[names.get(role, role), Cell(str(model), class_="")] for role, model in roles.items()]
