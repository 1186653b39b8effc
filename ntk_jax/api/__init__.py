"""The Python API: what `import ntk_jax as nj` offers. Each function makes token rows of examples and calls the library.

Examples are a path (or glob, `builtin:`, `tfds:`, `hf:`), an iterable of records, or token rows
`{"input_ids": [...], "span": [0/1, ...]}` that bypass templates and tokenizers.

May import every package below the pipelines.
"""

from ntk_jax.api.choosing import select
from ntk_jax.api.cleaning import decontaminate, diversify, near_duplicates
from ntk_jax.api.generating import log_likelihoods, sample
from ntk_jax.api.gradients import directional_scores, logits, mean_gradient
from ntk_jax.api.inputs import token_rows
from ntk_jax.api.measuring import embeddings, losses
from ntk_jax.api.sketching import sketch
from ntk_jax.api.tangent import ntk, stability
from ntk_jax.api.training import Finetuned, evaluate, finetune

__all__ = [
    "Finetuned",
    "decontaminate",
    "directional_scores",
    "embeddings",
    "diversify",
    "evaluate",
    "finetune",
    "log_likelihoods",
    "logits",
    "losses",
    "mean_gradient",
    "near_duplicates",
    "ntk",
    "sample",
    "select",
    "sketch",
    "stability",
    "token_rows",
]
