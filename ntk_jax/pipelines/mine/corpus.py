"""The corpus, shard by shard: documents out of files, what is dropped and why, duplicates over all shards, chunks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.contamination import evaluation_runs
from ntk_jax.data.records import response_text
from ntk_jax.data.sources import read
from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.errors import UserError
from ntk_jax.mining.corpus.extract import check_extractor
from ntk_jax.mining.corpus.files import Shard, corpus_files, shards_of
from ntk_jax.mining.corpus.layout import write_array
from ntk_jax.mining.corpus.local import each, run_corpus
from ntk_jax.mining.corpus.process import Settings, extract_shard, finish_shard, keep
from ntk_jax.mining.corpus.quality import Quality
from ntk_jax.mining.corpus.readers import Reading
from ntk_jax.mining.corpus.store import close, read_chunks
from ntk_jax.pipelines.mine.chunks import READ, SAMPLE
from ntk_jax.pipelines.mine.config import MineConfig
from ntk_jax.pipelines.mine.state import MineRun
from ntk_jax.storage.arrays import create
from ntk_jax.storage.atomic import write_json

STORE = "shards.zarr"
FIELDS = ("text", "title", "url", "id", "source")
CUT = ("paragraphs_removed", "short_chunks")  # what is left out of documents that are kept


def check(config: MineConfig) -> None:
    """Raises UserError: columns of no document, or a package that is not installed."""
    for key, value in (config.corpus.columns or {}).items():
        if key not in FIELDS or not isinstance(value, str):
            raise UserError(f"corpus.columns.{key}: give the key of a record for one of {', '.join(FIELDS)}")
    if any(piece.kind in ("warc", "page") for piece in corpus_files(config.corpus.files)):
        check_extractor(config.corpus.extractor)


def settings_of(config: MineConfig) -> Settings:
    """What decides the corpus."""
    section = config.corpus
    keys = {f"{name}_key": key for name, key in (section.columns or {}).items()}
    quality = Quality(**dataclasses.asdict(section.gopher)) if section.quality == "gopher" else None
    return Settings(
        reading=Reading(**keys),
        extractor=section.extractor,
        page_seconds=section.page_seconds,
        languages=section.languages,
        quality=quality,
        exact=section.exact_duplicates,
        near=section.near_duplicates,
        paragraph_words=section.paragraph_words,
        contamination_words=section.overlap,
        chunk_words=section.words,
        min_chunk_words=section.min_words,
        seed=config.seed,
    )


def corpus(run: MineRun, folder: Path) -> dict[str, Any] | None:
    """Writes chunks-*.parquet, corpus.json and summary.json. None when only some shards were read."""
    clock, section, settings = Clock(run.job.folder, "corpus"), run.config.corpus, settings_of(run.config)
    shards = shards_of(section.files, section.shards)
    runs, short = evaluation_runs(_evaluation_texts(section.decontaminate), section.overlap)
    store = create(folder / STORE, {"documents": ((), np.int64)}, len(shards), 1)
    tell = clock.ticking(run.job.progress("corpus", None, "shards"))
    options: dict[str, Any] = {"evaluation": runs}
    if run.job.shard is None and section.runner == "beam":
        from ntk_jax.mining.corpus.beam import run_on_beam

        run_on_beam(shards, settings, folder, options=section.beam_options, **options)
    elif run.job.shard is None and section.workers > 1:
        run_corpus(shards, settings, folder, processes=section.workers, progress=tell, **options)

    def those(blocks: frozenset[int]) -> Iterator[tuple[int, Shard]]:
        yield from ((block, shards[block]) for block in sorted(blocks))

    def compute(block: int, shard: Shard, progress: Progress) -> dict[str, np.ndarray]:
        # What is there already is found again by its manifest.
        return {"documents": np.array([extract_shard(shard, settings, folder, **options)["documents"]])}

    fill_blocks(store, those, compute, shard=run.job.shard, progress=tell)
    if run.job.shard is not None:
        return None
    keep(folder, len(shards), settings)
    each(lambda number: finish_shard(number, folder, settings), range(len(shards)), 1)
    found = close(folder, len(shards), settings)
    sample = _sample(run, folder, found["chunks"])
    summary = _summary(folder, found, short, sample) | {"seconds": clock.seconds()}
    write_json(folder / "summary.json", summary)
    return {"chunks": found["chunks"]}


def _evaluation_texts(files: tuple[str, ...]) -> Iterator[str]:
    for record in read(files) if files else ():
        talk = " ".join(message["content"] for message in record.get("messages", ()))
        yield talk or f"{record.get('prompt', '')} {response_text(record)}"


def _sample(run: MineRun, folder: Path, total: int) -> np.ndarray | None:
    """Which chunks are mined, ascending; None: all of them."""
    limit = run.config.corpus.limit
    if limit is None or limit >= total:
        return None
    chosen = np.sort(np.random.default_rng([run.config.seed, 0xC0]).permutation(total)[:limit]).astype(np.int64)
    write_array(folder / SAMPLE, chosen)
    return chosen


def _summary(folder: Path, found: dict[str, Any], short: int, sample: np.ndarray | None) -> dict[str, Any]:
    """What the report shows."""
    chunks: Counter[str] = Counter()
    sampled: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    before = None
    for start in range(0, found["chunks"], READ):
        rows = read_chunks(folder, start, start + READ, ["source", "document"])
        here = (
            sample[np.searchsorted(sample, start) : np.searchsorted(sample, start + READ)] if sample is not None else ()
        )
        sampled.update(rows[int(place) - start]["source"] for place in here)
        for row in rows:
            chunks[row["source"]] += 1
            documents[row["source"]] += row["document"] != before  # the chunks of a document follow each other
            before = row["document"]
    samples = [
        {"reason": reason, "source": sample.get("source", ""), "text": sample.get("text", "")}
        for reason, few in found["drops"]["samples"].items()
        for sample in few
    ]
    return {
        "documents": found["records"],
        "kept": found["documents"],
        "chunks": found["chunks"],
        "words": found["words"],
        "drops": found["drops"]["counts"],
        "faults": {name: count for name, count in found["notes"].items() if name not in CUT},
        "cut": {name: count for name, count in found["notes"].items() if name in CUT},
        "languages": found["languages"],
        "sources": {
            name: {"documents": documents[name], "chunks": n, **({} if sample is None else {"sampled": sampled[name]})}
            for name, n in chunks.most_common()
        },
        **({} if sample is None else {"sampled": len(sample)}),
        "dropped": samples,
        "short_evaluation_texts": short,
    }
