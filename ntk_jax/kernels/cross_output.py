"""Signed cross-output cosines: do the gradients of different outputs point apart, together, or anyhow?

cos_jk(x) = Θ_jk(x, x) / √(Θ_jj(x, x) Θ_kk(x, x)), j ≠ k, for the logits j, k of one example. NTK-Selector replaces the
trace of the kernel by the kernel of the summed logits, 1ᵀΘ1 = tr Θ + Σ_{j≠k} Θ_jk, and argues that the cross terms
cancel because these cosines have independent signs and size 1/√D (arXiv 2511.07380, appendix E; its figure 2b shows
magnitudes). Their sign is what matters: with a mean of c, the V(V − 1) cross terms are about c V times the trace.

With a frozen head W [V, D] all pairs follow exactly from M = J Jᵀ [D, D] of the hidden state: Θ = W M Wᵀ, the mean of
all cosines from one vector, their mean square from the Gram matrix of scaled head rows. Only the histogram is sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.kernels.backbone import span_mean, stacked
from ntk_jax.kernels.exact import MEMORY, tangent_kernel
from ntk_jax.models.model import Model

BINS = np.linspace(-1.0, 1.0, 81)


def cross_output_cosines(
    model: Model,
    rows: Any,
    *,
    parameters: str = "lora",
    pairs: int = 100_000,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Means over the examples (token rows), each for the logits as they are (`plain`) and `centered`: `mean` (signed)
    and `root_mean_square` over all pairs; `mean_magnitude`, `positive_share` and `histogram` of the sampled pairs;
    `coherence` = 1ᵀΘ1 / tr Θ, 1 where cross terms cancel, V where all gradients are parallel, 0 when centred.
    `isotropic` = 1/√D is the size that the paper predicts. progress(examples done, of how many).

    Costs D backward passes an example while its D gradients (4 D P bytes) fit `memory`, D² / 2 / (how many do) more
    where they do not. Raises UserError: no rows, or the head is among the parameters differentiated
    (then no M is shared by the outputs).
    """
    function, theta, frozen, head = span_mean(model, parameters)
    if head is None:
        raise UserError(f"parameters = {parameters!r} hold the head; cross-output cosines need a frozen one")
    if not len(rows):
        raise UserError("cross-output cosines of no examples; give at least one")
    weights = np.asarray(head, np.float64)
    centered = weights - weights.mean(axis=0)
    rng = np.random.default_rng([seed, 0xC05])
    per_example = max(1, pairs // len(rows))
    found: dict[str, list[dict[str, Any]]] = {"plain": [], "centered": []}
    every = stacked(rows)
    for number in range(len(rows)):
        one = jax.tree.map(lambda leaf, n=number: leaf[n : n + 1], every)
        middle = tangent_kernel(function, theta, frozen, one, one, kind="full", memory=memory)[0, 0].astype(np.float64)
        middle = (middle + middle.T) / 2
        j, k = _distinct_pairs(rng, len(weights), per_example)
        for name, rows_of_head in (("plain", weights), ("centered", centered)):
            found[name].append(_of_one(rows_of_head, middle, j, k))
        if progress:
            progress(number + 1, len(rows))
    result: dict[str, Any] = {"examples": len(rows), "outputs": len(weights), "isotropic": weights.shape[1] ** -0.5}
    result["pairs_sampled"] = per_example * len(rows)
    for name, parts in found.items():
        means = {key: float(np.mean([part[key] for part in parts])) for key in parts[0] if key != "counts"}
        counts = np.sum([part["counts"] for part in parts], axis=0)
        result[name] = means | {"histogram": {"edges": BINS.tolist(), "counts": counts.tolist()}}
    return result


def _of_one(head: np.ndarray, middle: np.ndarray, j: np.ndarray, k: np.ndarray) -> dict[str, Any]:
    """The statistics of one example. head: [V, D]; middle: M; j, k: the sampled pairs."""
    outputs = len(head)
    own = np.einsum("vd,de,ve->v", head, middle, head, optimize=True)  # Θ_vv
    unit = head / np.sqrt(np.maximum(own, np.finfo(np.float64).tiny))[:, None]
    column, gram = unit.sum(axis=0), unit.T @ unit
    pairs = outputs * (outputs - 1)
    product = gram @ middle
    sampled = np.einsum("pd,de,pe->p", unit[j], middle, unit[k], optimize=True)
    total = head.sum(axis=0)
    return {
        "mean": (column @ middle @ column - outputs) / pairs,
        "root_mean_square": np.sqrt(max(np.sum(product * product.T) - outputs, 0.0) / pairs),
        "mean_magnitude": np.abs(sampled).mean(),
        "positive_share": (sampled > 0).mean(),
        "coherence": total @ middle @ total / own.sum(),
        "counts": np.histogram(np.clip(sampled, -1, 1), BINS)[0],
    }


def _distinct_pairs(rng: np.random.Generator, outputs: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """[count] twice: j and k ≠ j, uniform."""
    j = rng.integers(0, outputs, count)
    return j, (j + rng.integers(1, outputs, count)) % outputs
