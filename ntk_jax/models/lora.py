"""Low-rank adapters: which linears get one, how it starts, and how it melts into the frozen weights.

y = xW + (α/R)(xA)B with A [Din, R], B [R, Dout] (Hu et al., arXiv 2106.09685). Adapters are always fp32; the
linear in `decoder.py` casts them to the compute dtype. Leaves are stacked over layers, as everything here.

All linears of all layers have the same R. Where a file has a smaller rank somewhere, or none, A and B are filled up
with zeros. That part stays zero and counts in no kernel: the gradient of A has B as a factor, and that of B has xA.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.models.quantization import refuse_quantized

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoRAConfig:
    """Adapter shape. `targets` are regular expressions that must match a linear's whole name; `alphas` are (name, α) of
    linears whose α is not `alpha`."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = LINEARS
    alphas: tuple[tuple[str, float], ...] = ()

    @property
    def scales(self) -> dict[str, float]:
        """α / R, the factor of the low-rank term, of each linear that has an adapter."""
        own = dict(self.alphas)
        return {name: own.get(name, self.alpha) / self.rank for name in target_names(self)}


def target_names(lora: LoRAConfig | None) -> tuple[str, ...]:
    """The linears that get an adapter, in model order. A pattern that matches none is a UserError."""
    if lora is None:
        return ()
    if not isinstance(lora.rank, int) or lora.rank < 1:
        raise UserError(f"rank must be a whole number of at least 1, got {lora.rank!r}")
    for key, alpha in (("alpha", lora.alpha), *((f"alphas: {name}", alpha) for name, alpha in lora.alphas)):
        if not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
            raise UserError(f"{key} must be a number above 0, got {alpha!r}")
    if not lora.targets:
        raise UserError(f"targets is empty; name some of {', '.join(LINEARS)}")
    found: set[str] = set()
    for pattern in lora.targets:
        try:
            matched = {name for name in LINEARS if re.fullmatch(pattern, name)}
        except re.error as error:
            raise UserError(f"targets: {pattern!r} is not a regular expression ({error})") from None
        if not matched:
            raise UserError(f"targets: {pattern!r} matches no layer; the names are {', '.join(LINEARS)}")
        found |= matched
    for name, _ in lora.alphas:
        if name not in found:
            raise UserError(f"alphas: {name!r} is not one of the targets, {', '.join(sorted(found))}")
    return tuple(name for name in LINEARS if name in found)


def initial_lora(shapes: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A fresh adapter: A uniform in ±1/√Din (what PEFT's kaiming_uniform(√5) comes to), B zero.

    shapes: {"layers": {name: {"a": array-like of shape [L, Din, R], "b": ...}}}. Each leaf has its own stream,
    so that adding a target does not change the others.
    """
    layers = {}
    for name, leaf in shapes["layers"].items():
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        bound = leaf["a"].shape[1] ** -0.5
        layers[name] = {
            "a": jnp.asarray(random.uniform(-bound, bound, leaf["a"].shape).astype(np.float32)),
            "b": jnp.zeros(leaf["b"].shape, jnp.float32),
        }
    return {"layers": layers}


def fold(lora: Mapping[str, Any], base: Mapping[str, Any], scales: Mapping[str, float]) -> dict[str, Any]:
    """The base with W + scale·AB in place of W, computed in fp32 and rounded to W's dtype. scales: of each linear, by
    name. Raises UserError for a quantized W, which has no room for the sum."""
    refuse_quantized(base, "an adapter cannot be folded into")

    def one_layer(scale: float, leaves: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        kernel, a, b = leaves
        update = scale * jnp.matmul(a, b, precision="highest")
        return (kernel.astype(jnp.float32) + update).astype(kernel.dtype)

    layers = dict(base["layers"])
    for name, leaf in lora.get("layers", {}).items():
        # Layer by layer: the fp32 update of all layers at once would be twice the size of bf16 weights.
        kernel = jax.lax.map(functools.partial(one_layer, scales[name]), (layers[name]["kernel"], leaf["a"], leaf["b"]))
        layers[name] = {**layers[name], "kernel": kernel}
    return {**base, "layers": layers}


def is_fresh(lora: Mapping[str, Any]) -> bool:
    """True when every B is zero: the adapter does nothing yet, and the gradient of every A vanishes."""
    leaves = [leaf["b"] for leaf in lora.get("layers", {}).values()]
    return not any(bool(jnp.any(leaf != 0)) for leaf in jax.device_get(leaves))
