"""Objectives: the scalar s(θ; x) of an example whose gradient is the example's kernel feature.

All are sums over the span of a per-token value, divided by the span's length under `mean`:

| objective       | value at position t                          | head matmul |
|-----------------|----------------------------------------------|-------------|
| `sum_logits`    | ⟨Wᵀ1, h_t⟩  (the paper's, arXiv 2511.07380)  | none        |
| `probe`         | ⟨W_cᵀξ, h_t⟩, ξ ∈ {±1}^V, one channel a probe | none        |
| `target_logit`  | ⟨W[y_t], h_t⟩, y_t the next token            | one row     |
| `cross_entropy` | −log softmax(W h_t)[y_t]                     | in chunks   |
| a callable      | f(h [..., D], y [...], W [V, D]) -> [...]    | its own     |

W_c = W − mean row is the head without the part that softmax cannot see. The mean of
the probes' kernels is unbiased for the trace of the centred NTK because E[ξξᵀ] = I.

Letters: B rows, T positions, D width, V vocabulary, S segments a row, G label slots a row, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ntk_jax.data.batch import Batch
from ntk_jax.errors import UserError
from ntk_jax.kernels.names import NORMALIZATIONS, OBJECTIVES
from ntk_jax.models.head import target_log_probs

TokenObjective = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Objective:
    """What is differentiated. Hashable, so that it can be a static argument of a compiled step.

    kind: one of the names above, or a callable on (hidden, targets, head).
    normalize: `mean` over the span; `sum` (and its other name `none`) leaves the sum.
    probes, seed: for `probe`.
    """

    kind: str | TokenObjective = "sum_logits"
    normalize: str = "mean"
    probes: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not callable(self.kind) and self.kind not in OBJECTIVES:
            raise UserError(f"objective {self.kind!r} is not one of {', '.join(OBJECTIVES)}, nor a callable")
        if self.normalize not in NORMALIZATIONS:
            raise UserError(f"normalize = {self.normalize!r} is not one of {', '.join(NORMALIZATIONS)}")
        if self.kind == "probe" and self.probes < 1:
            raise UserError(f"probes = {self.probes}: the probe objective needs at least one")

    @property
    def is_linear(self) -> bool:
        """True when the value is linear in h_t, so that neither head nor labels are needed per token."""
        return self.kind in LINEAR

    @property
    def channels(self) -> int:
        """C: how many scalars an example has (probes), each with its own gradient."""
        return self.probes if self.kind == "probe" else 1


def readout(objective: Objective, head: jax.Array) -> jax.Array:
    """What the objective reads hidden states with: [C, D] fp32 vectors if linear, else the head [V, D] itself.

    Computed once outside the compiled step when the head is frozen: a V×D sum must not be paid per batch.
    """
    return READOUTS[str(objective.kind)](objective, head) if objective.is_linear else head


def _column_sum(objective: Objective, head: jax.Array) -> jax.Array:
    """Wᵀ1."""
    return head.sum(axis=0, dtype=jnp.float32)[None]


def _probes(objective: Objective, head: jax.Array) -> jax.Array:
    """W_cᵀξ = Wᵀξ − (Σξ/V)·Wᵀ1: centring without a second copy of the head."""
    signs = probe_signs(objective.seed, objective.probes, head.shape[0])
    vectors = jnp.einsum("cv,vd->cd", signs, head, precision="highest", preferred_element_type=jnp.float32)
    return vectors - signs.mean(axis=1, keepdims=True) * head.sum(axis=0, dtype=jnp.float32)


def probe_signs(seed: int, probes: int, vocabulary: int) -> jax.Array:
    """[C, V] fp32 of ±1 from the run's seed; threefry, so the same on every device count."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.rademacher(key, (probes, vocabulary), dtype=jnp.float32)


def example_values(
    objective: Objective, hidden: jax.Array, batch: Batch, readout: jax.Array, max_segments: int
) -> jax.Array:
    """[B, S, C] fp32: s(θ; x) of each segment, 0 for unused ones. `hidden` is [B, T, D] after the final norm."""
    if objective.is_linear:
        values = jnp.einsum("btd,cd->btc", hidden.astype(jnp.float32), readout, precision="highest")
        members = segment_members(batch.segments, max_segments) * batch.span[..., None]  # [B, T, S]
    else:
        # Gather first: only positions that predict a response token ever meet the vocabulary.
        at = jnp.take_along_axis(hidden, batch.label_position[..., None], axis=1)  # [B, G, D]
        values = _labelled_values(objective, at, batch.label_target, readout)[..., None]
        members = segment_members(batch.label_segment, max_segments)  # [B, G, S]
    total = jnp.einsum("bts,btc->bsc", members, values, precision="highest")
    if objective.normalize != "mean":
        return total
    return total / jnp.maximum(members.sum(axis=1), 1.0)[..., None]


def segment_members(segments: jax.Array, max_segments: int) -> jax.Array:
    """[B, T, S] fp32: 1 where position t belongs to segment s + 1; padding (0) belongs to none."""
    return (segments[..., None] == jnp.arange(1, max_segments + 1)).astype(jnp.float32)


def _labelled_values(objective: Objective, hidden: jax.Array, targets: jax.Array, head: jax.Array) -> jax.Array:
    """[B, G] fp32 per-token values of the objectives that look at the next token."""
    function: Any = objective.kind if callable(objective.kind) else TOKEN_VALUES[objective.kind]
    values = function(hidden, targets, head)
    if values.shape != targets.shape:
        raise UserError(
            f"the objective returned shape {values.shape} for {targets.shape} tokens; return one value per token, "
            "f(hidden [..., D], targets [...], head [V, D]) -> [...]"
        )
    return values.astype(jnp.float32)


def _cross_entropy(hidden: jax.Array, targets: jax.Array, head: jax.Array) -> jax.Array:
    return -target_log_probs(hidden, targets, head)


def _target_logit(hidden: jax.Array, targets: jax.Array, head: jax.Array) -> jax.Array:
    rows = head[targets].astype(jnp.float32)
    return jnp.einsum("bgd,bgd->bg", hidden.astype(jnp.float32), rows, precision="highest")


# An objective is one function here and its name in `names.py`. Linear in h_t: what it is read with, [C, D] fp32, from
# the head. The others: their value at a token, from hidden state, next token and head, as a callable gives it.
READOUTS: dict[str, Callable[[Objective, jax.Array], jax.Array]] = {"sum_logits": _column_sum, "probe": _probes}
TOKEN_VALUES: dict[str, TokenObjective] = {"cross_entropy": _cross_entropy, "target_logit": _target_logit}
LINEAR, LABEL_AWARE = tuple(READOUTS), tuple(TOKEN_VALUES)


def head_coherence(head: jax.Array) -> float:
    """ρ = ‖Wᵀ1‖² / ‖W‖²_F: 1 when head rows have independent signs (the paper's assumption), V when all agree."""
    wide = head.astype(jnp.float32)
    column = wide.sum(axis=0)
    return float(jnp.vdot(column, column) / jnp.vdot(wide, wide))
