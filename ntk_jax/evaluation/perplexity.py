"""Perplexity of held-out text: how well a model predicts documents that it was not trained on, by token and by byte.

A document is read in windows of one length. Each window but the first begins with the last `overlap` tokens of the one
before it, which are context only, so that every token but the document's first is predicted once (and the first one too
where the tokenizer puts a BOS before it). The text has no EOS at its end: it is the words that count.

The loss is all nats of the set divided by all predicted tokens; perplexity is its exponential; bits a byte is all nats
divided by ln 2 and by the bytes of UTF-8 that the predicted tokens stand for, which compares models whose tokenizers
differ. Documents are what varies: intervals are percentile bootstraps over documents, the same draws for all arms.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.control import codec_of
from ntk_jax.data.packing import pack
from ntk_jax.data.templates import Rendering, write
from ntk_jax.data.tokens import bos_ids
from ntk_jax.errors import UserError
from ntk_jax.evaluation.bootstrap import interval, resampled_means
from ntk_jax.evaluation.packed import batch_shape, log_prob_sums, row_length_of
from ntk_jax.models.model import Model
from ntk_jax.training.flops import forward_flops

TOO_SHORT = "fewer than two tokens"
TEXT = Rendering("plain", add_eos=False)

Progress = Callable[[int, int], None]
Document = dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """A set of documents as windows, made once and read by many models.

    documents: {"id", "tokens", "bytes"} of each: its predicted tokens and what they stand for. rows: windows. owner:
    [W] the document of each. dropped: documents left out, by reason.
    """

    documents: list[Document]
    rows: list[TokenRow]
    owner: np.ndarray
    dropped: dict[str, int]


def held_out_text(
    records: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    row_length: int,
    overlap: int = 1,
    most_tokens: int | None = None,
    rendering: Rendering = TEXT,
    where: str = "the held-out texts",
) -> HeldOut:
    """Checked records as windows of at most `row_length` tokens. most_tokens: the start of each document that is read;
    None: all of it. where: the file, for messages.

    Raises UserError: no record, none with two tokens, an overlap that leaves no room for new tokens.
    """
    if most_tokens is not None and most_tokens < 2:
        raise UserError(f"most_tokens = {most_tokens} leaves nothing to predict; give at least 2")
    if not 1 <= overlap < row_length:
        raise UserError(f"overlap = {overlap} must be at least 1 and less than the {row_length} tokens of a window")
    documents: list[Document] = []
    rows: list[TokenRow] = []
    owner: list[int] = []
    dropped: Counter[str] = Counter()
    bos = bos_ids(tokenizer)
    for record in records:
        written = write(dict(record), tokenizer, rendering)
        text = written.prompt + written.response
        (encoding,) = codec_of(tokenizer).encode([text])
        ids = np.asarray([*bos, *encoding.ids][:most_tokens], np.int32)
        if len(ids) < 2:
            dropped[TOO_SHORT] += 1
            continue
        places = encoding.offsets
        first = 0 if bos else places[1][0]  # the first character that is predicted
        kept = len(ids) - len(bos)
        stop = len(text) if kept == len(places) else places[kept - 1][1]  # a character that is cut counts whole
        documents.append({"id": record["id"], "tokens": len(ids) - 1, "bytes": len(text[first:stop].encode())})
        windows = _windows(ids, row_length, overlap, str(record["id"]))
        rows += windows
        owner += [len(documents) - 1] * len(windows)
    if not documents:
        why = f"all {sum(dropped.values())} have {TOO_SHORT}" if dropped else "there are none"
        raise UserError(f"{where}: no document to measure perplexity on ({why}); give a file with text")
    return HeldOut(documents, rows, np.asarray(owner), dict(dropped))


def _windows(ids: np.ndarray, row_length: int, overlap: int, name: str) -> list[TokenRow]:
    found, start, predicted = [], 0, 1  # predicted: tokens up to here need no prediction any more
    while predicted < len(ids):
        window = ids[start : start + row_length]
        stop = start + len(window)
        places = np.arange(start, stop)
        found.append(TokenRow(window, (places >= predicted - 1) & (places < stop - 1), name))
        start, predicted = stop - overlap, stop
    return found


def perplexities(
    model: Model,
    held_out: HeldOut,
    *,
    batch_tokens: int = 8192,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """{"documents": [{"id", "nats", "tokens", "bytes"}], "tokens": read by the model, "flops"} of one model.

    progress(windows done, of how many). Raises UserError: a document whose loss is not finite.
    """
    rows = held_out.rows
    length = row_length_of(max(len(row.ids) for row in rows))
    batches = pack(rows, **batch_shape(length, batch_tokens, mesh))
    finished = (lambda done: progress(done, len(rows))) if progress is not None else None
    sums = log_prob_sums(model, batches, len(rows), mesh=mesh, finished=finished)
    nats = np.bincount(held_out.owner, -sums.astype(np.float64), len(held_out.documents))
    for document, value in zip(held_out.documents, nats, strict=True):
        if not math.isfinite(value):
            raise UserError(
                f"document {document['id']!r} has a loss that is not finite; look at the weights (ntk-jax doctor "
                "checks them) or compute in float32"
            )
    tokens, adapter = sum(len(row.ids) for row in rows), sum(leaf.size for leaf in jax.tree.leaves(model.lora))
    labels = sum(document["tokens"] for document in held_out.documents)
    return {
        "documents": [
            {**document, "nats": float(value)} for document, value in zip(held_out.documents, nats, strict=True)
        ],
        "tokens": tokens,
        "flops": forward_flops(model.config, tokens, labels, lora_parameters=adapter),
    }


def compare_perplexities(
    arms: Mapping[str, Mapping[str, Sequence[Document]]],
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The comparison of all arms on each set of text.

    arms: {arm: {set: documents of `perplexities`}}, the same sets and documents for every arm.
    Returns for each set {"name", "documents", "tokens", "bytes", "results": {arm: {"loss", "perplexity",
    "bits_per_byte": each {"value", "low", "high"}}}, "paired": [{"a", "b", "difference", "low", "high"}]}: differences
    of the losses in nats a token, a later arm (a) minus an earlier one (b): below 0 where the later one is better.
    Raises UserError: no arms, or arms that read other documents.
    """
    names = list(arms)
    if not names:
        raise UserError("perplexity: there are no arms to compare; give at least one")
    found = []
    for number, name in enumerate(arms[names[0]]):
        columns = _columns(arms, name)
        means = columns.mean(axis=0)
        draws = resampled_means(columns, resamples=bootstrap, seed=(seed, number))
        count = len(names)
        loss, losses = means[:count] / means[count], draws[:, :count] / draws[:, count : count + 1]
        bits, many_bits = (each[..., :count] / each[..., -1:] / math.log(2) for each in (means, draws))

        def bounded(value: float, draws: np.ndarray) -> dict[str, float]:
            low, high = interval(draws, confidence)
            return {"value": float(value), "low": low, "high": high}

        pairs = []
        for b, a in itertools.combinations(range(count), 2):
            about = bounded(loss[a] - loss[b], losses[:, a] - losses[:, b])
            pairs.append({"a": names[a], "b": names[b], "difference": about.pop("value"), **about})
        results = {
            arm: {
                "loss": bounded(loss[a], losses[:, a]),
                "perplexity": bounded(np.exp(loss[a]), np.exp(losses[:, a])),
                "bits_per_byte": bounded(bits[a], many_bits[:, a]),
            }
            for a, arm in enumerate(names)
        }
        tokens, size = (int(total) for total in columns[:, count:].sum(axis=0))
        about_set = {"name": name, "documents": len(columns), "tokens": tokens, "bytes": size}
        found.append({**about_set, "results": results, "paired": pairs})
    return found


def _columns(arms: Mapping[str, Mapping[str, Sequence[Document]]], name: str) -> np.ndarray:
    """[documents, arms + 2] float64: nats of each arm, tokens, bytes. Raises UserError: arms read other documents."""
    first, *others = arms
    sizes = [(each["id"], each["tokens"], each["bytes"]) for each in arms[first][name]]
    for arm in others:
        if [(each["id"], each["tokens"], each["bytes"]) for each in arms[arm].get(name, ())] != sizes:
            raise UserError(f"perplexity: arms {first} and {arm} read other documents of {name}; measure both again")
    nats = [[each["nats"] for each in arms[arm][name]] for arm in arms]
    return np.asarray([*nats, [tokens for _, tokens, _ in sizes], [size for *_, size in sizes]], np.float64).T
