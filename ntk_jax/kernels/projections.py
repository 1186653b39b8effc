"""Random projections of gradients: z(x) = Π g(x) in K numbers, with E⟨z, z'⟩ = ⟨g, g'⟩.

| kind          | Π                                              | FLOPs an example | variance of ⟨z, z'⟩        |
|---------------|------------------------------------------------|------------------|----------------------------|
| `rademacher`  | dense ±1/√K (the paper's, arXiv 2511.07380)    | 2 P K            | v / K                      |
| `countsketch` | s blocks of K/s; one ±1/√s a column and block  | 2 P s            | v / K                      |
| `kronecker`   | Π_l G Π_rᵀ for each matrix G of a leaf         | 2 P (k_l + ...)  | ≤ Σ_G bound(G, G') (below) |

v = ‖g‖² ‖g'‖² + ⟨g, g'⟩² − 2 Σ_i g_i² g'_i², the same for the two: for `countsketch` (Charikar et al. 2002; s > 1:
sparse Johnson-Lindenstrauss, Kane & Nelson, arXiv 1012.1577) signs and places are fully random, not pairwise
independent. For `kronecker`, k_l × k_r = K, let X = G G'ᵀ, Y = GᵀG' and v(M) = ‖M‖² + ⟨M, Mᵀ⟩ − 2 Σ_i M_ii². The
variance of one matrix is at most v(X)/k_l + v(Y)/k_r + 9 ‖G‖² ‖G'‖² / K; matrices have independent projections, and
each pair of different ones adds (‖G_i‖² ‖G'_j‖² + ⟨G_i, G'_i⟩⟨G_j, G'_j⟩)/K.

Nothing random is stored: signs and places come from counter-based keys (threefry) of the seed, the leaf and the block
within the leaf, so they are the same on any number of devices and for any batch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ntk_jax.errors import UserError
from ntk_jax.kernels.parameters import Tree

ProjectionKind = Literal["rademacher", "countsketch", "kronecker"]
KINDS: tuple[ProjectionKind, ...] = get_args(ProjectionKind)

BLOCK = 4096  # coordinates whose signs exist at once: 128 MiB of fp32 signs at K = 8192


@dataclass(frozen=True)
class Projection:
    """Which random map: its kind, K, the seed, and for `countsketch` s, the nonzeros of a column.

    Raises UserError: an unknown kind; K not a multiple of 32 (`rademacher`) or of s (`countsketch`).
    """

    kind: ProjectionKind = "rademacher"
    dim: int = 8192
    seed: int = 0
    sparsity: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"projection {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.dim < 1 or self.sparsity < 1:
            raise UserError(f"dim = {self.dim} and sparsity = {self.sparsity} must be at least 1")
        if self.kind == "rademacher" and self.dim % 32:
            raise UserError(f"dim = {self.dim}: Rademacher signs come 32 from a word; use a multiple of 32")
        if self.kind == "countsketch" and self.dim % self.sparsity:
            raise UserError(f"dim = {self.dim} is not a multiple of sparsity = {self.sparsity}")


def sides(dim: int) -> tuple[int, int]:
    """(k_l, k_r) of `kronecker`: the factors of K nearest to its square root."""
    left = next(k for k in range(int(dim**0.5), 0, -1) if dim % k == 0)
    return left, dim // left


def check_width(projection: Projection, theta: Tree) -> None:
    """Raises UserError when K is larger than P: then the gradients themselves are smaller than their sketches."""
    size = sum(leaf.size for leaf in jax.tree.leaves(theta))
    if projection.dim > size:
        raise UserError(f"dim = {projection.dim} is larger than the {size} parameters differentiated; lower it")


def projection_flops(projection: Projection, theta: Tree) -> float:
    """FLOPs of projecting one gradient, by the table above; making the signs is not counted."""
    size = sum(leaf.size for leaf in jax.tree.leaves(theta))
    if projection.kind == "rademacher":
        return 2.0 * size * projection.dim
    if projection.kind == "countsketch":
        return 2.0 * size * projection.sparsity
    left, right = sides(projection.dim)
    total = 0.0
    for leaf in jax.tree.leaves(theta):
        height, width = (1, *leaf.shape)[-2:] if leaf.shape else (1, 1)
        total += 2.0 * leaf.size * left + 2.0 * (leaf.size / height) * left * right  # Π_l G, then that by Π_rᵀ
    return total


def project(projection: Projection, gradients: Tree) -> jax.Array:
    """[B, C, K] fp32 of gradients with leaves [B, C, ...], as `example_gradients` gives them."""
    key = jax.random.key(projection.seed, impl="threefry2x32")
    return project_with_key(projection.kind, projection.dim, projection.sparsity, key, gradients)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def project_with_key(kind: str, dim: int, sparsity: int, key: jax.Array, gradients: Tree) -> jax.Array:
    """`project`, for a key that may be traced: one compilation serves all seeds."""
    total = jnp.float32(0)
    for number, leaf in enumerate(jax.tree.leaves(gradients)):
        leaf_key, wide = jax.random.fold_in(key, number), leaf.astype(jnp.float32)
        if kind == "rademacher":
            total = total + _rademacher(dim, leaf_key, wide)
        elif kind == "countsketch":
            total = total + _countsketch(dim, sparsity, leaf_key, wide)
        else:
            total = total + _kronecker(dim, leaf_key, wide)
    return total


def _rademacher(dim: int, key: jax.Array, leaf: jax.Array) -> jax.Array:
    """Σ over blocks of coordinates of g_block · signs(block): signs are made, used and dropped."""
    flat = leaf.reshape(*leaf.shape[:2], -1)
    blocks = -(-flat.shape[-1] // BLOCK)
    flat = jnp.pad(flat, ((0, 0), (0, 0), (0, blocks * BLOCK - flat.shape[-1])))

    def add(total: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
        part = jax.lax.dynamic_slice_in_dim(flat, block * BLOCK, BLOCK, axis=2)
        signs = _signs(jax.random.fold_in(key, block), BLOCK, dim)
        return total + jnp.einsum("bcp,pk->bck", part, signs, precision="highest"), None

    zero = jnp.zeros((*flat.shape[:2], dim), jnp.float32)
    return jax.lax.scan(add, zero, jnp.arange(blocks))[0] / jnp.sqrt(jnp.float32(dim))


def dense_columns(key: jax.Array, size: int, dim: int, start: jax.Array, count: int) -> jax.Array:
    """[size, count]: columns [start, start + count) of Πᵀ, the signs that `rademacher` multiplies one leaf of `size`
    coordinates by; key: that of the leaf. Block by block, so that the whole [size, K] is never there."""

    def columns(block: jax.Array) -> jax.Array:
        signs = _signs(jax.random.fold_in(key, block), BLOCK, dim)
        return jax.lax.dynamic_slice_in_dim(signs, start, count, axis=1)

    found = jax.lax.map(columns, jnp.arange(-(-size // BLOCK)))
    return found.reshape(-1, count)[:size] / jnp.sqrt(jnp.float32(dim))


def _signs(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """[rows, columns] of ±1 fp32, 32 from each random word: 7 times faster than one word a sign."""
    words = jax.random.bits(key, (rows, -(-columns // 32)), jnp.uint32)
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return 1.0 - 2.0 * bits.reshape(rows, -1)[:, :columns].astype(jnp.float32)


def _countsketch(dim: int, sparsity: int, key: jax.Array, leaf: jax.Array) -> jax.Array:
    """Each coordinate goes, with a sign, to one place of each of s blocks."""
    flat = leaf.reshape(*leaf.shape[:2], -1)
    width = dim // sparsity
    place_key, sign_key = jax.random.split(key)
    places = jax.random.randint(place_key, (sparsity, flat.shape[-1]), 0, width)
    places = places + width * jnp.arange(sparsity)[:, None]
    signs = jax.random.rademacher(sign_key, places.shape, jnp.float32) / jnp.sqrt(jnp.float32(sparsity))

    def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        place, sign = block
        return total.at[..., place].add(flat * sign), None

    # One block at a time: s copies of the gradients would be s times the memory.
    return jax.lax.scan(add, jnp.zeros((*flat.shape[:2], dim), jnp.float32), (places, signs))[0]


def _kronecker(dim: int, key: jax.Array, leaf: jax.Array) -> jax.Array:
    """Π_l G Π_rᵀ of every matrix, summed: the trailing two axes are the matrix, others count as more matrices."""
    shape = leaf.shape[2:]
    matrix = (1, *shape)[-2:] if shape else (1, 1)
    stack = leaf.reshape(*leaf.shape[:2], -1, *matrix)
    left, right = sides(dim)
    keys = jax.random.split(key, (stack.shape[2], 2))
    pi_left = jax.vmap(lambda k: _signs(k, left, matrix[0]))(keys[:, 0])
    pi_right = jax.vmap(lambda k: _signs(k, right, matrix[1]))(keys[:, 1])
    small = jnp.einsum("nlm,bcnmw,nrw->bclr", pi_left, stack, pi_right, precision="highest")
    return small.reshape(*leaf.shape[:2], -1) / jnp.sqrt(jnp.float32(dim))
