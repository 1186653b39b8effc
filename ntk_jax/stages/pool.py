"""What is computed for every pool example: the hidden states that vote, and the score; and what became of it."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.config import Config
from ntk_jax.data.account import ACCOUNT, DROP_REASONS, KEPT, account_of
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.statistics import PERCENTILES
from ntk_jax.errors import UserError
from ntk_jax.kernels import agreement
from ntk_jax.kernels.objectives import LINEAR
from ntk_jax.kernels.score import directional_scores, mean_hidden_states
from ntk_jax.models.attention_kernel import forward_mode_of
from ntk_jax.parallel import hosts
from ntk_jax.selection.votes import count_votes, keep_most_voted, unit_rows
from ntk_jax.stages.context import Run, load_tree, shifted
from ntk_jax.stages.domain import parameters_like
from ntk_jax.stages.share import work_of
from ntk_jax.storage.arrays import Store, create, read, write_block
from ntk_jax.storage.atomic import read_json, write_bytes, write_json
from ntk_jax.training.flops import forward_flops, score_flops


def check_score(config: Config) -> None:
    """Raises UserError for settings of scoring and pre-selection that cannot work together."""
    score, preselect = config.score, config.preselect
    if score.direction == "adam" and (score.parameters != "lora" or config.warmup.max_steps == 0):
        raise UserError("score.direction = adam needs a warm-up of this run and score.parameters = lora")
    if score.direction != "mean_gradient" and config.select.by != "score":
        raise UserError(
            f"score.direction = {score.direction} has no say with select.by = {config.select.by}, which compares with "
            "the domain's examples one by one; leave it out, or select by score"
        )
    try:
        re.compile(score.parameters)
    except re.error as error:
        raise UserError(
            f"score.parameters = {score.parameters!r} is not lora, lora[-k:], all or a regular expression: {error}"
        ) from None
    if score.span == "last" and score.objective not in LINEAR:
        raise UserError(
            f"score.span = last: the last position has no next token, which objective {score.objective} needs; "
            "use span response or all, or a linear objective"
        )
    if preselect.method == "votes" and preselect.keep is not None and preselect.keep < config.select.count:
        raise UserError(f"preselect.keep = {preselect.keep} is below select.count = {config.select.count}; keep more")


def check_attention(run: Run) -> None:
    """Raises UserError where this machine cannot compute attention as score.attention says."""
    forward_mode_of(run.config.score.attention, run.mesh)


def resolved_votes(config: Config) -> dict[str, int]:
    """preselect.keep (M, by default 4 N) and preselect.neighbours (K, by default M / 4) under `votes`, else nothing."""
    section = config.preselect
    if section.method == "none":
        return {}
    keep = section.keep or 4 * config.select.count
    return {"preselect.keep": keep, "preselect.neighbours": section.neighbours or max(1, keep // 4)}


def preselect(run: Run, folder: Path) -> dict[str, Any] | None:
    """The paper's coarse stage: keep the M candidates with the most nearest-neighbour votes. Writes hidden.zarr block
    by block, candidates.npy (ascending pool positions) and data.json; `none` keeps everything and writes nothing but
    its summary. None when this process has only a share of the blocks."""
    ordinals = run.pool_ordinals
    if run.config.preselect.method == "none":
        write_json(folder / "summary.json", {"method": "none", "pool": len(ordinals), "candidates": len(ordinals)})
        return {"candidates": len(ordinals)}
    keep, neighbours = resolved_votes(run.config).values()
    model = run.warm
    block_rows = run.config.score.block_examples
    shapes = {"hidden": ((model.config.hidden_size,), np.float16), **ACCOUNT}
    store = create(folder / "hidden.zarr", shapes, len(ordinals), block_rows)
    work = work_of(store, run.share)
    begun, finished, total = time.monotonic(), work.finished, work.total
    progress = run.make_progress("preselect", total, "examples")
    for number, records in run.pool_blocks(ordinals, work.todo):
        encoded = [row for _, row in run.rows(records, "response")]
        account = account_of(encoded)
        hidden = np.zeros((len(encoded), model.config.hidden_size), np.float16)
        rows = [row for row in encoded if isinstance(row, TokenRow)]
        if rows:
            pooled = mean_hidden_states(model, rows, run.layout, progress=shifted(progress, finished, total))
            hidden[account["status"] == KEPT] = unit_rows(pooled).astype(np.float16)
        write_block(store, number, {"hidden": hidden, **account})
        finished += len(records)
        progress(finished, total)
    hosts.barrier("all blocks are written")
    if run.share is not None:  # the stage stays open, even where one share is all of it
        return None

    domain = mean_hidden_states(model, [row for _, row in run.domain], run.layout)
    usable = read(store, "status") == KEPT
    if run.config.preselect.keep is None:  # the default of 4 N may be more than there is; a given M may not
        keep = min(keep, int(usable.sum()))
    ranges = [store.block_range(block) for block in range(store.blocks)]
    blocks = (read(store, "hidden", *place)[usable[slice(*place)]] for place in ranges)
    votes = count_votes(domain, blocks, neighbours)
    candidates = ordinals[np.flatnonzero(usable)[keep_most_voted(votes, keep)]]
    _save_array(folder / "candidates.npy", candidates)
    counts, edges = np.histogram(votes.votes, bins=20)
    data = data_of(store)
    write_json(folder / "data.json", data)
    summary = {
        "method": "votes",
        "keep": keep,
        "neighbours": neighbours,
        "pool": len(ordinals),
        "candidates": len(candidates),
        "votes_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "tokens": data["tokens"],
        "flops": forward_flops(model.config, data["tokens"], lora_parameters=run.adapter_size),
        "seconds": None if work.resumed else time.monotonic() - begun,
    }
    write_json(folder / "summary.json", summary)
    return {"candidates": len(candidates)}


def candidates_of(run: Run) -> np.ndarray:
    """Ascending pool positions that are scored."""
    path = run.folder / "preselect" / "candidates.npy"
    return np.load(path) if run.config.preselect.method == "votes" else run.pool_ordinals


def score(run: Run, folder: Path) -> dict[str, Any] | None:
    """One directional derivative per candidate, block by block. Writes scores.zarr (score, status, length, span,
    truncated), data.json and summary.json. None when this process has only a share of the blocks."""
    section, model = run.config.score, run.warm
    ordinals = candidates_of(run)
    if run.config.select.count > len(ordinals):
        raise UserError(
            f"select.count = {run.config.select.count} is larger than the pool ({len(ordinals)} candidates); "
            "lower it or add data"
        )
    direction = load_tree(run.folder / "gradient" / "direction.safetensors", parameters_like(run))
    shapes: dict[str, Any] = {"score": ((), np.float32), **ACCOUNT}
    store = create(folder / "scores.zarr", shapes, len(ordinals), section.block_examples)
    work = work_of(store, run.share)
    begun, finished, total = time.monotonic(), work.finished, work.total
    progress = run.make_progress("score", total, "examples")
    progress(finished, total)
    for number, records in run.pool_blocks(ordinals, work.todo):
        encoded = [row for _, row in run.rows(records, section.span)]
        account = account_of(encoded)
        rows = [row for row in encoded if isinstance(row, TokenRow)]
        values = np.zeros(len(encoded), np.float32)
        if rows:
            values[account["status"] == KEPT] = directional_scores(
                model,
                rows,
                direction,
                run.objective,
                run.layout,
                parameters=section.parameters,
                attention=section.attention,
                progress=shifted(progress, finished, total),
            ).values
        write_block(store, number, {"score": values, **account})
        finished += len(records)
        progress(finished, total)
    hosts.barrier("all blocks are written")
    if run.share is not None:  # the stage stays open, even where one share is all of it
        return None
    return _summarise(run, folder, store, None if work.resumed else time.monotonic() - begun)


def _summarise(run: Run, folder: Path, store: Any, seconds: float | None) -> dict[str, Any]:
    """seconds: of the whole stage, None when a part of it ran in an earlier process."""
    data = data_of(store)
    write_json(folder / "data.json", data)
    scores, length, span = (read(store, name) for name in ("score", "length", "span"))
    usable, tokens = read(store, "status") == KEPT, data["tokens"]
    gradient_summary = read_json(run.folder / "gradient" / "summary.json")
    objective, config = run.objective, run.base.config
    summary = {
        "scored": int(usable.sum()),
        "tokens": tokens,
        "flops": score_flops(
            config, tokens, 0 if objective.is_linear else data["span_tokens"], directions=objective.channels,
            **run.differentiated,
        ),
        "seconds": seconds,
        "spearman_span_length": spearman(scores[usable], span[usable]),
        "spearman_total_length": spearman(scores[usable], length[usable]),
        "rho": gradient_summary["rho"],
        "direction_norm": gradient_summary["norm"],
    }  # fmt: skip
    write_json(folder / "summary.json", summary)
    return {"scored": summary["scored"]}


def data_of(store: Store) -> dict[str, Any]:
    """data.json from the account in a store, with the keys of `DataStatistics`."""
    status, length, span = read(store, "status"), read(store, "length"), read(store, "span")
    usable = status == KEPT
    if not usable.any():
        raise UserError(
            f"data.pool: none of {len(status)} examples is usable; check model.max_length and the responses"
        )
    return {
        "records": len(status),
        "kept": int(usable.sum()),
        "truncated": int(read(store, "truncated").sum()),
        "dropped": {
            reason: int((status == code).sum()) for code, reason in enumerate(DROP_REASONS, 1) if (status == code).any()
        },
        "tokens": int(length.sum()),
        "span_tokens": int(span.sum()),
        "lengths": _percentiles(length[usable]),
        "span_lengths": _percentiles(span[usable]),
    }


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """The rank correlation; None where either is constant, or of fewer than three."""
    value = agreement.spearman(a, b) if len(a) >= 3 else np.nan
    return None if np.isnan(value) else value


def _percentiles(lengths: np.ndarray) -> dict[str, int]:
    """By nearest rank, as `DataStatistics` counts them."""
    found = {str(p): int(np.percentile(lengths, p, method="inverted_cdf")) for p in PERCENTILES}
    return found | {"max": int(lengths.max())}


def _save_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())
