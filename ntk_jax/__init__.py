"""Neural tangent kernel data selection in JAX.

    import ntk_jax as nj

    model = nj.load_model("path/or/hub-id", adapter="path/of/a/peft/adapter")
    direction = nj.mean_gradient(model, "domain.jsonl")
    scores = nj.directional_scores(model, "pool.jsonl", direction)

Names are loaded on first use, so that `ntk-jax --help` does not wait for jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ntk_jax.xla import keep_sums_exact

if TYPE_CHECKING:
    from ntk_jax.api import directional_scores, mean_gradient, ntk, sketch, stability
    from ntk_jax.errors import UserError
    from ntk_jax.kernels.direction import adam_preconditioned, stack_directions
    from ntk_jax.models.lora import LoRAConfig
    from ntk_jax.models.model import Model, load_model, with_lora
    from ntk_jax.selection.sketch_store import open_sketches, rank_sketches

_HOME = {
    "LoRAConfig": "ntk_jax.models.lora",
    "Model": "ntk_jax.models.model",
    "UserError": "ntk_jax.errors",
    "adam_preconditioned": "ntk_jax.kernels.direction",
    "directional_scores": "ntk_jax.api",
    "load_model": "ntk_jax.models.model",
    "mean_gradient": "ntk_jax.api",
    "ntk": "ntk_jax.api",
    "open_sketches": "ntk_jax.selection.sketch_store",
    "rank_sketches": "ntk_jax.selection.sketch_store",
    "sketch": "ntk_jax.api",
    "stability": "ntk_jax.api",
    "stack_directions": "ntk_jax.kernels.direction",
    "with_lora": "ntk_jax.models.model",
}

__all__ = [
    "LoRAConfig",
    "Model",
    "UserError",
    "adam_preconditioned",
    "directional_scores",
    "load_model",
    "mean_gradient",
    "ntk",
    "open_sketches",
    "rank_sketches",
    "sketch",
    "stability",
    "stack_directions",
    "with_lora",
]


keep_sums_exact()  # before anyone computes


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ntk_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
