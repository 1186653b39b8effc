"""The exact neural tangent kernel of a function at its parameters, for sets small enough to afford it.

Θ(x, x') = J(x) J(x')ᵀ ∈ R^{V×V}, with J(x) ∈ R^{V×P} the Jacobian of f(θ, x) ∈ R^V over θ (Jacot et al., arXiv
1806.07572). It is the oracle that every cheaper kernel here is measured against.

| kind             | value for a pair                                 | cotangents c with Σ_c ⟨Jᵀc, J'ᵀc⟩ = value |
|------------------|--------------------------------------------------|--------------------------------------------|
| `full`           | Θ, [V, V]                                        | (all pairs of V unit vectors)              |
| `trace`          | tr Θ = Σ_k ⟨∇f_k(x), ∇f_k(x')⟩                   | V unit vectors                             |
| `centered_trace` | tr CΘC, C = I − 11ᵀ/V: what softmax can see      | the V columns of C                         |
| `pseudo`         | ⟨∇Σ_k f_k(x), ∇Σ_k f_k(x')⟩ / V                  | 1/√V                                       |
| `probe`          | mean over m probes ξ of ⟨∇⟨Cξ, f(x)⟩, ∇⟨Cξ, f(x')⟩⟩ | Cξ/√m                                   |

`pseudo` is the kernel of Mohamadi et al. (arXiv 2206.12543). `probe` is unbiased for `centered_trace`, with variance
2 (‖S‖²_F − Σ_k S_kk²)/m for random signs, S the symmetric part of CΘC (Hutchinson's estimator).

f may end in a fixed linear map, f = W h(θ, x) with W [V, D], as a language model with a frozen head does. Then only the
Gram matrix of the cotangents Wᵀc counts, and D of them replace V without any error: exact traces over a vocabulary of
128k cost D backward passes an example.

Two routes that share no arithmetic but f's own: `jacobian` contracts features Jᵀc; `products` takes, for each c, one
vector-Jacobian product at x' and one Jacobian-vector product at x, and stores no feature of x.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.kernels.parameters import Tree

Kind = Literal["full", "trace", "centered_trace", "pseudo", "probe"]
KINDS = ("full", "trace", "centered_trace", "pseudo", "probe")
Method = Literal["jacobian", "products"]
METHODS = ("jacobian", "products")
Function = Callable[[Tree, Any, Any], jax.Array]  # (differentiated, frozen, x of one example) -> [D]

MEMORY = 2**28  # bytes of features held on each side of a block of pairs
EXAMPLES = 16  # differentiated together
CHANNELS = 16  # cotangents pulled back together


def tangent_kernel(
    function: Function,
    theta: Tree,
    frozen: Any,
    a: Any,
    b: Any,
    *,
    kind: Kind = "trace",
    outputs: jax.Array | None = None,
    method: Method = "jacobian",
    probes: int = 16,
    orthogonal: bool = False,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """[Na, Nb] fp32, or [Na, Nb, V, V] for `full`.

    function: (theta, frozen, x) -> [D], for one example. a, b: pytrees of examples, stacked on the first axis of every
    leaf. outputs: W [V, D] if the function's result is W times what `function` returns. probes, seed, orthogonal: of
    `probe`; orthogonal probes are √V times rows of a random orthogonal matrix, and with V of them the result is exact.
    memory: bytes of features held on each side of a block of pairs; one example's feature (4 P bytes) is the least, and
    what the backward passes of 16 examples need comes on top. When b is a, half of the pairs are computed and mirrored.
    progress(done, total): products of two blocks of examples, for a part of the cotangents each.

    Raises UserError: no examples, an unknown kind or method, `full` by products, more orthogonal probes than outputs, a
    result that is not finite.
    """
    sizes = [_count(x, name) for x, name in ((a, "a"), (b, "b"))]
    if kind not in KINDS or method not in METHODS:
        raise UserError(f"kind = {kind!r}, method = {method!r}: kinds are {KINDS}, methods {METHODS}")
    if kind == "full" and method == "products":
        raise UserError("the full kernel is computed by method='jacobian'; products give its traces")
    shape = jax.eval_shape(function, theta, frozen, jax.tree.map(lambda leaf: leaf[0], a)).shape
    if len(shape) != 1 or (outputs is not None and outputs.shape[1:] != shape):
        raise UserError(f"the function must return one vector an example (and outputs be [V, D]); it returns {shape}")
    width = shape[0]
    size = sum(leaf.size for leaf in jax.tree.leaves(theta))
    at_once = max(1, memory // (4 * size))  # features
    examples = min(EXAMPLES, at_once)
    left, right = (list(_blocks(x, count, examples)) for x, count in zip((a, b), sizes, strict=True))
    own = b is a  # then only the pairs of blocks n ≤ m are computed, and mirrored

    def features(x: Any, cotangents: jax.Array) -> Tree:
        return _features(function, theta, frozen, x, cotangents)

    if kind == "full":
        result = np.zeros((*sizes, width, width), np.float32)
        channels = max(1, at_once // min(examples, max(sizes)))  # as many as fit: each is compared with every other
        _fill_full(
            result, features, left, right, own,
            [jnp.eye(width)[i : i + channels] for i in range(0, width, channels)],
            progress,
        )  # fmt: skip
        if outputs is not None:
            head = np.asarray(outputs, np.float32)
            result = np.einsum("vd,abde,we->abvw", head, result, head, optimize=True)
    else:
        result = np.zeros(sizes, np.float32)
        cotangents = _cotangents(kind, width, outputs, probes, orthogonal, seed)
        held = max(1, at_once // examples)  # blocks of examples, whose features stay while the other side streams by
        channels = min(max(1, at_once // (examples * min(held, len(left)))), CHANNELS)
        starts = range(0, len(cotangents), channels)
        products = len(left) * (len(left) + 1) // 2 if own else len(left) * len(right)
        done = 0
        for i in starts:
            part = cotangents[i : i + channels]
            make: Callable[[Any], Any] = functools.partial(features, cotangents=part)
            multiply: Callable[[Any, Any], jax.Array] = _same_channel
            if method == "products":
                make, multiply = _as_it_is, functools.partial(_products, function, theta, frozen, cotangents=part)
            for _ in _fill(result, make, multiply, left, right, own, held):
                done += 1
                if progress:
                    progress(done, products * len(starts))
    if not np.isfinite(result).all():
        pair = np.argwhere(~np.isfinite(result))[0][:2]
        raise UserError(
            f"the kernel of examples {pair[0]} and {pair[1]} is not finite; compute in float32, check weights"
        )
    return result


def probe_vectors(width: int, probes: int, seed: int, orthogonal: bool = False) -> jax.Array:
    """[m, V] with E[ξξᵀ] = I: random signs, or √V times the first m rows of a random orthogonal matrix."""
    key = jax.random.key(seed, impl="threefry2x32")
    if not orthogonal:
        return jax.random.rademacher(key, (probes, width), dtype=jnp.float32)
    if probes > width:
        raise UserError(f"probes = {probes}: there are only {width} orthogonal directions; lower it")
    # In float64 on the host: the rows must be orthogonal to rounding, or a full set is not exact.
    q, r = np.linalg.qr(np.asarray(jax.random.normal(key, (width, width)), np.float64))
    return jnp.asarray(np.sqrt(width) * (q * np.sign(np.diag(r))).T[:probes], jnp.float32)


Blocks = list[tuple[np.ndarray, Any]]  # (ordinals, examples)


def _fill(
    result: np.ndarray,
    features: Callable[[Any], Any],
    multiply: Callable[[Any, Any], jax.Array],
    left: Blocks,
    right: Blocks,
    own: bool,
    held: int,
) -> Iterator[None]:
    """Adds multiply(features(x), features(x')) [n, n'] of all pairs of blocks to result [Na, Nb]; yields after each.

    The features of `held` blocks of the left side are kept; for each such group those of the right are computed once.
    """
    for first in range(0, len(left), held):
        kept = {n: features(left[n][1]) for n in range(first, min(first + held, len(left)))}
        for m in range(first if own else 0, len(right)):
            columns, xb = right[m]
            other = kept[m] if own and m in kept else features(xb)
            for n, one in kept.items():
                if own and n > m:
                    continue
                rows = left[n][0]
                block = np.asarray(multiply(one, other))[: len(rows), : len(columns)]
                result[np.ix_(rows, columns)] += block
                if own and n != m:
                    result[np.ix_(columns, rows)] += block.T
                yield


def _as_it_is(x: Any) -> Any:
    """Where products need no features."""
    return x


def _fill_full(
    result: np.ndarray,
    features: Callable[[Any, jax.Array], Tree],
    left: Blocks,
    right: Blocks,
    own: bool,
    parts: list[jax.Array],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Writes Θ of all pairs of blocks into result [Na, Nb, V, V], a part of the V cotangents on each side at a time."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    done, total = 0, len(left) * len(parts)
    for n, (rows, xa) in enumerate(left):
        for i, part in enumerate(parts):
            one = features(xa, part)
            for m in range(n if own else 0, len(right)):
                columns, xb = right[m]
                here = own and n == m
                for j in range(i if here else 0, len(parts)):  # Θ(x, x') = Θ(x', x)ᵀ
                    other = one if here and i == j else features(xb, parts[j])
                    block = np.asarray(_all_pairs(one, other))[: len(rows), : len(columns)]
                    ks, js = starts[i] + np.arange(len(part)), starts[j] + np.arange(len(parts[j]))
                    result[np.ix_(rows, columns, ks, js)] = block
                    if own and not (here and i == j):
                        result[np.ix_(columns, rows, js, ks)] = block.transpose(1, 0, 3, 2)
            done += 1
            if progress:
                progress(done, total)


def _cotangents(
    kind: str, width: int, outputs: jax.Array | None, probes: int, orthogonal: bool, seed: int
) -> jax.Array:
    """[C, D]: what is pulled back; see the table above."""
    total = width if outputs is None else outputs.shape[0]
    if kind == "pseudo":
        ones = jnp.ones((1, total)) / np.sqrt(total)
        return ones if outputs is None else _times(ones, outputs)
    if kind == "probe":
        vectors = probe_vectors(total, probes, seed, orthogonal) / np.sqrt(probes)
        vectors = vectors - vectors.mean(axis=1, keepdims=True)
        return vectors if outputs is None else _times(vectors, outputs)
    if outputs is None:
        return jnp.eye(width) - (1.0 / width if kind == "centered_trace" else 0.0)
    head = np.asarray(outputs, np.float64)
    if kind == "centered_trace":
        head = head - head.mean(axis=0)
    # D rows R with RᵀR = WᵀW, by eigenvectors: they may be as dependent as they like.
    values, vectors = np.linalg.eigh(head.T @ head)
    return jnp.asarray(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T, jnp.float32)


def _times(vectors: jax.Array, outputs: jax.Array) -> jax.Array:
    return jnp.einsum("cv,vd->cd", vectors, outputs.astype(jnp.float32), precision="highest")


@functools.partial(jax.jit, static_argnums=0)
def _features(function: Function, theta: Tree, frozen: Any, x: Any, cotangents: jax.Array) -> Tree:
    """Jᵀc: leaves [n, C, ...] fp32 of a block of examples."""

    def one(x: Any) -> Tree:
        value, pull_back = jax.vjp(lambda theta: function(theta, frozen, x), theta)

        def pulled(c: jax.Array) -> Tree:
            return pull_back(c.astype(value.dtype))[0]

        if len(cotangents) <= CHANNELS:
            return jax.vmap(pulled)(cotangents)
        return jax.lax.map(pulled, cotangents, batch_size=CHANNELS)  # features fit; what all passes need might not

    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), jax.vmap(one)(x))


@functools.partial(jax.jit, static_argnums=0)
def _products(function: Function, theta: Tree, frozen: Any, xa: Any, xb: Any, *, cotangents: jax.Array) -> jax.Array:
    """[Na, Nb]: Σ_c cᵀ J(x) (J(x')ᵀ c)."""

    def column(x: Any) -> jax.Array:  # [Na] of one example of b
        value, pull_back = jax.vjp(lambda theta: function(theta, frozen, x), theta)

        def one(c: jax.Array) -> jax.Array:
            tangent = pull_back(c.astype(value.dtype))[0]

            def push(y: Any) -> jax.Array:
                moved = jax.jvp(lambda theta: function(theta, frozen, y), (theta,), (tangent,))[1]
                return jnp.vdot(c, moved.astype(jnp.float32), precision="highest")

            return jax.vmap(push)(xa)

        return jax.lax.map(one, cotangents).sum(axis=0)

    return jax.lax.map(column, xb).T


@jax.jit
def _same_channel(left: Tree, right: Tree) -> jax.Array:
    """[Na, Nb]: Σ_c ⟨left_c, right_c⟩ over all leaves."""
    return _contract("ai,bi->ab", left, right, lambda leaf: leaf.reshape(leaf.shape[0], -1))


@jax.jit
def _all_pairs(left: Tree, right: Tree) -> jax.Array:
    """[Na, Nb, C, C']."""
    return _contract("aci,bdi->abcd", left, right, lambda leaf: leaf.reshape(*leaf.shape[:2], -1))


TERMS = 512  # of one fp32 sum: a plain sum of 27,000 terms was seen to lose a relative 6e-5


def _contract(formula: str, left: Tree, right: Tree, flatten: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The einsum over the last axis of the flattened leaves, in pieces of `TERMS`, one after the other."""

    def pieces(leaf: jax.Array) -> jax.Array:  # [pieces, ..., TERMS]
        flat = flatten(leaf)
        flat = jnp.pad(flat, [*[(0, 0)] * (flat.ndim - 1), (0, -flat.shape[-1] % TERMS)])
        return jnp.moveaxis(flat.reshape(*flat.shape[:-1], -1, TERMS), -2, 0)

    def multiply(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.einsum(formula, *pair, precision="highest")

    total = jnp.float32(0)
    for pair in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        x, y = map(pieces, pair)
        first = multiply((x[0], y[0]))
        rest, _ = jax.lax.scan(lambda total, pair: (total + multiply(pair), None), first, (x[1:], y[1:]))
        total = total + rest
    return total


def _blocks(x: Any, count: int, size: int) -> Iterator[tuple[np.ndarray, Any]]:
    """(ordinals, examples) of blocks of one size; the last one repeats its last example, so that shapes stay."""
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        padded = np.minimum(np.arange(start, start + size), count - 1) if count > size else rows
        yield rows, jax.tree.map(lambda leaf, padded=padded: leaf[padded], x)


def _count(x: Any, name: str) -> int:
    counts = {leaf.shape[0] if getattr(leaf, "ndim", 0) else -1 for leaf in jax.tree.leaves(x)}
    if len(counts) != 1 or counts == {-1}:
        raise UserError(
            f"{name}: examples are arrays stacked on their first axis, of one length; found {sorted(counts)}"
        )
    if counts == {0}:
        raise UserError(f"{name}: there are no examples; a kernel needs at least one on each side")
    return counts.pop()
