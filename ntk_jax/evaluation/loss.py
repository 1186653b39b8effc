"""Held-out loss: how likely a model finds responses that it was not trained on. Any prompt with a response will do.

The loss of an example is the mean of −log p over the tokens of its response (with the mark that ends it, as training
has it), in nats a token: lower is better. Two means over examples are given: `by_example`, the mean of the examples'
losses, where a short response counts as much as a long one; and `by_token`, all nats divided by all tokens, whose
exponential is the perplexity. Intervals are bootstraps over examples (or documents, see `bootstrap`), of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.packing import pack
from ntk_jax.data.templates import Rendering
from ntk_jax.data.tokens import Dropped, encode_many
from ntk_jax.errors import UserError
from ntk_jax.evaluation.bootstrap import differences_at, drawn, group_of, groups_of, interval, resampled_means
from ntk_jax.evaluation.packed import batch_shape, log_prob_sums, row_length_of
from ntk_jax.evaluation.shots import before_responses
from ntk_jax.models.model import Model
from ntk_jax.training.flops import forward_flops

KINDS = ("by_example", "by_token")  # the mean that leads first

Progress = Callable[[int, int], None]
Loss = dict[str, Any]


def held_out_losses(
    model: Model,
    records: Sequence[Mapping[str, Any]],
    *,
    max_length: int,
    rendering: Rendering = Rendering(),  # noqa: B008 (it cannot change)
    overflow: str = "drop",
    batch_tokens: int = 8192,
    mesh: Mesh | None = None,
    where: str = "the examples",
    shots: Sequence[dict[str, Any]] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Losses of one model on checked records: {"losses", "dropped", "tokens", "flops"}.

    max_length, rendering, overflow: as `data.tokens.encode_many`. where: the file, for messages. shots: solved examples
    before each; a line then has how many, as `shots`.
    losses: a dict an example, in order: id, loss (nats a token), tokens (of the response), truncated if it was cut and
    notes if something became of its words; or id and dropped (why) for an example left out. tokens: read by the model.
    Raises `UserError`: no records, a model without a tokenizer, a loss that is not finite (naming the example).
    """
    if not records:
        raise UserError(f"{where}: there are no examples; give a file that has some")
    if model.tokenizer is None:
        raise UserError(f"{model.name} was loaded without a tokenizer; evaluation of text needs one")
    asked, counts = [dict(record) for record in records], [0] * len(records)
    if shots:
        asked, counts = before_responses(asked, shots, model.tokenizer, max_length=max_length, rendering=rendering)
    encoded = encode_many(
        asked,
        model.tokenizer,
        max_length=max_length,
        overflow=overflow,
        rendering=rendering,
    )
    rows = [row for row in encoded if isinstance(row, TokenRow)]
    values = iter(mean_losses(model, rows, batch_tokens, mesh, progress))
    losses: list[Loss] = []
    for record, count, row in zip(records, counts, encoded, strict=True):
        if isinstance(row, Dropped):
            losses.append({"id": record["id"], "dropped": row.reason})
            continue
        value = next(values)
        if not np.isfinite(value):
            raise UserError(
                f"{where}: example {record['id']!r} has a loss that is not finite; look at the weights (ntk-jax doctor "
                "checks them) or compute in float32"
            )
        cut: dict[str, Any] = ({"truncated": True} if row.truncated else {}) | (
            {"notes": list(row.notes)} if row.notes else {}
        )
        cut |= ({"shots": count} if shots else {}) | group_of(record)
        losses.append({"id": record["id"], "loss": float(value), "tokens": _labels(row), **cut})
    tokens, adapter = sum(len(row.ids) for row in rows), sum(leaf.size for leaf in jax.tree.leaves(model.lora))
    return {
        "losses": losses,
        "dropped": dict(Counter(loss["dropped"] for loss in losses if "dropped" in loss)),
        "tokens": tokens,
        "flops": forward_flops(model.config, tokens, sum(map(_labels, rows)), lora_parameters=adapter),
    }


def _labels(row: TokenRow) -> int:
    return int(np.count_nonzero(row.span[:-1]))


def mean_losses(
    model: Model,
    rows: Sequence[TokenRow],
    batch_tokens: int = 8192,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
    *,
    row_length: int | None = None,
) -> np.ndarray:
    """[N] float64, nats a token: the mean of −log p over the labels of each row's span.

    row_length: positions of a packed row, a multiple of 64, for lists that shall share their compiled shapes; None: as
    long as the longest row asks for. Cost: 2 P FLOPs a token and 2 V D a label.
    Raises UserError: a row without a label (it is named).
    """
    if not rows:
        return np.zeros(0)
    labels = np.array([_labels(row) for row in rows])
    if not labels.all():
        number = int(np.argmin(labels))
        raise UserError(
            f"example {rows[number].id or f'number {number}'} has no response token, so no loss; give it a response, "
            "or leave it out"
        )
    length = row_length or row_length_of(max(len(row.ids) for row in rows))
    batches = pack(rows, **batch_shape(length, batch_tokens, mesh))
    finished = (lambda done: progress(done, len(rows))) if progress is not None else None
    sums = log_prob_sums(model, batches, len(rows), mesh=mesh, finished=finished)
    return -sums.astype(np.float64) / labels


def refuse_nonfinite(model: Model, rows: Sequence[TokenRow], values: np.ndarray, under: str = "") -> None:
    """Raises UserError naming the first row whose loss of `values` [N], from `mean_losses`, is not finite."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):  # what is not finite spreads over its packed row: alone, each names itself
        alone = (int(i) for i in bad)
        first = next((i for i in alone if not np.isfinite(mean_losses(model, [rows[i]])).all()), int(bad[0]))
        raise UserError(
            f"example {rows[first].id or f'number {first}'}: its loss {under + ' ' if under else ''}is not finite "
            f"({len(bad)} of {len(rows)} so); check the weights with `ntk-jax doctor`, or compute in float32"
        )


def compare_losses(
    arms: Mapping[str, Mapping[str, Sequence[Loss]]],
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The comparison of all arms: {"tasks", "average", "paired"}, the key `loss` of results.json.

    arms: {arm: {task: losses}}, the same tasks and examples for every arm. Losses are in nats a token; `low` and `high`
    bound the percentile bootstrap interval over examples. `perplexity` is exp of the loss by token. `average` is the
    plain mean over tasks. `paired` holds, for each pair of arms (a later one minus an earlier one) and each kind of
    mean, the difference of their averages: negative where the later one is better; that of a task their difference on
    it.
    """
    names = list(arms)
    if not names:
        raise UserError("evaluation: there are no arms to compare; give at least one")
    tasks, columns = [], []
    for number, task in enumerate(arms[names[0]]):
        kept = _same_examples(arms, task)
        columns.append(_resampled([kept[arm] for arm in names], bootstrap, (seed, number)))
        first = kept[names[0]]
        tasks.append(
            {
                "name": task,
                "examples": len(first),
                **({} if groups_of(first) is None else drawn(groups_of(first))),
                "tokens": sum(loss["tokens"] for loss in first),
                "dropped": dict(Counter(loss["dropped"] for loss in arms[names[0]][task] if "dropped" in loss)),
                "truncated": sum(loss.get("truncated", False) for loss in first),
                "notes": dict(Counter(note for loss in first for note in loss.get("notes", ()))),
                "results": {arm: _means(columns[-1], a, len(names), confidence) for a, arm in enumerate(names)},
                "paired": differences_at(columns[-1], names, KINDS, confidence),
            }
        )
    average = (np.mean([c[0] for c in columns], axis=0), np.mean([c[1] for c in columns], axis=0))
    return {
        "tasks": tasks,
        "average": {arm: _means(average, a, len(names), confidence) for a, arm in enumerate(names)},
        "paired": differences_at(average, names, KINDS, confidence),
    }


def _same_examples(arms: Mapping[str, Mapping[str, Sequence[Loss]]], task: str) -> dict[str, list[Loss]]:
    """The losses of each arm that were not left out. Raises UserError: none is, or arms read other examples."""
    kept = {arm: [loss for loss in found[task] if "dropped" not in loss] for arm, found in arms.items()}
    first, *others = kept
    if not kept[first]:
        why = ", ".join(sorted({loss["dropped"] for loss in arms[first][task]})) or "there are none"
        raise UserError(
            f"evaluation: no example of {task} can be used ({why}); raise max_length or correct the records"
        )
    for arm in others:
        if [(x["id"], x["tokens"]) for x in kept[arm]] != [(x["id"], x["tokens"]) for x in kept[first]]:
            raise UserError(f"evaluation: arms {first} and {arm} read other examples of {task}; redo both")
    return kept


def _resampled(arms: Sequence[Sequence[Loss]], resamples: int, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(means [2 A], the same of resamples [resamples, 2 A]): by example for each arm, then by token for each arm."""
    losses = np.asarray([[x["loss"] for x in arm] for arm in arms], np.float64).T  # [N, A]
    tokens = np.asarray([x["tokens"] for x in arms[0]], np.float64)[:, None]
    columns = np.concatenate([losses, losses * tokens, tokens], axis=1)  # one draw serves all
    count = losses.shape[1]

    def means(mean: np.ndarray) -> np.ndarray:
        return np.concatenate([mean[..., :count], mean[..., count:-1] / mean[..., -1:]], axis=-1)

    draws = resampled_means(columns, resamples=resamples, seed=seed, groups=groups_of(arms[0]))
    return means(columns.mean(axis=0)), means(draws)


def _means(column: tuple[np.ndarray, np.ndarray], arm: int, arms: int, confidence: float) -> dict[str, Any]:
    found = {}
    for k, kind in enumerate(KINDS):
        low, high = interval(column[1][:, k * arms + arm], confidence)
        found[kind] = {"loss": float(column[0][k * arms + arm]), "low": low, "high": high}
    return {**found, "perplexity": float(np.exp(found["by_token"]["loss"]))}
