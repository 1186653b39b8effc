"""From a ranking to a selection: what `select.clean` and `select.quotas` leave out, what `select.diversity` takes."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.evaluation_items import EvaluationItems, evaluation_items
from ntk_jax.data.near_duplicates import MinHash
from ntk_jax.data.records import Record
from ntk_jax.data.sources import read
from ntk_jax.errors import UserError
from ntk_jax.pipelines.select.config import SelectConfig, cleans, diversifies, needed, refines
from ntk_jax.pipelines.select.items import item_embeddings
from ntk_jax.pipelines.select.looked import Looked
from ntk_jax.pipelines.select.state import SelectRun, evaluation_items_of
from ntk_jax.selection.clean import AUTO, Check, Cleaned, Drop, Leaks, NearTexts, NearVectors, counts_of, leak, walk
from ntk_jax.selection.deeper import again, deeper
from ntk_jax.selection.diversity import coverage, diversify, log_volume
from ntk_jax.selection.near_items import NearItems, nearest_items
from ntk_jax.selection.quotas import Quotas, caps_of, check_filled
from ntk_jax.selection.ranker import Candidates, Embeddings, Ranking, Sketches
from ntk_jax.selection.rankers import RANKERS
from ntk_jax.selection.records import record_line
from ntk_jax.selection.sketch_features import sketch_features
from ntk_jax.selection.text_features import text_features
from ntk_jax.selection.texts import text_of
from ntk_jax.storage.atomic import write_lines

WHOLE_POOL = "pool"  # the name of the list of what whole_pool leaves out; no ranker has it


def check(config: SelectConfig) -> None:
    """Raises UserError for settings of clean, quotas and diversity that cannot be, or cannot work together."""
    part, clean = config.select, config.select.clean
    for key, usual in (("near_duplicates", 0.8), ("cosine", 0.95), ("decontaminate_cosine", 0.95)):
        value = getattr(clean, key)
        if value is not None and not 0 < value <= 1:
            raise UserError(
                f"select.clean.{key} = {value:g}: a threshold is above 0 and at most 1 ({usual} is usual); null: "
                "nothing is compared"
            )
    if AUTO in clean.decontaminate and not config.evaluate.files:
        raise UserError("select.clean.decontaminate: auto stands for evaluate.files, which names no file; name files")
    if clean.decontaminate_cosine is not None:
        _check_item_cosine(config)
    if clean.whole_pool and not clean.decontaminate:
        raise UserError("select.clean.whole_pool looks for evaluation items; name files in select.clean.decontaminate")
    if clean.against_domain and clean.near_duplicates is None and clean.cosine is None:
        raise UserError("select.clean.against_domain compares nothing; set select.clean.near_duplicates or cosine")
    if not needed(config, "sketches"):
        by_sketch = part.diversity.method != "none" and part.diversity.features == "sketch"
        if by_sketch or clean.cosine is not None:
            key = "diversity.features = sketch" if by_sketch else "clean.cosine"
            instead = "features: text" if by_sketch else "near_duplicates"
            raise UserError(
                f"select.{key} compares sketches, which no method of this run makes; add sketch to select.methods, or "
                f"take {instead}"
            )
    try:
        caps_of(part.quotas, (), part.count)
    except UserError as error:
        raise UserError(f"select.quotas.{error}") from None
    for method in part.diversity.methods or ():
        if method not in part.methods:
            raise UserError(f"select.diversity.methods: {method} is not in select.methods; leave it out")
        if RANKERS[method].after(getattr(part, method)):
            raise UserError(f"select.diversity.methods: {method} matches another's selection; leave it out")


def _check_item_cosine(config: SelectConfig) -> None:
    if not config.select.clean.decontaminate:
        raise UserError(
            "select.clean.decontaminate_cosine compares with evaluation items; name files in select.clean.decontaminate"
        )
    beyond = [method for method in config.select.methods if not set(RANKERS[method].needs) - {"votes"}]
    if config.preselect.method == "votes" and beyond:
        raise UserError(
            f"select.clean.decontaminate_cosine: {beyond[0]} also selects what preselect leaves out, which has no "
            "embedding; take preselect.method = none, or leave it out of select.methods"
        )


def check_inputs(run: SelectRun) -> None:
    """Raises UserError: an evaluation file that cannot be read or holds nothing to look for, or quotas that name a
    group that the pool lacks, or that cannot be filled however the pool's groups are."""
    config = run.config
    if config.select.clean.decontaminate:
        items_of(config)
    quotas = config.select.quotas
    if quotas.on and quotas.by == config.report.group_by:
        groups = run.pool.census.families
        _refuse_unknown(config, groups)
        caps = caps_of(quotas, groups, config.select.count)
        _check_filled(config, caps, dict.fromkeys(groups, run.pool.census.total))


def items_of(config: SelectConfig) -> EvaluationItems:
    """The evaluation items that no selection may hold. Raises UserError: none of them is long enough."""
    clean = config.select.clean

    def records() -> Iterator[tuple[str, Record]]:
        for file, reading in evaluation_items_of(config):
            yield from ((file, record) for record in read(file, reading))

    found = evaluation_items(records(), clean.ngram, clean.shortest)
    if not found.runs and clean.decontaminate_cosine is None:
        raise UserError(
            f"select.clean.decontaminate: none of {len(found.ids)} evaluation items has select.clean.shortest = "
            f"{clean.shortest} words, so nothing is looked for; lower it"
        )
    return found


class Refinement:
    """How the rankings of a run become its selections; what was left out by each method is kept for its files.

    usable: [N] bool. groups: names the group of each place by a record key, asked for where there are quotas.
    """

    def __init__(
        self,
        run: SelectRun,
        usable: np.ndarray,
        groups: Callable[[str], Sequence[str]],
        sketches: Sketches | None,
        embeddings: Embeddings | None = None,
    ) -> None:
        config, clean, quotas = run.config, run.config.select.clean, run.config.select.quotas
        self._run, self._config, self.usable, self._sketches = run, config, usable, sketches
        self.on = bool(refines(config))
        self.facts: dict[str, dict[str, Any]] = {}
        self.drops: dict[str, list[Drop]] = {}
        items = items_of(config) if clean.decontaminate else None
        near = clean.near_duplicates is not None
        hashing = MinHash(clean.shingle, clean.permutations) if near else None
        self._looked = Looked(run, items, hashing, sketches if clean.cosine is not None else None)
        self._near: NearItems | None = None
        if items and embeddings and clean.decontaminate_cosine is not None:
            self._near = _near_items(run, items, embeddings, clean.decontaminate_cosine)
        self._groups: Sequence[str] | None = None
        self._caps: dict[str, int] = {}
        if quotas.on:
            self._groups = groups(quotas.by)
            _refuse_unknown(config, self._groups)
            self._caps = caps_of(quotas, self._groups, config.select.count)
        if items and clean.whole_pool:
            self._clean_pool(items)
        if self._groups is not None:
            there = Counter(self._groups[place] for place in np.flatnonzero(self.usable).tolist())
            _check_filled(config, self._caps, there)

    def select(self, method: str, candidates: Candidates) -> Ranking:
        """The selection of a method: scores of all, and the places of the chosen, best first.

        Raises UserError: as the ranker; fewer are left than are asked for; an example without a sketch.
        """
        config, count = self._config, self._config.select.count
        ranker, options = RANKERS[method], getattr(config.select, method)

        def rank(depth: int, usable: np.ndarray) -> Ranking:
            return ranker.rank(dataclasses.replace(candidates, count=depth, usable=usable), options)

        if not self.on:
            return rank(count, self.usable)
        diverse = diversifies(config, method)
        wanted = math.ceil(count * config.select.diversity.candidates) if diverse else count

        def clean(order: np.ndarray, want: int) -> Cleaned:
            if cleans(config):
                self._looked.look(order, f"clean {method}")
            return walk(order, want, self._checks(wanted / count))

        if ranker.after(options):
            chosen = again(rank, clean, self.usable, count, self._groups)
        else:
            chosen = deeper(rank, clean, self.usable, count, wanted)
        kept, drops = chosen.cleaned.kept, chosen.cleaned.drops
        self.drops[method] = drops
        if len(kept) < count:
            raise _too_few(config, method, len(kept), len(kept) + len(drops), drops)
        self.facts[method] = {"looked_at": len(kept) + len(drops), "dropped": counts_of(drops)}
        order = self._diverse(method, kept) if diverse else kept
        return Ranking(chosen.ranking.scores, order)

    def write(self, folder: Path) -> None:
        """<method>.dropped.jsonl, a line for each example that was left out, best ranked first."""
        for name, drops in self.drops.items() if self.on else ():
            named = self._looked.names(drop.place for drop in drops)
            lines = [
                record_line({"id": id, "source": source, "rank": drop.rank, **dataclasses.asdict(drop.refusal)})
                for drop, (id, source) in zip(drops, named, strict=True)
            ]
            write_lines(folder / f"{name}.dropped.jsonl", lines)

    def pool_facts(self) -> dict[str, Any]:
        """What summary.json says of evaluation items, beside what each method left out."""
        items = self._looked.items
        if items is None:
            return {}
        found: dict[str, Any] = {"items": len(items.ids), "items_too_short": items.short}
        if self._near:
            found |= self._near_facts(self._near)
        if WHOLE_POOL in self.drops:
            found["pool_dropped"] = len(self.drops[WHOLE_POOL])
        return {"decontamination": found}

    def _near_facts(self, near: NearItems) -> dict[str, Any]:
        """How near the pool is to the items, by which a threshold is chosen."""
        known = near.cosine[~np.isnan(near.cosine)]
        low, high, most = np.quantile(known, [0.5, 0.99, 1.0]).tolist() if len(known) else (None, None, None)
        without = len(near.ids) - near.compared
        return {"items_without_embedding": without, "nearest_cosine": {"median": low, "99%": high, "largest": most}}

    def _clean_pool(self, items: EvaluationItems) -> None:
        """Makes what holds an evaluation item unusable, for every method."""
        places = np.flatnonzero(self.usable)
        progress = self._run.job.progress("clean pool", len(places), "examples")
        drops = []
        for number, (place, record) in enumerate(self._looked.records(places.tolist()), 1):
            found = items.overlap(text_of(record), self._config.select.clean.share)
            refusal = leak(items, found) if found else self._near and self._near.refuse(place)
            if refusal:
                drops.append(Drop(place, None, refusal))
            if number % 1000 == 0 or number == len(places):
                progress(number, len(places))
        self.drops[WHOLE_POOL] = drops
        self.usable = self.usable.copy()
        self.usable[[drop.place for drop in drops]] = False
        left = int(self.usable.sum())
        if left < self._config.select.count:
            raise _too_few(self._config, "the pool", left, len(places), drops)

    def _checks(self, wider: float) -> list[Check]:
        """What each example is held against. wider: how many candidates there are for one that is selected."""
        clean, looked, found = self._config.select.clean, self._looked, list[Check]()
        if looked.items:
            found.append(Leaks(looked.items, looked.overlap))
        if self._near:
            found.append(self._near)
        if clean.near_duplicates is not None:
            domain = looked.domain_signatures if clean.against_domain else None
            found.append(
                NearTexts(
                    clean.near_duplicates, looked.signature, looked.name, permutations=clean.permutations, domain=domain
                )
            )
        if clean.cosine is not None:
            vectors = looked.domain_vectors if clean.against_domain else None
            found.append(NearVectors(clean.cosine, looked.vector, looked.name, domain=vectors))
        if self._groups is not None:
            caps = {name: math.ceil(most * wider) for name, most in self._caps.items()}
            found.append(Quotas(self._groups, caps))
        return found

    def _diverse(self, method: str, kept: np.ndarray) -> np.ndarray:
        part, count = self._config.select.diversity, self._config.select.count
        features = self._features(method, kept)
        groups = [self._groups[place] for place in kept.tolist()] if self._groups is not None else None
        if groups is not None:
            _check_filled(self._config, self._caps, Counter(groups))
        progress = self._run.job.progress(f"diversify {method}", count, "examples")
        order = diversify(
            features,
            count,
            method=part.method,
            quality=part.quality,
            beta=part.beta,
            groups=groups,
            caps=self._caps if groups is not None else None,
            progress=lambda done, total: progress(done, total) if done % 100 == 0 or done == total else None,
        )

        def measured(picked: np.ndarray) -> float:
            return coverage(features, picked) if part.method != "dpp" else log_volume(features, picked, part.beta)

        self.facts[method] |= {
            "candidates": len(kept),
            "diversity": {"value": measured(order), "value_of_best": measured(np.arange(count))},
        }
        return kept[order]

    def _features(self, method: str, kept: np.ndarray) -> np.ndarray:
        """[M, D], a row a candidate."""
        part = self._config.select.diversity
        if part.features == "sketch" and self._sketches is not None:
            rows, there = sketch_features(self._sketches, kept, part.dim)
            if not there.all():
                raise UserError(
                    f"select.diversity.features = sketch: {int((~there).sum())} of {len(kept)} candidates of {method} "
                    f"have no sketch, as those that preselect leaves out; take features: text, or leave {method} out "
                    "of select.diversity.methods"
                )
            return rows
        progress = self._run.job.progress(f"features of {method}", len(kept), "examples")
        ascending = np.argsort(kept)
        texts = (text_of(record) for _, record in self._looked.records(kept.tolist()))
        found = text_features(
            texts, part.dim, progress=lambda n: progress(n, len(kept)) if n % 500 == 0 or n == len(kept) else None
        )
        rows = np.empty_like(found)
        rows[ascending] = found
        return rows


def _near_items(run: SelectRun, items: EvaluationItems, embeddings: Embeddings, threshold: float) -> NearItems:
    """Every example of the pool against every item, by their embeddings."""
    places, rows = item_embeddings(run.job.folder / "items")
    found, cosines = nearest_items(embeddings.blocks(), rows)
    nearest, cosine = np.zeros(len(run.pool.ordinals), np.int64), np.full(len(run.pool.ordinals), np.nan, np.float32)
    nearest[embeddings.places], cosine[embeddings.places] = places[found], cosines
    return NearItems(threshold, items.ids, items.files, nearest, cosine, len(places))


def _refuse_unknown(config: SelectConfig, groups: Sequence[str]) -> None:
    known = dict.fromkeys(groups)
    unknown = sorted(set(config.select.quotas.groups or {}) - set(known))
    if unknown:
        key = "task or source" if config.select.quotas.by == "auto" else config.select.quotas.by
        raise UserError(
            f"select.quotas.groups: no record of data.pool has {key} = {unknown[0]}; groups are "
            f"{', '.join(sorted(known)[:8])}"
        )


def _check_filled(config: SelectConfig, caps: dict[str, int], available: dict[str, int]) -> None:
    try:
        check_filled(caps, available, config.select.count)
    except UserError as error:
        raise UserError(f"select.{error}") from None


def _too_few(config: SelectConfig, method: str, left: int, looked: int, drops: Sequence[Drop]) -> UserError:
    """How many were left, why the others were not, and what to change."""
    counts = counts_of(drops)
    said = ", ".join(f"{reason} {number}" for reason, number in counts.items()) or "nothing"
    changes = {
        "contamination": "select.clean.ngram",
        "contamination by embedding": "select.clean.decontaminate_cosine",
        "near-duplicate": "select.clean.near_duplicates",
        "near-duplicate by sketch": "select.clean.cosine",
        "near-duplicate of the domain": "the thresholds of select.clean",
        "quota": "select.quotas",
    }
    most = max(counts, key=lambda reason: counts[reason], default="")
    remedy = f", raise {changes[most]}" if most else ""
    return UserError(
        f"select: {left} examples are left of the {looked} that {method} has, fewer than select.count = "
        f"{config.select.count} (left out: {said}); lower select.count, add data{remedy}"
    )
