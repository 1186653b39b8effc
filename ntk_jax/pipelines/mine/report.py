"""Mining on the page: what was taken and why, whether the classifier and the judge can be trusted, what training on it
brought.

All of it is read from these files; whatever is absent is said in words. Keys of each (n: a number; (…): may be absent;
INTERVAL: {"value", "low", "high"}; CURVE: {"threshold", "precision", "recall"}, lists of one length, highest threshold
first; HISTOGRAM: {"edges" [B + 1], "counts" [B]}). Every summary may hold `seconds`, `flops` and `tokens` (that a model
of this package read), and `llm`, the account of all calls to a server up to then, {"attempts", "prompt_tokens",
"completion_tokens", "spent", "outcomes"}.

| file                          | keys                                                                                |
|-------------------------------|-------------------------------------------------------------------------------------|
| seeds/summary.json            | origins {written, document, keyword: n}, (written: `Seeds.summary()`), duplicates    |
|                               | {reason: n}, coverage (`coverage()`)                                                 |
| corpus/summary.json           | documents (read), kept (documents), chunks, words, (sampled: n chunks of a sample),  |
|                               | drops {reason: n}, (faults {fault of an archive: n}), (cut {what: n}), sources       |
|                               | {source: {documents, chunks, (sampled)}}, (dropped: [{reason, source, text}])        |
| embed/summary.json            | encoder, dim, max_tokens, (note), chunks, windows, seeds, neighbours, (lexical       |
|                               | {seeds, corpus: `lexical()`}), nearest: [{id, domains, text, (type), (origin),       |
|                               | hits: [{score, source, title, text}]}]                                              |
| label/summary.json            | source (seeds, documents, llm), labelled (chunks), domains {name: {threshold, how,   |
|                               | kept, total, histogram HISTOGRAM, (quantiles {name: n}), (curve CURVE), (judged: n), |
|                               | counts {what: n}}}                                                                  |
| classify/summary.json         | kind, train, held_out (chunks), chunks (scored), taken (chunks), documents, words,   |
|                               | (mined_tokens), several (chunks of more than one domain), near_duplicates (dropped), |
|                               | domains {name: {threshold, precision INTERVAL, recall INTERVAL, average_precision,   |
|                               | base_rate, positives (held out), curve CURVE, histogram HISTOGRAM, taken, sources    |
|                               | {source: {taken, probability (their mean)}}}}, examples: [{domains, probability      |
|                               | {domain: n}, score, seed, source, title, file, offset, (url), text}]                 |
| audit/summary.json            | judge, agreement INTERVAL, false_accept INTERVAL, (accepts_known INTERVAL, seeds),   |
|                               | domains {name: {judged, agreed, low, high, planted, accepted, unreadable,            |
|                               | (precision_at_least)}},                                                              |
|                               | (examples: [{domain, planted, accepted, comment, text}])                             |
| pretrain/summary.json         | general [names of the sets of general text], sets: `compare_perplexities()`, arms    |
|                               | [{name, title, tokens, steps, sources {general, or its own: {tokens, passes,         |
|                               | (left_out)}}, curve [{tokens, perplexity {set: INTERVAL}}]}], the base model first   |
| evaluate/results.json         | as the evaluation writes it: arms, tasks, average, (loss), (generated)               |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ntk_jax.pipelines.mine.report_arms import BASE, arms, cost, evaluation, pretraining, title
from ntk_jax.pipelines.mine.report_labels import audit, classifier, labels, mined
from ntk_jax.pipelines.mine.report_seeds import corpus, embedding, seeds
from ntk_jax.pipelines.mine.report_verdict import verdict, warnings
from ntk_jax.report.amounts import count, finite
from ntk_jax.report.layout import Fact, Notice, Part, Section
from ntk_jax.report.reading import RunDirectory, mapping
from ntk_jax.report.shown import Shown, safely, section_of

NAME = "mine"
_SECTIONS: tuple[tuple[str, str, str, Callable[[RunDirectory], Shown]], ...] = (
    ("mined", "Mined text", "What was taken, and why", mined),
    ("seeds", "Seeds", "The seeds", seeds),
    ("corpus", "Corpus", "The corpus, and what was dropped", corpus),
    ("embed", "Neighbours", "Seeds and their nearest chunks", embedding),
    ("label", "Labels", "Thresholds and labels", labels),
    ("classify", "Classifier", "Can the classifier be trusted?", classifier),
    ("audit", "Audit", "What the judge says", audit),
    ("pretrain", "Pre-training", "What training on it brought", pretraining),
    ("evaluate", "Evaluation", "The evaluation", evaluation),
    ("cost", "Cost", "What it cost", cost),
)
_ASKED = ("audit", "pretrain", "evaluate")  # sections of stages that a run need not have


def part(run: RunDirectory) -> Part:
    """What mining puts on the page, finished or not."""
    plan = run.pipelines[NAME]
    domains = mapping(plan.facts.get("domains"))
    shown = [
        _section(run, anchor, name, title, make)
        for anchor, name, title, make in _SECTIONS
        if anchor not in _ASKED or plan.has(anchor)
    ]
    return Part(
        kicker=plan.title,
        title=f"Text of {' and '.join(map(str, domains))} out of a corpus" if domains else "Text out of a corpus",
        facts=safely(run, "the head of the page", "mining", lambda: _facts(run, domains), []),
        verdict=safely(run, "the verdict", "mining", lambda: verdict(run), []),
        warnings=safely(run, "the warnings", "mining", lambda: _notices(run), []),
        sections=shown,
    )


def _section(run: RunDirectory, anchor: str, name: str, title: str, make: Callable[[RunDirectory], Shown]) -> Section:
    there = f"{anchor}/summary.json is there, but cannot be shown."
    found = safely(run, f"the section “{title}”", "mining", lambda: make(run), Shown(missing=(there,)))
    return section_of(f"mine-{anchor}", name, title, found)


def _notices(run: RunDirectory) -> list[Notice]:
    return [Notice(f"mine-{one.anchor}", one.title, one.text) for one in warnings(run)]


def _facts(run: RunDirectory, domains: dict[str, Any]) -> list[Fact]:
    text, embed = run.json("corpus/summary.json"), run.json("embed/summary.json")
    classify = run.json("classify/summary.json")
    facts = [Fact("Domain", name, str(description)) for name, description in domains.items()]
    if text:
        sample = (
            f"; {count(text['sampled'])} chunks of these are mined" if finite(text.get("sampled")) is not None else ""
        )
        facts.append(
            Fact("Corpus", f"{count(text.get('chunks'))} chunks", f"of {count(text.get('kept'))} documents{sample}")
        )
    if embed:
        facts.append(Fact("Encoder", embed.get("encoder", ""), f"{count(embed.get('seeds'))} seeds"))
    if classify:
        facts.append(Fact("Taken", f"{count(classify.get('taken'))} chunks", f"{count(classify.get('words'))} words"))
    if names := [title(run, arm) for arm in arms(run) if arm != BASE]:
        facts.append(Fact("Arms", count(len(names)), ", ".join(names)))
    return facts
