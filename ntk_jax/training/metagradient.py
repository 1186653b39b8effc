"""What an example is worth: the derivative of the held-out loss after K optimiser steps by the weight of each training
example, through the whole training (MAGIC, arXiv 2504.16430).

With θ_{t+1} = U(θ_t, m_t, v_t, Σ_j w_j ∇ℓ_j(θ_t)) for the steps of a training, U clipping and AdamW, and λ the
derivative of the held-out loss by what a step gives, the steps are gone back one by one:

    (λ_t by U itself, u) = λ_{t+1}ᵀ ∂U,    u the cotangent of the step's summed gradient
    dL/dw_j += ⟨u, ∇ℓ_j(θ_t)⟩             a directional derivative of every example's loss, as a score is
    λ_t     += Σ_j w_j ∇²ℓ_j(θ_t) u

The last two are one forward-mode derivative of a microbatch's gradient along u. So one step's program is compiled,
whatever K; a step may have any number of microbatches; and on the device there is never more than one microbatch's
second-order pass. The states that are gone back through lie in the host's memory: the first state of each of S
segments, and all states of the segment that is gone back through, which is trained through again: O(√K) for S = √K.
For K = 1 without a moment this is the first-order kernel ⟨∇L, ∇ℓ_j⟩ (TracIn, arXiv 2002.08484) in Adam's metric.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ntk_jax.data.batch import Batch, TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.parameters import Tree
from ntk_jax.models.memory import Shape, host_memory, memory_limit, second_order_bytes
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import place
from ntk_jax.parallel.rules import param_shardings
from ntk_jax.training.digest import digest, parts_of
from ntk_jax.training.flops import metagradient_flops
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.trail import Back, Trail, on_host_with_places
from ntk_jax.training.unrolled import (
    Course,
    HeldOut,
    State,
    Static,
    course,
    example_losses,
    forward,
    held_out_rows,
    in_mesh,
    on_devices,
    pinned,
    sizes_of,
    start,
    summed_gradient,
    times_read,
    updated,
    weighted_loss,
)

By = Literal["token", "example"]
WHOLE = 1 << 30  # bytes of states that are kept without a second training through segments


@dataclass(frozen=True)
class Metagradients:
    """What `metagradient` gives back.

    values: [N] fp64, d(held-out loss)/d(weight of the candidate), nats; negative: the candidate helps. seen: [N] how
    often a candidate was trained on; where it is 0 so is the value. before, after: the held-out loss, nats a label.
    losses: [K] of each step, weighted: the mean over labels, or examples, that the training takes. flops: by formula
    (`training/flops.py`), without the held-out examples.
    """

    values: np.ndarray
    seen: np.ndarray
    before: float
    after: float
    losses: np.ndarray
    flops: float


@dataclass(frozen=True)
class MetagradientMemory:
    """Bytes of a metagradient. device: on each device, weights included. host: the states that are gone back through.
    segments: of the training."""

    device: float
    host: float
    segments: int


_Kept = tuple[Any, Any]  # arrays on the host, and where they were


def metagradient(
    model: Model,
    candidates: Sequence[TokenRow],
    held_out: Sequence[TokenRow],
    *,
    fixed: Sequence[TokenRow] = (),
    config: TrainConfig,
    seed: int,
    row_length: int,
    mesh: Mesh | None = None,
    weights: np.ndarray | None = None,
    by: By = "token",
    segments: int | None = None,
    remat: bool | None = None,
    keep: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Metagradients:
    """d(held-out loss after the training)/d(weight of each candidate), at `weights`, exactly.

    The training is `train`'s on [*fixed, *candidates] from the model's adapter as it is (a fresh one too). fixed: rows
    of weight 1. weights: [N] of the candidates, None: 1. by: the held-out loss is the mean over label tokens, or over
    examples of each one's mean. segments: of the training, see above; None: 1 where all states take 1 GiB at most, else
    √K. keep: a folder in which what is done is kept, `trail.py`; another call with all the same goes on there, loses at
    most √K steps (or a segment) and ends in the same numbers. progress(done, of how many that were left, a note): steps
    of the training and of the way back.

    Raises UserError: no candidates, no held-out labels, weights of another shape or not finite, segments out of 1..K,
    memory that a device or the host has not, derivatives that are not finite, and as `train`.
    """
    weights = _checked_weights(candidates, weights, by)
    rows = [*fixed, *candidates]
    run = course(model, rows, config, seed=seed, row_length=row_length, mesh=mesh, remat=remat)
    held = held_out_rows(held_out, config, row_length, mesh)
    memory = metagradient_memory(run, held, model, segments)
    check_memory(memory, run)
    factors = np.concatenate([np.ones(len(fixed)), weights])
    whole = memory.segments == 1
    parts = math.ceil(math.sqrt(run.steps)) if whole and keep is not None else memory.segments
    bounds = np.linspace(0, run.steps, parts + 1).round().astype(int).tolist()
    begun = start(run)
    key = "" if keep is None else digest([*parts_of(model, run, held_out), bounds, by, factors])
    trail = Trail(keep, key, begun, (run.lora, _moving(begun.moments)[0]))
    back, began = trail.back(), trail.last_first(bounds[:-1]) or (0, begun, [])
    stop = run.steps if back is None else back.stop
    again = stop if back is not None or not whole else began[0]
    said = _counting(progress, (run.steps - began[0] if back is None else 0) + stop + again)
    kept: dict[int, _Kept] = {}
    if back is None:
        before = _mean_loss(run, run.lora, held, by)
        state, losses, kept = _there(run, factors, began, bounds[:-1] if parts > 1 else [], whole, trail, said)
        after = _mean_loss(run, state.lora, held, by)
        if not np.isfinite(after):
            raise UserError("the training ends in a held-out loss that is not finite; lower the learning rate")
        back = Back(stop, _last_cotangent(run, state, held, by), np.zeros(len(rows)), before, after, np.array(losses))
        trail.keep_back(back)
    values = _back_through(run, factors, bounds, back, trail, kept, said)
    values = values[len(fixed) :]
    if not np.isfinite(values).all():
        raise UserError("derivatives of the training are not finite; lower the learning rate or the number of steps")
    seen = times_read(run)
    flops = training_work(run, model, again=not whole)
    return Metagradients(values, seen[len(fixed) :], back.before, back.after, back.losses, flops)


def training_work(run: Course, model: Model, *, again: bool) -> float:
    """FLOPs of a metagradient by formula, without the held-out examples. again: segments are trained through again."""
    seen = times_read(run)
    tokens, labels = (seen @ counts for counts in sizes_of(run.feed.rows))
    size = sum(leaf.size for leaf in jax.tree.leaves(run.lora))
    config, remat = model.config, run.static.remat
    return metagradient_flops(config, int(tokens), int(labels), remat, lora_parameters=size, again=again)


def metagradient_memory(
    run: Course, held_out: HeldOut, model: Model, segments: int | None = None
) -> MetagradientMemory:
    """What a metagradient keeps, by formula. With P the bytes of the adapter in fp32 and s steps a segment:

    host: 3 P for the first state of each segment (parameters, two moments), 4 P for each step of one (with its summed
    gradient). device: the frozen weights, 14 P (states and cotangents of a step and what they are made from), and the
    second-order pass of one microbatch (`models.memory`). Raises UserError: segments out of 1..K.
    """
    adapter = 4.0 * sum(leaf.size for leaf in jax.tree.leaves(run.lora))
    if segments is None:
        segments = 1 if run.steps * 4 * adapter <= WHOLE else math.ceil(math.sqrt(run.steps))
    if not 1 <= segments <= run.steps:
        raise UserError(f"segments = {segments}: a training of {run.steps} steps has 1 to {run.steps} segments")
    host = adapter * (3 * segments * (segments > 1) + 4 * math.ceil(run.steps / segments))
    shapes, length = run.shapes, run.feed.row_length
    rows, slots = shapes.rows // shapes.groups, max([shapes.labels, *(p.owner.shape[1] for p in held_out.pieces)])
    temporaries = second_order_bytes(
        model.config, Shape(rows, length, slots), run.static.dtype.itemsize, run.static.remat
    )
    leaves = jax.tree.leaves(run.base)
    frozen = float(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))
    if run.mesh is not None:
        places = jax.tree.leaves(param_shardings(run.base, run.mesh))
        frozen = float(
            sum(math.prod(p.shard_shape(x.shape)) * x.dtype.itemsize for x, p in zip(leaves, places, strict=True))
        )
    return MetagradientMemory(frozen + 14 * adapter + temporaries, host, segments)


def check_memory(memory: MetagradientMemory, run: Course) -> None:
    """Raises UserError: a device or the machine has less, and what to lower."""
    limit = memory_limit(1 if run.mesh is None else run.mesh.size)
    if limit is not None and memory.device > limit:
        raise UserError(
            f"the metagradient needs about {memory.device / 1e9:,.1f} GB a device, of which there are "
            f"{limit / 1e9:,.1f}; lower tokens_per_microbatch (fewer rows and label slots at a time) or the length of "
            "examples, or split the weights over more devices"
        )
    if memory.host > host_memory():
        raise UserError(
            f"the metagradient keeps {memory.host / 1e9:,.1f} GB of states in the machine's memory of "
            f"{host_memory() / 1e9:,.1f}; take about √{run.steps} = {math.ceil(math.sqrt(run.steps))} segments, fewer "
            "steps or a smaller rank"
        )


def _checked_weights(candidates: Sequence[TokenRow], weights: np.ndarray | None, by: str) -> np.ndarray:
    if not candidates:
        raise UserError("there are no candidates to take the derivative of; give some")
    if by not in ("token", "example"):
        raise UserError(f"by = {by!r} is neither token nor example")
    found = np.ones(len(candidates)) if weights is None else np.asarray(weights, np.float64)
    if found.shape != (len(candidates),) or not np.isfinite(found).all():
        raise UserError(f"weights must be one finite number for each of the {len(candidates)} candidates")
    return found


# -- there -----------------------------------------------------------------------------------------------------------


def _there(
    run: Course,
    weights: np.ndarray,
    began: tuple[int, State, list[float]],
    bounds: Sequence[int],
    whole: bool,
    trail: Trail,
    said: Callable[[str], None],
) -> tuple[State, list[float], dict[int, _Kept]]:
    """The training from where it began: (the last state, the losses of all steps, and where `whole`, on the host, the
    state before each step with the step's gradient). The trail keeps the states at `bounds`."""
    first, state, losses = began
    kept: dict[int, _Kept] = {}
    for step in range(first, run.steps):
        if step in bounds:
            trail.keep_first(step, state, losses)
        here, (state, gradient, loss) = state, forward(run, state, step, weights)
        if whole:
            kept[step] = _to_host((here, gradient))
        losses.append(float(loss))
        said(f"loss {losses[-1]:.4f}")
    return state, losses, kept


def _counting(progress: Callable[[int, int, str], None] | None, total: int) -> Callable[[str], None]:
    """Says a step more at each call."""
    done = itertools.count(1)
    return lambda note: None if progress is None else progress(next(done), total, note)


# -- the way back --------------------------------------------------------------------------------------------------


def _back_through(
    run: Course,
    weights: np.ndarray,
    bounds: Sequence[int],
    back: Back,
    trail: Trail,
    kept: dict[int, _Kept],
    said: Callable[[str], None],
) -> np.ndarray:
    """[all rows] the derivatives. Segments whose states are not kept are trained through again."""
    pulled, values = back.pulled, back.values.copy()
    for first, stop in reversed(list(itertools.pairwise(bounds))):
        if stop > back.stop:
            continue
        if first not in kept:
            kept = dict(enumerate(_again(run, trail.first(first), range(first, stop), weights, said), first))
        for step in reversed(range(first, stop)):
            state, gradient = _to_device(kept.pop(step))
            pulled = _back(run, state, gradient, step, weights, pulled, values)
            said("way back")
        trail.keep_back(dataclasses.replace(back, stop=first, pulled=pulled, values=values))
    return values


def _again(
    run: Course, state: State, steps: range, weights: np.ndarray, said: Callable[[str], None]
) -> Iterator[_Kept]:
    """The states before the steps of a segment, with the steps' gradients, on the host."""
    for step in steps:
        here, (state, gradient, loss) = state, forward(run, state, step, weights)
        yield _to_host((here, gradient))
        said(f"again, loss {float(loss):.4f}")


def _mean_loss(run: Course, lora: Tree, held_out: HeldOut, by: str) -> float:
    return float(held_out.weights(by) @ example_losses(run, lora, held_out))


def _last_cotangent(run: Course, state: State, held_out: HeldOut, by: str) -> tuple[Tree, list[jax.Array]]:
    """The derivative of the held-out loss by the last state: by the adapter, and 0 by the moments."""
    gradient, _ = summed_gradient(run, state.lora, held_out.pieces, held_out.weights(by))
    moving, _ = _moving(state.moments)
    return gradient, [jnp.zeros_like(leaf) for leaf in moving]


def _back(
    run: Course,
    state: State,
    gradient: Tree,
    step: int,
    weights: np.ndarray,
    pulled: tuple[Tree, list[jax.Array]],
    values: np.ndarray,
) -> tuple[Tree, list[jax.Array]]:
    """The cotangent before a step of that behind it; adds the step's part to values [all rows]."""
    pieces = run.pieces(step)
    divisor, weights = run.divisor(pieces), weights * run.factors
    with in_mesh(run.mesh):
        lora, moving, direction = _pull(
            run.static, state.lora, state.moments, gradient, divisor, run.rates[step], pulled
        )
        for piece in pieces:
            lora, change = _second(run.static, state.lora, run.base, *on_devices(run, piece, weights), direction, lora)
            values -= piece.by_example(change, len(values)) * run.factors
    return lora, moving


@functools.partial(jax.jit, static_argnums=0)
def _pull(static: Static, lora: Tree, moments: Any, gradient: Tree, labels: Any, rate: Any, pulled: Any) -> Any:
    """Cotangents of (adapter, moments, summed gradient) of one update."""
    moving, rebuild = _moving(moments)

    def update(lora: Tree, moving: list[jax.Array], gradient: Tree) -> tuple[Tree, list[jax.Array]]:
        lora, moments = updated(static, lora, rebuild(moving), gradient, labels, rate)
        return lora, _moving(moments)[0]

    _, back = jax.vjp(update, lora, moving, gradient)
    lora_bar, moving_bar, direction = back(pulled)
    return pinned(static, lora_bar), moving_bar, pinned(static, direction)


@functools.partial(jax.jit, static_argnums=0)
def _second(
    static: Static, lora: Tree, base: Tree, batch: Batch, weights: jax.Array, direction: Tree, sum_: Tree
) -> tuple[Tree, jax.Array]:
    """(sum_ + ∇²(Σ w ℓ) direction, the derivative of every slot's log p along it)."""

    def gradient(lora: Tree) -> tuple[Tree, jax.Array]:
        (_, log_probs), found = jax.value_and_grad(functools.partial(weighted_loss, static), has_aux=True)(
            lora, base, batch, weights
        )
        return found, log_probs

    _, (bent, change) = jax.jvp(gradient, (lora,), (direction,))
    return pinned(static, jax.tree.map(jnp.add, sum_, bent)), change


def _moving(moments: Any) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """(the optimiser's real numbers, a function that puts others in their place): counts have no derivative."""
    leaves, structure = jax.tree.flatten(moments)
    real = [number for number, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def rebuild(moving: list[jax.Array]) -> Any:
        whole = list(leaves)
        for number, leaf in zip(real, moving, strict=True):
            whole[number] = leaf
        return jax.tree.unflatten(structure, whole)

    return [leaves[number] for number in real], rebuild


def _to_host(kept: Any) -> _Kept:
    return on_host_with_places(kept)


def _to_device(kept: _Kept) -> Any:
    return place(*kept)
