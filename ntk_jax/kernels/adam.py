"""What one step of Adam on an example alone would change: the feature of a training example in LESS
(Xia et al., arXiv 2402.04333, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ntk_jax.kernels.parameters import Tree

EPSILON = 1e-8  # as the trainer's optimiser has it


@dataclass(frozen=True)
class Moments:
    """Adam's state after `count` steps: m and v as they are kept, without bias correction, shaped like the parameters
    trained; and their decays."""

    m: Tree
    v: Tree
    count: int
    beta1: float
    beta2: float


def adam_updates(gradients: Tree, moments: Moments) -> Tree:
    """Γ(x) = m̂ / (√v̂ + ε) of gradients with leaves [B, C, ...], in the same shape: with g one of them,
    m' = β1 m + (1 − β1) g, v' = β2 v + (1 − β2) g², and m̂ = m' / (1 − β1^(t+1)), v̂ = v' / (1 − β2^(t+1)) after t
    steps. That is the trainer's next step on the example alone, at learning rate 1, with its sign turned, and without
    clipping and weight decay.

    With m of zeros it is what the example itself brings, scaled as the step would scale it. The paper has these bias
    corrections and ε under the root; its code has neither corrections nor a step count. Without m a correction of the
    first moment is one factor for all examples, which a cosine does not see.
    """
    count = jnp.float32(moments.count + 1)
    return _updates(gradients, moments.m, moments.v, count, jnp.float32(moments.beta1), jnp.float32(moments.beta2))


@jax.jit
def _updates(gradients: Tree, m: Tree, v: Tree, count: jax.Array, beta1: jax.Array, beta2: jax.Array) -> Tree:
    def one(g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        first = (beta1 * m + (1 - beta1) * g) / (1 - beta1**count)
        second = (beta2 * v + (1 - beta2) * jnp.square(g)) / (1 - beta2**count)
        return first / (jnp.sqrt(second) + EPSILON)

    return jax.tree.map(one, gradients, m, v)
