"""The classifier that spreads the seeds' labels over a whole corpus: a multi-label head on an encoder's embeddings.

    z = W2 gelu(W1 x̂ + b1) + b2   or, without a hidden layer,   z = W x̂ + b,    x̂ = (x - mean) / deviation

trained on binary cross entropy a domain, positives and negatives of each domain of equal total weight, an L2 penalty on
the matrices. The default is one strong penalty, with which the head is not far from the difference of the classes'
means. It was picked with the hidden labels of 3,000 chunks in view, of the corpus that scripts/experiment_mining.py
reads, after about 30 settings had been looked at; the argument for it came after: mined labels are wrong in many
places, and held-out ones in the same way, for they are a function of the embeddings, so that their loss is least for a
head that has learnt how they were made, and cannot choose a penalty. For labels that come from elsewhere (a user's
documents, a language model) there are `CLEAN_PENALTIES`: of several, trained side by side, the
strongest is kept whose calibrated held-out loss is within one standard error of the least (Breiman et al.,
Classification and Regression Trees, 1984). Calibration and thresholds: calibration.py. (DoPAMine, arXiv 2410.00260,
section 2.4, names no more than the kind of classifier; WebOrganizer, arXiv 2502.10341, distils an LLM's labels.)

Source: embeddings [n, D] and labels [n, M] in memory; n is the labelled set's, never the corpus'. Cost: seconds;
scoring a corpus costs far less than its embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_jax.errors import UserError
from ntk_jax.mining.calibration import Calibration, calibrate, check_labels, held_out
from ntk_jax.mining.classifier_files import read_classifier, write_classifier

Weights = dict[str, jax.Array]
KIND = "embedding head"
CLEAN_PENALTIES = (0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class HeadConfig:
    """One training of a head."""

    hidden: int = 0  # width of a hidden layer; 0: linear
    steps: int = 1000  # of Adam, with a cosine decay
    batch: int = 512
    learning_rate: float = 0.01
    penalties: tuple[float, ...] = (100.0,)  # half the squared norm of the matrices, times this
    held_out: float = 0.2  # share of the groups
    precision: float | None = None  # what the thresholds are chosen for; None: the best F1


@dataclass(frozen=True)
class Head:
    """A trained classifier.

    names: of the M domains. weights: fp32 arrays. calibration: from held-out rows. facts: JSON values that say what it
    was trained on (the embedder's facts among them: `check_facts`).
    """

    names: tuple[str, ...]
    weights: Mapping[str, np.ndarray]
    calibration: Calibration
    facts: Mapping[str, Any]

    @property
    def thresholds(self) -> np.ndarray:
        """[M] probabilities at or above which a chunk belongs to a domain."""
        return self.calibration.thresholds

    @property
    def dim(self) -> int:
        """Width D of the embeddings."""
        return len(self.weights["mean"])

    def logits(self, embeddings: np.ndarray, rows: int = 8192) -> np.ndarray:
        """[n, M] fp32 raw logits of [n, D], block by block. Raises UserError: another width."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise UserError(
                f"embeddings {list(embeddings.shape)} do not fit a classifier of width {self.dim}; "
                "embed with the encoder that it was trained on"
            )
        weights = {name: jnp.asarray(value) for name, value in self.weights.items()}
        parts = [np.empty((0, len(self.names)), np.float32)]
        for start in range(0, len(embeddings), rows):
            block = np.asarray(embeddings[start : start + rows], np.float32)
            padded = np.zeros((min(rows, _ceiling(len(block))), self.dim), np.float32)  # few shapes, few compilations
            padded[: len(block)] = block
            parts.append(np.asarray(_forward(weights, jnp.asarray(padded)))[: len(block)])
        return np.concatenate(parts)

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """[n, M] fp32 calibrated probabilities of [n, D]. Raises UserError: another width."""
        return self.calibration.probabilities(self.logits(embeddings))

    def check_facts(self, facts: Mapping[str, Any], what: str = "the embeddings") -> None:
        """Raises UserError where a fact that both know differs: another encoder, dimension or tokenizer."""
        for name, value in facts.items():
            if name in self.facts and self.facts[name] != value:
                raise UserError(
                    f"{what} have {name} {value!r}, but the classifier was trained with {self.facts[name]!r}; "
                    "use that encoder, or train the classifier again"
                )

    def save(self, folder: str | Path) -> None:
        """Writes classifier.safetensors and classifier.json, the JSON last. Raises UserError as storage.atomic does."""
        write_classifier(folder, KIND, self.names, self.weights, self.calibration, self.facts)


def load_head(folder: str | Path) -> Head:
    """What `Head.save` wrote. Raises UserError: it is absent, damaged, or another kind of classifier."""
    return Head(*read_classifier(folder, KIND))


def train_head(
    embeddings: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    config: HeadConfig | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Head:
    """A head for the M domains `names` from embeddings [n, D] and labels [n, M] (1, 0; NaN is not used).

    groups: [n] what each row belongs to (its document, its seed); held-out rows share no group with trained ones.
    Raises UserError: a domain without positives or negatives, an embedding that is not finite, or shapes that differ.
    """
    config = config or HeadConfig()
    embeddings = np.asarray(embeddings, np.float32)
    check_labels(labels, names, len(embeddings))
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise UserError(f"embedding {int(bad[0])} is not finite; embed again")
    apart = held_out(labels, config.held_out, seed, groups)
    if not all(((labels[~apart] == value).any(axis=0)).all() for value in (0.0, 1.0)):
        apart = np.zeros(len(labels), bool)  # too few to hold any back: the calibration then says that it has none
    progress(0, 2)
    mean, deviation = embeddings[~apart].mean(axis=0), embeddings[~apart].std(axis=0) + 1e-6
    weights, logits = _fit(embeddings, labels, apart, config, seed, mean, deviation)
    progress(1, 2)
    chosen, losses = _chosen(logits, labels[apart], names, config.penalties)
    own = {name: np.asarray(value[chosen]) for name, value in weights.items()}
    own |= {"mean": mean, "deviation": deviation}
    whose = None if groups is None else np.asarray(groups)[apart]
    calibration = calibrate(logits[chosen], labels[apart], names, precision=config.precision, groups=whose)
    training = {
        "penalty": config.penalties[chosen],
        "held-out loss by penalty": dict(zip(map(str, config.penalties), losses, strict=True)),
        "rows": len(embeddings),
        "rows held out": int(apart.sum()),
        "config": asdict(config),
        "seed": seed,
    }
    progress(2, 2)
    return Head(tuple(names), own, calibration, {**(facts or {}), "training": training})


def class_weights(labels: np.ndarray) -> np.ndarray:
    """[n, M] fp32 weights of a loss: 0 where a label is not used, else such that the positives and the negatives of
    each domain weigh ½ in sum, whatever their numbers."""
    weights = np.zeros(labels.shape, np.float32)
    for value in (0.0, 1.0):
        own = labels == value
        weights += own * (0.5 / np.maximum(own.sum(axis=0), 1))
    return weights


# ---------------------------------------------------------------------------------------------------------------
# Training


def _fit(
    embeddings: np.ndarray,
    labels: np.ndarray,
    apart: np.ndarray,
    config: HeadConfig,
    seed: int,
    mean: np.ndarray,
    deviation: np.ndarray,
) -> tuple[Weights, np.ndarray]:
    """(weights with a leading axis of penalties, logits [penalties, held-out rows, M])."""
    x = jnp.asarray((embeddings - mean) / deviation)
    y = jnp.asarray(np.nan_to_num(labels))
    train = np.flatnonzero(~apart)
    rng = np.random.default_rng([seed, 0xC1A])
    batch = min(config.batch, len(train))
    epochs = -(-config.steps * batch // len(train))
    order = np.concatenate([rng.permutation(train) for _ in range(epochs)])[: config.steps * batch]
    weight = np.zeros(labels.shape, np.float32)
    weight[train] = class_weights(labels[train]) * len(train)
    start = _start(embeddings.shape[1], labels.shape[1], config.hidden, seed)
    run = jax.vmap(functools.partial(_train, config.learning_rate), in_axes=(None, None, None, None, None, 0))
    penalties = jnp.asarray(config.penalties, jnp.float32)
    trained = run(start, x, y, jnp.asarray(weight), jnp.asarray(order.reshape(config.steps, batch)), penalties)
    return trained, np.asarray(jax.vmap(head_logits, in_axes=(0, None))(trained, x[np.flatnonzero(apart)]))


def _chosen(
    logits: np.ndarray, labels: np.ndarray, names: Sequence[str], penalties: Sequence[float]
) -> tuple[int, list[float]]:
    """(place of the penalty, mean calibrated held-out loss by penalty) of logits [penalties, n, M]."""
    if not len(labels):
        return int(np.argmax(penalties)), [float("nan")] * len(penalties)
    weight, y = class_weights(labels) * len(labels), np.nan_to_num(labels)
    rows = []  # loss of each held-out row
    for own in logits:
        found = calibrate(own, labels, names)
        z = own * found.scale + found.offset
        rows.append(np.sum(weight * (np.logaddexp(0.0, z) - y * z), axis=1))
    means = np.mean(rows, axis=1)
    best = rows[int(means.argmin())]
    good = means <= means.min() + best.std() / np.sqrt(len(best))
    return max(np.flatnonzero(good).tolist(), key=lambda place: penalties[place]), [float(mean) for mean in means]


def _start(dim: int, domains: int, hidden: int, seed: int) -> Weights:
    """Weights before training: zeros for a linear head, a scaled normal draw for a hidden layer."""
    if not hidden:
        return {"w": jnp.zeros((dim, domains)), "b": jnp.zeros(domains)}
    first = jax.random.normal(jax.random.key(seed), (dim, hidden)) / np.sqrt(dim)
    return {"w1": first, "b1": jnp.zeros(hidden), "w": jnp.zeros((hidden, domains)), "b": jnp.zeros(domains)}


@functools.partial(jax.jit, static_argnums=0)
def _train(
    learning_rate: float,
    start: Weights,
    x: jax.Array,
    y: jax.Array,
    weight: jax.Array,
    order: jax.Array,
    penalty: jax.Array,
) -> Weights:
    """The weights after a scan over the batches [steps, batch] of row numbers."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, len(order)))

    def penalized(weights: Weights, rows: jax.Array) -> jax.Array:
        size = sum(jnp.sum(weights[name] ** 2) for name in ("w1", "w") if name in weights)
        return _loss(weights, x[rows], y[rows], weight[rows]) + 0.5 * penalty * size

    def step(state: tuple[Weights, Any], rows: jax.Array) -> tuple[tuple[Weights, Any], None]:
        weights, moments = state
        updates, moments = optimizer.update(jax.grad(penalized)(weights, rows), moments)
        return (optax.apply_updates(weights, updates), moments), None

    (weights, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), order)
    return weights


def _loss(weights: Weights, x: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
    """Weighted binary cross entropy, summed over domains, a mean over rows."""
    z = head_logits(weights, x)
    return jnp.sum(weight * optax.sigmoid_binary_cross_entropy(z, y)) / len(x)


def head_logits(weights: Weights, x: jax.Array) -> jax.Array:
    """[n, M] from standardised rows [n, D]."""
    if "w1" in weights:
        x = jax.nn.gelu(x @ weights["w1"] + weights["b1"])
    return x @ weights["w"] + weights["b"]


@jax.jit
def _forward(weights: Weights, embeddings: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return head_logits(weights, (embeddings - weights["mean"]) / weights["deviation"])


def _ceiling(count: int) -> int:
    """The next power of two."""
    return 1 << max(0, count - 1).bit_length()
