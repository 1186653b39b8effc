"""The main directions of a set's gradients: the right singular vectors of the matrix G, [m, P], of the features of its
m examples, without that matrix.

With G = Σ_k σ_k a_k u_kᵀ the Gram matrix is G Gᵀ = Σ_k σ_k² a_k a_kᵀ, [m, m], and u_k = Gᵀ a_k / σ_k is a weighted sum
of gradients, which is one backward pass with weights. So a set of many examples is replaced by k directions in
parameter space, along which a pool is scored with k tangents beside one primal pass (`directional_scores`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.gram import MEMORY, gradient_features_gram
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import Tree, split_parameters
from ntk_jax.kernels.rows import Layout, batches_of, frozen_readout, make_step, on_devices
from ntk_jax.kernels.step import weighted_gradient_step
from ntk_jax.models.model import Model
from ntk_jax.parallel.hosts import is_distributed, on_host

RANK_TOLERANCE = 1e-6  # of the largest eigenvalue, for each example: below it is the rounding of an fp32 Gram matrix
DIRECTIONS_AT_ONCE = 4  # weightings that share a forward pass: 4 · 4 C P bytes each


@dataclass(frozen=True)
class Spectrum:
    """A Gram matrix taken apart. energies: [m] fp64, σ_k² in falling order, none below 0. vectors: [m, r] fp64, the
    a_k of the r energies that are more than rounding, with the sign that makes Σ_i a_ki at least 0."""

    energies: np.ndarray
    vectors: np.ndarray

    @property
    def rank(self) -> int:
        """r, directions that the examples span, as far as fp32 can tell."""
        return self.vectors.shape[1]

    def of_mean(self, count: int) -> np.ndarray:
        """[count] fp64: ⟨ḡ, u_k⟩ = σ_k Σ_i a_ki / m, the coordinates of the set's mean gradient."""
        sigma = np.sqrt(self.energies[:count])
        return np.asarray(sigma * self.vectors[:, :count].sum(axis=0) / len(self.vectors))


def spectrum(gram: np.ndarray) -> Spectrum:
    """Of an [m, m] Gram matrix. Raises UserError: it is all zero."""
    energies, vectors = np.linalg.eigh(gram.astype(np.float64))
    energies, vectors = np.maximum(energies[::-1], 0.0), vectors[:, ::-1]
    if not energies[0] > 0:
        raise UserError(
            "the gradients of all domain examples are zero; take another objective, or warm the adapter up first"
        )
    kept = vectors[:, energies > RANK_TOLERANCE * len(energies) * energies[0]]
    signs = np.where(kept.sum(axis=0) < 0, -1.0, 1.0)
    return Spectrum(energies, kept * signs)


def gram_block(
    model: Model,
    rows: Sequence[TokenRow],
    start: int,
    stop: int,
    objective: Objective,
    layout: Layout,
    *,
    parameters: str = "lora",
    memory: int = MEMORY,
) -> np.ndarray:
    """[stop - start, m] fp32: rows [start, stop) of the Gram matrix of the gradients of m rows, zero left of the
    diagonal's block, which `mirrored` fills. layout: not packed; memory: bytes of gradients held.

    Raises UserError as `gradient_features_gram`.
    """
    out = np.zeros((stop - start, len(rows)), np.float32)
    others = None if stop - start == len(rows) else rows[start:]
    out[:, start:] = gradient_features_gram(
        model, rows[start:stop], others, objective, layout, parameters=parameters, memory=memory
    )
    return out


def mirrored(upper: np.ndarray) -> np.ndarray:
    """[m, m] symmetric, from what is there on and above the diagonal."""
    return np.triu(upper) + np.triu(upper, 1).T


def gram_gradients(rows: int, block: int) -> int:
    """Gradients that are taken for the whole matrix, block by block: each block's own, and those of all it meets; each
    once where one block is all."""
    if block >= rows:
        return rows
    starts = range(0, rows, max(1, block))
    return sum(min(block, rows - start) + rows - start for start in starts)


def principal_directions(
    model: Model,
    rows: Sequence[TokenRow],
    found: Spectrum,
    count: int,
    objective: Objective,
    layout: Layout,
    *,
    parameters: str = "lora",
    progress: Callable[[int, int], None] | None = None,
) -> Tree:
    """Leaves [count, ...] fp32 ([count, C, ...] under `probe`): the directions u_k of the largest energies, of norm 1
    (of mean square norm 1 over the channels). A batch of directions as `directional_scores` takes it.

    rows: those that the spectrum is of. layout: may be packed. progress(done, total): in examples, over all passes.
    Raises UserError: more directions than there are examples, or than these span.
    """
    if count > len(rows) or count > found.rank:
        raise UserError(
            f"{count} directions of {len(rows)} examples whose gradients span {found.rank}: ask for {found.rank} at "
            "most"
        )
    weights = (found.vectors[:, :count] / np.sqrt(found.energies[:count])).astype(np.float32)
    starts = range(0, count, DIRECTIONS_AT_ONCE)
    parts = []
    for start in starts:
        own = functools.partial(_of_all, progress, start // DIRECTIONS_AT_ONCE, len(starts)) if progress else None
        part = weights[:, start : start + DIRECTIONS_AT_ONCE]
        parts.append(weighted_gradients(model, rows, part, objective, layout, parameters=parameters, progress=own))
    whole = jax.tree.map(lambda *leaves: np.concatenate([on_host(leaf) for leaf in leaves]), *parts)
    return whole if objective.kind == "probe" else jax.tree.map(lambda leaf: leaf[:, 0], whole)


def weighted_gradients(
    model: Model,
    rows: Sequence[TokenRow],
    weights: np.ndarray,
    objective: Objective,
    layout: Layout,
    *,
    parameters: str = "lora",
    progress: Callable[[int, int], None] | None = None,
) -> Tree:
    """Leaves [k, C, ...] fp32: Σ_i w_ik ∇θ s(θ; x_i) for weights [N, k]. One pass over the rows, packed, with one
    forward pass and k backward passes; nothing per example is stored."""
    theta, rest = split_parameters(model, parameters)
    step, read = make_step(model, objective, layout, parameters), frozen_readout(model, objective, parameters)
    total: Tree | None = None
    done, waiting = 0, None
    for packed in itertools.chain(batches_of(rows, layout, objective), [None]):
        ahead = None
        if packed:
            used = (packed.index >= 0)[..., None]
            own = np.where(used, weights[np.maximum(packed.index, 0)], 0.0).astype(np.float32)  # [B, S, k]
            part = weighted_gradient_step(step, theta, rest, read, own, on_devices(packed.batch, layout))
            total = part if total is None else _add(total, part)
            ahead = int((packed.index >= 0).sum()), jax.tree.leaves(total)[0].ravel()[0]
        if waiting:  # one batch behind, as `mean_gradient`
            jax.block_until_ready(waiting[1])
            done += waiting[0]
            if progress:
                progress(done, len(rows))
        waiting = ahead
    assert total is not None
    return jax.tree.map(on_host, total) if is_distributed() else total


@functools.partial(jax.jit, donate_argnums=0)
def _add(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(jnp.add, a, b)


def _of_all(progress: Callable[[int, int], None], number: int, passes: int, done: int, total: int) -> None:
    """So many examples of one of the passes, as examples of all passes."""
    progress(number * total + done, passes * total)
