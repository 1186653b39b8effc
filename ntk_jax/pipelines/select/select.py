"""From what was computed of the pool to selections: one a method, and who was picked. Sorts, and takes no gradients."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.account import KEPT
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import Record
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.common.arrays import load_arrays
from ntk_jax.pipelines.common.rankings import FILE as RANKINGS
from ntk_jax.pipelines.common.rankings import save_rankings
from ntk_jax.pipelines.select import clean, less, losses, low_rank, preselect, score, tokenize
from ntk_jax.pipelines.select.account import families_of, spearman
from ntk_jax.pipelines.select.clean import Refinement
from ntk_jax.pipelines.select.config import SelectConfig, counts_votes, needed, rankers_of, repeat_seed
from ntk_jax.pipelines.select.embed import open_embeddings
from ntk_jax.pipelines.select.preselect import candidates_of
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.selection.ranker import Candidates, Checkpoint, Components, Embeddings, Ranking, Sketches
from ntk_jax.selection.rankers import RANKERS
from ntk_jax.selection.records import record_line, selected_records
from ntk_jax.selection.sketch_store import open_sketches
from ntk_jax.storage.arrays import Store, open_store, read
from ntk_jax.storage.atomic import write_json, write_lines

# What is needed where a stage keeps an account of the pool.
READ_THE_POOL = ("scores", "sketches", "components", "checkpoints", "embeddings", "losses")
SHOWN = 1500  # points of a scatter: enough to see a length effect, few enough to draw


def check(config: SelectConfig) -> None:
    """Raises UserError: a method that does not exist, one given twice, or one that looks at another that is not
    made."""
    methods = config.select.methods
    unknown = [method for method in methods if method not in RANKERS]
    if unknown or not methods:
        raise UserError(f"select.methods = {list(methods)}: choose from {', '.join(RANKERS)}")
    if len(set(methods)) < len(methods):
        raise UserError(f"select.methods = {list(methods)} names a method twice; leave one out")
    for method in methods:
        for other in RANKERS[method].after(getattr(config.select, method)):
            if other not in methods or other == method:
                raise UserError(
                    f"select.methods: {method} looks at the selection of {other}; add {other} to the list, or name "
                    f"another in select.{method}"
                )
    clean.check(config)


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError: the pool has fewer records than are to be selected, or no record of a family that the config
    names (a misspelt one would be counted as never selected); or the domain cannot be read."""
    score.check_pool(run)
    _ = run.domain
    clean.check_inputs(run)
    group_by, families = run.config.report.group_by, set(run.pool.census.families)
    if group_by != "auto" and families == {"(none)"}:
        raise UserError(f"report.group_by = {group_by}: no record of data.pool has this key; correct it")
    unknown = sorted(set(run.config.report.useful) - families)
    if unknown:
        known = ", ".join(sorted(families)[:8])
        raise UserError(f"report.useful: no record of data.pool is of family {unknown[0]}; families are {known}")


def select(run: SelectRun, folder: Path) -> Facts:
    """Writes <method>.jsonl for every method (the records with score, rank and method added), selection.jsonl (the
    first method's), scores.npz (every method's scores, for `diagnose.rankings`), summary.json, and where anything
    may be left out <method>.dropped.jsonl."""
    config, pool = run.config, _Pool(run)
    if config.select.count > pool.usable.sum():
        raise UserError(
            f"select.count = {config.select.count} is larger than the pool ({int(pool.usable.sum())} usable examples); "
            "lower it or add data"
        )
    rankings: dict[str, Ranking] = {}
    refinement = Refinement(run, pool.usable, pool.groups, pool._sketches, pool._embeddings)
    for method in rankers_of(config):
        rankings[method] = refinement.select(method, pool.candidates(method, rankings))
    wanted = np.unique(np.concatenate([ranking.order for ranking in rankings.values()]))
    records: dict[int, Record] = dict(zip(wanted.tolist(), run.pool.records(run.pool.ordinals[wanted]), strict=True))
    methods = config.select.methods
    for method in methods:
        found = selected_records(
            records.items(), rankings[method].order, rankings[method].scores, label_of(config, method)
        )
        write_lines(folder / f"{method}.jsonl", (record_line(record) for record in found))
    hosts.broadcast(lambda: str(shutil.copyfile(folder / f"{methods[0]}.jsonl", folder / "selection.jsonl")))
    save_rankings(folder / RANKINGS, _ids(run), run.pool.ordinals, {method: rankings[method] for method in methods})
    write_json(folder / "domain.json", run.domain.account(run.model.base.tokenizer))
    refinement.write(folder)
    summary = _summary(run, pool, {method: rankings[method] for method in methods}) | refinement.pool_facts()
    for method, facts in refinement.facts.items():
        summary["by_method"][method] |= {"refined": facts}
    write_json(folder / "summary.json", summary)
    return {"count": config.select.count}


def _ids(run: SelectRun) -> list[str]:
    """Of everything that this run looks at, in order."""
    progress: Callable[..., None] = run.job.progress("ids of the scores", len(run.pool.ordinals), "examples")
    ids = []
    for place, record in enumerate(run.pool.records(run.pool.ordinals), 1):
        ids.append(record["id"])
        if place % 1000 == 0:
            progress(place, len(run.pool.ordinals))
    return ids


def label_of(config: SelectConfig, method: str) -> str:
    """What a selected record says in "method"."""
    return RANKERS[method].label_of(getattr(config.select, method), {"objective": config.score.objective})


class _Pool:
    """What the stages before have stored of the pool, by place: [N] arrays."""

    def __init__(self, run: SelectRun) -> None:
        config, folder = run.config, run.job.folder
        self._run, self._sketches = run, None
        size = len(run.pool.ordinals)
        # Pre-selection leaves scores for some places only; the rest of the account is of all.
        places = np.searchsorted(run.pool.ordinals, candidates_of(run))
        self.scores: np.ndarray | None = None
        self._embeddings: Embeddings | None = None
        self._losses: tuple[np.ndarray, np.ndarray] | None = None
        if needed(config, "embeddings"):
            home = folder / "embed"
            store, self._embeddings = open_embeddings(home, places)
        if needed(config, "losses"):
            home = folder / "losses"
            store = open_store(home / losses.STORE)
            self._losses = losses.losses_at(store, places, size)
        if needed(config, "scores"):
            home = folder / "score"
            store = open_store(home / score.STORE)
            kept = read(store, "status") == KEPT
            self.scores = np.full(size, np.nan, np.float32)
            self.scores[places[kept]] = read(store, "score")[kept]
        if needed(config, "sketches"):
            home = folder / "sketch"
            store = open_sketches(home / "pool.zarr")
            self._sketches = Sketches(store, open_sketches(home / "domain.zarr"), places)
        self._components: Components | None = None
        if needed(config, "components"):
            store = open_store(folder / "low_rank" / low_rank.STORE)
            self._components = low_rank.components_of(folder, size, places)
        self._checkpoints: list[Checkpoint] | None = None
        if needed(config, "checkpoints"):
            self._checkpoints = less.checkpoints_of(run, places)
            store = self._checkpoints[0].sketches.pool
        self._votes: tuple[np.ndarray, np.ndarray] | None = None
        if counts_votes(config):
            home = folder / "preselect"
            store = open_store(home / preselect.STORE)
            votes = load_arrays(home / preselect.RESULT)
            self._votes = votes["votes"], votes["similarity"]
        elif not any(needed(config, what) for what in READ_THE_POOL):
            home = folder / "pool"
            store = open_store(home / tokenize.STORE)
        self.usable = read(store, "status") == KEPT
        self.length, self.span = read(store, "length"), _response_lengths(run, store)
        self.families, self._store = families_of(store, run.pool), store

    def groups(self, key: str) -> list[str]:
        """The group of each place by a key of the records, as `report.group_by` names one."""
        return families_of(self._store, dataclasses.replace(self._run.pool, group_by=key))

    def candidates(self, method: str, rankings: dict[str, Ranking]) -> Candidates:
        """What a ranker may look at."""
        run, needs = self._run, RANKERS[method].needs
        return Candidates(
            count=run.config.select.count,
            seed=repeat_seed(run.config),
            usable=self.usable,
            length=self.length,
            span=self.span,
            records=lambda: run.pool.records(run.pool.ordinals),
            domain=run.domain.records,
            selected={name: ranking.order for name, ranking in rankings.items()},
            scores=self.scores if "scores" in needs else None,
            sketches=self._sketches if "sketches" in needs else None,
            checkpoints=self._checkpoints if "checkpoints" in needs else None,
            components=self._components if "components" in needs else None,
            votes=self._votes if "votes" in needs else None,
            embeddings=self._embeddings if "embeddings" in needs else None,
            losses=self._losses if "losses" in needs else None,
            progress=_when_called(lambda: run.job.progress(f"rank by {method}", None, "examples")),
        )


def _response_lengths(run: SelectRun, store: Store) -> np.ndarray:
    """[N] tokens of each response. Where the score looks at other positions a store counts those, and the pool is
    tokenized once more: controls and residuals by length are by the response's, whatever was scored."""
    if run.config.score.span == "response":
        return read(store, "span")
    ordinals, size = run.pool.ordinals, run.config.score.block_examples
    found = np.zeros(len(ordinals), np.int32)
    progress: Callable[..., None] = run.job.progress("response lengths", len(ordinals), "examples")
    for block, records in run.pool.blocks(ordinals, range(-(-len(ordinals) // size)), size):
        for place, (_, row) in enumerate(run.encoder.rows(records, "response"), block * size):
            found[place] = row.span.sum() if isinstance(row, TokenRow) else 0
        progress(min((block + 1) * size, len(ordinals)), len(ordinals))
    return found


def _when_called(make: Callable[[], Callable[..., None]]) -> Callable[..., None]:
    """The progress that `make` gives, made at its first call: most rankers are done before they could say anything."""
    made = functools.cache(make)
    return lambda done, total: made()(done, total)


def _summary(run: SelectRun, pool: _Pool, rankings: dict[str, Ranking]) -> dict[str, Any]:
    first = rankings[run.config.select.methods[0]]
    members: dict[str, list[int]] = defaultdict(list)
    for place in np.flatnonzero(pool.usable).tolist():
        members[pool.families[place]].append(place)
    picked = {method: Counter(pool.families[i] for i in ranking.order) for method, ranking in rankings.items()}
    table: list[dict[str, Any]] = [
        {
            "name": name,
            "pool": len(places),
            "median_tokens": float(np.median(pool.length[places])),
            "mean_score": _mean_of_numbers(first.scores[places]),
            "selected": {method: counts[name] for method, counts in picked.items()},
        }
        for name, places in members.items()
    ]
    table.sort(key=lambda row: (*(-count for count in row["selected"].values()), -row["pool"], row["name"]))
    useful = sorted(run.config.report.useful)
    return {
        "methods": list(rankings),
        "count": run.config.select.count,
        "pool": int(pool.usable.sum()),
        "pool_records": len(run.pool.ordinals),
        "pool_total": run.pool.census.total,
        "scored": int((~np.isnan(first.scores)).sum()),
        "useful": useful,
        "useful_share_pool": _share(useful, Counter({name: len(places) for name, places in members.items()})),
        "median_tokens_pool": float(np.median(pool.length[pool.usable])),
        "median_span_pool": float(np.median(pool.span[pool.usable])),
        "families": table,
        "by_method": {
            method: _of_method(run, pool, method, ranking, _share(useful, picked[method]))
            for method, ranking in rankings.items()
        },
    }


def _of_method(
    run: SelectRun, pool: _Pool, method: str, ranking: Ranking, useful_share: float | None
) -> dict[str, Any]:
    scores, order = ranking.scores, ranking.order
    scored = np.flatnonzero(~np.isnan(scores))
    found: dict[str, Any] = {
        "label": label_of(run.config, method),
        "count": len(order),
        # Where the best are taken there is a score above which everything is; not where targets take turns.
        "threshold": float(scores[order[-1]]) if len(scored) and _is_threshold(scores, order) else None,
        "useful_share": useful_share,
        "median_tokens": float(np.median(pool.length[order])),
        "median_span": float(np.median(pool.span[order])),
        "spearman_span_length": spearman(scores[scored], pool.span[scored]),
        "spearman_total_length": spearman(scores[scored], pool.length[scored]),
        "histogram": None,
        "scatter": None,
    }
    if len(scored):
        edges = np.histogram_bin_edges(scores[scored], bins=40)
        found["histogram"] = {
            "edges": edges.tolist(),
            "pool": np.histogram(scores[scored], edges)[0].tolist(),
            "selected": np.histogram(scores[order], edges)[0].tolist(),
        }
        shown = np.sort(np.random.default_rng(run.config.seed).permutation(scored)[:SHOWN])
        found["scatter"] = {
            "tokens": pool.length[shown].tolist(),
            "score": [float(f"{s:.6g}") for s in scores[shown]],
        }
    return found


def _is_threshold(scores: np.ndarray, order: np.ndarray) -> bool:
    """Whether no example that was left has a score above the lowest that was taken."""
    if np.isnan(scores[order]).any():
        return False
    left = np.ones(len(scores), bool)
    left[order] = False
    others = scores[left & ~np.isnan(scores)]
    return not len(others) or bool(others.max() <= scores[order].min())


def _share(useful: list[str], counts: Counter[str]) -> float | None:
    return sum(counts[name] for name in useful) / sum(counts.values()) if useful else None


def _mean_of_numbers(scores: np.ndarray) -> float | None:
    """The mean of the scores there are; None where nothing was scored."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else None
