"""Neural tangent kernel data selection in JAX.

    import ntk_jax as nj

    base = nj.load_model("path/or/hub-id", lora=nj.LoRAConfig())
    warm = nj.finetune(base, "domain.jsonl").model
    direction = nj.mean_gradient(warm, "domain.jsonl")
    scores = nj.directional_scores(warm, "pool.jsonl", direction)
    chosen = nj.select(scores, 9000).order

Names are loaded on first use, so that `ntk-jax --help` does not wait for jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ntk_jax.xla import keep_sums_exact

if TYPE_CHECKING:
    from ntk_jax.api import (
        Finetuned,
        decontaminate,
        directional_scores,
        diversify,
        embeddings,
        evaluate,
        finetune,
        log_likelihoods,
        logits,
        losses,
        mean_gradient,
        near_duplicates,
        ntk,
        sample,
        select,
        sketch,
        stability,
        token_rows,
    )
    from ntk_jax.data.sources import read_records
    from ntk_jax.data.span import Span
    from ntk_jax.errors import UserError
    from ntk_jax.evaluation.generated import Grading
    from ntk_jax.kernels.direction import adam_preconditioned, stack_directions
    from ntk_jax.kernels.objectives import Objective
    from ntk_jax.kernels.projections import Projection
    from ntk_jax.models.lora import LoRAConfig
    from ntk_jax.models.merge import merge_adapter
    from ntk_jax.models.model import Model, load_model, with_lora
    from ntk_jax.selection.ranker import Ranking
    from ntk_jax.selection.rankers import RANKERS
    from ntk_jax.selection.sketch import rank_sketches
    from ntk_jax.selection.sketch_store import open_sketches
    from ntk_jax.training.optimizer import TrainConfig

_DEFINED_IN = {
    "Finetuned": "ntk_jax.api",
    "Grading": "ntk_jax.evaluation.generated",
    "LoRAConfig": "ntk_jax.models.lora",
    "Model": "ntk_jax.models.model",
    "Objective": "ntk_jax.kernels.objectives",
    "Projection": "ntk_jax.kernels.projections",
    "RANKERS": "ntk_jax.selection.rankers",
    "Ranking": "ntk_jax.selection.ranker",
    "Span": "ntk_jax.data.span",
    "TrainConfig": "ntk_jax.training.optimizer",
    "UserError": "ntk_jax.errors",
    "adam_preconditioned": "ntk_jax.kernels.direction",
    "decontaminate": "ntk_jax.api",
    "directional_scores": "ntk_jax.api",
    "embeddings": "ntk_jax.api",
    "diversify": "ntk_jax.api",
    "evaluate": "ntk_jax.api",
    "finetune": "ntk_jax.api",
    "load_model": "ntk_jax.models.model",
    "log_likelihoods": "ntk_jax.api",
    "logits": "ntk_jax.api",
    "losses": "ntk_jax.api",
    "mean_gradient": "ntk_jax.api",
    "merge_adapter": "ntk_jax.models.merge",
    "near_duplicates": "ntk_jax.api",
    "ntk": "ntk_jax.api",
    "open_sketches": "ntk_jax.selection.sketch_store",
    "rank_sketches": "ntk_jax.selection.sketch",
    "read_records": "ntk_jax.data.sources",
    "sample": "ntk_jax.api",
    "select": "ntk_jax.api",
    "sketch": "ntk_jax.api",
    "stability": "ntk_jax.api",
    "stack_directions": "ntk_jax.kernels.direction",
    "token_rows": "ntk_jax.api",
    "with_lora": "ntk_jax.models.model",
}

__all__ = [
    "RANKERS",
    "Finetuned",
    "Grading",
    "LoRAConfig",
    "Model",
    "Objective",
    "Projection",
    "Ranking",
    "Span",
    "TrainConfig",
    "UserError",
    "adam_preconditioned",
    "decontaminate",
    "directional_scores",
    "embeddings",
    "diversify",
    "evaluate",
    "finetune",
    "load_model",
    "log_likelihoods",
    "logits",
    "losses",
    "mean_gradient",
    "merge_adapter",
    "near_duplicates",
    "ntk",
    "open_sketches",
    "rank_sketches",
    "read_records",
    "sample",
    "select",
    "sketch",
    "stability",
    "stack_directions",
    "token_rows",
    "with_lora",
]


keep_sums_exact()  # before anyone computes


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'ntk_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_DEFINED_IN[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
