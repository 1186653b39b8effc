"""What mining decides, on the page: what was taken, the thresholds of the labels, the classifier, and its audit."""

from __future__ import annotations

from typing import Any

from ntk_jax.pipelines.mine.figures import PrecisionRecall, agreement, precision_recall_curves, rootogram
from ntk_jax.report.amounts import NOTHING, count, finite, general, percent
from ntk_jax.report.figures_bars import MOST_BARS, Bar, bars
from ntk_jax.report.layout import Cell, Figure, Table
from ntk_jax.report.reading import RunDirectory, mapping, records
from ntk_jax.report.shown import MOST_SHOWN, Shown, Text, bounded, cut, numbers_of, percent_of, share

MOST_CURVES = 7  # in one figure; there are so many colours
_VERDICTS = (
    "Verdicts. Precision at least: what the lower end of the agreement's 95% interval and the upper end of that of the "
    "accepted wrong labels leave, for a judge that the classifier's own errors deceive no more often than planted ones"
)
_SERIES = (("share of the corpus", "fill-pool"), ("share of what was taken", "fill-selected"))


def mined(run: RunDirectory) -> Shown:
    """What was taken, by source and probability, with examples."""
    found = run.json("classify/summary.json")
    if not found:
        return Shown(missing=(run.missing("classify", "mined text"),))
    leads = [
        f"{percent_of(found.get('taken'), found.get('chunks'))} of {count(found.get('chunks'))} chunks were taken, "
        f"from {count(found.get('documents'))} documents: {count(found.get('words'))} words"
        + (f", {count(found['mined_tokens'])} tokens" if finite(found.get("mined_tokens")) is not None else "")
        + f". {count(found.get('several'))} belong to several domains; {count(found.get('near_duplicates'))} were "
        "dropped because another one says the same."
    ]
    sources = mapping(run.json("corpus/summary.json").get("sources"))
    figures, rows = [], []
    for name, item in mapping(found.get("domains")).items():
        taken = mapping(mapping(item).get("sources"))
        if sources and taken:
            figures.append(_sources(name, sources, taken))
        for source, entry in sorted(taken.items(), key=lambda pair: -_number(mapping(pair[1]).get("taken"))):
            of = _mined_from(sources.get(source))
            entry = mapping(entry)
            row = [name, source, count(entry.get("taken")), share(entry.get("taken"), of)]
            rows.append([*row, general(entry.get("probability"))])
    header = ["Domain", "Source", "Taken", "Of the source", "Mean probability"]
    folds = [("Everything that was taken, by source", Table(header, rows, "Chunks", text_columns=2))] if rows else []
    return Shown(leads=leads, figures=figures, folds=folds, texts=_examples(found))


def _examples(found: dict[str, Any]) -> list[tuple[str, list[Text]]]:
    """Of every domain the most probable chunks and the last that were taken; a chunk of several under the first."""
    left, groups = records(found.get("examples")), []
    for name in mapping(found.get("domains")):
        own = [item for item in left if name in (item.get("domains") or ())]
        left = [item for item in left if item not in own]
        if own:
            title = f"Some of the text of {name}, with why: the most probable first, at the end what was just taken"
            groups.append((title, [_example(item) for item in own[:MOST_SHOWN]]))
    return groups


def _number(value: Any) -> float:
    return finite(value) or 0.0


def _mined_from(source: Any) -> Any:
    """Chunks of a source that were looked at: those of the sample, where there is one."""
    found = mapping(source)
    return found.get("sampled", found.get("chunks"))


def _sources(name: str, corpus: dict[str, Any], taken: dict[str, Any]) -> Figure:
    every = {source: _number(_mined_from(item)) for source, item in corpus.items()}
    own = {source: _number(mapping(item).get("taken")) for source, item in taken.items()}
    all_chunks, all_taken = max(sum(every.values()), 1.0), max(sum(own.values()), 1.0)
    ranked = sorted({*every, *own}, key=lambda source: (-own.get(source, 0.0), -every.get(source, 0.0), source))
    rows = []
    for source in ranked[:MOST_BARS]:
        shares = (every.get(source, 0.0) / all_chunks, own.get(source, 0.0) / all_taken)
        rows.append(Bar(source, shares, tuple(percent(value) for value in shares)))
    drawing = bars(rows, _SERIES, title="%", scale_by=100, description=f"Sources of the text of {name}")
    top = ranked[0]
    return Figure(
        f"Where the text of {name} comes from",
        drawing,
        "Each source's share of the corpus and of what was taken; a long blue bar beside a short grey one is a source "
        "that belongs to the domain.",
        f"{share(own.get(top), all_taken)} of it comes from {top}, which is {share(every.get(top), all_chunks)} of the "
        "corpus.",
    )


def _example(item: dict[str, Any]) -> Text:
    names = " and ".join(map(str, item.get("domains") or ()))
    chances = mapping(item.get("probability"))
    likely = ", ".join(f"{name} {general(chances.get(name))}" for name in map(str, item.get("domains") or ()))
    head = [names or "no domain", f"probability {likely}", str(item.get("source", ""))]
    why = f"{item.get('file', '')}, offset {count(item.get('offset'))}"
    why += f", {item['url']}" if item.get("url") else ""
    why += f"; nearest seed {item.get('seed', NOTHING)}, cosine {general(item.get('score'))}"
    return Text((*head, str(item.get("title") or "")), ((why, cut(item.get("text"))),))


def labels(run: RunDirectory) -> Shown:
    """Cosines of each domain with the threshold, and what the labelled set is made of."""
    found = run.json("label/summary.json")
    if not found:
        return Shown(missing=(run.missing("label", "labels"),))
    sources = {"seeds": "the nearest chunks of the seeds", "documents": "own documents", "llm": "a language model"}
    source = sources.get(str(found.get("source")), str(found.get("source")))
    leads = [
        f"{count(found.get('labelled'))} chunks are labelled, by {source}. The classifier learns from these alone."
    ]
    figures, judged, rows = [], [], []
    for name, entry in mapping(found.get("domains")).items():
        item = mapping(entry)
        if item.get("histogram"):
            figures.append(_cosines(name, item))
        if item.get("curve"):
            judged.append(_curve(name, item))
        counts = mapping(item.get("counts"))
        made = ", ".join(f"{count(n)} {what}" for what, n in counts.items())
        row: list[object] = [name, general(item.get("threshold")), percent_of(item.get("kept"), item.get("total"))]
        rows.append([*row, count(item.get("judged")) if item.get("judged") else "", Cell(made, class_="")])
    if judged:
        how = "As a judge reads a sample of chunks, weighted to the whole corpus; the dot is the threshold."
        figures.append(_curves_figure("Precision of the judged sample", judged, how))
    header = ["Domain", "Threshold", "Keeps", "Judged", "Labelled set"]
    return Shown(
        leads=leads, figures=figures, tables=[Table(header, rows, "Thresholds of the cosine, and what came of them")]
    )


def _cosines(name: str, item: dict[str, Any]) -> Figure:
    edges, counts = numbers_of(item["histogram"]["edges"]), numbers_of(item["histogram"]["counts"])
    threshold = finite(item.get("threshold"))
    drawing = rootogram(
        edges,
        counts,
        threshold=threshold,
        x_title="cosine with the best seed",
        description=f"Cosines of the corpus with the seeds of {name}",
    )
    kept = f"The threshold {general(threshold)} keeps {percent_of(item.get('kept'), item.get('total'))} chunks"
    return Figure(
        f"How near the corpus is to {name}",
        drawing,
        "Every chunk by its cosine with the nearest seed of the domain. A cosine means nothing by itself: it is the "
        "encoder's own scale.",
        f"{kept}: {item.get('how', 'as it was set')}.",
    )


def classifier(run: RunDirectory) -> Shown:
    """Held-out precision and recall, and the probabilities over the corpus."""
    found = run.json("classify/summary.json")
    if not found:
        return Shown(missing=(run.missing("classify", "classifier"),))
    domains = {name: mapping(item) for name, item in mapping(found.get("domains")).items()}
    leads = [
        f"The classifier ({found.get('kind')}) learned from {count(found.get('train'))} labelled chunks and was "
        f"measured on {count(found.get('held_out'))} others. They are labelled in the same way, so this says how well "
        "it repeats the labels; the audit asks whether the labels are right."
    ]
    curves = [_curve(name, item) for name, item in domains.items() if item.get("curve")]
    figures = []
    if curves:
        how = (
            "Each step is a threshold; the dot is the one that was taken, the dotted line taking everything. These "
            "labels chose the dot, so it looks too good; the table counts on others."
        )
        figures.append(_curves_figure("Held-out precision and recall", curves, how))
    for name, item in domains.items():
        if item.get("histogram"):
            figures.append(_probabilities(name, item))
    rows = [
        [
            name,
            general(item.get("threshold")),
            bounded(item.get("precision")),
            bounded(item.get("recall")),
            general(item.get("average_precision")),
            percent(item.get("base_rate")),
            count(item.get("positives")),
            count(item.get("taken")),
        ]
        for name, item in domains.items()
    ]
    header = ["Domain", "Threshold", "Precision", "Recall", "Average precision", "Base rate", "Positives", "Taken"]
    caption = (
        "On held-out labels, with 95% intervals. Precision and recall: on each half of them, at the threshold that the "
        "other half chooses. The base rate, the labelled set's and not the corpus's, is the average precision of chance"
    )
    return Shown(leads=leads, figures=figures, tables=[Table(header, rows, caption)] if rows else [])


def _curve(name: str, item: dict[str, Any]) -> PrecisionRecall:
    curve = item["curve"]
    threshold, precision, recall = (numbers_of(curve[key]) for key in ("threshold", "precision", "recall"))
    wanted = finite(item.get("threshold"))
    taken = [i for i, value in enumerate(threshold) if wanted is not None and value >= wanted]
    chosen = (recall[taken[-1]], precision[taken[-1]]) if taken else None
    return PrecisionRecall(name, recall, precision, chosen, finite(item.get("base_rate")))


def _curves_figure(title: str, curves: list[PrecisionRecall], how: str) -> Figure:
    drawing = precision_recall_curves(curves[:MOST_CURVES], description=title)
    dots = [
        f"{curve.name}: precision {percent(curve.chosen[1])} at recall {percent(curve.chosen[0])}"
        for curve in curves
        if curve.chosen is not None
    ]
    return Figure(title, drawing, how, "; ".join(dots) + "." if dots else "")


def _probabilities(name: str, item: dict[str, Any]) -> Figure:
    edges, counts = numbers_of(item["histogram"]["edges"]), numbers_of(item["histogram"]["counts"])
    drawing = rootogram(
        edges,
        counts,
        threshold=finite(item.get("threshold")),
        x_title="probability",
        description=f"Probabilities of {name} over the corpus",
    )
    total = sum(counts)
    return Figure(
        f"What the classifier takes for {name}",
        drawing,
        "Every chunk of the corpus by its probability; two heaps far apart are a clear decision.",
        f"{percent_of(item.get('taken'), total)} of {count(total)} chunks lie above the threshold.",
    )


def audit(run: RunDirectory) -> Shown:
    """How often a judge agrees, and how often it agrees with what is wrong."""
    found = run.json("audit/summary.json")
    if not found:
        return Shown(missing=(run.missing("audit", "audit"),))
    domains = {name: mapping(item) for name, item in mapping(found.get("domains")).items()}
    leads = [
        f"{found.get('judge')} agrees with {bounded(found.get('agreement'))} of the labels. Of wrong labels that were "
        f"planted among them it accepts {bounded(found.get('false_accept'))}: the nearer that is to the agreement, the "
        "less the agreement says."
    ]
    if finite(mapping(found.get("accepts_known")).get("value")) is not None:
        leads.append(f"Of seeds, which stand for their domain, it accepts {bounded(found['accepts_known'])}.")
    rows, shares = [], {}
    for name, item in domains.items():
        judged, agreed = finite(item.get("judged")), finite(item.get("agreed"))
        if judged and agreed is not None:
            shares[name] = (agreed / judged, finite(item.get("low")), finite(item.get("high")))
        rows.append(
            [
                name,
                count(judged),
                percent_of(agreed, judged),
                count(item.get("planted")),
                percent_of(item.get("accepted"), item.get("planted")),
                count(item.get("unreadable")),
                percent(item.get("precision_at_least")),
            ]
        )
    figures = []
    if shares:
        how = "The share of mined chunks that the judge finds to belong, with its 95% interval."
        figures.append(Figure("Agreement by domain", agreement(shares, description="Agreement of the judge"), how))
    header = ["Domain", "Judged", "Agreed", "Planted wrong", "Accepted of these", "No verdict", "Precision at least"]
    texts = [
        Text(
            (
                str(item.get("domain", "")),
                "planted wrong label" if item.get("planted") else "mined",
                "accepted" if item.get("accepted") else "rejected",
            ),
            (("what the judge says", cut(item.get("comment"))), ("chunk", cut(item.get("text")))),
        )
        for item in records(found.get("examples"))[:MOST_SHOWN]
    ]
    return Shown(
        leads=leads,
        figures=figures,
        tables=[Table(header, rows, _VERDICTS)] if rows else [],
        texts=[("Some verdicts", texts)] if texts else [],
    )
