"""The directional score: one forward-mode derivative per candidate, exact and without storage.

score(x) = ⟨ḡ, g(x)⟩ = d/dε s(θ + εḡ; x) at ε = 0. Sequences are packed; per-token tangents are summed
by segment; the primal pass also yields the mean hidden state that the pre-selection compares.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import Batch, TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.names import Over, Pooling
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import Tree, split_parameters
from ntk_jax.kernels.rows import Layout, batches_of, frozen_readout, make_step, on_devices
from ntk_jax.kernels.step import directional_step, pooled_step
from ntk_jax.models.attention_kernel import Attention, Kernel
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import on_host


@dataclass(frozen=True)
class Scores:
    """values: [N] or [N, m] fp32 in the order of the rows. mean_hidden: [N, D] fp32, or None if not asked for."""

    values: np.ndarray
    mean_hidden: np.ndarray | None = None


def directional_scores(
    model: Model,
    rows: Sequence[TokenRow],
    direction: Tree,
    objective: Objective,
    layout: Layout,
    *,
    parameters: str = "lora",
    mean_hidden: bool = False,
    attention: Attention | Kernel = "xla",
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Scores of the rows along one direction ([N]) or a batch of m directions ([N, m]), see `Scores`.

    direction: shaped like theta; under `probe` with a leading channel axis [C, ...]; with one leading axis more it
    is a batch of m directions. Accumulation over tokens is fp32 whatever the compute dtype. attention: how it is
    computed, see `models.attention_kernel`; scores differ by rounding.

    Raises UserError when the direction does not fit, is zero or not finite, or a score is not finite (naming the
    example), and where the attention asked for cannot run.
    """
    theta, rest = split_parameters(model, parameters)
    directions, single = _as_batch(direction, theta, objective)
    directions, norms = _unit_directions(directions)
    _refuse_unusable(norms)

    step = make_step(model, objective, layout, parameters, pooled=mean_hidden, attention=attention)
    read = frozen_readout(model, objective, parameters)
    values = np.zeros((len(rows), len(norms)), np.float32)
    hidden = np.zeros((len(rows), model.config.hidden_size), np.float32) if mean_hidden else None

    def compute(batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        return directional_step(step, theta, rest, read, directions, batch)

    for index, (out, pooled) in _one_behind(compute, rows, layout, objective, progress):
        used = index >= 0  # [B, S]
        values[index[used]] = on_host(out)[used]
        if hidden is not None:
            hidden[index[used]] = on_host(pooled)[used]
    values *= np.asarray(norms, np.float32)
    _refuse_nonfinite(values, rows)
    return Scores(values[:, 0] if single else values, hidden)


def mean_hidden_states(
    model: Model, rows: Sequence[TokenRow], layout: Layout, *, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """[N, D] fp32: the mean over an example's tokens of the final hidden state (arXiv 2511.07380, stage 1)."""
    return pooled_hidden_states(model, rows, layout, progress=progress)


def pooled_hidden_states(
    model: Model,
    rows: Sequence[TokenRow],
    layout: Layout,
    *,
    pooling: Pooling = "mean",
    over: Over = "all",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """[N, D] fp32: Σ w_i h_i / Σ w_i of an example's final hidden states h_1 ... h_T, one forward pass, 2 P a token.

    pooling: `mean`, w_i = 1, or `position`, w_i = i, so that later tokens, which have read more, count more
    (Muennighoff, SGPT, arXiv 2202.08904; RDS+, arXiv 2503.01807). over: `all` tokens of the example, or the
    `response`: the positions of its span, with i still counted from the example's beginning.

    Raises UserError: a state that is not finite (naming the example).
    """
    objective = Objective("sum_logits")
    step = make_step(model, objective, layout, "lora")  # nothing is differentiated, so an adapter need not be there
    hidden = np.zeros((len(rows), model.config.hidden_size), np.float32)

    def compute(batch: Batch) -> jax.Array:
        return pooled_step(step, model.lora, {"base": model.base}, batch, pooling, over)

    for index, pooled in _one_behind(compute, rows, layout, objective, progress):
        hidden[index[index >= 0]] = on_host(pooled)[index >= 0]
    bad = np.flatnonzero(~np.isfinite(hidden).all(axis=1))
    if len(bad) and layout.packed:  # what is not finite spreads over its packed row: alone, each names itself
        alone = dataclasses.replace(layout, packed=False)
        hidden[bad] = pooled_hidden_states(model, [rows[int(i)] for i in bad], alone, pooling=pooling, over=over)
    _refuse_nonfinite(hidden, rows, "hidden state")
    return hidden


def _one_behind(
    compute: Callable[[Batch], Any],
    rows: Sequence[TokenRow],
    layout: Layout,
    objective: Objective,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[np.ndarray, Any]]:
    """(index [B, S], result) of every batch, each given out when the next one is already on its way: the host packs and
    reads while the device computes."""
    done, waiting = 0, None
    for packed in itertools.chain(batches_of(rows, layout, objective), [None]):
        ahead = packed and (packed.index, compute(on_devices(packed.batch, layout)))
        if waiting:
            yield waiting
            done += int((waiting[0] >= 0).sum())
            if progress:
                progress(done, len(rows))
        waiting = ahead


def _as_batch(direction: Tree, theta: Tree, objective: Objective) -> tuple[Tree, bool]:
    """(leaves [m, C, ...], whether it was a single direction)."""
    structure: Any = jax.tree.structure(direction)  # Any: the stubs of PyTreeDef know no comparison
    if structure != jax.tree.structure(theta):
        raise UserError(
            "the direction's leaves are not those of the parameters differentiated; use the same model and `parameters`"
        )
    channel_axes = 1 if objective.kind == "probe" else 0
    extras = set()
    for d, leaf in zip(jax.tree.leaves(direction), jax.tree.leaves(theta), strict=True):
        extra = d.ndim - leaf.ndim - channel_axes
        lead = d.shape[: d.ndim - leaf.ndim]
        if (
            extra not in (0, 1)
            or d.shape[d.ndim - leaf.ndim :] != leaf.shape
            or (channel_axes and lead[-1] != objective.channels)
        ):
            raise UserError(
                f"a direction leaf of shape {d.shape} does not fit parameters of shape {leaf.shape} under objective "
                f"{objective.kind!r} ({objective.channels} channel(s)); was it made with another objective or adapter?"
            )
        extras.add(extra)
    if len(extras) != 1:
        raise UserError("some direction leaves carry a batch axis and some do not; stack whole directions")
    single = extras == {0}

    new_axes = ((0,) if single else ()) + (() if channel_axes else (1,))
    return _with_axes(direction, new_axes), single


@functools.partial(jax.jit, static_argnames="axes")
def _with_axes(tree: Tree, axes: tuple[int, ...]) -> Tree:
    return jax.tree.map(lambda leaf: jnp.expand_dims(jnp.asarray(leaf, jnp.float32), axes), tree)


@jax.jit
def _unit_directions(directions: Tree) -> tuple[Tree, jax.Array]:
    """(directions of norm 1, norms [m]). jvp is linear in its tangent: unit directions keep bf16 tangents in range,
    and the norms are put back in fp32. The largest entry is taken out first: squares leave fp32's range long before
    the entries do."""

    def divide(tree: Tree, by: jax.Array) -> Tree:
        return jax.tree.map(lambda leaf: leaf / by.reshape(-1, *[1] * (leaf.ndim - 1)), tree)

    def over_each(function: Callable[..., jax.Array], tree: Tree) -> jax.Array:  # [leaves, m]
        return jnp.stack([function(leaf, axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(tree)])

    largest = over_each(lambda leaf, axis: jnp.abs(leaf).max(axis), directions).max(axis=0)
    scaled = divide(directions, jnp.where(largest > 0, largest, 1.0))
    norms = jnp.sqrt(over_each(lambda leaf, axis: jnp.square(leaf).sum(axis), scaled).sum(axis=0))
    return divide(scaled, jnp.where(norms > 0, norms, 1.0)), largest * norms


def _refuse_unusable(norms: jax.Array) -> None:
    for number, norm in enumerate(np.asarray(norms)):
        if norm > 0 and np.isfinite(norm):
            continue
        which = f"direction {number} of {len(norms)}" if len(norms) > 1 else "the direction"
        if np.isfinite(norm):
            raise UserError(
                f"{which} is zero, so every score would be 0; take the gradient of another objective, or warm the "
                "adapter up first (while B is 0, the gradients of A vanish)"
            )
        raise UserError(f"{which} holds NaN or Inf, or its norm leaves the range of fp32; compute it anew in float32")


def _refuse_nonfinite(values: np.ndarray, rows: Sequence[TokenRow], what: str = "score") -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=-1))
    if len(bad):
        name = rows[int(bad[0])].id or f"number {int(bad[0])}"
        raise UserError(
            f"example {name}: its {what} is not finite ({len(bad)} of {len(rows)} so); check the weights with "
            "`ntk-jax doctor`, or compute in float32"
        )
