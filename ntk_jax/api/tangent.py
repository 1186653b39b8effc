"""The exact kernel of small sets, and whether it stays through fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ntk_jax.api.inputs import ObjectiveLike, SpanLike, encoded, objective_of
from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels import exact
from ntk_jax.kernels.backbone import span_mean, stacked
from ntk_jax.kernels.parameters import refuse_fresh_lora
from ntk_jax.kernels.rows import layout_for
from ntk_jax.kernels.stability import Checkpoint, StabilityReport
from ntk_jax.kernels.stability import stability as measure_stability
from ntk_jax.models.model import Model, computing_in
from ntk_jax.models.peft import load_adapter_like


def ntk(
    model: Model | Callable[[Any, Any], jax.Array],
    a: Any,
    b: Any = None,
    *,
    kind: exact.Kind = "trace",
    method: exact.Method = "jacobian",
    params: Any = None,
    span: SpanLike = "response",
    parameters: str = "lora",
    probes: int = 16,
    orthogonal: bool = False,
    seed: int = 0,
    dtype: str | None = None,
    memory: int = exact.MEMORY,
    allow_fresh_lora: bool = False,
) -> np.ndarray:
    """The exact neural tangent kernel between two small sets.

    Cost: with a frozen head D backward passes an example for the traces, whatever the vocabulary; 1 for `pseudo`,
    `probes` for `probe`.

    Args:
        model: from `load_model`; the kernel is that of the logits averaged over the span, f̄(θ; x) ∈ R^V. Or any
            function f(params, x) -> [V] of one example, with `params` its parameters and a, b arrays (or pytrees) of
            examples stacked on the first axis.
        a, b: the two sets, examples as in `mean_gradient`; b None is a itself.
        kind: `full`, `trace`, `centered_trace` (what softmax can see), `pseudo` (arXiv 2206.12543), or `probe`: an
            unbiased estimate of `centered_trace` from `probes` random directions drawn from `seed`; `orthogonal` ones
            are exact when there are V of them.
        method: `jacobian` (contraction of features) or `products` (a vjp and a jvp for each direction), two exact
            routes.
        memory: bytes of features held on each side of a block of pairs; the result does not depend on it.
        span, parameters, dtype, allow_fresh_lora: as in `mean_gradient`.

    Returns:
        [Na, Nb] fp32, or [Na, Nb, V, V] for kind `full`; NaN in rows and columns of examples that the span leaves out.

    Raises:
        UserError: an empty set, an example that cannot be used, a fresh adapter (B = 0), a kernel that is not finite.

    Example:
        >>> import numpy as np
        >>> import ntk_jax as nj
        >>> x = np.eye(2, dtype=np.float32)
        >>> nj.ntk(lambda params, x: params @ x, x, params=np.ones((3, 2), np.float32)).tolist()
        [[3.0, 0.0], [0.0, 3.0]]
    """
    how: dict[str, Any] = {"kind": kind, "method": method, "probes": probes, "orthogonal": orthogonal}
    how |= {"seed": seed, "memory": memory}
    if not isinstance(model, Model):
        if params is None:
            raise UserError("the kernel of a function needs params=, its parameters")
        return exact.tangent_kernel(_OfParams(model), params, None, a, a if b is None else b, **how)
    model = computing_in(model, dtype)
    if not allow_fresh_lora:
        refuse_fresh_lora(model, parameters)
    function, theta, frozen, outputs = span_mean(model, parameters)
    first = encoded(model, a, span)
    second = first if b is None else encoded(model, b, span)
    left = stacked(first.kept)
    right = left if b is None else stacked(second.kept)
    kernel = exact.tangent_kernel(function, theta, frozen, left, right, outputs=outputs, **how)
    return second.spread(first.spread(kernel), axes=(1,))


def stability(
    model: Model,
    probe_set: Any,
    checkpoints: Sequence[Any] | Mapping[str, Sequence[Any]],
    *,
    steps: Sequence[int] | None = None,
    candidates: Any = None,
    domain: Any = None,
    kind: exact.Kind = "centered_trace",
    objectives: Sequence[ObjectiveLike] = ("sum_logits",),
    top: int | None = None,
    span: SpanLike = "response",
    normalize: str | None = None,
    seed: int = 0,
    dtype: str | None = None,
    batch_tokens: int = 8192,
    memory: int = exact.MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> StabilityReport:
    """Does fine-tuning stay in the NTK regime? Compares the kernels, and the rankings of candidates, of checkpoints.

    Args:
        model: from `load_model`, with an adapter of the rank, scale and targets of the checkpoints.
        probe_set: the few examples whose exact kernel is taken at every checkpoint (`kind` as in `ntk`; costs D
            backward passes an example).
        checkpoints: PEFT directories or LoRA trees (such as `model.lora`) in the order of training; or several such
            trajectories by name, for example one a LoRA seed. The first of each is what the others are linearised at.
        steps: their optimiser steps, by default 0, 1, ....
        candidates: examples that are scored at every checkpoint, along the mean gradient of `domain` (by default the
            probe set), by each of the `objectives`; top: N of the top-N overlap, by default a tenth of them.
        span, normalize, seed, dtype, batch_tokens: as in `mean_gradient`; what the span leaves out does not count.
        memory: as in `ntk`. progress(checkpoints done, of how many).

    Returns:
        A `StabilityReport`: print it, or read `kernel_cosine`, `score_spearman`, `score_spearman_less_length` (without
        what follows the number of label tokens), ... [m, m] over all m checkpoints.

    Raises:
        UserError: no checkpoints, one of another rank (naming it), an empty set, a kernel that is not finite.

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2))
        >>> records = [{"prompt": "A cat", "response": "purrs"}, {"prompt": "A dog", "response": "barks"}]
        >>> tuned = nj.finetune(model, records, training=nj.TrainConfig(max_steps=2)).model
        >>> nj.stability(tuned, records, [tuned.lora, tuned.lora], kind="pseudo").kernel_cosine.shape
        (2, 2)
    """
    model = computing_in(model, dtype)
    if model.lora_config is None:
        raise UserError(f"{model.name} has no LoRA adapter; load it with lora= of the rank of the checkpoints")
    trajectories = checkpoints if isinstance(checkpoints, Mapping) else {"fine-tuning": checkpoints}
    points = []
    for name, adapters in trajectories.items():
        for number, adapter in enumerate(adapters):
            lora = (
                adapter if isinstance(adapter, Mapping) else load_adapter_like(adapter, model.config, model.lora_config)
            )
            if steps is not None and len(steps) != len(adapters):
                raise UserError(f"steps: {len(steps)} for {len(adapters)} checkpoints of {name}; give one for each")
            points.append(Checkpoint(name, number if steps is None else steps[number], dict(lora)))

    def rows(examples: Any) -> list[TokenRow]:
        return [] if examples is None else encoded(model, examples, span).kept

    probe, scored, targets = rows(probe_set), rows(candidates), rows(domain)
    longest = max((len(row.ids) for row in [*probe, *scored, *targets]), default=1)
    return measure_stability(
        model,
        probe,
        points,
        kind=kind,
        seed=seed,
        candidates=scored,
        domain=targets,
        objectives=[objective_of(objective, normalize, seed) for objective in objectives],
        top=top,
        layout=layout_for(longest, batch_tokens),
        memory=memory,
        progress=progress,
    )


@dataclasses.dataclass(frozen=True)
class _OfParams:
    """A user's f(params, x) in the shape that the kernel takes functions in."""

    function: Callable[[Any, Any], jax.Array]

    def __call__(self, params: Any, _: None, x: Any) -> jax.Array:
        return self.function(params, x)
