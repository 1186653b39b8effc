"""A LoRA training held in memory, any step of which can be done again: for derivatives of a training, and for many
short trainings on parts of one set.

What `train` does step by step (order, batches, loss, optimiser, rates), without checkpoints and with a weight for every
example. The weight multiplies an example's summed loss (its mean loss, where the training's loss is example_mean); the
step is divided by the labels of all its examples (or by their number), whatever their weights. So a derivative by a
weight is that of adding or taking away the example's own gradient, and not also that of making all the others count for
more.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from ntk_jax.data.batch import Batch, PackedBatch, TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.parameters import Tree
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import on_host, place
from ntk_jax.parallel.rules import param_shardings, shard_batch
from ntk_jax.training.feed import Examples, examples_of
from ntk_jax.training.loss import label_log_probs
from ntk_jax.training.optimizer import (
    OptimizerSettings,
    TrainConfig,
    check_config,
    learning_rates,
    make_optimizer,
    settings_of,
)
from ntk_jax.training.order import Shapes, microbatches

# Added to Adam's v under the root: √v has no derivative at v = 0, where every A of a fresh adapter is after the first
# step. With this the derivative there is 1/eps by way of the gradient and 0 by way of v, as the limit has it. An update
# changes by 1e-18 / eps = 1e-10 of itself at most: it is `train`'s to the rounding of fp32.
EPS_ROOT = 1e-36


@dataclass(frozen=True)
class Static:
    """What the compiled steps depend on besides shapes. shardings: of the adapter's leaves, None off the mesh."""

    graphdef: Any
    dtype: Any
    remat: bool
    optimizer: OptimizerSettings
    shardings: tuple[NamedSharding, ...] | None = None


@dataclass(frozen=True)
class Piece:
    """A microbatch. owner: [groups, M] int64, the example of each label slot, counted over all rows; -1: unused."""

    batch: Batch
    owner: np.ndarray

    def by_example(self, values: Any, count: int) -> np.ndarray:
        """[count] fp64 sums over the label slots of each example."""
        used = self.owner >= 0
        return np.bincount(self.owner[used], on_host(values).astype(np.float64)[used], minlength=count)


@dataclass(frozen=True)
class Course:
    """One training. feed: rows, settings and seed. base: the frozen weights, where they are computed with."""

    static: Static
    feed: Examples
    lora: Tree
    base: Tree
    shapes: Shapes
    rates: np.ndarray
    mesh: Mesh | None

    @property
    def steps(self) -> int:
        return self.feed.steps

    @functools.cached_property
    def factors(self) -> np.ndarray:
        """[N] what an example's summed loss is multiplied by in a step: 1, or with example_mean 1 / its labels."""
        if self.feed.config.loss == "token_mean":
            return np.ones(len(self.feed.rows))
        labels = np.array([np.count_nonzero(row.span[:-1]) for row in self.feed.rows])
        return np.asarray(1.0 / np.maximum(labels, 1))

    def divisor(self, pieces: Sequence[Piece]) -> np.float32:
        """What the sum of a step is divided by, whatever the weights: its label tokens, or with example_mean its
        examples that have any."""
        if self.feed.config.loss == "token_mean":
            return np.float32(max(_labels_of(pieces), 1))
        return np.float32(max(sum(len(np.unique(piece.owner[piece.owner >= 0])) for piece in pieces), 1))

    def pieces(self, step: int, among: np.ndarray | None = None) -> list[Piece]:
        """The microbatches of a step; among: [N] bool, the examples that are not left out."""
        feed = self.feed
        ordinals = feed.ordinals(step)
        if among is not None:
            ordinals = ordinals[among[ordinals]]
        if not len(ordinals):
            return []
        packed = microbatches([feed.rows[i] for i in ordinals], self.shapes, feed.row_length)
        return [_piece(one, self.shapes.groups, ordinals) for one in packed]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Where a training is: the adapter and the optimiser's state, both fp32."""

    lora: Tree
    moments: Any


def course(
    model: Model,
    rows: Sequence[TokenRow],
    config: TrainConfig,
    *,
    seed: int,
    row_length: int,
    mesh: Mesh | None = None,
    remat: bool | None = None,
) -> Course:
    """The training of the model's adapter, as it is, on rows. Arguments as of `train`. Raises UserError: as `train` for
    its settings and rows, no adapter."""
    check_config(config)
    if not model.lora:
        raise UserError(f"{model.name} has no LoRA adapter; pass lora= or adapter= to load_model")
    feed = examples_of(rows, config, seed, row_length)
    groups = mesh.shape["data"] * mesh.shape["fsdp"] if mesh is not None else 1
    remat = model.config.hidden_size >= 1024 if remat is None else remat
    lora, base = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), model.lora), model.base
    shardings = None
    if mesh is not None:
        placed = param_shardings(lora, mesh)
        shardings = tuple(jax.tree.leaves(placed))
        lora, base = place(lora, placed), place(base, param_shardings(base, mesh))
    static = Static(model.graphdef, jnp.dtype(model.dtype), remat, settings_of(config), shardings)
    rates = learning_rates(config, feed.steps)
    return Course(static, feed, lora, base, feed.shapes(config, groups), rates, mesh)


def start(course: Course) -> State:
    """The given adapter and an empty optimiser."""
    with in_mesh(course.mesh):
        return State(course.lora, _begin(course.static, course.lora))


def summed_gradient(course: Course, lora: Tree, pieces: Sequence[Piece], weights: np.ndarray) -> tuple[Tree, jax.Array]:
    """(∇ Σ w_j ℓ_j over the pieces' examples, the sum), ℓ_j the summed -log p of an example's labels. weights: [N]."""
    total, loss = None, jnp.zeros(())
    with in_mesh(course.mesh):
        for piece in pieces:
            value, gradient = _gradient(course.static, lora, course.base, *on_devices(course, piece, weights))
            total = gradient if total is None else _add(total, gradient)
            loss = loss + value
        return (_zeros(lora) if total is None else total), loss


def forward(
    course: Course, state: State, step: int, weights: np.ndarray, among: np.ndarray | None = None
) -> tuple[State, Tree, jax.Array]:
    """One step: (the state after it, its summed gradient, its loss as of the training). weights: [N], of all rows.
    among: [N] bool, the examples that are not left out, by which alone the step is divided."""
    pieces = course.pieces(step, among)
    divisor = course.divisor(pieces)
    gradient, loss = summed_gradient(course, state.lora, pieces, weights * course.factors)
    with in_mesh(course.mesh):
        lora, moments = _update(course.static, state.lora, state.moments, gradient, divisor, course.rates[step])
    return State(lora, moments), gradient, loss / divisor


def _labels_of(pieces: Sequence[Piece]) -> int:
    """Label tokens."""
    return sum(int(np.count_nonzero(piece.owner >= 0)) for piece in pieces)


def times_read(course: Course) -> np.ndarray:
    """[N] how often the whole training reads each of its rows."""
    read = np.concatenate([course.feed.ordinals(step) for step in range(course.steps)])
    return np.bincount(read, minlength=len(course.feed.rows))


def sizes_of(rows: Sequence[TokenRow]) -> tuple[np.ndarray, np.ndarray]:
    """([N] tokens, [N] label tokens)."""
    return np.array([len(row.ids) for row in rows]), np.array([np.count_nonzero(row.span[:-1]) for row in rows])


def trained(course: Course, weights: np.ndarray | None = None, among: np.ndarray | None = None) -> Tree:
    """The adapter after the whole training. weights, among: as of `forward`."""
    weights = np.ones(len(course.feed.rows)) if weights is None else weights
    state = start(course)
    for step in range(course.steps):
        state, _, _ = forward(course, state, step, weights, among)
    return state.lora


# -- held-out loss -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """Rows whose loss is measured, in microbatches. labels: [H] label tokens of each."""

    pieces: tuple[Piece, ...]
    labels: np.ndarray

    def weights(self, by: str) -> np.ndarray:
        """[H] factors of the summed losses whose sum is the mean by token (of all tokens alike), or by example."""
        if by == "token":
            return np.full(len(self.labels), 1.0 / self.labels.sum())
        return 1.0 / (np.maximum(self.labels, 1) * max(1, np.count_nonzero(self.labels)))


def held_out_rows(rows: Sequence[TokenRow], config: TrainConfig, row_length: int, mesh: Mesh | None = None) -> HeldOut:
    """Packs the rows in microbatches of the training's size. Raises UserError: none, none with a label."""
    if not rows or not any(np.any(row.span[:-1]) for row in rows):
        raise UserError("there are no held-out examples with a response to measure the loss on; give some")
    groups = mesh.shape["data"] * mesh.shape["fsdp"] if mesh is not None else 1
    whole = Examples(rows, TrainConfig(batch_size=len(rows), max_steps=1), 0, row_length)
    shapes = whole.shapes(config, groups)
    ordinals = np.arange(len(rows))
    pieces = tuple(_piece(one, groups, ordinals) for one in microbatches(rows, shapes, row_length))
    labels = np.array([int(np.count_nonzero(row.span[:-1])) for row in rows])
    return HeldOut(pieces, labels)


def example_losses(course: Course, lora: Tree, held_out: HeldOut) -> np.ndarray:
    """[H] fp64 summed -log p of each held-out example's labels, nats."""
    losses = np.zeros(len(held_out.labels))
    ones = np.ones(len(held_out.labels))
    with in_mesh(course.mesh):
        for piece in held_out.pieces:
            batch, _ = on_devices(course, piece, ones)
            losses -= piece.by_example(_log_probs(course.static, lora, course.base, batch), len(losses))
    return losses


# -- compiled ------------------------------------------------------------------------------------------------------


def weighted_loss(
    static: Static, lora: Tree, base: Tree, batch: Batch, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(-Σ w log p over the label slots, log p). weights: [groups, M]."""
    log_probs = label_log_probs(static.graphdef, lora, base, batch, dtype=static.dtype, remat=static.remat)
    return -jnp.sum(weights * log_probs), log_probs


def updated(static: Static, lora: Tree, moments: Any, gradient: Tree, labels: Any, rate: Any) -> tuple[Tree, Any]:
    """(the adapter, the optimiser's state) after one update. gradient: summed; `labels`: what it is divided by."""
    gradient = jax.tree.map(lambda leaf: leaf / labels, gradient)
    updates, moments = _optimizer(static).update(gradient, moments, lora)
    return optax.apply_updates(lora, jax.tree.map(lambda leaf: rate * leaf, updates)), moments


@functools.partial(jax.jit, static_argnums=0)
def _begin(static: Static, lora: Tree) -> Any:
    return _optimizer(static).init(lora)


_update = functools.partial(jax.jit, static_argnums=0)(updated)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(static: Static, lora: Tree, base: Tree, batch: Batch, weights: jax.Array) -> Any:
    loss = functools.partial(weighted_loss, static)
    (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(lora, base, batch, weights)
    return value, pinned(static, gradient)


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(static: Static, lora: Tree, base: Tree, batch: Batch) -> jax.Array:
    return label_log_probs(static.graphdef, lora, base, batch, dtype=static.dtype)


@jax.jit
def _zeros(tree: Tree) -> Tree:
    return jax.tree.map(jnp.zeros_like, tree)


@jax.jit
def _add(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(jnp.add, a, b)


def _optimizer(static: Static) -> optax.GradientTransformation:
    return make_optimizer(static.optimizer, eps_root=EPS_ROOT)


# -- devices -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_mesh(mesh: Mesh | None) -> Iterator[None]:
    """The mesh in force, which lets the model pin its activations to the rows."""
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        yield


def on_devices(course: Course, piece: Piece, weights: np.ndarray) -> tuple[Any, Any]:
    """A piece's batch and the weights of its label slots [groups, M], where they are computed with."""
    slots = np.where(piece.owner >= 0, weights[piece.owner], 0.0).astype(np.float32)
    both = (piece.batch, slots)
    return both if course.mesh is None else shard_batch(both, course.mesh)


def pinned(static: Static, tree: Tree) -> Tree:
    """Keeps leaves where the adapter's lie."""
    if static.shardings is None:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, map(jax.lax.with_sharding_constraint, leaves, static.shardings))


def _piece(packed: PackedBatch, groups: int, ordinals: np.ndarray) -> Piece:
    """ordinals: of the rows that were packed, among all rows."""
    batch = packed.batch
    height, length = batch.tokens.shape[0] // groups, batch.tokens.shape[1]
    row = np.arange(groups)[:, None] * height + np.asarray(batch.label_position) // length
    segment = np.asarray(batch.label_segment)
    index = np.where(segment > 0, packed.index[row, np.maximum(segment, 1) - 1], -1)
    return Piece(batch, np.where(index >= 0, np.asarray(ordinals)[index], -1))
