"""From scores to a selection: top-N and its random control, who was picked, and what the picks align with."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.config import Config
from ntk_jax.data.account import KEPT
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import family_of, prompt_text, response_text
from ntk_jax.errors import UserError
from ntk_jax.kernels.direction import mean_gradient, stack_directions
from ntk_jax.kernels.parameters import only_adapters
from ntk_jax.kernels.rows import Layout, layout_for
from ntk_jax.kernels.score import directional_scores
from ntk_jax.selection.random import random_n
from ntk_jax.selection.ranker import Ranking
from ntk_jax.selection.records import record_line, selected_records
from ntk_jax.selection.top import top_n
from ntk_jax.stages.context import Record, Run
from ntk_jax.stages.pool import candidates_of, spearman
from ntk_jax.stages.sketch import rank_candidates
from ntk_jax.storage.arrays import Store, open_store, read
from ntk_jax.storage.atomic import write_json, write_lines

DIRECTIONS_AT_ONCE = 4  # LoRA gradients of displayed examples pushed forward together; bounds memory


def select(run: Run, folder: Path) -> dict[str, Any]:
    """Writes selection.jsonl (the contract's format), random.jsonl (the control, drawn from the whole pool: same
    format, score null where pre-selection left none), summary.json and examples.json (selected examples with the domain
    example they align with most)."""
    config, ordinals = run.config, run.pool_ordinals
    # Everything below is by place in the pool; pre-selection leaves scores for some places only.
    candidates = np.searchsorted(ordinals, candidates_of(run))
    ranking, store = rank_candidates(run) if config.select.by != "score" else _by_score(run)
    scores, chosen = np.full(len(ordinals), np.nan, np.float32), candidates[ranking.order]
    scores[candidates] = ranking.scores
    account = open_store(run.folder / "preselect" / "hidden.zarr") if config.preselect.method == "votes" else store
    usable, lengths = np.flatnonzero(read(account, "status") == KEPT), read(account, "length")
    control = usable[random_n(len(usable), config.select.count, config.seed)]

    families: list[str] = []
    wanted, records = {*chosen.tolist(), *control.tolist()}, {}
    progress = run.make_progress("select", len(ordinals), "examples")
    for place, record in run.pool_records(ordinals):
        families.append(family_of(record, config.report.group_by))
        if place in wanted:
            records[place] = record
        progress(place + 1, len(ordinals))

    _refuse_unknown_families(config, set(families))

    method = f"sketch:{config.select.by}" if config.select.by != "score" else f"ntk:{config.score.objective}"
    selection = list(selected_records(records.items(), chosen, scores, method))
    write_lines(folder / "selection.jsonl", (record_line(record) for record in selection))
    random = selected_records(records.items(), control, scores, "random")
    write_lines(folder / "random.jsonl", (record_line(record) for record in random))

    summary = {"method": method, **_summary(run, scores, lengths, usable, chosen, control, families)}
    if config.select.by != "score":  # else the score stage has said so
        known, span = ~np.isnan(ranking.scores), read(store, "span")
        for key, length in (("span", span), ("total", read(store, "length"))):
            summary[f"spearman_{key}_length"] = spearman(ranking.scores[known], length[known])
    write_json(folder / "summary.json", summary)
    write_json(folder / "examples.json", _aligned_examples(run, selection[: config.report.examples]))
    return {"count": len(chosen)}


def _by_score(run: Run) -> tuple[Ranking, Store]:
    """The best candidates by their exact scores, which are NaN for what was dropped, and the store of the scores."""
    store = open_store(run.folder / "score" / "scores.zarr")
    scores = np.where(read(store, "status") == KEPT, read(store, "score"), np.nan).astype(np.float32)
    scored = np.flatnonzero(~np.isnan(scores))
    return Ranking(scores, scored[top_n(scores[scored], run.config.select.count)]), store


def _refuse_unknown_families(config: Config, families: set[str]) -> None:
    """A misspelt family would be counted as never selected, and the report would say so."""
    if config.report.group_by != "auto" and families == {"(none)"}:
        raise UserError(f"report.group_by = {config.report.group_by}: no record of data.pool has this key; mend it")
    unknown = sorted(set(config.report.useful) - families)
    if unknown:
        known = ", ".join(sorted(families)[:8])
        raise UserError(f"report.useful: no record of data.pool is of family {unknown[0]}; families are {known}")


def _summary(
    run: Run,
    scores: np.ndarray,
    lengths: np.ndarray,
    usable: np.ndarray,
    chosen: np.ndarray,
    control: np.ndarray,
    families: list[str],
) -> dict[str, Any]:
    members: dict[str, list[int]] = defaultdict(list)
    for place in usable:
        members[families[place]].append(int(place))
    picked, drawn = Counter(families[i] for i in chosen), Counter(families[i] for i in control)
    table: list[dict[str, Any]] = [
        {
            "name": name,
            "pool": len(places),
            "selected": picked[name],
            "random": drawn[name],
            "mean_score": _mean_of_numbers(scores[places]),
            "median_tokens": float(np.median(lengths[places])),
        }
        for name, places in members.items()
    ]
    table.sort(key=lambda row: (-row["selected"], -row["pool"], row["name"]))
    useful = set(run.config.report.useful)

    def share(counts: Counter[str]) -> float | None:
        return sum(counts[name] for name in useful) / sum(counts.values()) if useful else None

    scored = np.flatnonzero(~np.isnan(scores))
    edges = np.histogram_bin_edges(scores[scored], bins=40)
    rng = np.random.default_rng(run.config.seed)
    shown = np.sort(rng.permutation(scored)[:1500])  # enough points to see a length effect, few enough to draw
    return {
        "count": len(chosen),
        "pool": len(usable),
        "scored": len(scored),
        # Targets that take turns leave no score above which everything is taken.
        "threshold": None if run.config.select.by == "round_robin" else float(scores[chosen[-1]]),
        "families": table,
        "useful": sorted(useful),
        "useful_share_pool": share(Counter(families[i] for i in usable)),
        "useful_share_selected": share(picked),
        "useful_share_random": share(drawn),
        "random_families": dict(sorted(drawn.items())),
        "histogram": {
            "edges": edges.tolist(),
            "pool": np.histogram(scores[scored], edges)[0].tolist(),
            "selected": np.histogram(scores[chosen], edges)[0].tolist(),
        },
        "median_tokens": {
            "pool": float(np.median(lengths[usable])),
            "selected": float(np.median(lengths[chosen])),
            "random": float(np.median(lengths[control])),
        },
        "scatter": {"tokens": lengths[shown].tolist(), "score": [float(f"{s:.6g}") for s in scores[shown]]},
    }


def _mean_of_numbers(scores: np.ndarray) -> float | None:
    """The mean of the scores there are; None where pre-selection left nothing to score."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else None


def directions_at_once(run: Run) -> int:
    """Shown examples whose gradients are one batch of directions."""
    return DIRECTIONS_AT_ONCE if only_adapters(run.config.score.parameters) else 1


def alignment_layout(run: Run) -> Layout:
    """The shapes of a scoring step with so many tangents: fewer rows, so that it needs no more memory than the score's
    step (but for one row at least)."""
    return layout_for(run.config.model.max_length, run.config.score.batch_tokens // directions_at_once(run), run.mesh)


def _aligned_examples(run: Run, shown: list[Record]) -> list[dict[str, Any]]:
    """For each shown selection the domain example x_i with the largest kernel ⟨g(x_i), g(x)⟩: its own gradient is
    the direction, the domain set is what is scored."""
    if not shown:
        return []
    model, objective, parameters = run.warm, run.objective, run.config.score.parameters
    span = run.config.score.span
    one = layout_for(run.config.model.max_length, 1)
    rows = [row for _, row in run.rows(shown, span) if isinstance(row, TokenRow)]
    domain = run.encode([record for record, _ in run.domain], span)[0]
    progress = run.make_progress("alignment", len(shown), "examples")
    kernels = []
    together, layout = directions_at_once(run), alignment_layout(run)
    for start in range(0, len(rows), together):
        part = rows[start : start + together]
        gradients = [mean_gradient(model, [row], objective, one, parameters=parameters) for row in part]
        # Repeat the last one so that the number of directions, a compiled shape, stays the same.
        gradients += [gradients[-1]] * (min(together, len(rows)) - len(part))
        directions = stack_directions(gradients)
        values = directional_scores(
            model,
            [row for _, row in domain],
            directions,
            objective,
            layout,
            parameters=parameters,
            attention=run.config.score.attention,
        ).values
        kernels.append(values[:, : len(part)])
        progress(start + len(part), len(rows))
    kernel = np.concatenate(kernels, axis=1)  # [Nd, shown]
    return [
        {
            "rank": record["rank"],
            "id": record["id"],
            "family": family_of(record, run.config.report.group_by),
            "score": record["score"],
            "prompt": prompt_text(record),
            "response": response_text(record),
            "tokens": len(row.ids),
            "aligned": {
                "id": domain[best][0]["id"],
                "prompt": prompt_text(domain[best][0]),
                "response": response_text(domain[best][0]),
                "kernel": float(column[best]),
            },
        }
        for record, row, column in zip(shown, rows, kernel.T, strict=True)
        for best in [int(np.argmax(column))]
    ]
