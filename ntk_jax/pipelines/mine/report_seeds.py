"""Where mining begins, on the page: the seeds, the corpus with its drops, and the seeds' nearest chunks."""

from __future__ import annotations

from typing import Any

from ntk_jax.pipelines.mine.figures import cell_map
from ntk_jax.report.amounts import count, finite, general
from ntk_jax.report.figures_bars import reason_bars
from ntk_jax.report.layout import Figure, Table
from ntk_jax.report.reading import RunDirectory, mapping, records
from ntk_jax.report.shown import MOST_SHOWN, Shown, Text, cut

LEXICAL = (
    ("diversity", "Type-token ratio of 50 words"),
    ("hapax_share", "Words that occur once"),
    ("richness", "Words / √words"),
    ("distinct_pairs", "Different pairs of words"),
    ("reading_ease", "Reading ease (Flesch)"),
    ("grade", "School grade (Kincaid)"),
    ("words_per_sentence", "Words a sentence"),
)


def seeds(run: RunDirectory) -> Shown:
    """How many seeds of what kind, what failed, and which cells they cover."""
    found = run.json("seeds/summary.json")
    if not found:
        return Shown(missing=(run.missing("seeds", "seeds"),))
    written, duplicates = mapping(found.get("written")), mapping(found.get("duplicates"))
    coverage = mapping(found.get("coverage"))
    origins = ", ".join(f"{count(n)} {kind}" for kind, n in mapping(found.get("origins")).items())
    leads = [f"Seeds by origin: {origins or 'none'}."]
    if written:
        leads.append(
            f"{count(written.get('planned'))} were asked of the language model, in {count(written.get('asked'))} "
            f"replies (format {written.get('format')}); {count(written.get('repaired'))} parsed when they were asked "
            f"for again. {count(written.get('written'))} are usable."
        )
        short = mapping(written.get("shortfall"))
        if short:
            missing = ", ".join(f"{name} lacks {count(n)}" for name, n in short.items())
            leads.append(f"Fewer than were asked for: {missing}.")
    failed = {**mapping(written.get("failures")), **duplicates}
    how = "Replies that could not be used, and seeds that say what another one says. What failed was asked for anew."
    figures = [reason_bars("What was no seed", failed, "replies and seeds", how)] if failed else []
    figures += [_map(name, mapping(item)) for name, item in coverage.items() if _placed(item)]
    return Shown(leads=leads, figures=figures, tables=[_coverage(coverage)] if coverage else [])


def _placed(item: Any) -> bool:
    return bool(finite(mapping(item).get("placed")))


def _map(name: str, item: dict[str, Any]) -> Figure:
    drawing = cell_map(
        item["table"],
        list(item["types"]),
        list(item["demeanours"]),
        description=f"Seeds of {name} by type and demeanour",
    )
    gaps = [f"no {value}" for values in mapping(item.get("gaps")).values() for value in values]
    return Figure(
        f"What the seeds of {name} cover",
        drawing,
        "Seeds of each document type (rows) in each demeanour (columns), all lengths together; an empty cell has none.",
        f"{count(item['cells'])} of {count(item['of'])} cells have a seed, {count(item['topics'])} different topics; "
        + (f"{', '.join(gaps[:6])}." if gaps else "every single value occurs."),
    )


def _coverage(coverage: dict[str, Any]) -> Table:
    rows = []
    for name, item in coverage.items():
        item = mapping(item)
        gaps = sum(len(values) for values in mapping(item.get("gaps")).values())
        absent = item.get("topic_gaps")
        rows.append(
            [
                name,
                count(item.get("seeds")),
                count(item.get("several")),
                f"{count(item.get('cells'))} of {count(item.get('of'))}",
                count(gaps),
                count(item.get("topics")),
                count(len(absent)) if isinstance(absent, list) else "",
            ]
        )
    header = ["Domain", "Seeds", "Of several domains", "Cells covered", "Values without", "Topics", "Topics without"]
    return Table(
        header, rows, "Cells are a document type, a length and a demeanour; values and topics that no seed has"
    )


def corpus(run: RunDirectory) -> Shown:
    """What was read, dropped and kept."""
    found = run.json("corpus/summary.json")
    if not found:
        return Shown(missing=(run.missing("corpus", "corpus"),))
    drops, faults = mapping(found.get("drops")), mapping(found.get("faults"))
    lead = (
        f"{count(found.get('documents'))} documents were read and {count(found.get('kept'))} kept, "
        f"{count(found.get('chunks'))} chunks of {count(found.get('words'))} words."
    )
    if finite(found.get("sampled")) is not None:
        lead += f" A sample of {count(found.get('sampled'))} chunks goes on."
    leads = [lead]
    if removed := mapping(found.get("cut")):
        named = ", ".join(f"{count(n)} × {str(what).replace('_', ' ')}" for what, n in removed.items())
        leads.append(f"Left out of documents that are kept: {named}.")
    if faults:
        named = ", ".join(f"{count(n)} × {fault}" for fault, n in faults.items())
        leads.append(f"Faults of web archives that were met and passed over: {named}.")
    figures = []
    if drops:
        figures.append(
            reason_bars(
                "What was dropped", drops, "documents", "Documents that did not go on, by the reason that came first."
            )
        )
    texts = [
        Text((str(item.get("reason", "")), str(item.get("source", ""))), (("dropped text", cut(item.get("text"))),))
        for item in records(found.get("dropped"))[:MOST_SHOWN]
    ]
    sources = mapping(found.get("sources"))
    rows = [
        [name, count(mapping(item).get("documents")), count(mapping(item).get("chunks"))]
        for name, item in sorted(sources.items(), key=lambda pair: -(finite(mapping(pair[1]).get("chunks")) or 0))
    ]
    tables = [Table(["Source", "Documents", "Chunks"], rows[:MOST_SHOWN], "What the corpus is made of")] if rows else []
    return Shown(
        leads=leads, figures=figures, tables=tables, texts=[("A sample of what was dropped", texts)] if texts else []
    )


def embedding(run: RunDirectory) -> Shown:
    """The encoder, the words of seeds beside the corpus's, and what lies nearest to seeds."""
    found = run.json("embed/summary.json")
    if not found:
        return Shown(missing=(run.missing("embed", "embeddings"),))
    leads = [
        f"{found.get('encoder')} ({count(found.get('dim'))} numbers, {count(found.get('max_tokens'))} tokens at once) "
        f"read {count(found.get('chunks'))} chunks in {count(found.get('windows'))} windows and compared them with "
        f"{count(found.get('seeds'))} seeds; each keeps its {count(found.get('neighbours'))} nearest."
    ]
    if found.get("note"):
        leads.append(str(found["note"]))
    lexical = mapping(found.get("lexical"))
    tables = [_lexical(lexical)] if lexical else []
    texts = [_neighbours(item) for item in records(found.get("nearest"))[:MOST_SHOWN]]
    return Shown(
        leads=leads, tables=tables, texts=[("Some seeds with what lies nearest to them", texts)] if texts else []
    )


def _lexical(groups: dict[str, Any]) -> Table:
    rows = [[title, *(general(mapping(group).get(key)) for group in groups.values())] for key, title in LEXICAL]
    words = count(next(iter(map(mapping, groups.values()))).get("words"))
    caption = (
        f"Words of the seeds beside the corpus's, each on {words} words; figures far apart: the seeds read otherwise"
    )
    return Table(["Figure", *(name.capitalize() for name in groups)], rows, caption)


def _neighbours(item: dict[str, Any]) -> Text:
    hits = records(item.get("hits"))
    names = " and ".join(map(str, item.get("domains") or ()))
    best = general(hits[0].get("score")) if hits else "none"
    kind = str(item.get("type") or item.get("origin") or "")
    parts = [("seed", cut(item.get("text")))]
    for hit in hits:
        title = f", {hit['title']}" if hit.get("title") else ""
        parts.append((f"cosine {general(hit.get('score'))}, {hit.get('source', '')}{title}", cut(hit.get("text"))))
    head = (names, kind, f"nearest {best}", str(item.get("id", "")))
    return Text(tuple(part for part in head if part), tuple(parts))
