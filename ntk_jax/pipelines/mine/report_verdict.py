"""What a reader of the mining's page should know first: the findings, and what speaks against believing them."""

from __future__ import annotations

from typing import Any

from ntk_jax.pipelines.common.evaluated import evaluated_pairs, says
from ntk_jax.pipelines.mine.report_arms import PRETRAIN, arms, is_general, leading, own_text, title
from ntk_jax.report.amounts import count, finite, general, nats, percent
from ntk_jax.report.layout import Notice
from ntk_jax.report.reading import RunDirectory, mapping, records
from ntk_jax.report.shown import bounded, percent_of

LENIENT = 0.2  # share of planted wrong labels accepted, from which on a judge's agreement says little
HARDLY = 2.0  # average precision over the base rate below which a classifier is hardly better than chance
OFTEN = 4.0  # passes over a text beyond which another one teaches little (Muennighoff et al., arXiv 2305.16264)
FEW = 20  # held-out positives below which a threshold is a matter of luck
DISAGREES = 0.5  # agreement below which a domain's labels are more often wrong than right


def verdict(run: RunDirectory) -> list[str]:
    """What was found, a sentence for each stage that is done; the first is the finding."""
    lines = [_taken(run), _judged(run), *_learned(run), *_evaluated(run)]
    return [line for line in lines if line]


def _taken(run: RunDirectory) -> str:
    found = run.json("classify/summary.json")
    if not found:
        return ""
    parts = []
    for name, item in mapping(found.get("domains")).items():
        taken = f"{name} {percent_of(mapping(item).get('taken'), found.get('chunks'))}"
        precision = mapping(mapping(item).get("precision"))
        known = finite(precision.get("value")) is not None
        parts.append(taken + (f" at a precision of {bounded(precision)} on held-out labels" if known else ""))
    return f"Taken from {count(found.get('chunks'))} chunks: {'; '.join(parts)}."


def _judged(run: RunDirectory) -> str:
    found = run.json("audit/summary.json")
    if not found:
        return ""
    accepted = mapping(found.get("false_accept"))
    itself = f", and accepts {bounded(accepted)} of wrong labels that were planted" if accepted else ""
    return f"The judge agrees with {bounded(found.get('agreement'))} of the labels{itself}."


def _learned(run: RunDirectory) -> list[str]:
    """For each held-out set the mined text's arm against every control."""
    best = leading(run)
    if best is None:
        return []
    lines = []
    for item in records(run.json(PRETRAIN).get("sets")):
        name = str(item.get("name"))
        entry = mapping(mapping(mapping(item.get("results")).get(best)).get("perplexity"))
        pairs = [seen for pair in records(item.get("paired")) if (seen := _facing(pair, best)) is not None]
        against = [f"{says(pair)} against “{title(run, pair['b'])}” ({_bracket(pair)})" for pair in pairs]
        what = "General text, what is forgotten" if is_general(run, name) else "Learned"
        lines.append(
            f"{what}: after “{title(run, best)}” held-out {name} has perplexity {general(entry.get('value'))}"
            + (f"; {', '.join(against)}." if against else ".")
        )
    return lines


def _evaluated(run: RunDirectory) -> list[str]:
    """For each measure of the evaluation the mined text's arm against every control."""
    best, found = leading(run), dict[str, list[str]]()
    for pair in evaluated_pairs(run.json("evaluate/results.json"), best) if best is not None else ():
        found.setdefault(pair.what, []).append(f"{pair.says} against “{title(run, pair.b)}” ({pair.text})")
    return [f"{what.capitalize()} of “{title(run, str(best))}”: {', '.join(each)}." for what, each in found.items()]


def _facing(pair: dict[str, Any], arm: str) -> dict[str, Any] | None:
    """The difference as of `arm` minus the other one."""
    if pair.get("a") == arm:
        return {**pair, "b": str(pair.get("b"))}
    difference, low, high = (finite(pair.get(key)) for key in ("difference", "low", "high"))
    if pair.get("b") != arm or difference is None or low is None or high is None:
        return None
    return {"a": arm, "b": str(pair.get("a")), "difference": -difference, "low": -high, "high": -low}


def _bracket(pair: dict[str, Any]) -> str:
    return f"{nats(pair.get('difference'))} nats a token, {nats(pair.get('low'))} to {nats(pair.get('high'))}"


def warnings(run: RunDirectory) -> list[Notice]:
    """What a reader must know before believing a number. anchor: the section's short name."""
    return [*_of_seeds(run), *_of_labels(run), *_of_classifier(run), *_of_judge(run), *_of_training(run)]


def _of_seeds(run: RunDirectory) -> list[Notice]:
    notices = []
    short = mapping(mapping(run.json("seeds/summary.json").get("written")).get("shortfall"))
    if short:
        named = ", ".join(f"{name} lacks {count(n)}" for name, n in short.items())
        notices.append(Notice("seeds", "Fewer seeds than were asked for", f"{named}; the reasons are counted there."))
    if note := run.json("embed/summary.json").get("note"):
        notices.append(Notice("embed", "How the encoder was read", f"{note}."))
    return notices


def _of_labels(run: RunDirectory) -> list[Notice]:
    text = (
        "Nothing in its cosines says where to cut, so a small share is labelled: label.judged or label.thresholds cut "
        "better, and other subjects under contrast part the domain from what only looks like it."
    )
    domains = mapping(run.json("label/summary.json").get("domains"))
    doubtful = [name for name, item in domains.items() if mapping(item).get("doubtful") is True]
    return [Notice("label", f"No part of the corpus stands out for {name}", text) for name in doubtful]


def _of_classifier(run: RunDirectory) -> list[Notice]:
    notices = []
    for name, item in mapping(run.json("classify/summary.json").get("domains")).items():
        found, base = finite(mapping(item).get("average_precision")), finite(mapping(item).get("base_rate"))
        if found is not None and base is not None and found < HARDLY * base and found < 0.9:
            text = f"Its average precision for {name} is {general(found)}, where chance has {general(base)}."
            notices.append(Notice("classify", "The classifier is hardly better than chance", text))
        few = finite(mapping(item).get("positives"))
        if few is not None and few < FEW:
            text = (
                f"{count(few)} held-out chunks of {name} chose it; with others, much more or much less would be taken."
            )
            notices.append(Notice("classify", f"The threshold of {name} rests on few labels", text))
    return notices


def _of_judge(run: RunDirectory) -> list[Notice]:
    found = run.json("audit/summary.json")
    if not found:
        return []
    notices = []
    accepted = finite(mapping(found.get("false_accept")).get("value"))
    if accepted is None:
        text = "No wrong labels were planted, so nobody knows how often it would have accepted one."
        notices.append(Notice("audit", "The judge was not judged", text))
    elif accepted >= LENIENT:
        text = f"It accepts {percent(accepted)} of the labels that are known to be wrong; its agreement says little."
        notices.append(Notice("audit", "The judge is lenient", text))
    for name, item in mapping(found.get("domains")).items():
        judged, agreed = finite(mapping(item).get("judged")), finite(mapping(item).get("agreed"))
        if judged and agreed is not None and agreed / judged < DISAGREES:
            text = f"It agrees with {percent_of(agreed, judged)} of {count(judged)} labels of {name}."
            notices.append(Notice("audit", "The judge disagrees with most labels", text))
    return notices


def _of_training(run: RunDirectory) -> list[Notice]:
    notices = []
    for name, facts in arms(run).items():
        passes = finite(own_text(facts).get("passes"))
        if passes is not None and passes > OFTEN:
            text = f"Its own text was read {passes:.1f} times over; there is too little of it for pretrain.tokens."
            notices.append(Notice("pretrain", f"Little text for the arm “{title(run, name)}”", text))
    return notices
