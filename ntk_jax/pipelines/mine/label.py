"""The labelled set that the classifier learns from: by nearest seeds, from own documents, or by a language model."""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError, note
from ntk_jax.mining import labels as labelling
from ntk_jax.mining import thresholds
from ntk_jax.mining.annotate import annotate
from ntk_jax.mining.judge import ask_verdicts, question
from ntk_jax.mining.labels import Labelled
from ntk_jax.mining.metrics import Curve
from ntk_jax.mining.seeds.seed import domain_matrix
from ntk_jax.pipelines.mine import chunks
from ntk_jax.pipelines.mine.config import MineConfig, domain_names, mined_names
from ntk_jax.pipelines.mine.embed import best_scores, chosen_embeddings, nearest_chunks
from ntk_jax.pipelines.mine.seeds import seeds_of
from ntk_jax.pipelines.mine.state import MineRun
from ntk_jax.storage.atomic import replacing, write_json

FILE = "labels.npz"
COLUMNS = ("chunks", "labels", "why", "seed", "score")


def check(config: MineConfig) -> None:
    """Raises UserError: thresholds of domains that there are not, or that are no cosines."""
    check_thresholds(config, config.label.thresholds, "label.thresholds", -1.0)


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
    if section.source == "llm":
        found, failures = _by_model(run, best, best_seed)
        cuts: dict[str, _Cut] = {}
    else:
        top_score, top_chunk = nearest_chunks(run)
        _refuse_without_seeds(own, domains)
        cuts = {name: _cut(run, name, best[:, place]) for place, name in enumerate(domains)}
        found, failures = (
            labelling.label(
                best,
                best_seed,
                top_score,
                top_chunk,
                own,
                thresholds=[cuts[name].suggestion.value for name in domains],
                names=domains,
                per_seed=min(section.per_seed, top_chunk.shape[1]),
                margin=section.margin,
                negatives=section.negatives,
                hard_share=section.middle,
                most=section.most,
                vectors=functools.partial(chosen_embeddings, run),
                seed=run.config.seed,
            ),
            {},
        )
    with replacing(folder / FILE) as file:
        np.savez(file, **{name: getattr(found, name) for name in COLUMNS})
    summary = {
        "source": section.source,
        "labelled": len(found.chunks),
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
    return {"labelled": len(found.chunks)}


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


@dataclass(frozen=True)
class _Cut:
    """A domain's threshold, and what a judged sample says of it."""

    suggestion: thresholds.Suggestion
    judged: int = 0
    curve: Curve | None = None

    def facts(self) -> dict[str, Any]:
        found = self.suggestion
        facts = {"threshold": found.value, "how": found.how, "kept": found.kept, "total": found.total}
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


def _by_model(run: MineRun, best: np.ndarray, best_seed: np.ndarray) -> tuple[Labelled, dict[str, int]]:
    """A language model reads a sample and labels it, as WebOrganizer (arXiv 2502.10341) does: half of it the best of
    all domains, for a random sample of a large corpus has next to nothing of a scarce domain; half of it random."""
    rng, count = np.random.default_rng([run.config.seed, 0x11A]), min(run.config.label.sample, len(best))
    likely = np.argsort(-best.max(axis=1), kind="stable")[: count // 2]
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
