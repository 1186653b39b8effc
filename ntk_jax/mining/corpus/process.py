"""The corpus from files to chunks, as functions that write whole files and depend on nothing but what they are given.

    shards = shards_of(files, 64)
    for shard in shards: extract_shard(shard, settings, folder)      in any order, by anybody
    keep(folder, len(shards), settings)                              looks at all of them at once
    for shard in shards: finish_shard(shard.index, folder, settings) in any order, by anybody
    close(folder, len(shards), settings)

Each writes its manifest last and returns what is there if that fits; so a killed process loses the shard it was at, and
whoever ran what, and how often, the bytes are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from ntk_jax.data.chunks import chunks_of
from ntk_jax.data.contamination import contamination
from ntk_jax.data.language import language_of
from ntk_jax.data.near_duplicates import MinHash, signature
from ntk_jax.data.words import written_words
from ntk_jax.errors import UserError
from ntk_jax.mining.corpus import duplicates, layout
from ntk_jax.mining.corpus.documents import Document, Drop
from ntk_jax.mining.corpus.drops import Drops
from ntk_jax.mining.corpus.extract import Extractor
from ntk_jax.mining.corpus.files import Shard
from ntk_jax.mining.corpus.quality import Quality, broken_rule
from ntk_jax.mining.corpus.readers import Reading, read_piece
from ntk_jax.storage import atomic
from ntk_jax.storage.hashing import hash_tree

Progress = Callable[[int, int], None]
Manifest = dict[str, Any]
NONE = np.zeros(0, np.uint64)
_OF_KEEP, _OF_CHUNKS = ("exact", "near"), ("chunk_words", "min_chunk_words")  # settings of the later steps alone


@dataclass(frozen=True)
class Settings:
    """What decides the corpus.

    extractor: of the main text of HTML, `resiliparse` or `trafilatura`; page_seconds: of CPU that a page may take.
    languages: the codes of those that are kept, () for all, and then none is looked for. quality: None for no rules.
    exact: drop documents whose text stood before. near: drop those that overlap with an earlier one by this, 0 for
    none. paragraph_words: paragraphs of at least so many words that stood in an earlier document are removed, 0 for
    none. contamination_words: documents that share a run of so many words with an evaluation text are dropped.
    chunk_words: a chunk has at most so many; min_chunk_words: shorter ones are left out. samples: dropped documents
    that are kept for the report, of each reason; seed: which.
    """

    reading: Reading = field(default_factory=Reading)
    extractor: str = "resiliparse"
    page_seconds: float = 5.0
    languages: tuple[str, ...] = ()
    quality: Quality | None = field(default_factory=Quality)
    exact: bool = True
    near: float = 0.8
    hashing: MinHash = field(default_factory=MinHash)
    paragraph_words: int = 10
    contamination_words: int = 13
    chunk_words: int = 2500
    min_chunk_words: int = 20
    samples: int = 20
    seed: int = 0


# -- one shard -----------------------------------------------------------------------------------------------------


def extract_shard(
    shard: Shard,
    settings: Settings,
    folder: str | Path,
    *,
    evaluation: np.ndarray = NONE,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """Reads, filters and fingerprints the documents of one shard, and writes the first files of `layout`.

    evaluation: what `evaluation_runs` gave, for `settings.contamination_words`. progress: bytes of the shard's files.
    Returns {"records", "documents", "drops", "notes", "encodings", "languages", "fingerprint"}.
    Raises UserError: a file cannot be read, records without text, an extra is missing, the disk is full.
    """
    # Files are called by their names below the folder they share: where that stands decides nothing.
    pieces = [asdict(piece) | {"path": ""} for piece in shard.pieces]
    decisive = {key: value for key, value in asdict(settings).items() if key not in (*_OF_KEEP, *_OF_CHUNKS)}
    fingerprint = hash_tree({"pieces": pieces, "settings": decisive, "evaluation": evaluation})
    manifest = layout.extracted(folder, "shard", shard.index)
    files = [layout.extracted(folder, kind, shard.index) for kind in layout.EXTRACTED]
    if found := _there(manifest, fingerprint, files):
        return found
    atomic.make_folder(manifest.parent)
    state = _Reading(settings, evaluation)
    with state.extractor:
        rows = state.documents(shard, progress)
        path = layout.extracted(folder, "documents", shard.index)
        count = layout.write_rows(path, layout.DOCUMENTS, rows, layout.DOCUMENT_ROWS)
    signatures = np.array(state.signatures, np.uint32).reshape(count, settings.hashing.permutations)
    paragraphs = np.array(sorted(state.paragraphs), layout.PARAGRAPHS)
    layout.write_array(layout.extracted(folder, "digests", shard.index), np.array(state.digests, np.uint64))
    layout.write_array(layout.extracted(folder, "signatures", shard.index), signatures)
    layout.write_array(layout.extracted(folder, "paragraphs", shard.index), paragraphs)
    result = {
        "fingerprint": fingerprint,
        "records": state.records,
        "documents": count,
        "drops": state.drops.as_json(),
        "notes": dict(sorted((+state.notes).items())),
        "encodings": dict(sorted(state.encodings.items())),
        "languages": dict(sorted(state.languages.items())),
    }
    atomic.write_json(manifest, result)
    return result


class _Reading:
    """What gathers while the documents of a shard pass through."""

    def __init__(self, settings: Settings, evaluation: np.ndarray) -> None:
        self.settings, self.evaluation = settings, evaluation
        self.extractor = Extractor(settings.extractor, seconds=settings.page_seconds)
        self.drops = Drops(settings.samples, settings.seed)
        self.notes: Counter[str] = Counter()
        self.encodings: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.records = 0
        self.digests: list[int] = []
        self.signatures: list[np.ndarray] = []
        self.paragraphs: list[tuple[int, int]] = []

    def documents(self, shard: Shard, progress: Progress) -> Iterator[dict[str, Any]]:
        """The documents that are kept, as rows."""
        total, done = sum(piece.stop - piece.start for piece in shard.pieces), 0
        for piece in shard.pieces:
            for found in read_piece(piece, self.settings.reading, self.notes):
                self.records += 1
                row = self._row(found) if isinstance(found, Document) else found
                if isinstance(row, Drop):
                    self.drops.add(row)
                    continue
                self._fingerprint(row["text"])
                yield row
                if piece.kind == "warc":
                    progress(done + row["offset"] - piece.start, total)
            done += piece.stop - piece.start
            progress(done, total)

    def _row(self, document: Document) -> dict[str, Any] | Drop:
        text, title, encoding, settings = document.text, document.title, "", self.settings
        if document.page is not None:
            page = self.extractor.extract(document.page, document.charset)
            if page.failure:
                return Drop(document.id, page.failure, f"{page.detail} {document.url}".strip())
            text, title, encoding = page.text, page.title, page.encoding
            self.encodings[encoding] += 1
        language = ""
        if settings.languages:
            language = language_of(text)
            self.languages[language] += 1
            if language not in settings.languages:
                return Drop(document.id, "language", language, text)
        broken = broken_rule(text, settings.quality) if settings.quality else None
        if broken:
            return Drop(document.id, *broken, text)
        if shared := contamination(text, self.evaluation, settings.contamination_words):
            return Drop(document.id, "contamination", shared, text)
        words = len(written_words(text))
        names = ("id", "file", "offset", "url", "date", "record_id", "source")
        row = {name: getattr(document, name) for name in names}
        return row | {"text": text, "title": title, "language": language, "encoding": encoding, "words": words}

    def _fingerprint(self, text: str) -> None:
        row = len(self.digests)
        self.digests.append(duplicates.digest(text))
        self.signatures.append(signature(text, self.settings.hashing))
        if self.settings.paragraph_words:
            self.paragraphs += duplicates.paragraph_entries(text, row, self.settings.paragraph_words)


# -- all shards ----------------------------------------------------------------------------------------------------


def keep(folder: str | Path, count: int, settings: Settings) -> Manifest:
    """Finds the duplicates among the documents of all `count` shards. Memory: about 16 bytes a document.

    Returns {"documents": of each shard, "fingerprint"}. Raises UserError: a shard is missing (it is named).
    """
    manifests = extracted_shards(folder, count)
    fingerprint = keep_fingerprint(manifests, settings)
    path = layout.kept_manifest(folder)
    files = [layout.kept(folder, kind, shard) for kind in layout.KEPT for shard in range(count)]
    if found := _there(path, fingerprint, files):
        return found
    atomic.make_folder(path.parent)
    counts = [manifest["documents"] for manifest in manifests]
    corpus = duplicates.Corpus(folder, counts)
    verdicts = np.split(duplicates.verdicts(corpus, settings.exact, settings.near), corpus.bases[1:-1])
    entries = [layout.read_array(layout.extracted(folder, "paragraphs", shard)) for shard in range(count)]
    repeats = duplicates.repeats(entries, [own["reason"] == duplicates.KEPT for own in verdicts])
    for shard in range(count):
        layout.write_array(layout.kept(folder, "verdicts", shard), verdicts[shard])
        layout.write_array(layout.kept(folder, "repeats", shard), repeats[shard])
    return close_keep(folder, count, settings)


def close_keep(folder: str | Path, count: int, settings: Settings) -> Manifest:
    """Says that the verdicts and repeats of all shards are written, whoever wrote them."""
    manifests = extracted_shards(folder, count)
    result = {
        "fingerprint": keep_fingerprint(manifests, settings),
        "documents": [manifest["documents"] for manifest in manifests],
    }
    atomic.write_json(layout.kept_manifest(folder), result)
    return result


def keep_fingerprint(manifests: list[Manifest], settings: Settings) -> str:
    """What decides the verdicts. manifests: of all shards."""
    return hash_tree([[manifest["fingerprint"] for manifest in manifests], _chosen(settings, _OF_KEEP)])


def extracted_shards(folder: str | Path, count: int) -> list[Manifest]:
    """The manifests of `extract_shard`. Raises UserError: a shard is missing (it is named)."""
    paths = [layout.extracted(folder, "shard", shard) for shard in range(count)]
    missing = [shard for shard, path in enumerate(paths) if not path.exists()]
    if missing:
        raise UserError(f"{folder}: shard {missing[0]} of {count} is not read yet; run the stage's shards to their end")
    return [atomic.read_json(path, dict) for path in paths]


# -- one shard again -----------------------------------------------------------------------------------------------


def finish_shard(shard: int, folder: str | Path, settings: Settings) -> Manifest:
    """Leaves the duplicates out, and cuts what is left into the chunks of `layout`.

    Returns {"documents", "chunks", "words", "drops", "notes", "fingerprint"}. Raises UserError: `keep` has not run.
    """
    before = atomic.read_json(layout.kept_manifest(folder), dict)
    fingerprint = hash_tree([before["fingerprint"], shard, _chosen(settings, _OF_CHUNKS)])
    manifest = layout.chunks(folder, shard, "json")
    if found := _there(manifest, fingerprint, [layout.chunks(folder, shard)]):
        return found
    drops, notes = Drops(settings.samples, settings.seed), Counter[str]()
    rows = _chunk_rows(shard, folder, settings, drops, notes)
    count = layout.write_rows(layout.chunks(folder, shard), layout.CHUNKS, rows, layout.CHUNK_ROWS)
    result = {
        "fingerprint": fingerprint,
        "documents": notes.pop("documents", 0),
        "words": notes.pop("words", 0),
        "chunks": count,
        "drops": drops.as_json(),
        "notes": dict(sorted(notes.items())),
    }
    atomic.write_json(manifest, result)
    return result


def _chunk_rows(
    shard: int, folder: str | Path, settings: Settings, drops: Drops, notes: Counter[str]
) -> Iterator[dict[str, Any]]:
    verdicts = layout.read_array(layout.kept(folder, "verdicts", shard))
    repeats = np.sort(layout.read_array(layout.kept(folder, "repeats", shard)), order=["row", "hash"])
    edges = np.searchsorted(repeats["row"], np.arange(len(verdicts) + 1))
    for row, document in enumerate(documents_of(folder, shard)):
        reason = int(verdicts["reason"][row])
        if reason:
            drop = Drop(document["id"], duplicates.REASONS[reason], "", document["text"])
            drops.add(drop, like=int(verdicts["like"][row]))
            continue
        repeated = set(repeats["hash"][edges[row] : edges[row + 1]].tolist())
        segments, removed = duplicates.left_over(document["text"], repeated, settings.paragraph_words)
        found = [
            piece
            for start, stop in segments
            for piece in chunks_of(document["text"], settings.chunk_words, start, stop)
        ]
        long = [piece for piece in found if piece[2] >= settings.min_chunk_words]
        if not long:
            reason_left = "paragraphs_stood_before" if removed else "too_few_words"
            drops.add(Drop(document["id"], reason_left, "", document["text"]))
            continue
        notes.update(documents=1, paragraphs_removed=removed, short_chunks=len(found) - len(long))
        for number, (start, end, words) in enumerate(long):
            notes["words"] += words
            yield {name: document[name] for name in layout.CARRIED} | {
                "id": f"{document['id']}#{number}",
                "document": document["id"],
                "text": document["text"][start:end],
                "words": words,
                "start": start,
                "end": end,
            }


def documents_of(folder: str | Path, shard: int) -> Iterator[dict[str, Any]]:
    """Streams the documents that `extract_shard` wrote, in order. Raises UserError: the file is absent or damaged."""
    path = layout.extracted(folder, "documents", shard)
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=layout.DOCUMENT_ROWS):
                yield from batch.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {path} ({str(error).splitlines()[0]}); delete {path.parent}, run again") from None


def _chosen(settings: Settings, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in names}


def _there(path: Path, fingerprint: str, files: Iterable[Path]) -> Manifest | None:
    """A manifest of the same fingerprint, if there is one and the files that it stands for."""
    if not all(map(Path.exists, [path, *files])):
        return None
    found: Mapping[str, Any] = atomic.read_json(path, dict)
    return dict(found) if found.get("fingerprint") == fingerprint else None
