"""The loop over all chunks, what it keeps, and what the other methods write from the same chunks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError, note
from ntk_jax.models.model import Model
from ntk_jax.pipelines.question.chunk import chunks_of
from ntk_jax.pipelines.question.config import QuestionConfig, judges, shares
from ntk_jax.pipelines.question.generations import next_target
from ntk_jax.pipelines.question.leaks import leaks
from ntk_jax.pipelines.question.methods import write_methods
from ntk_jax.pipelines.question.state import QuestionRun, same_model
from ntk_jax.questions.calibration import calibrate, calibrate_silence, calibrate_verdicts, items_of
from ntk_jax.questions.gaps import EqualGaps, spread
from ntk_jax.questions.keep import LEAKED, TOO_SMALL, Candidate, Kept, Limits, keep, without_leaks
from ntk_jax.questions.loop import Search, search
from ntk_jax.questions.planted import KINDS as PLANTED
from ntk_jax.questions.question import Chunk, Trace, Version
from ntk_jax.questions.records import outcomes, reason_of, record_of, trace_of
from ntk_jax.questions.rounds import MakeProgress, Settings, Voices
from ntk_jax.questions.slots import plan_slots
from ntk_jax.questions.verify import second_opinion
from ntk_jax.questions.voice import Voice
from ntk_jax.storage.atomic import make_folder, write_json, write_lines
from ntk_jax.storage.reading import read_json_lines

FILE, TRACES, PROMPTS = "questions.jsonl", "traces.jsonl", "prompts.jsonl"
METHOD = "adversarial"
_WAYS = {  # what to do where nothing is kept, by the beginning of the commonest reason
    "nothing was asked": "raise ask.calls",
    TOO_SMALL: "lower ask.least_gap",
    LEAKED: "take documents that are not evaluated on",
    "it does not fit the context": "lower documents.words, raise model.max_length, or give shorter titles",
    "target: no reply": "look at the target; lower documents.words if its context is too small",
    "the judge finds": "take a stronger expert, another judge, or ask.judged = false",
    "the expert answers otherwise": "take a stronger expert, or lower ask.consistency",
}
_TAKEN = ("the wrong answers for right", "the right ones for wrong")
_MISTAKES = {  # of a judge: what it judges, and what it takes for what
    "gap": ("the gap", *_TAKEN),
    "answers": ("answers", *_TAKEN),
    "unanswerable": ("unanswerable questions", "answered questions for unanswerable", "unanswerable ones for answered"),
}


def check(config: QuestionConfig) -> None:
    """Raises UserError: settings of the loop that cannot work together."""
    ask = config.ask
    if ask.negative + ask.unanswerable + ask.cross > 1:
        raise UserError("ask.negative, ask.unanswerable and ask.cross are more than 1 together; lower them")
    if ask.signal in ("nll", "both") and ask.reference == "expert" and config.expert.kind != "model":
        raise UserError(
            "ask.reference = expert needs the expert's likelihoods, which no server gives truly; take "
            "ask.reference = context, or an expert in this process"
        )
    if ask.generations > 1 and config.target.model:
        raise UserError(
            "ask.generations asks a target that was trained in between, and the model of the section target is not; "
            "leave target.model out, or take ask.generations = 1"
        )


def check_inputs(run: QuestionRun, closing: bool) -> None:
    """Raises UserError for an evaluation file that cannot be read."""
    leaks(run)


def ask(run: QuestionRun, folder: Path) -> Facts:
    """Writes questions.jsonl (the kept ones, with their traces), traces.jsonl (the others), prompts.jsonl, a file of
    records for every other method, and summary.json."""
    config, clock = run.config, Clock(run.job.folder, "ask")
    chunks = chunks_of(run)
    if same_model(config):
        note("target and expert are one model, so a gap shows only what the chunk adds, and not what one does not know")
    holding = _holding_items(run, chunks)
    summaries: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    model, label = run.model.base, ""
    for generation in range(1, config.ask.generations + 1):
        if generation > 1:
            model, label = next_target(run, folder, kept, generation)
        own = make_folder(folder / f"generation-{generation}")
        try:
            found = _generation(run, own, chunks, model, label, generation, kept)
        except EqualGaps as error:
            if not kept:
                raise
            note(f"generation {generation} is left out: {error}")  # what the others kept is worth training on
            break
        except UserError as error:
            if not kept:
                raise
            raise UserError(
                f"generation {generation}: {error}; the questions that are kept up to now ({len(kept):,}) lie in "
                f"{folder}/generation-*/{FILE}, and ask.generations = {generation - 1} ends with them"
            ) from None
        kept += found.pop("records")
        summaries.append(found)
        if not kept:  # there is nothing to train the target of another generation on
            raise UserError(_nothing(summaries, folder, config))
    write_lines(folder / FILE, (json.dumps(one, ensure_ascii=False) for one in kept))
    write_lines(folder / TRACES, _lines_of(folder, TRACES, len(summaries)))
    write_lines(folder / PROMPTS, dict.fromkeys(_lines_of(folder, PROMPTS, len(summaries))))
    methods = write_methods(run, folder, chunks, kept)
    write_json(
        folder / "summary.json",
        {
            "questions": len(kept),
            "chunks_with_items": holding,
            "generations": summaries,
            "methods": methods,
            "llm": run.spend(),
            "seconds": clock.seconds(),
        },
    )
    return {"questions": len(kept)}


def _generation(
    run: QuestionRun,
    folder: Path,
    chunks: Sequence[Chunk],
    model: Model,
    label: str,
    generation: int,
    before: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """All questions against one target: {"records": the kept ones, and what the summary says of them}."""
    config, section = run.config, run.config.ask
    seed = config.seed + 7919 * (generation - 1)
    voices, second = voices_of(run, model, label)
    slots, parts = plan_slots(chunks, section.per_chunk, shares(config), seed)
    settings = settings_of(config, seed)
    make = _progress(run, generation)
    needs_likelihood = section.signal in ("nll", "both")
    found = search(
        slots,
        voices,
        settings,
        target=run.target_likelihood(model, label) if needs_likelihood else None,
        expert=run.expert_likelihood() if needs_likelihood and section.reference == "expert" else None,
        focuses=parts,
        progress=make,
    )
    verified = second_opinion(found.traces, second, max_tokens=section.verdict_tokens, progress=make)
    kept = _kept(run, found.traces, verified, before)
    ranks = {one.ordinal: rank for rank, one in enumerate(kept.candidates, len(before) + 1)}
    records = [
        record_of(one, found.traces[one.ordinal], rank=ranks[one.ordinal], method=METHOD, generation=generation)
        for one in kept.candidates
    ]
    why = {n: kept.dropped.get(n) or reason_of(trace) for n, trace in enumerate(found.traces) if n not in ranks}
    write_lines(folder / FILE, (json.dumps(one, ensure_ascii=False) for one in records))
    write_lines(
        folder / TRACES,
        (json.dumps(trace_of(found.traces[n], reason), ensure_ascii=False) for n, reason in why.items()),
    )
    every = [voices.generator, voices.expert, voices.target, voices.reviser, voices.judge, second]
    prompts = {name: messages for voice in every if voice is not None for name, messages in voice.prompts.items()}
    write_lines(
        folder / PROMPTS,
        (json.dumps({"id": name, "messages": messages}, ensure_ascii=False) for name, messages in prompts.items()),
    )
    calibrations = _calibrations(
        run, voices.judge, second, found.traces, make
    )  # before the accounts, which hold its calls
    summary = _summary(found, kept, verified, why, chunks)
    summary |= {
        "generation": generation,
        "target": label or None,
        "voices": {voice.role: voice.account() for voice in every if voice is not None},
        "calibrations": calibrations,
    }
    write_json(folder / "summary.json", summary)
    return {**summary, "records": records}


def _kept(
    run: QuestionRun, traces: Sequence[Trace], verified: Sequence[Version | None], before: Sequence[dict[str, Any]]
) -> Kept:
    """Which of the verified versions are kept. before: records of earlier generations."""
    candidates = [Candidate(n, traces[n].slot, one) for n, one in enumerate(verified) if one is not None]
    items, limits = leaks(run), limits_of(run.config)
    kept = keep(candidates, limits, vectors=_vectors(run), leaks=items, before=[r["prompt"] for r in before])
    for one in kept.candidates:
        without_leaks(traces[one.ordinal], items)
    return kept


def voices_of(run: QuestionRun, model: Model, label: str) -> tuple[Voices, Voice | None]:
    """(who plays the roles of the loop, the second judge if there is one)."""
    form = run.config.ask.format

    def voice(role: str) -> Voice:
        client = run.client(role)
        assert client is not None
        return Voice(role, client, form)

    second = run.client("second_judge")
    voices = Voices(
        voice("generator"),
        voice("expert"),
        Voice("target", run.target_client(model, label), "text"),
        voice("reviser"),
        voice("judge") if judges(run.config) else None,
    )
    return voices, Voice("second_judge", second, form) if second is not None else None


def settings_of(config: QuestionConfig, seed: int) -> Settings:
    """The loop's settings of a config."""
    section = config.ask
    return Settings(
        rounds=section.rounds,
        patience=section.patience,
        min_gain=section.min_gain,
        enough=section.enough,
        calls=section.calls,
        signal=section.signal,
        reference=section.reference,
        sees_document=section.target_sees_document,
        feedback=section.feedback,
        quotes=section.quotes,
        samples=section.target_samples,
        again=section.samples,
        consistency=section.consistency,
        seed=seed,
        temperature=section.temperature,
        top_p=section.top_p,
        question_tokens=section.question_tokens,
        answer_tokens=section.answer_tokens,
        verdict_tokens=section.verdict_tokens,
    )


def limits_of(config: QuestionConfig) -> Limits:
    """What is kept of a config."""
    section = config.ask
    return Limits(
        section.count,
        section.quota,
        section.most_per_chunk,
        section.least_gap,
        section.similarity,
        section.cosine,
        shares(config),
    )


def _holding_items(run: QuestionRun, chunks: Sequence[Chunk]) -> int:
    """Chunks that hold words of evaluation items, which is said: what is learned of them is no understanding."""
    items, words = leaks(run), run.config.ask.overlap
    found = 0 if items is None else sum(items.shares(one.text) for one in chunks)
    if found:
        note(
            f"{found:,} of {len(chunks):,} chunks share {words} words in a row with an evaluation item, so an arm may "
            "know it by heart; questions that do are dropped, the other methods' texts are not"
        )
    return found


def _vectors(run: QuestionRun) -> Callable[[Sequence[str]], np.ndarray] | None:
    embedder = run.embedder
    return None if embedder is None else lambda texts: embedder.embed(list(texts), kind="passage")


def _progress(run: QuestionRun, generation: int) -> MakeProgress:
    several = run.config.ask.generations > 1

    def make(what: str, count: int) -> Callable[[int, int, str], None]:
        return run.job.progress(f"generation {generation}, {what}" if several else what, count, "replies")

    return make


def _summary(
    found: Search, kept: Kept, verified: Sequence[Any], why: dict[int, str], chunks: Sequence[Chunk]
) -> dict[str, Any]:
    """What is to be shown of a generation."""
    touched = {chunk.id for one in kept.candidates for chunk in one.slot.chunks}
    first = [trace.versions[0].gap for trace in found.traces if trace.versions and trace.versions[0].gap is not None]
    last = [trace.standing.gap for trace in found.traces if trace.standing and trace.standing.gap is not None]
    kinds = {one.slot.kind for one in kept.candidates}
    return {
        "slots": len(found.traces),
        "verified": sum(one is not None for one in verified),
        "kept": len(kept.candidates),
        "shortfall": kept.shortfall,
        "missing_kinds": kept.kinds,
        "kinds": {kind: sum(one.slot.kind == kind for one in kept.candidates) for kind in sorted(kinds)},
        "outcomes": outcomes(why, len(kept.candidates)),
        "rounds": found.rounds,
        "stopped": _counts(str(trace.stopped) for trace in found.traces),
        "revised": sum(one.version.round > 0 for one in kept.candidates),
        "chunks": len(chunks),
        "chunks_with_questions": len(touched),
        "gap_before": spread(first),
        "gap_after": spread(last),
        "gap_kept": spread([one.version.gap for one in kept.candidates if one.version.gap is not None]),
        "gains": _gains(kept, found.traces),
        "measure": None if found.measure is None else {"signal": found.measure.signal, "slope": found.measure.slope},
    }


def _gains(kept: Kept, traces: Sequence[Trace]) -> list[tuple[float, float]]:
    """(gap of the first version that was measured, gap of the kept one) of the kept questions."""
    pairs = []
    for one in kept.candidates:
        measured = [version.gap for version in traces[one.ordinal].versions if version.gap is not None]
        if measured and one.version.gap is not None:
            pairs.append((measured[0], one.version.gap))
    return pairs


def _calibrations(
    run: QuestionRun, judge: Voice | None, second: Voice | None, traces: Sequence[Trace], make: MakeProgress
) -> list[dict[str, Any]]:
    """How those who judge judge planted pairs: of the gap, and of whether the passage gives the answer. `of` says
    which."""
    section = run.config.ask
    items = items_of(traces, section.calibration, run.config.seed)
    if not items:
        return []

    def options(what: str, each: int = len(PLANTED)) -> dict[str, Any]:
        progress = make(f"planted {what}", each * len(items))
        return {"seed": run.config.seed, "max_tokens": section.verdict_tokens, "progress": progress}

    found: list[dict[str, Any]] = []
    if judge is not None and section.signal in ("judge", "both"):
        found.append({"of": "gap", "role": judge.role, **calibrate(judge, items, **options("pairs"))})
        _say_void(found[-1], "another judge, or ask.signal = nll")
    for voice, way in ((judge if section.judged else None, "ask.judged = false"), (second, "none")):
        if voice is not None:
            who = voice.role.replace("_", " ")
            about = calibrate_verdicts(voice, items, **options(f"answers, {who}"))
            found.append({"of": "answers", "role": voice.role, **about})
            _say_void(found[-1], f"another {who}, or {way}")
            if section.unanswerable and (about := calibrate_silence(voice, items, **options(f"silence, {who}", 2))):
                found.append({"of": "unanswerable", "role": voice.role, **about})
                _say_void(found[-1], f"another {who}, or ask.unanswerable = 0")
    return found


def _say_void(found: dict[str, Any], way: str) -> None:
    if found["void"]:
        rates = [found[key] for key in ("false_accept", "false_reject")]
        accepts, rejects = ("no readable verdict" if rate is None else f"{rate:.0%}" for rate in rates)
        what, accepted, rejected = _MISTAKES[found["of"]]
        note(
            f"{found['judge']} cannot judge {what}: of what is planted it takes {accepts} of {accepted} and {rejects} "
            f"of {rejected}; take {way}"
        )


def _counts(names: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def _lines_of(folder: Path, name: str, generations: int) -> list[str]:
    found: list[str] = []
    for number in range(1, generations + 1):
        path = folder / f"generation-{number}" / name
        found += [json.dumps(line, ensure_ascii=False) for line in read_json_lines(path, f"delete the folder {folder}")]
    return found


def _nothing(summaries: Sequence[dict[str, Any]], folder: Path, config: QuestionConfig) -> str:
    reasons = list(summaries[-1]["outcomes"].items())[1:4]
    shown = "; ".join(f"{count:,} × {reason}" for reason, count in reasons) or "no slot was tried"
    general = ["a stronger expert", *(["ask.quotes = found"] if config.ask.quotes != "found" else [])]
    general += ["ask.format = text"] if config.ask.format != "text" else []
    own = (way for begin, way in _WAYS.items() if reasons and reasons[0][0].startswith(begin))
    return (
        f"no question is kept, of {summaries[-1]['slots']:,} that were looked for ({shown}); see "
        f"{folder / 'generation-1' / TRACES}; {next(own, 'take ' + ' or '.join(general))}"
    )
