"""The cheap classifier: a linear model on hashed words and pairs of words, of fastText's kind, with no encoder.

    z = Σ_g x_g W[g] + b,    x_g = (1 + log c_g) idf_g / norm

over the buckets g of a text (hashing.py); idf over the training texts; the norm makes every text a unit vector,
whatever its length. fastText (arXiv 1607.01759) averages learnt vectors of n-grams into a linear layer; with an output
for each domain and no rank limit that product is one matrix, which is what is trained here, with the losses, class
weights, calibration and thresholds of the head on embeddings.

Source: texts. Cost: a pass over the labelled texts a few times; scoring reads each text once, on the host. Memory:
`buckets` x M numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_jax.mining.calibration import Calibration, calibrate, check_labels, held_out
from ntk_jax.mining.classifier import class_weights
from ntk_jax.mining.classifier_files import read_classifier, write_classifier
from ntk_jax.mining.hashing import blocks_of, hashed_counts

KIND = "n-grams"
Sparse = tuple[np.ndarray, np.ndarray]  # buckets [n, L] int32, values [n, L] fp32; value 0 where a text has fewer


@dataclass(frozen=True)
class NgramConfig:
    """One training of an n-gram classifier."""

    buckets: int = 1 << 18
    longest: int = 2  # words of an n-gram
    most: int = 1024  # distinct n-grams of a text; of more the first by bucket are read
    steps: int = 400  # of gradient descent, with a linear decay
    batch: int = 256
    learning_rate: float = 2.0  # rows are unit vectors: the loss is smooth and the penalty makes it round
    penalty: float = 0.1  # half the squared norm of w, times this: as strong as that of the head, for the same reason
    held_out: float = 0.2
    precision: float | None = None


@dataclass(frozen=True)
class Ngrams:
    """A trained classifier of texts, with the interface of `Head` but for what it reads."""

    names: tuple[str, ...]
    weights: Mapping[str, np.ndarray]  # w [buckets, M], b [M], idf [buckets]
    calibration: Calibration
    facts: Mapping[str, Any]

    @property
    def thresholds(self) -> np.ndarray:
        """[M] probabilities at or above which a text belongs to a domain."""
        return self.calibration.thresholds

    def logits(self, texts: Iterable[str], rows: int = 256) -> np.ndarray:
        """[n, M] fp32 raw logits, block by block."""
        config = self.facts["training"]["config"]
        w, b = jnp.asarray(self.weights["w"]), jnp.asarray(self.weights["b"])
        parts = [np.empty((0, len(self.names)), np.float32)]
        for block in blocks_of(texts, rows):
            padded = block + [""] * (rows - len(block))
            places, values = _features(padded, config["longest"], config["most"], self.weights["idf"])
            parts.append(np.asarray(_forward(w, b, places, values))[: len(block)])
        return np.concatenate(parts)

    def probabilities(self, texts: Iterable[str]) -> np.ndarray:
        """[n, M] fp32 calibrated probabilities."""
        return self.calibration.probabilities(self.logits(texts))

    def save(self, folder: str | Path) -> None:
        """Writes the classifier's two files. Raises UserError as storage.atomic does."""
        write_classifier(folder, KIND, self.names, self.weights, self.calibration, self.facts)


def load_ngrams(folder: str | Path) -> Ngrams:
    """What `Ngrams.save` wrote. Raises UserError: it is absent, damaged, or another kind of classifier."""
    return Ngrams(*read_classifier(folder, KIND))


def train_ngrams(
    texts: Sequence[str],
    labels: np.ndarray,
    names: Sequence[str],
    *,
    config: NgramConfig | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ngrams:
    """A classifier for the M domains `names` from texts and labels [n, M] (1, 0; NaN is not used).

    groups as in `train_head`. Raises UserError: a domain without positives or negatives, or shapes that differ.
    """
    config = config or NgramConfig()
    check_labels(labels, names, len(texts))
    apart = held_out(labels, config.held_out, seed, groups)
    if not all(((labels[~apart] == value).any(axis=0)).all() for value in (0.0, 1.0)):
        apart = np.zeros(len(labels), bool)
    counts = [hashed_counts(text, config.buckets, config.longest) for text in texts]
    train = np.flatnonzero(~apart)
    frequency = np.zeros(config.buckets)
    for row in train:
        frequency[counts[row][0]] += 1
    idf = np.log((1 + len(train)) / (1 + frequency)).astype(np.float32) + np.float32(1)
    places, values = _padded(counts, config.most, idf)
    progress(0, 2)
    w, b = _fit(places, values, labels, train, config, seed)
    progress(1, 2)
    z = np.asarray(_forward(w, b, places[apart], values[apart])) if apart.any() else np.zeros((0, len(names)))
    whose = None if groups is None else np.asarray(groups)[apart]
    calibration = calibrate(z, labels[apart], names, precision=config.precision, groups=whose)
    training = {"rows": len(texts), "rows held out": int(apart.sum()), "config": asdict(config), "seed": seed}
    progress(2, 2)
    weights = {"w": np.asarray(w), "b": np.asarray(b), "idf": idf}
    return Ngrams(tuple(names), weights, calibration, {**(facts or {}), "training": training})


def _features(texts: Sequence[str], longest: int, most: int, idf: np.ndarray) -> Sparse:
    return _padded([hashed_counts(text, len(idf), longest) for text in texts], most, idf)


def _padded(counts: Sequence[Sparse], most: int, idf: np.ndarray) -> Sparse:
    """Unit rows of weighted counts, padded to a power of two so that few shapes are compiled."""
    longest = min(most, max((len(places) for places, _ in counts), default=1))
    width = 1 << max(4, (longest - 1).bit_length())
    all_places = np.zeros((len(counts), width), np.int32)
    all_values = np.zeros((len(counts), width), np.float32)
    for row, (places, times) in enumerate(counts):
        places, times = places[:most], times[:most]
        value = (1 + np.log(times)) * idf[places]
        all_places[row, : len(places)] = places
        all_values[row, : len(places)] = value / max(float(np.linalg.norm(value)), 1e-9)
    return all_places, all_values


def _fit(
    places: np.ndarray, values: np.ndarray, labels: np.ndarray, train: np.ndarray, config: NgramConfig, seed: int
) -> tuple[jax.Array, jax.Array]:
    """(w [buckets, M], b [M]) after gradient descent over batches of training rows."""
    rng = np.random.default_rng([seed, 0x461])
    batch = min(config.batch, len(train))
    epochs = -(-config.steps * batch // len(train))
    order = np.concatenate([rng.permutation(train) for _ in range(epochs)])[: config.steps * batch]
    weight = np.zeros(labels.shape, np.float32)
    weight[train] = class_weights(labels[train]) * len(train)
    arrays = (places, values, np.nan_to_num(labels).astype(np.float32), weight, order.reshape(config.steps, batch))
    start = (jnp.zeros((config.buckets, labels.shape[1])), jnp.zeros(labels.shape[1]))
    return _train(config.learning_rate, config.penalty, start, *map(jnp.asarray, arrays))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(
    learning_rate: float,
    penalty: float,
    start: tuple[jax.Array, jax.Array],
    places: jax.Array,
    values: jax.Array,
    y: jax.Array,
    weight: jax.Array,
    order: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """A scan over batches."""
    optimizer = optax.sgd(optax.linear_schedule(learning_rate, 0.0, len(order)))

    def loss(parameters: tuple[jax.Array, jax.Array], rows: jax.Array) -> jax.Array:
        z = _forward(*parameters, places[rows], values[rows])
        size = 0.5 * penalty * jnp.sum(parameters[0] ** 2)
        return jnp.sum(weight[rows] * optax.sigmoid_binary_cross_entropy(z, y[rows])) / len(rows) + size

    def step(state: tuple[Any, Any], rows: jax.Array) -> tuple[tuple[Any, Any], None]:
        parameters, sums = state
        updates, sums = optimizer.update(jax.grad(loss)(parameters, rows), sums)
        return (optax.apply_updates(parameters, updates), sums), None

    (parameters, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), order)
    return parameters


@jax.jit
def _forward(w: jax.Array, b: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
    """[n, M] logits of sparse rows."""
    return jnp.einsum("nl,nlm->nm", values, w[places], precision="highest") + b
