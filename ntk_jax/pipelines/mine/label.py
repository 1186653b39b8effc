"""The labelled set that the classifier learns from: by nearest seeds, from own documents, or by a language model."""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError, note
from ntk_jax.llm.verdicts import ask_verdicts
from ntk_jax.mining import labels as labelling
from ntk_jax.mining import thresholds
from ntk_jax.mining.annotate import annotate
from ntk_jax.mining.documents import EVERY, labelled_documents
from ntk_jax.mining.judge import question
from ntk_jax.mining.labels import Labelled
from ntk_jax.mining.metrics import Curve
from ntk_jax.mining.seeds.own import seed_files
from ntk_jax.mining.seeds.seed import domain_matrix
from ntk_jax.mining.turns import in_turn
from ntk_jax.pipelines.mine import chunks
from ntk_jax.pipelines.mine.config import MineConfig, domain_names, mined_names
from ntk_jax.pipelines.mine.embed import best_scores, chosen_embeddings, nearest_chunks
from ntk_jax.pipelines.mine.seeds import seeds_of
from ntk_jax.pipelines.mine.state import MineRun
from ntk_jax.storage.atomic import replacing, write_json, write_lines
from ntk_jax.storage.reading import read_json_lines

FILE, DOCUMENTS = "labels.npz", "documents.jsonl"
COLUMNS = ("chunks", "labels", "why", "seed", "score")


def check(config: MineConfig) -> None:
    """Raises UserError: thresholds of domains that there are not, or that are no cosines; own documents without a
    source that reads them, or of a domain that there is not."""
    check_thresholds(config, config.label.thresholds, "label.thresholds", -1.0)
    files, names, wanted = (
        seed_files(config.label.files or {}),
        domain_names(config),
        config.label.source == "documents",
    )
    if bool(files) != wanted:
        what = "label.files is not set" if wanted else "label.files is read by label.source = documents alone"
        raise UserError(f"{what}; give own documents as label.files, {{domain: file}}, and label.source = documents")
    unknown = [name for name in files if name not in (*names, EVERY)]
    if unknown:
        raise UserError(f"label.files: there is no domain {unknown[0]}; there are {', '.join(names)}")
    bare = [name for name in names if name not in files]
    if wanted and bare and EVERY not in files:
        raise UserError(f"label.files: {bare[0]} has no file; every domain and contrast needs labelled documents")


def check_thresholds(config: MineConfig, found: Any, key: str, low: float) -> None:
    """Raises UserError: one is of an unknown domain, or outside [low, 1]."""
    for name, value in (found or {}).items():
        if name not in domain_names(config):
            raise UserError(f"{key}: there is no domain {name}; there are {', '.join(domain_names(config))}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= 1:
            raise UserError(f"{key}.{name} = {value!r} must be a number between {low:g} and 1")


def label(run: MineRun, folder: Path) -> Facts:
    """Writes labels.npz (chunks [n], labels [n, M], why, seed, score), thresholds.json and summary.json."""
    clock, section, domains = Clock(run.job.folder, "label"), run.config.label, domain_names(run.config)
    best, best_seed = best_scores(run)
    own = domain_matrix(seeds_of(run), domains)
    if len(domains) == 1:
        note("one domain and no contrast: whatever is near a seed in any respect counts as near; give `contrast`")
    failures: dict[str, int] = {}
    cuts: dict[str, _Cut] = {}
    if section.source == "llm":
        found, failures = _by_model(run, best, best_seed)
    else:
        _refuse_without_seeds(own, domains)
        cuts = {name: _cut(run, name, best[:, place]) for place, name in enumerate(domains)}
        limits = [cuts[name].suggestion.value for name in domains]
        by = _by_documents if section.source == "documents" else _by_seeds
        found = by(run, folder, best, best_seed, limits)
    with replacing(folder / FILE) as file:
        np.savez(file, **{name: getattr(found, name) for name in COLUMNS})
    summary = {
        "source": section.source,
        "labelled": len(found.chunks) + len(own_documents(run)),
        "domains": {
            name: {
                **(cuts[name].facts() if name in cuts else {}),
                "histogram": histogram_of(best[:, place]),
                "quantiles": thresholds.quantiles(best[:, place]),
                "counts": dict(found.counts[name]),
            }
            for place, name in enumerate(domains)
        },
        "failures": failures,
        "llm": run.spend(),
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"labelled": summary["labelled"]}


def histogram_of(scores: np.ndarray) -> dict[str, list[float]]:
    """For the report."""
    edges, counts = thresholds.histogram(scores)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def curve_of(curve: Curve, points: int = 200) -> dict[str, list[float]]:
    """A curve of precision and recall for the report, of so many points at most."""
    places = np.unique(np.linspace(0, len(curve.threshold) - 1, points).round().astype(int))
    return {name: getattr(curve, name)[places].tolist() for name in ("threshold", "precision", "recall")}


def labelled(run: MineRun) -> Labelled:
    """What the stage wrote."""
    path = run.job.folder / "label" / FILE
    try:
        with np.load(path, allow_pickle=False) as found:
            return Labelled(**{name: found[name] for name in COLUMNS}, counts={})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); delete the folder {path.parent} and run again") from None


def own_labels(config: MineConfig) -> list[dict[str, Any]]:
    """The chunks of label.files. Raises UserError: a file that cannot be read, or a domain without a document."""
    files, corpus = seed_files(config.label.files or {}), config.corpus
    try:
        return labelled_documents(files, domain_names(config), words=corpus.words, min_words=corpus.min_words)
    except UserError as error:
        raise UserError(f"label.files: {error}") from None


def own_documents(run: MineRun) -> list[dict[str, Any]]:
    """The chunks {"text", "domains", "document"} of the user's own documents that are labels, where they are."""
    path = run.job.folder / "label" / DOCUMENTS
    if run.config.label.source != "documents":
        return []
    return [dict(row) for row in read_json_lines(path, f"delete the folder {path.parent} and run again")]


@dataclass(frozen=True)
class _Cut:
    """A domain's threshold, and what a judged sample says of it."""

    suggestion: thresholds.Suggestion
    judged: int = 0
    curve: Curve | None = None

    def facts(self) -> dict[str, Any]:
        found = self.suggestion
        facts = {"threshold": found.value, "how": found.how, "kept": found.kept, "total": found.total}
        facts |= {"doubtful": True} if found.doubtful else {}
        return facts | ({"judged": self.judged, "curve": curve_of(self.curve)} if self.curve else {})


def _cut(run: MineRun, name: str, scores: np.ndarray) -> _Cut:
    """The threshold of a domain: the one that is given, or one from a judged sample or from the scores themselves."""
    section = run.config.label
    given = (section.thresholds or {}).get(name)
    if given is not None:
        kept = thresholds.check_threshold(scores, float(given), name)
        return _Cut(thresholds.Suggestion(float(given), kept, len(scores), "given"))
    if not section.judged or name not in mined_names(run.config):
        if section.share is not None:
            return _Cut(thresholds.suggest_share(scores, section.share))
        return _Cut(thresholds.suggest_excess(scores))
    sample = thresholds.judged_sample(scores, section.judged, run.config.seed)
    texts = [chunk["text"] for chunk in chunks.read_chosen(run, sample.places)]
    questions = [question(text, name, run.domains[name]) for text in texts]
    progress = run.job.progress(f"judge {name}", len(texts), "chunks")
    verdicts = ask_verdicts(run.client, questions, progress=progress).values
    found = thresholds.suggest_judged(scores, sample, verdicts, precision=section.precision)
    judged = int((~np.isnan(verdicts)).sum())
    return _Cut(found, judged, thresholds.judged_curve(scores, sample, verdicts))


def _by_seeds(run: MineRun, folder: Path, best: np.ndarray, best_seed: np.ndarray, limits: list[float]) -> Labelled:
    """The nearest chunks of the seeds, and negatives."""
    section, domains = run.config.label, domain_names(run.config)
    top_score, top_chunk = nearest_chunks(run)
    return labelling.label(
        best,
        best_seed,
        top_score,
        top_chunk,
        domain_matrix(seeds_of(run), domains),
        thresholds=limits,
        names=domains,
        per_seed=min(section.per_seed, top_chunk.shape[1]),
        margin=section.margin,
        negatives=section.negatives,
        hard_share=section.middle,
        most=section.most,
        vectors=functools.partial(chosen_embeddings, run),
        seed=run.config.seed,
    )


def _by_documents(run: MineRun, folder: Path, best: np.ndarray, best_seed: np.ndarray, limits: list[float]) -> Labelled:
    """Negatives out of the corpus, below the thresholds; the documents' chunks go to a file of their own."""
    section, domains, rows = run.config.label, domain_names(run.config), own_labels(run.config)
    write_lines(folder / DOCUMENTS, (json.dumps(row, ensure_ascii=False) for row in rows))
    own = {name: [row["document"] for row in rows if name in row["domains"]] for name in domains}
    found = labelling.negatives_below(
        best,
        best_seed,
        thresholds=limits,
        wanted=[round(section.negatives * len(own[name])) for name in domains],
        names=domains,
        hard_share=section.middle,
        seed=run.config.seed,
    )
    positives = {name: {"positive": len(each), "own documents": len(set(each))} for name, each in own.items()}
    return dataclasses.replace(found, counts={name: positives[name] | dict(found.counts[name]) for name in domains})


def _by_model(run: MineRun, best: np.ndarray, best_seed: np.ndarray) -> tuple[Labelled, dict[str, int]]:
    """A language model reads a sample and labels it, as WebOrganizer (arXiv 2502.10341) does: half of it the best of
    each domain that is mined, in turn, for a random sample of a large corpus has next to nothing of a scarce domain;
    half of it random."""
    rng, count = np.random.default_rng([run.config.seed, 0x11A]), min(run.config.label.sample, len(best))
    likely = in_turn(best[:, : len(mined_names(run.config))])[: count // 2]
    others = rng.permutation(np.setdiff1d(np.arange(len(best)), likely))[: count - len(likely)]
    places = np.sort(np.concatenate([likely, others])).astype(np.int64)
    texts = [chunk["text"] for chunk in chunks.read_chosen(run, places)]
    progress = run.job.progress("label", len(texts), "chunks")
    found = annotate(run.client, texts, run.domains, progress=progress)
    read = ~np.isnan(found.labels).any(axis=1)
    places, labels = places[read], found.labels[read]
    own = best[places].argmax(axis=1)
    positive = (labels == 1).any(axis=1)
    counts = {
        name: {"positive": int((labels[:, at] == 1).sum()), "negative": int((labels[:, at] == 0).sum())}
        for at, name in enumerate(domain_names(run.config))
    }
    return Labelled(
        places,
        labels,
        np.where(positive, labelling.POSITIVE, labelling.RANDOM),
        best_seed[places, own],
        best[places, own],
        counts,
    ), dict(found.failures)


def _refuse_without_seeds(own: np.ndarray, domains: tuple[str, ...]) -> None:
    bare = [name for place, name in enumerate(domains) if not own[:, place].any()]
    if bare:
        raise UserError(f"{bare[0]}: no seed is left of this domain; see seeds/summary.json, or give seeds.files")
