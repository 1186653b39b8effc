"""The corpus as an Apache Beam pipeline: the same steps and the same bytes, the duplicates found by shuffles.

On one machine its DirectRunner; on Dataflow, Flink or Spark the workers share `folder`. A step writes whole files under
names that only its shard has, so a runner may retry a step.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.near_duplicates import band_keys, bands
from ntk_jax.errors import UserError
from ntk_jax.mining.corpus import duplicates, layout
from ntk_jax.mining.corpus.files import Shard
from ntk_jax.mining.corpus.process import (
    NONE,
    Manifest,
    Settings,
    close_keep,
    extract_shard,
    extracted_shards,
    finish_shard,
)
from ntk_jax.mining.corpus.store import close
from ntk_jax.storage import atomic

Place = tuple[int, int]  # a document: its shard, its row; ascending in the order of the corpus


def run_on_beam(
    shards: Sequence[Shard],
    settings: Settings,
    folder: str | Path,
    *,
    evaluation: np.ndarray = NONE,
    options: Sequence[str] = (),
) -> Manifest:
    """All steps; what `close` returns. options: of Beam, such as ["--runner=FlinkRunner"].

    Raises UserError: Beam is not installed; as the steps."""
    beam = _library("apache_beam")
    made = _library("apache_beam.options.pipeline_options").PipelineOptions(list(options))
    folder = str(folder)
    with beam.Pipeline(options=made) as pipeline:
        given = pipeline | "shards" >> beam.Create(list(shards)) | beam.Reshuffle()
        given | "extract" >> beam.Map(_extract, settings, folder, evaluation)
    # The ordinal of a document needs the number of those before it, so what follows begins when all are counted.
    counts = [manifest["documents"] for manifest in extracted_shards(folder, len(shards))]
    bases = [0, *np.cumsum(counts).tolist()]
    atomic.make_folder(layout.kept_manifest(folder).parent)
    with beam.Pipeline(options=made) as pipeline:
        numbers = pipeline | "numbers" >> beam.Create(range(len(shards))) | beam.Reshuffle()
        dropped = (
            numbers
            | "texts and bands" >> beam.FlatMap(_document_entries, settings, folder)
            | "same text or band" >> beam.GroupByKey()
            | "decide" >> beam.FlatMap(_decide, settings)
            | "first of them" >> beam.CombinePerKey(min)
            | "by shard" >> beam.Map(lambda found: (found[0][0], (found[0][1], *found[1])))
        )
        verdicts = (
            (dropped, numbers | "every shard" >> beam.Map(lambda shard: (shard, None)))
            | "all of them" >> beam.Flatten()
            | "of a shard" >> beam.GroupByKey()
            | "verdicts" >> beam.Map(_write_verdicts, folder, bases)
        )
        repeated = (
            verdicts
            | "paragraphs" >> beam.FlatMap(_paragraph_entries, folder)
            | "same paragraph" >> beam.GroupByKey()
            | "but the first" >> beam.FlatMap(_repeats)
        )
        (
            (repeated, verdicts | "every shard again" >> beam.Map(lambda shard: (shard, None)))
            | "all paragraphs" >> beam.Flatten()
            | "paragraphs of a shard" >> beam.GroupByKey()
            | "repeats" >> beam.Map(_write_repeats, folder)
        )
    close_keep(folder, len(shards), settings)
    with beam.Pipeline(options=made) as pipeline:
        numbers = pipeline | "again" >> beam.Create(range(len(shards))) | beam.Reshuffle()
        numbers | "finish" >> beam.Map(_finish, settings, folder)
    return close(folder, len(shards), settings)


def _extract(shard: Shard, settings: Settings, folder: str, evaluation: np.ndarray) -> int:
    extract_shard(shard, settings, folder, evaluation=evaluation)
    return shard.index


def _finish(shard: int, settings: Settings, folder: str) -> int:
    finish_shard(shard, folder, settings)
    return shard


def _document_entries(shard: int, settings: Settings, folder: str) -> Iterator[tuple[Any, tuple[Place, bytes]]]:
    """(what may be the same, (document, signature)): the hash of each document's text, and each of its bands."""
    if settings.exact:
        for row, digest in enumerate(layout.read_array(layout.extracted(folder, "digests", shard)).tolist()):
            yield (-1, digest), ((shard, row), b"")
    if settings.near:
        signatures = layout.read_array(layout.extracted(folder, "signatures", shard))
        for band in range(bands(settings.near, settings.hashing.permutations)[0]):
            for row, key in enumerate(band_keys(signatures, band, settings.near).tolist()):
                yield (band, key), ((shard, row), signatures[row].tobytes())


def _decide(group: tuple[Any, Iterable[tuple[Place, bytes]]], settings: Settings) -> Iterator[tuple[Place, Any]]:
    """(document, (reason, the one it is like)) of those in a group that an earlier one stands for."""
    (band, _), found = group
    members = sorted(found)
    ordinals = np.arange(len(members))
    if band < 0:
        reason, like = duplicates.EXACT, duplicates.exact_group(ordinals)
    else:
        signatures = np.stack([np.frombuffer(signature, np.uint32) for _, signature in members])
        reason, like = duplicates.NEAR, duplicates.near_group(ordinals, signatures, settings.near)
    for own, other in enumerate(like.tolist()):
        if other < own:
            yield members[own][0], (reason, members[other][0])


def _write_verdicts(group: tuple[int, Iterable[Any]], folder: str, bases: Sequence[int]) -> int:
    shard, dropped = group
    found = np.zeros(bases[shard + 1] - bases[shard], layout.VERDICTS)
    found["like"] = np.arange(bases[shard], bases[shard + 1])
    for row, reason, (other, place) in filter(None, dropped):
        found[row] = reason, bases[other] + place
    layout.write_array(layout.kept(folder, "verdicts", shard), found)
    return shard


def _paragraph_entries(shard: int, folder: str) -> Iterator[tuple[int, Place]]:
    """(hash, document) of the paragraphs of the documents that are kept."""
    reasons = layout.read_array(layout.kept(folder, "verdicts", shard))["reason"]
    for key, row in layout.read_array(layout.extracted(folder, "paragraphs", shard)).tolist():
        if reasons[row] == duplicates.KEPT:
            yield key, (shard, row)


def _repeats(group: tuple[int, Iterable[Place]]) -> Iterator[tuple[int, tuple[int, int]]]:
    key, places = group
    for shard, row in sorted(places)[1:]:
        yield shard, (key, row)


def _write_repeats(group: tuple[int, Iterable[Any]], folder: str) -> None:
    shard, found = group
    entries = np.array(sorted(filter(None, found)), layout.PARAGRAPHS)
    layout.write_array(layout.kept(folder, "repeats", shard), entries)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError("Beam is not installed; install the extra: pip install 'ntk_jax[beam]'") from None
