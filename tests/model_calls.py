"""One compiled call of the decoder per model shape, shared by the tests: eager calls would compile their scan anew."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix
from ntk_jax.models.model import Model


@functools.partial(jax.jit, static_argnums=0, static_argnames=("dtype", "remat"))
def run(graphdef: Any, lora: Any, base: Any, rows: Any, branches: Any = None, **options: Any) -> jax.Array:
    """Hidden states of rows = (tokens, positions, segments)."""
    tokens, positions, segments = rows
    return hidden_states(graphdef, lora, base, tokens, positions, segments, branches, **options)


def whole_rows(tokens: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens, positions, segments) of rows [B, T] that hold one example each, without padding."""
    tokens = jnp.asarray(tokens, jnp.int32)
    return tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), jnp.ones_like(tokens)


def hidden_of(model: Model, tokens: Any) -> jax.Array:
    """[B, T, D] of unpadded rows, in the model's dtype."""
    return run(model.graphdef, model.lora, model.base, whole_rows(tokens), dtype=model.dtype)


def logits_of(model: Model, tokens: Any) -> np.ndarray:
    """[B, T, V] of unpadded rows."""
    return np.asarray(hidden_of(model, tokens) @ head_matrix(model.base).T)
