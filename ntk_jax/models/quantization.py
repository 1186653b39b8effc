"""The frozen linears in 8 bits: numbers of one byte each, and one fp32 scale for each output channel.

W[:, k] ≈ scale_k · W₈[:, k], symmetric, with scale_k = max |W[:, k]| / the largest number of the kind: 127 for int8
(absmax for each output, as LLM.int8() has it for weights: arXiv 2208.07339), 448 for float8_e4m3fn (FP8's E4M3: arXiv
2209.05433). Rounding is to the nearest. Only weights are quantized: y = (x W₈) · scale is computed in the dtype of x
and accumulates as without quantization; the scale comes last, on the narrow side. The map is linear in x, so a tangent
goes through the very same weights, and so does a cotangent; nothing is ever differentiated with respect to them.

The seven linears of each layer are quantized. Embedding, head, norms, biases and adapters stay as they are: the
objectives look at the head row by row, and the others are small. In a base tree a quantized linear has `kernel`
[L, Din, Dout] in the kind's dtype and `kernel_scale` [L, Dout] beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ntk_jax.errors import UserError

LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}
SCALE = "kernel_scale"


def check_kind(kind: str | None) -> None:
    """Raises UserError for what is neither None nor a kind of quantization."""
    if kind is not None and kind not in LARGEST:
        raise UserError(f"quantization {kind!r} is not supported; use {' or '.join(LARGEST)}, or none")


def quantize(kernel: Any, kind: str) -> tuple[Any, Any]:
    """(values [..., Din, Dout] in the kind's dtype, scale [..., Dout] fp32) of fp32 weights, by numpy for numpy arrays
    and by jax for jax's. A channel of zeros has scale 1."""
    largest = LARGEST[kind]
    scale = abs(kernel).max(axis=-2) / largest
    scale = scale + (scale == 0)
    values = kernel / scale[..., None, :]
    if kind == "int8":
        values = values.round()
    return values.clip(-largest, largest).astype(jnp.dtype(kind)), scale


def times_quantized(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    """x W [..., Dout] in the dtype of x, for x [..., Din], values [Din, Dout] and scale [Dout] of one layer."""
    return ((x @ values.astype(x.dtype)) * scale).astype(x.dtype)


def quantized_base(base: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The base tree with its linears quantized, a layer at a time; the given one is left untouched."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Mapping):
            return leaf
        values, scale = _quantise_layers(leaf["kernel"], kind)
        return {**leaf, "kernel": values, SCALE: scale}

    return {**base, "layers": {name: one(leaf) for name, leaf in base["layers"].items()}}


@functools.partial(jax.jit, static_argnames="kind")
def _quantise_layers(kernel: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
    return jax.lax.map(lambda one: quantize(one.astype(jnp.float32), kind), kernel)


def dequantized_base(base: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The plain base tree of the same weights, rounded to `dtype`: what quantized products are checked against."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Mapping):
            return leaf
        kernel = (leaf["kernel"].astype(jnp.float32) * leaf[SCALE][:, None, :]).astype(dtype)
        return {**{name: value for name, value in leaf.items() if name != SCALE}, "kernel": kernel}

    return {**base, "layers": {name: one(leaf) for name, leaf in base["layers"].items()}}


def cast(base: Mapping[str, Any], dtype: Any) -> Any:
    """The base tree in another float dtype; quantized kernels and their scales stay as they are."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if is_quantized(path[-1].key, leaf) else leaf.astype(dtype), base
    )


def is_quantized(name: str, leaf: Any) -> bool:
    """Whether a leaf of this name is a part of a quantized linear."""
    return name == SCALE or (name == "kernel" and str(leaf.dtype) in LARGEST)


def kind_of(base: Mapping[str, Any]) -> str | None:
    """How the linears of a base tree are quantized; None: they are not."""
    for leaf in base.get("layers", {}).values():
        if isinstance(leaf, Mapping) and SCALE in leaf:
            return str(leaf["kernel"].dtype)
    return None


def refuse_quantized(base: Mapping[str, Any], what: str) -> None:
    """Raises UserError where the linears are quantized: `what` needs their own numbers."""
    if kind := kind_of(base):
        raise UserError(f"{what} a model whose layers are held in {kind}; load it without quantization for that")
