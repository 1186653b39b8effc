"""How an encoder and the head above it are trained together: every window of a text learns the text's labels.

A text that is longer than the encoder reads is several windows, and its logits are their mean. Training takes a window
as an example, which weighs 1 / (windows of its text), so that a step has the same number of tokens whether texts are
long or short, and a text of fourteen windows needs no more memory than one of one. Rows are packed as in embedding;
all steps have one shape, so that one program is compiled.

AdamW at fp32 masters, a linear warm-up and decay, class weights as of the head (classifier.py), a checkpoint now and
then: a training that was killed goes on to the same bits. Which windows a step has follows from the seed and the step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from ntk_jax.data.windows import WindowBatch, batches, fill, plan_rows, row_length
from ntk_jax.errors import UserError
from ntk_jax.mining.classifier import class_weights, head_logits
from ntk_jax.models.embedder import WINDOWS_A_ROW, Backbone, Embedder, pool_states
from ntk_jax.parallel.hosts import place
from ntk_jax.parallel.rules import ROWS, shard_batch
from ntk_jax.training.checkpoints import Checkpoints, Entry
from ntk_jax.training.optimizer import (
    OptimizerSettings,
    TrainConfig,
    check_config,
    learning_rates,
    make_optimizer,
    settings_of,
)

Tree = Any
FIXED = ("mean", "deviation")  # arrays of a head that are not trained


@dataclass(frozen=True)
class TuneConfig:
    """One fine-tuning. Rates and epochs are those that encoders of the BERT type are usually tuned with (Devlin et al.,
    arXiv 1810.04805, appendix A.3); the number of epochs is fixed, for held-out mined labels cannot choose it."""

    epochs: float = 2.0
    learning_rate: float = 2e-5  # of the encoder at its peak
    head_learning_rate: float = 1e-3  # of the head, which is small and has to follow
    batch: int = 32  # windows of a step
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    tokens_per_microbatch: int = 8192  # over all devices
    checkpoint_every: int = 100  # steps


@dataclass(frozen=True)
class Windows:
    """The windows of texts. ids: of each window; owner: [W] the text it is of, ascending."""

    ids: list[np.ndarray]
    owner: np.ndarray


@dataclass(frozen=True)
class Tuned:
    """embedder: with the trained weights. head: trained arrays. key: a hash of all that decides them. steps: of it."""

    embedder: Embedder
    head: dict[str, np.ndarray]
    key: str
    steps: int


def windows_of(embedder: Embedder, texts: Sequence[str]) -> Windows:
    """Every window of every text, as `Embedder.embed` reads them."""
    cut = embedder.tokens.windows(texts, embedder.prefixes["passage"])
    return Windows([ids for own in cut for ids in own], np.repeat(np.arange(len(cut)), [len(own) for own in cut]))


def tune(
    embedder: Embedder,
    head: Mapping[str, np.ndarray],
    windows: Windows,
    labels: np.ndarray,
    config: TuneConfig,
    *,
    folder: Path,
    seed: int,
    progress: Callable[[int, int], None],
) -> Tuned:
    """Trains from a head that fits the encoder as it is; a random one spoils it first (Kumar et al., arXiv 2202.10054).

    labels: [n, M] of the windows' texts; NaN is not used. folder: receives checkpoints/ and history.jsonl; called again
    with the same arguments it goes on where it was. progress(done, total) counts steps.
    Raises UserError: settings that train nothing, a loss that is not finite, a folder of another training, a full disk.
    """
    training = _training(config)
    check_config(training, "fine-tuning")
    steps = max(1, math.ceil(config.epochs * len(windows.ids) / config.batch))
    rates = learning_rates(training, steps)
    weights = _window_weights(labels, windows.owner)
    feed = _Feed(embedder, windows, weights, np.nan_to_num(labels).astype(np.float32), config, seed, steps)
    static = _static(embedder, training, config)
    fixed = {name: jnp.array(head[name]) for name in FIXED}
    trained: Tree = {
        "encoder": jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), embedder.weights),
        "head": {name: jnp.array(value) for name, value in head.items() if name not in FIXED},
    }
    if embedder.mesh is not None:
        whole = NamedSharding(embedder.mesh, PartitionSpec())
        trained["head"], fixed = place(trained["head"], whole), place(fixed, whole)
    key = _key(embedder, head, windows, labels, config, seed)
    checkpoints = Checkpoints(folder, key)
    with contextlib.closing(checkpoints):
        state = {"trained": trained, "optimizer": _begin(static, trained)}
        first, restored, history = checkpoints.restore(jax.tree.map(_abstract, state))
        state = state if restored is None else restored
        for step in range(first, steps):
            carry = _empty(state["trained"])
            for batch in feed.step(step):
                carry = _accumulate(static, state["trained"], fixed, batch, carry)
            trained, moments = _update(static, state["trained"], state["optimizer"], carry["gradient"], rates[step])
            state = {"trained": trained, "optimizer": moments}
            history.append(_entry(step, float(carry["loss"]), float(rates[step])))
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == steps:
                # A copy: the next update overwrites the arrays while they are still being written.
                checkpoints.save(step + 1, jax.tree.map(jnp.copy, state), history)
            progress(step + 1, steps)
    own = jax.tree.map(lambda new, old: new.astype(old.dtype), state["trained"]["encoder"], embedder.weights)
    facts = {**embedder.facts, "tuned": key}
    tuned = {name: np.asarray(value) for name, value in (state["trained"]["head"] | fixed).items()}
    return Tuned(dataclasses.replace(embedder, weights=own, facts=facts), tuned, key, steps)


# ---------------------------------------------------------------------------------------------------------------
# What a step reads


@dataclass(frozen=True)
class _Feed:
    """weights: [W, M] of each window; y: [n, M] of its text."""

    embedder: Embedder
    windows: Windows
    weights: np.ndarray
    y: np.ndarray
    config: TuneConfig
    seed: int
    steps: int

    @functools.cached_property
    def _order(self) -> np.ndarray:
        """[steps, batch] windows: every one of them once, then again in another order."""
        count, wanted = len(self.windows.ids), self.steps * self.config.batch
        rng = np.random.default_rng([self.seed, 0x7E])
        return np.concatenate([rng.permutation(count) for _ in range(-(-wanted // count))])[:wanted].reshape(
            self.steps, self.config.batch
        )

    @functools.cached_property
    def _longest(self) -> int:
        """Tokens of a row: all rows have the same."""
        return row_length(max(map(len, self.windows.ids)), self.embedder.max_tokens)

    @functools.cached_property
    def _rows(self) -> int:
        """Rows of a microbatch: so few that the fullest step fills them."""
        mesh = self.embedder.mesh
        parts = 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in ROWS]))
        most = max(len(self._planned(step)) for step in range(self.steps))
        pieces = -(-most * self._longest // self.config.tokens_per_microbatch)
        return -(-most // (pieces * parts)) * parts

    def _planned(self, step: int) -> list[tuple[int, list[int]]]:
        lengths = [len(self.windows.ids[place]) for place in self._order[step]]
        return plan_rows(lengths, self.embedder.max_tokens, WINDOWS_A_ROW, self._longest)

    def step(self, step: int) -> list[dict[str, Any]]:
        """The microbatches of a step, on the devices."""
        chosen = self._order[step]
        ids = [self.windows.ids[place] for place in chosen]
        filled = [fill(one, ids, WINDOWS_A_ROW) for one in batches(self._planned(step), 1, self._rows)]
        return [self._placed(one, chosen) for one in filled]

    def _placed(self, batch: WindowBatch, chosen: np.ndarray) -> dict[str, Any]:
        here = chosen[np.maximum(batch.index, 0)]  # [B, S]
        weight = self.weights[here] * (batch.index >= 0)[..., None] / np.float32(len(chosen))
        arrays = {
            "tokens": batch.tokens,
            "positions": batch.positions,
            "segments": batch.segments,
            "y": self.y[self.windows.owner[here]],
            "weight": weight.astype(np.float32),
        }
        return arrays if self.embedder.mesh is None else shard_batch(arrays, self.embedder.mesh)


def _window_weights(labels: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """[W, M] fp32: those of the texts, shared by their windows, and 1 a domain on average over the windows."""
    windows = np.bincount(owner, minlength=len(labels))
    each = class_weights(labels) * len(owner)
    return (each[owner] / windows[owner, None]).astype(np.float32)


def _training(config: TuneConfig) -> TrainConfig:
    return TrainConfig(
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_size=config.batch,
        warmup_ratio=config.warmup_ratio,
        weight_decay=config.weight_decay,
        tokens_per_microbatch=config.tokens_per_microbatch,
        checkpoint_every=config.checkpoint_every,
    )


def _key(
    embedder: Embedder,
    head: Mapping[str, np.ndarray],
    windows: Windows,
    labels: np.ndarray,
    config: TuneConfig,
    seed: int,
) -> str:
    """A hash of everything that decides the result; the encoder by its facts, which hold its files' hash."""
    digest = hashlib.sha256(json.dumps([asdict(config), seed, embedder.facts], sort_keys=True).encode())
    arrays = [*(head[name] for name in sorted(head)), *windows.ids, windows.owner, labels]
    for array in arrays:
        digest.update(f"{array.shape}\0".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _entry(step: int, loss: float, rate: float) -> Entry:
    if not math.isfinite(loss):
        raise UserError(f"fine-tuning: the loss of step {step + 1} is {loss}; lower the learning rate")
    return {"step": step + 1, "loss": loss, "learning_rate": rate}


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


# ---------------------------------------------------------------------------------------------------------------
# The compiled steps


@dataclass(frozen=True)
class _Static:
    """What the compiled steps depend on besides shapes. dtypes: of the encoder's leaves as it computes. head_rate: of
    the head's learning rate to the encoder's."""

    backbone: Backbone
    pooling: str
    normalize: bool
    dtypes: tuple[str, ...]
    optimizer: OptimizerSettings
    head_rate: float


def _static(embedder: Embedder, training: TrainConfig, config: TuneConfig) -> _Static:
    dtypes = tuple(jnp.dtype(leaf.dtype).name for leaf in jax.tree.leaves(embedder.weights))
    backbone = dataclasses.replace(embedder.backbone, remat=True)
    head_rate = config.head_learning_rate / config.learning_rate if config.learning_rate else 1.0
    return _Static(backbone, embedder.pooling, embedder.normalize, dtypes, settings_of(training), head_rate)


def _loss(static: _Static, trained: Tree, fixed: Tree, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Weighted binary cross entropy, summed over windows and domains."""
    leaves, structure = jax.tree.flatten(trained["encoder"])
    weights = jax.tree.unflatten(
        structure, [leaf.astype(dtype) for leaf, dtype in zip(leaves, static.dtypes, strict=True)]
    )
    rows = (batch["tokens"], batch["positions"], batch["segments"])
    pooled = pool_states(static.backbone, weights, *rows, pooling=static.pooling, normalize=static.normalize)
    z = head_logits(trained["head"], (pooled - fixed["mean"]) / fixed["deviation"])  # [B, S, M]
    return jnp.sum(batch["weight"] * optax.sigmoid_binary_cross_entropy(z, batch["y"]))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _accumulate(static: _Static, trained: Tree, fixed: Tree, batch: Mapping[str, jax.Array], carry: Tree) -> Tree:
    loss, gradient = jax.value_and_grad(functools.partial(_loss, static))(trained, fixed, batch)
    return {"gradient": jax.tree.map(jnp.add, carry["gradient"], gradient), "loss": carry["loss"] + loss}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _update(static: _Static, trained: Tree, moments: Any, gradient: Tree, rate: jax.Array) -> tuple[Tree, Any]:
    updates, moments = make_optimizer(static.optimizer).update(gradient, moments, trained)
    rates = {"encoder": rate, "head": rate * static.head_rate}
    scaled = {part: jax.tree.map(lambda leaf, r=own: r * leaf, updates[part]) for part, own in rates.items()}
    return optax.apply_updates(trained, scaled), moments


@functools.partial(jax.jit, static_argnums=0)
def _begin(static: _Static, trained: Tree) -> Any:
    return make_optimizer(static.optimizer).init(trained)


@jax.jit
def _empty(trained: Tree) -> Tree:
    return {"gradient": jax.tree.map(jnp.zeros_like, trained), "loss": jnp.zeros((), jnp.float32)}
