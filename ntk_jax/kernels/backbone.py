"""A backbone as the function whose kernel is taken: span-mean logits of one token row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.kernels.parameters import Tree, join_parameters, split_parameters
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix
from ntk_jax.models.model import Model

Example = dict[str, Any]  # "tokens", "segment", "span": [T] each


@dataclass(frozen=True)
class SpanMean:
    """f(θ, frozen, x): the mean over the span of the hidden states [D], or with `logits` of the logits [V].

    Hashable, so that compiled kernels are shared by all calls with the same model definition.
    """

    graphdef: Any
    dtype: Any
    parameters: str
    logits: bool

    def __call__(self, theta: Tree, frozen: Tree, x: Example) -> jax.Array:
        lora, base = join_parameters(theta, frozen, self.parameters)
        positions = jnp.arange(x["tokens"].shape[0])[None]
        hidden = hidden_states(
            self.graphdef, lora, base, x["tokens"][None], positions, x["segment"][None], dtype=self.dtype
        )[0]
        mean = jnp.einsum("td,t->d", hidden.astype(jnp.float32), x["span"]) / x["span"].sum()
        if not self.logits:
            return mean
        return jnp.einsum("vd,d->v", head_matrix(base).astype(jnp.float32), mean, precision="highest")


def span_mean(model: Model, parameters: str) -> tuple[SpanMean, Tree, Tree, jax.Array | None]:
    """(function, θ, frozen, W [V, D] or None): with a frozen head the function stops at the hidden state, and W is the
    linear map behind it; where the head is differentiated too, the function goes on to the logits."""
    theta, frozen = split_parameters(model, parameters)
    head = "head" if "head" in model.base else "embed"
    learns_head = head in theta.get("base", {})
    function = SpanMean(model.graphdef, model.dtype, parameters, learns_head)
    return function, theta, frozen, None if learns_head else head_matrix(model.base)


def stacked(rows: Sequence[TokenRow], multiple: int = 16) -> Example:
    """Rows padded to one length, stacked: leaves [N, T]. Padding is a segment of its own and outside every span."""
    length = -(-max(len(row.ids) for row in rows) // multiple) * multiple
    tokens, segment = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.int32)
    span = np.zeros((len(rows), length), np.float32)
    for number, row in enumerate(rows):
        tokens[number, : len(row.ids)], segment[number, : len(row.ids)] = row.ids, 1
        span[number, : len(row.ids)] = row.span
    return {"tokens": tokens, "segment": segment, "span": span}
