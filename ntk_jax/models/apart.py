"""A decoder whose layers lie apart, each with arrays of its own.

One loop over stacked weights compiles as one layer does, but in it XLA for the CPU copies every layer out of the stack
before it is used, which takes longer than a product of few rows with it. Programs of one layer, called one after the
other, have nothing to copy. On accelerators the loop reads the stack where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import Pure
from ntk_jax.models.model import Model


@dataclass(frozen=True)
class Apart:
    """definition: of a layer, with which `nnx.merge` makes it of one of `layers`. base: what is no layer's."""

    config: ModelConfig
    dtype: Any
    definition: Any
    layers: tuple[Any, ...]
    base: Pure


def taken_apart(model: Model) -> Apart:
    """The model with its adapter, on one CPU device. The arrays of its layers are views of the stacked ones where they
    can be, so that nothing is in memory twice."""
    merged = nnx.merge(model.graphdef, nnx.State(dict(model.lora or {})), nnx.State(dict(model.base)))
    definition, stack = nnx.split(merged.layers)
    leaves, tree = jax.tree.flatten(stack)
    stacked = [np.asarray(leaf) for leaf in leaves]
    layers = [
        jax.tree.unflatten(tree, [jax.device_put(leaf[number], may_alias=True) for leaf in stacked])
        for number in range(model.config.num_layers)
    ]
    base = {name: value for name, value in model.base.items() if name != "layers"}
    return Apart(model.config, np.dtype(model.dtype), definition, tuple(layers), base)
