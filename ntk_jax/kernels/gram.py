"""The Gram matrix of an objective's per-example gradients: ⟨g(x), g(x')⟩ for all pairs, exact, in bounded memory.

It is what scores average and sketches estimate, and the kernel that a regression takes where the objective is not one
of the traces of `exact`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import PackedBatch, TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import Tree, split_parameters
from ntk_jax.kernels.per_example import example_gradient_step
from ntk_jax.kernels.rows import Layout, batches_of, frozen_readout, make_step, on_devices
from ntk_jax.models.model import Model

MEMORY = 2**30  # bytes of gradients held at once
TERMS, PIECES = 512, 256  # of one fp32 sum, and of sums added at once: a plain sum over all parameters loses digits


def gradient_features_gram(
    model: Model,
    rows_a: Sequence[TokenRow],
    rows_b: Sequence[TokenRow] | None,
    objective: Objective,
    layout: Layout,
    *,
    parameters: str = "lora",
    memory: int = MEMORY,
) -> np.ndarray:
    """[Na, Nb] fp32: (1/C) Σ_c ⟨g_c(x), g_c(x')⟩ over the objective's C channels. rows_b: None is rows_a itself, of
    which only half the pairs are computed.

    layout: not packed; the examples of a batch are differentiated together. memory: bytes of gradients held,
    4 C P an example; two batches are the least. As many batches of one side as fit are held while the other side
    streams by, so that with h of them held the gradients of the other side are computed once for every h; the side
    held is the one that makes this cheaper. If one side fits, every gradient is computed once. The result does not
    depend on memory, not even in its last bits.

    Raises UserError: no examples on a side, or a value that is not finite (naming the pair). ValueError: packed rows.
    """
    if layout.packed:
        raise ValueError("per-example gradients need one example a row: Layout(packed=False)")
    if not rows_a or (rows_b is not None and not rows_b):
        raise UserError(f"there are no examples in {'rows_b' if rows_a else 'rows_a'}; a kernel needs at least one")
    same = rows_b is None or rows_b is rows_a
    others = rows_a if rows_b is None else rows_b
    theta, rest = split_parameters(model, parameters)
    step, read = make_step(model, objective, layout, parameters), frozen_readout(model, objective, parameters)
    # Tokens only: the gradients of a batch are computed where they are needed. The same batches whatever the memory.
    left = list(batches_of(rows_a, layout, objective))
    right = left if same else list(batches_of(others, layout, objective))

    def gradients(batch: PackedBatch) -> Tree:
        return example_gradient_step(step, theta, rest, read, on_devices(batch.batch, layout))

    out = np.zeros((len(rows_a), len(others)), np.float32)

    def put(i: int, j: int, of_left: Tree, of_right: Tree) -> None:
        block = np.asarray(_inner_products(of_left, of_right)) / objective.channels
        rows, columns = left[i].index[:, 0], right[j].index[:, 0]  # -1: an empty row
        block = block[np.ix_(rows >= 0, columns >= 0)]
        out[np.ix_(rows[rows >= 0], columns[columns >= 0])] = block
        if same and i != j:
            out[np.ix_(columns[columns >= 0], rows[rows >= 0])] = block.T

    largest = max(len(batch.index) for batch in (*left, *right))
    size = 4 * objective.channels * sum(leaf.size for leaf in jax.tree.leaves(theta)) * largest
    room = max(1, memory // size - 1)  # batches held; one more streams by
    held_right = not same and _computed(len(right), len(left), room) < _computed(len(left), len(right), room)
    held, streamed = (right, left) if held_right else (left, right)
    for start in range(0, len(held), room):
        stop = min(start + room, len(held))
        kept = {i: gradients(held[i]) for i in range(start, stop)}
        for j in range(start if same else 0, len(streamed)):
            passing = kept[j] if same and j < stop else gradients(streamed[j])
            for i, one in kept.items():
                if same and i > j:
                    continue
                put(*((j, i, passing, one) if held_right else (i, j, one, passing)))
            del passing
    if same:  # the two halves of a batch with itself may differ in their last bits
        out = np.triu(out) + np.triu(out, 1).T
    bad = np.argwhere(~np.isfinite(out))
    if len(bad):
        names = [rows[i].id or f"number {i}" for rows, i in zip((rows_a, others), bad[0].tolist(), strict=True)]
        raise UserError(
            f"the kernel of examples {names[0]} and {names[1]} is not finite ({len(bad)} pairs are so); check the "
            "weights with `ntk-jax doctor`, or compute in float32"
        )
    return out


def _computed(held: int, streamed: int, room: int) -> int:
    """How many batches are differentiated."""
    return held + -(-held // room) * streamed


@jax.jit
def _inner_products(left: Tree, right: Tree) -> jax.Array:
    """[B, B'] of leaves [B, C, ...] and [B', C, ...]: summed over channels and parameters, in two levels of pieces."""
    total = jnp.float32(0)
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        pieces = min(PIECES, -(-x[0].size // TERMS))

        def groups(leaf: jax.Array, pieces: int = pieces) -> jax.Array:  # [groups, B, pieces, TERMS]
            flat = leaf.reshape(leaf.shape[0], -1)
            flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % (pieces * TERMS))))
            return jnp.moveaxis(flat.reshape(flat.shape[0], -1, pieces, TERMS), 1, 0)

        def add(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return total + jnp.einsum("anp,bnp->nab", *pair, precision="highest").sum(axis=0), None

        zero = jnp.zeros((x.shape[0], y.shape[0]), jnp.float32)
        total = total + jax.lax.scan(add, zero, (groups(x), groups(y)))[0]
    return total
