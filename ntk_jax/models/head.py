"""From hidden states to log-probabilities of given tokens, without an array of V logits per position.

V is 128k to 152k for the models of interest: logits of one 8,192-token batch in fp32 would take 4 GB. The
log-normaliser is an online sum over chunks of the vocabulary instead, and a chunk is computed again in the
backward pass rather than kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def head_matrix(base: Mapping[str, Any]) -> jax.Array:
    """The LM head [V, D]: the model's own, or the embedding where the two are tied."""
    return base["head"] if "head" in base else base["embed"]


def target_log_probs(hidden: jax.Array, targets: jax.Array, head: jax.Array, *, vocab_chunk: int = 16384) -> jax.Array:
    """log softmax(W h)[target], fp32, shape [...].

    hidden [..., D], targets [...] int, head [V, D]; matmuls run in hidden's dtype and accumulate in fp32.
    Differentiable in both modes with respect to hidden and head.
    """
    vocab = head.shape[0]
    # Each target's own logit from its own row: [..., D] gathered, no chunk has to look for it.
    own = jnp.einsum("...d,...d->...", hidden, head[targets].astype(hidden.dtype), preferred_element_type=jnp.float32)
    if vocab <= vocab_chunk:
        return own - jax.nn.logsumexp(_logits(hidden, head), axis=-1)

    # Equal chunks without padding or copying the head: the last one reaches back over rows already counted,
    # which are then masked out.
    chunks = -(-vocab // vocab_chunk)

    def step(carry: tuple[jax.Array, jax.Array], index: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        top, total = carry
        first = jnp.minimum(index * vocab_chunk, vocab - vocab_chunk)
        logits = _logits(hidden, jax.lax.dynamic_slice_in_dim(head, first, vocab_chunk))
        logits = jnp.where(first + jnp.arange(vocab_chunk) >= index * vocab_chunk, logits, -jnp.inf)
        # The maximum only guards the range of exp and cancels out of the result: no derivative through it.
        new_top = jnp.maximum(top, jax.lax.stop_gradient(logits.max(axis=-1)))
        total = total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[..., None]).sum(axis=-1)
        return (new_top, total), None

    start = (jnp.full(targets.shape, -jnp.inf, jnp.float32), jnp.zeros(targets.shape, jnp.float32))
    (top, total), _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), start, jnp.arange(chunks))
    return own - (top + jnp.log(total))


def _logits(hidden: jax.Array, rows: jax.Array) -> jax.Array:
    """[..., C] fp32 logits of C head rows."""
    return jnp.einsum("...d,vd->...v", hidden, rows.astype(hidden.dtype), preferred_element_type=jnp.float32)
