"""The classifier: learnt from the labelled set, measured on its held-out part, and spread over the whole corpus."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.alike import first_alike
from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.evaluation.wilson import wilson
from ntk_jax.mining.classifier import CLEAN_PENALTIES, Head, HeadConfig, load_head, train_head
from ntk_jax.mining.finetuned import EncoderConfig, TunedEncoder, load_encoder, train_encoder
from ntk_jax.mining.labels import labels_of
from ntk_jax.mining.metrics import Curve
from ntk_jax.mining.ngrams import NgramConfig, Ngrams, load_ngrams, train_ngrams
from ntk_jax.mining.thresholds import check_threshold
from ntk_jax.mining.tuning import TuneConfig
from ntk_jax.mining.turns import in_turn
from ntk_jax.pipelines.mine import chunks
from ntk_jax.pipelines.mine.config import MineConfig, domain_names, mined_names
from ntk_jax.pipelines.mine.embed import chosen_embeddings, embeddings
from ntk_jax.pipelines.mine.label import check_thresholds, curve_of, histogram_of, labelled, own_documents
from ntk_jax.pipelines.mine.seeds import seeds_of
from ntk_jax.pipelines.mine.state import MineRun
from ntk_jax.storage.arrays import create, open_store, read
from ntk_jax.storage.atomic import link_file, make_folder, write_json, write_lines
from ntk_jax.training.checkpoints import discard_checkpoints

STORE, MINED = "probabilities.zarr", "mined.jsonl"
READ = 1024  # chunks read at once
SHOWN = 600  # characters of an example in the report
Classifier = Head | Ngrams | TunedEncoder


def check(config: MineConfig) -> None:
    """Raises UserError: thresholds of domains that there are not, or that are no probabilities."""
    check_thresholds(config, config.classify.thresholds, "classify.thresholds", 0.0)


def classify(run: MineRun, folder: Path) -> dict[str, Any] | None:
    """Writes classifier/, probabilities.zarr [N, M], mined.jsonl and summary.json. None when only a shard of the blocks
    was computed."""
    clock, domains = Clock(run.job.folder, "classify"), domain_names(run.config)
    total = chunks.count(run)
    classifier = _classifier(run, folder)
    size = run.config.embed.block_chunks
    facts = {"domains": list(domains), "kind": run.config.classify.kind}
    store = create(folder / STORE, {"probability": ((len(domains),), np.float32)}, total, size, facts)

    def ranges(blocks: frozenset[int]) -> Iterator[tuple[int, tuple[int, int]]]:
        for block in sorted(blocks):
            yield block, store.block_range(block)

    def compute(block: int, rows: tuple[int, int], progress: Progress) -> dict[str, np.ndarray]:
        return {"probability": probabilities(run, classifier, *rows)}

    fill_blocks(
        store,
        ranges,
        compute,
        shard=run.job.shard,
        progress=clock.ticking(run.job.progress("classify", total, "chunks")),
    )
    if run.job.shard is not None:
        return None
    return _close(run, folder, classifier, read(store, "probability"), clock)


def probabilities(run: MineRun, classifier: Classifier, start: int, stop: int) -> np.ndarray:
    """[n, M] of the chunks [start, stop)."""
    if isinstance(classifier, Head):
        return classifier.probabilities(embeddings(run, start, stop))
    texts = (chunk["text"] for chunk in chunks.read_range(run, start, stop))
    if isinstance(classifier, TunedEncoder):
        return classifier.probabilities(texts, batch_tokens=run.config.embed.batch_tokens)
    return classifier.probabilities(texts)


def taken(run: MineRun) -> tuple[np.ndarray, np.ndarray]:
    """(chunks [n] of mined.jsonl in its order, probabilities [N, M] of the corpus)."""
    folder = run.job.folder / "classify"
    return np.load(folder / "chosen.npy", allow_pickle=False), read(open_store(folder / STORE), "probability")


def write_mined(config: MineConfig, folder: Path) -> None:
    """RUN/mined.jsonl: the file of the stage under the name that people look for."""
    link_file(folder / "classify" / MINED, folder / MINED)


def _classifier(run: MineRun, folder: Path) -> Classifier:
    """The classifier in the folder, or one that is trained and put there. A shard trains the same one for itself."""
    place, kind = folder / "classifier", run.config.classify.kind
    if (place / "classifier.json").exists():
        if kind == "encoder":
            return load_encoder(place, run.embedder)
        return load_ngrams(place) if kind == "ngrams" else load_head(place)
    classifier = _trained(run, place)
    if run.job.shard is None:
        classifier.save(make_folder(place))
        discard_checkpoints(place)
    return classifier


def _trained(run: MineRun, place: Path) -> Classifier:
    """A classifier of the labelled set."""
    section, domains, found = run.config.classify, domain_names(run.config), labelled(run)
    groups = [chunk["document"] for chunk in chunks.read_chosen(run, found.chunks)]
    own = [(row["text"], row["domains"], f"document {row['document']}") for row in own_documents(run)]
    if run.config.label.with_seeds:
        own += [(seed.text, list(seed.domains), f"seed {seed.id}") for seed in seeds_of(run)]
    more = [text for text, _, _ in own]
    labels = np.concatenate([found.labels, labels_of([names for _, names, _ in own], domains)])
    groups += [group for *_, group in own]
    say = run.job.progress("train classifier", None, "steps")
    common: dict[str, Any] = {"groups": groups, "seed": run.config.seed, "progress": say}
    head = HeadConfig(hidden=section.hidden, held_out=section.held_out, precision=section.precision)
    if run.config.label.source != "seeds":  # read, and not made of the embeddings: held out, they can choose a penalty
        head = dataclasses.replace(head, penalties=CLEAN_PENALTIES)
    if section.kind == "head":
        vectors = chosen_embeddings(run, found.chunks)
        if more:
            mine = run.embedder.embed(more, kind="passage", batch_tokens=run.config.embed.batch_tokens)
            vectors = np.concatenate([vectors, mine])
        return train_head(vectors, labels, domains, config=head, facts=dict(run.embedder.facts), **common)
    texts = [chunk["text"] for chunk in chunks.read_chosen(run, found.chunks)] + more
    if section.kind == "ngrams":
        config = NgramConfig(held_out=section.held_out, precision=section.precision)
        return train_ngrams(texts, labels, domains, config=config, **common)
    tuning = TuneConfig(epochs=section.epochs, learning_rate=section.learning_rate, batch=section.batch)
    shard = run.job.shard  # each keeps its own checkpoints
    here = place if shard is None else place / f"shard-{shard.index}"
    return train_encoder(
        run.embedder, texts, labels, domains, config=EncoderConfig(tuning, head), folder=here, **common
    )


def _close(run: MineRun, folder: Path, classifier: Classifier, found: np.ndarray, clock: Clock) -> dict[str, Any]:
    """Takes what is above the thresholds, without semantic near-duplicates, the best of each domain first, in turn,
    until the words are full."""
    section, domains = run.config.classify, mined_names(run.config)
    given, found = section.thresholds or {}, found[:, : len(domains)]
    limits = np.array(
        [float(given.get(name, classifier.thresholds[place])) for place, name in enumerate(domains)], np.float32
    )
    for place, name in enumerate(domains):
        check_threshold(found[:, place], float(limits[place]), name)
    above = found >= limits
    places = in_turn(found, above)
    kept, dropped = _distinct(run, places)
    account = _write(run, folder, kept, found, above)
    np.save(folder / "chosen.npy", kept[: account.taken])
    figures = classifier.calibration.figures
    summary = {
        "kind": section.kind,
        "train": classifier.facts["training"]["rows"] - classifier.facts["training"]["rows held out"],
        "held_out": classifier.facts["training"]["rows held out"],
        "chunks": len(found),
        "taken": account.taken,
        "documents": len(account.documents),
        "words": account.words,
        "several": account.several,
        "near_duplicates": dropped,
        "domains": {
            name: {
                "threshold": float(limits[place]),
                **_held_out(
                    figures.get(name, {}),
                    classifier.calibration.curves.get(name),
                    float(limits[place]) if name in given else None,
                ),
                "histogram": histogram_of(found[:, place]),
                "taken": sum(count for count, _ in account.sources[name].values()),
                "sources": {
                    source: {"taken": count, "probability": total / count}
                    for source, (count, total) in account.sources[name].items()
                },
            }
            for place, name in enumerate(domains)
        },
        "training": classifier.facts["training"],
        "examples": account.examples(),
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"taken": account.taken}


def _held_out(figures: Mapping[str, Any], curve: Curve | None, given: float | None) -> dict[str, Any]:
    """How good the classifier is on labels that it has not learnt from. given: the config's threshold, which no row
    has chosen; None: precision and recall are counted on rows that the threshold was not chosen by."""
    if curve is None:
        return {}
    positives, total = figures["held-out positives"], figures["held-out positives"] + figures["held-out negatives"]
    found: dict[str, Any] = {}
    if given is not None:
        precision, recall = curve.at(given)
        place = int(np.searchsorted(-curve.threshold, -given, side="right")) - 1
        kept = float(curve.kept[place]) if place >= 0 else 0.0
        found = {
            "precision": _share(precision * kept if kept else 0.0, kept),
            "recall": _share(recall * positives, positives),
        }
    elif counted := figures.get("counted"):
        found = {
            "precision": _share(counted["right"], counted["kept"]),
            "recall": _share(counted["right"], counted["positives"]),
        }
    return {
        **found,
        "average_precision": curve.average_precision,
        "base_rate": positives / total,
        "positives": positives,
        "curve": curve_of(curve),
    }


def _share(right: float, count: float) -> dict[str, float | None]:
    """A share with its 95% Wilson interval."""
    low, high = wilson(right, count)
    return {"value": right / count if count else None, "low": low, "high": high}


def _distinct(run: MineRun, places: np.ndarray) -> tuple[np.ndarray, int]:
    """(places without semantic near-duplicates of better ones, how many were dropped)."""
    limit = run.config.classify.near_duplicates
    if limit >= 1 or len(places) < 2:
        return places, 0
    order = np.argsort(places)
    vectors = np.empty((len(places), run.embedder.dim), np.float32)
    vectors[order] = chosen_embeddings(run, places[order])
    first = first_alike(vectors, limit)
    stays = first == np.arange(len(places))
    return places[stays], int((~stays).sum())


@dataclass
class _Account:
    """What was written: per domain {source: (chunks, sum of their probabilities)}, and examples."""

    taken: int = 0
    words: int = 0
    several: int = 0
    documents: set[str] = field(default_factory=set)
    sources: dict[str, dict[str, tuple[int, float]]] = field(default_factory=dict)
    best: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    last: dict[str, deque[dict[str, Any]]] = field(default_factory=dict)

    def examples(self) -> list[dict[str, Any]]:
        """Of every domain, most probable first; a chunk of two domains once."""
        found = [one for name in self.best for one in (*self.best[name], *self.last[name])]
        return list({one["id"]: one for one in found}.values())


def _write(run: MineRun, folder: Path, places: np.ndarray, found: np.ndarray, above: np.ndarray) -> _Account:
    """mined.jsonl, the best of each domain first, each with where it came from and why it was taken."""
    domains, most = mined_names(run.config), run.config.classify.most_words
    store = open_store(run.job.folder / "embed" / "chunks.zarr")
    best, best_seed = read(store, "best"), read(store, "best_seed")
    seeds = [seed.id for seed in seeds_of(run)]
    few = run.config.report.examples
    account = _Account(
        sources={name: {} for name in domains},
        best={name: [] for name in domains},
        last={name: deque(maxlen=max(1, few // 2)) for name in domains},
    )

    def records() -> Iterator[dict[str, Any]]:
        for start in range(0, len(places), READ):
            part = places[start : start + READ]
            ordered = np.sort(part)
            here = dict(zip(ordered.tolist(), chunks.read_chosen(run, ordered), strict=True))
            for place in part.tolist():
                own = int(np.where(above[place], found[place], -1).argmax())
                yield here[place] | {
                    "domains": [name for at, name in enumerate(domains) if above[place, at]],
                    "probability": {name: round(float(found[place, at]), 4) for at, name in enumerate(domains)},
                    "seed": seeds[best_seed[place, own]],
                    "score": round(float(best[place, own]), 4),
                    "method": "dopamine",
                }

    def lines() -> Iterator[str]:
        for record in records():
            if most is not None and account.taken and account.words + record["words"] > most:
                return
            _count(account, record, few)
            yield json.dumps(record, ensure_ascii=False)

    write_lines(folder / MINED, lines())
    return account


def _count(account: _Account, record: Mapping[str, Any], examples: int) -> None:
    account.taken += 1
    account.words += record["words"]
    account.several += len(record["domains"]) > 1
    account.documents.add(record["document"])
    for name in record["domains"]:
        count, total = account.sources[name].get(record["source"], (0, 0.0))
        account.sources[name][record["source"]] = (count + 1, total + record["probability"][name])
    for name in record["domains"]:  # of every domain the best, and the last ones that were still taken
        shown = {**record, "text": record["text"][:SHOWN]}
        best, last = account.best[name], account.last[name]
        if len(best) < (examples + 1) // 2:
            best.append(shown)
        elif examples > 1:
            last.append(shown)
