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

from ntk_jax.parallel.rules import whole


def head_matrix(base: Mapping[str, Any]) -> jax.Array:
    """The LM head [V, D]: the model's own, or the embedding where the two are tied."""
    return base["head"] if "head" in base else base["embed"]


def target_log_probs(hidden: jax.Array, targets: jax.Array, head: jax.Array, *, vocab_chunk: int = 16384) -> jax.Array:
    """log softmax(W h)[target], fp32, shape [...].

    hidden [..., D], targets [...] int, head [V, D]; matmuls run in hidden's dtype and accumulate in fp32.
    Differentiable in both modes with respect to hidden and head.
    """
    own, normalizer, _ = _target_logits(hidden, targets, head, vocab_chunk)
    return own - normalizer


def target_log_probs_and_greedy(
    hidden: jax.Array, targets: jax.Array, head: jax.Array, *, vocab_chunk: int = 16384
) -> tuple[jax.Array, jax.Array]:
    """`target_log_probs`, and whether no token of the vocabulary is likelier than the target: [...] bool."""
    own, normalizer, top = _target_logits(hidden, targets, head, vocab_chunk)
    return own - normalizer, own >= top


def _target_logits(
    hidden: jax.Array, targets: jax.Array, head: jax.Array, vocab_chunk: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The targets' logits, the logarithm of the sum of exp over all logits, and the largest logit, each [...] fp32."""
    vocab = head.shape[0]
    if vocab <= vocab_chunk:
        logits = all_logits(hidden, head)
        return _pick(logits, targets), jax.nn.logsumexp(logits, axis=-1), logits.max(axis=-1)

    # Equal chunks without padding or copying the head: the last one reaches back over rows that the one before
    # it owns, and these are masked out.
    def step(carry: tuple[jax.Array, ...], index: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        top, total, own = carry
        first = jnp.minimum(index * vocab_chunk, vocab - vocab_chunk)
        logits = all_logits(hidden, jax.lax.dynamic_slice_in_dim(head, first, vocab_chunk))
        owned = (first + jnp.arange(vocab_chunk)) // vocab_chunk == index
        logits = jnp.where(owned, logits, -jnp.inf)
        here = targets // vocab_chunk == index
        own = jnp.where(here, _pick(logits, jnp.where(here, targets - first, vocab_chunk - 1)), own)
        # The maximum only guards the range of exp and cancels out of the result: no derivative through it.
        new_top = jnp.maximum(top, jax.lax.stop_gradient(logits.max(axis=-1)))
        total = total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[..., None]).sum(axis=-1)
        return (new_top, total, own), None

    zero = jnp.zeros(targets.shape, jnp.float32)
    chunks = jnp.arange(-(-vocab // vocab_chunk))
    (top, total, own), _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), (zero - jnp.inf, zero, zero), chunks)
    return own, top + jnp.log(total), top


def _pick(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[...] the target's entry of [..., C]."""
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def all_logits(hidden: jax.Array, rows: jax.Array) -> jax.Array:
    """[..., C] fp32 logits of C head rows [C, D], which are first made whole where a mesh splits them."""
    rows = whole(rows.astype(hidden.dtype))
    return jnp.einsum("...d,vd->...v", hidden, rows, preferred_element_type=jnp.float32)
