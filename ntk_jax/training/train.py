"""One training from packed rows: LoRA fine-tuning (warm-up and final), training of all parameters, and pre-training.

The story: choose the shapes, put everything on the devices, restore what a killed run left, then for each
optimiser step add up the microbatches' gradients and update once. The host runs one step ahead of the devices
and never waits for a microbatch: losses are read a step late.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from ntk_jax.data.batch import Batch, PackedBatch, TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.parameters import Tree, join_parameters, only_adapters, split_parameters
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import place
from ntk_jax.parallel.rules import param_shardings, shard_batch
from ntk_jax.training.checkpoints import Checkpoints, Entry, training_key
from ntk_jax.training.feed import Feed, examples_of
from ntk_jax.training.flops import training_flops
from ntk_jax.training.loss import loss_sum, weighing_examples
from ntk_jax.training.optimizer import (
    OptimizerSettings,
    TrainConfig,
    adam_moments,
    check_config,
    learning_rates,
    make_optimizer,
    second_moment,
    settings_of,
)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Trained:
    """What a training gives back.

    lora, base: pure dicts, fp32 where trained; what was not trained is the model's own.
    second_moment: Adam's bias-corrected v, shaped like the parameters trained as `kernels.parameters` splits them
    (and so like a direction): the adapter tree under "lora", {"lora"?, "base"} otherwise.
    examples, tokens, label_tokens: seen over all epochs, padding not counted. flops: see flops.py.
    history: [{step (from 1), loss, learning_rate, grad_norm (before clipping), tokens, label_tokens}], a step each.
    """

    lora: Tree
    base: Tree
    second_moment: Tree
    steps: int
    examples: int
    tokens: int
    label_tokens: int
    flops: float
    history: list[Entry]


@dataclass(frozen=True)
class _Static:
    """What the compiled steps depend on besides shapes; hashable, so that equal trainings share a compilation.

    shardings: of the trained parameters' leaves, None off the mesh.
    """

    graphdef: Any
    dtype: Any
    remat: bool
    parameters: str
    optimizer: OptimizerSettings
    shardings: tuple[NamedSharding, ...] | None


@dataclass(frozen=True)
class _Pending:
    """A step that was sent to the devices and whose metrics were not read yet."""

    step: int
    rows: list[TokenRow]
    packed: list[PackedBatch]
    metrics: dict[str, jax.Array]


def train(
    model: Model,
    rows: Sequence[TokenRow] | Feed,
    config: TrainConfig,
    *,
    folder: Path,
    seed: int,
    row_length: int,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
    parameters: str = "lora",
    remat: bool | None = None,
    keep_steps: Collection[int] = (),
    keep: Callable[[int, Tree], None] | None = None,
    keep_moments: bool = False,
) -> Trained:
    """Trains on `rows` and returns the trained parameters; called again after a kill, it goes on to the same bits.

    The loss is the mean of -log p over the label tokens of the optimiser batch (response tokens only, by the rows'
    span), or with `config.loss` example_mean the mean over its examples of each one's mean. rows: examples, whose order
    is the seed's; or a feed, which has its own steps and its own order, and of which `epochs`, `max_steps` and
    `batch_size` of the config are not asked. row_length: positions of a packed row.
    parameters: "lora", "all" (adapter and base, or the base alone where there is no adapter), or a
    pattern over names as in `kernels.parameters`; not the adapters of some layers, whose result would be no adapter.
    folder: receives checkpoints/ and history.jsonl. progress(done, total, note) is called once a step,
    when the step is computed.
    remat: recompute layers in the backward pass; None: for hidden sizes from 1024 on, where activations, not
    FLOPs, are what a device runs out of. The given model is left untouched.
    keep(step, trained parameters): called after each of `keep_steps` (from 1), before that step's checkpoint is
    written: a resumed training calls it again for steps that may not have been kept, and for no others. They lie on the
    devices and are gone after the call: what should stay is copied. keep_moments: they come as {"parameters", "m",
    "v"}, with Adam's moments without bias correction, each shaped like the parameters.

    Raises `UserError`: no rows, no labels, a row longer than row_length, no adapter under parameters="lora",
    a loss or gradient that is not finite (naming step and example), a folder of another training, a full disk.
    """
    check_config(config)
    feed: Feed = examples_of(rows, config, seed, row_length) if isinstance(rows, Sequence) else rows
    folder = Path(folder)
    remat = model.config.hidden_size >= 1024 if remat is None else remat
    steps = feed.steps

    # Shapes
    groups = mesh.shape["data"] * mesh.shape["fsdp"] if mesh is not None else 1
    shapes = feed.shapes(config, groups)

    # Parameters, on the devices
    if parameters != "lora" and only_adapters(parameters):
        raise UserError(f"parameters = {parameters!r}: adapters are trained in all layers; train 'lora'")
    trainable, frozen = split_parameters(model, parameters)
    # Trained parameters are fp32 masters: bf16 would round small updates away. Always a copy, because the update
    # donates its buffers and the model's own must survive.
    trainable = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), trainable)
    dtype = jnp.dtype(model.dtype)
    key = training_key(
        config, feed, trainable, seed=seed, row_length=row_length, parameters=parameters, dtype=dtype.name
    )
    shardings = None
    if mesh is not None:
        placed = param_shardings(trainable, mesh) if parameters == "lora" else _by_part(trainable, mesh)
        shardings = tuple(jax.tree.leaves(placed))
        trainable = place(trainable, placed)
        frozen = place(frozen, _by_part(frozen, mesh))
    static = _Static(model.graphdef, dtype, remat, parameters, settings_of(config), shardings)
    rates, by_example = learning_rates(config, steps), config.loss == "example_mean"

    checkpoints = Checkpoints(folder, key)
    # The mesh in force lets the model pin its activations to the rows.
    with contextlib.closing(checkpoints), jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        # Where an earlier run stopped
        optimizer_state, carry = _begin(static, trainable)
        abstract = jax.tree.map(_abstract, {"trainable": trainable, "optimizer": optimizer_state})
        first, restored, history = checkpoints.restore(abstract)
        if restored is not None:
            trainable, optimizer_state = restored["trainable"], restored["optimizer"]

        # Steps
        pending: _Pending | None = None
        for step in range(first, steps):
            chosen, packed = feed.step(step, shapes)
            if by_example:
                packed = [weighing_examples(microbatch) for microbatch in packed]
            for number, microbatch in enumerate(packed):
                batch = microbatch.batch if mesh is None else shard_batch(microbatch.batch, mesh)
                carry = _accumulate(static, trainable, frozen, batch, np.int32(number), carry)
            weights = sum(int(np.any(row.span[:-1])) for row in chosen) if by_example else _count_labels(packed)
            trainable, optimizer_state, carry, metrics = _update(
                static, trainable, optimizer_state, carry, np.float32(weights), rates[step]
            )
            if pending is not None:
                _read(pending, history, rates, steps, progress)
            pending = _Pending(step, chosen, packed, metrics)
            if keep is not None and step + 1 in keep_steps:
                _read(pending, history, rates, steps, progress)  # what is kept holds no NaN either
                pending = None
                kept = {"parameters": trainable, **adam_moments(optimizer_state)} if keep_moments else trainable
                keep(step + 1, kept)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == steps:
                if pending is not None:
                    _read(pending, history, rates, steps, progress)  # a checkpoint never holds a NaN
                pending = None
                # A copy again: orbax reads it while the next update overwrites the original.
                checkpoints.save(step + 1, _copy({"trainable": trainable, "optimizer": optimizer_state}), history)

    tokens, label_tokens = (int(sum(entry[name] for entry in history)) for name in ("tokens", "label_tokens"))
    lora, base = join_parameters(trainable, frozen, parameters)
    adapter_size = sum(leaf.size for leaf in jax.tree.leaves(model.lora))
    return Trained(
        lora=lora,
        base=base,
        second_moment=second_moment(optimizer_state, config.beta2),
        steps=steps,
        examples=feed.examples,
        tokens=tokens,
        label_tokens=label_tokens,
        flops=training_flops(
            model.config, tokens, label_tokens, remat, parameters=parameters, lora_parameters=adapter_size
        ),
        history=history,
    )


# ---------------------------------------------------------------------------------------------------------------
# The two compiled steps


def _loss(static: _Static, trainable: Tree, frozen: Tree, batch: Batch) -> tuple[jax.Array, jax.Array]:
    lora, base = join_parameters(trainable, frozen, static.parameters)
    return loss_sum(static.graphdef, lora, base, batch, dtype=static.dtype, remat=static.remat)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=5)
def _accumulate(static: _Static, trainable: Tree, frozen: Tree, batch: Batch, number: jax.Array, carry: Tree) -> Tree:
    """Adds one microbatch to the carry: gradient sum, loss sum, and the first label that is not finite."""
    loss = functools.partial(_loss, static)
    (value, slot), gradient = jax.value_and_grad(loss, has_aux=True)(trainable, frozen, batch)
    code = number * batch.label_target.size + slot
    return {
        "gradient": _pin(static, jax.tree.map(jnp.add, carry["gradient"], gradient)),
        "loss": carry["loss"] + value,
        "broken": jnp.where((carry["broken"] < 0) & (slot >= 0), code, carry["broken"]),
    }


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2, 3))
def _update(
    static: _Static, trainable: Tree, optimizer_state: Any, carry: Tree, labels: jax.Array, rate: jax.Array
) -> tuple[Tree, Any, Tree, dict[str, jax.Array]]:
    """The optimiser step: mean gradient, clip, AdamW; gives the carry back empty, and the step's metrics."""
    count = jnp.maximum(labels, 1.0)
    gradient = jax.tree.map(lambda leaf: leaf / count, carry["gradient"])
    updates, optimizer_state = make_optimizer(static.optimizer).update(gradient, optimizer_state, trainable)
    updates = jax.tree.map(lambda leaf: rate * leaf, updates)
    metrics = {
        "loss": carry["loss"] / count,
        "grad_norm": optax.tree.norm(gradient),
        "broken": carry["broken"],
    }
    trainable = _pin(static, optax.apply_updates(trainable, updates))
    return trainable, _pin_state(static, optimizer_state), _empty_carry(static, trainable), metrics


@functools.partial(jax.jit, static_argnums=0)
def _begin(static: _Static, trainable: Tree) -> tuple[Any, Tree]:
    """The optimiser's first state and the empty carry."""
    return _pin_state(static, make_optimizer(static.optimizer).init(trainable)), _empty_carry(static, trainable)


def _empty_carry(static: _Static, trainable: Tree) -> Tree:
    gradient = _pin(static, jax.tree.map(jnp.zeros_like, trainable))
    return {"gradient": gradient, "loss": jnp.zeros((), jnp.float32), "broken": jnp.full((), -1, jnp.int32)}


def _pin(static: _Static, tree: Tree) -> Tree:
    """Keeps every leaf where its parameter lies, so that all steps see one sharding and compile once."""
    if static.shardings is None:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    pinned = map(jax.lax.with_sharding_constraint, leaves, static.shardings)
    return jax.tree.unflatten(treedef, pinned)


def _pin_state(static: _Static, optimizer_state: Any) -> Any:
    """Adam's moments lie where their parameters do."""

    def is_adam(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    def pin(node: Any) -> Any:
        return node._replace(mu=_pin(static, node.mu), nu=_pin(static, node.nu)) if is_adam(node) else node

    return jax.tree.map(pin, optimizer_state, is_leaf=is_adam)


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


# ---------------------------------------------------------------------------------------------------------------
# Host side


def _read(pending: _Pending, history: list[Entry], rates: np.ndarray, steps: int, progress: Progress | None) -> None:
    """Waits for a step's metrics, refuses what is not finite, and writes it into the history."""
    metrics = {name: value.item() for name, value in jax.device_get(pending.metrics).items()}
    number = pending.step + 1
    if metrics["broken"] >= 0:
        row = _row_of_slot(pending, metrics["broken"])
        raise UserError(
            f"training step {number}: the loss of example {row.id!r} is not finite; look at that example and at the "
            "weights, or lower the learning rate"
        )
    if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"]):
        raise UserError(
            f"training step {number}: the gradient is not finite (first example of the step: "
            f"{pending.rows[0].id!r}); lower the learning rate or train in float32"
        )
    history.append(
        {
            "step": number,
            "loss": metrics["loss"],
            "learning_rate": float(rates[pending.step]),
            "grad_norm": metrics["grad_norm"],
            "tokens": sum(len(row.ids) for row in pending.rows),
            "label_tokens": _count_labels(pending.packed),
        }
    )
    if progress is not None:
        progress(number, steps, f"loss {metrics['loss']:.4f}")


def _row_of_slot(pending: _Pending, code: int) -> TokenRow:
    number, slot = divmod(code, pending.packed[0].batch.label_target.size)
    packed = pending.packed[number]
    groups, width = packed.batch.label_target.shape
    group, column = divmod(slot, width)
    height, length = packed.batch.tokens.shape[0] // groups, packed.batch.tokens.shape[1]
    row = group * height + int(packed.batch.label_position[group, column]) // length
    segment = int(packed.batch.label_segment[group, column])
    return pending.rows[int(packed.index[row, segment - 1])]


def _count_labels(packed: list[PackedBatch]) -> int:
    return sum(int(np.count_nonzero(np.asarray(p.batch.label_segment))) for p in packed)


# ---------------------------------------------------------------------------------------------------------------
# Devices


def _by_part(tree: Tree, mesh: Mesh) -> Tree:
    """Shardings of {"lora"?, "base"?}: the rules name parameters from the root of each part."""
    return {name: param_shardings(part, mesh) for name, part in tree.items()}


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
