"""The Python API: what `import ntk_jax as nj` offers. Each function makes token rows of examples and calls `kernels/`.

Examples are a path (or glob, `builtin:`, `tfds:`, `hf:`), an iterable of records, or token rows
`{"input_ids": [...], "span": [0/1, ...]}` that bypass templates and tokenizers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.tokens import TOO_LONG, Dropped, as_rows
from ntk_jax.errors import UserError
from ntk_jax.kernels import direction as directions
from ntk_jax.kernels import exact, score
from ntk_jax.kernels.backbone import span_mean, stacked
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import refuse_fresh_lora, split_parameters
from ntk_jax.kernels.projections import Projection, ProjectionKind, check_width
from ntk_jax.kernels.rows import layout_for
from ntk_jax.kernels.sketch import sketches
from ntk_jax.kernels.stability import Checkpoint, StabilityReport
from ntk_jax.kernels.stability import stability as measure_stability
from ntk_jax.models.attention_kernel import Attention
from ntk_jax.models.model import Model, computing_in
from ntk_jax.models.peft import load_adapter_like
from ntk_jax.selection.sketch_store import create_sketches, longest_id, sketch_facts, write_sketches
from ntk_jax.storage.arrays import Store, done_blocks
from ntk_jax.storage.hashing import hash_tree

ObjectiveName = str | Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Span = Literal["response", "all", "last"]
Normalize = Literal["mean", "sum", "none"]


def mean_gradient(
    model: Model,
    examples: Any,
    *,
    objective: ObjectiveName = "sum_logits",
    span: Span = "response",
    normalize: Normalize = "mean",
    parameters: str = "lora",
    probes: int = 4,
    dtype: str | None = None,
    batch_tokens: int = 8192,
    max_length: int | None = None,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    allow_fresh_lora: bool = False,
) -> dict[str, Any]:
    """The mean gradient ḡ of an objective over examples: a direction, shaped like the parameters differentiated.

    model: from `load_model`. objective: `sum_logits` (arXiv 2511.07380), `probe`, `cross_entropy`, `target_logit`,
    or a callable f(hidden [..., D], targets [...], head [V, D]) -> [...] values per token. span: which positions
    count. normalize: `mean` over the span, `sum` or `none` (no division). parameters: `lora`, `all`, or a regular
    expression over names such as "base/layers/q_proj/kernel". probes, seed: of the `probe` objective, whose
    direction has one leading axis of size `probes`. dtype: compute in `float32` or `bfloat16` instead of the
    model's own. batch_tokens: tokens of one compiled step over all devices. max_length: refuse longer
    examples; by default those longer than the model's positions.

    Returns a nested dict of fp32 arrays. Raises UserError for an empty set, an example without a span, an adapter
    that is still fresh (B = 0), or a gradient that is not finite.
    """
    model = computing_in(model, dtype)
    if not allow_fresh_lora:
        refuse_fresh_lora(model, parameters)
    rows = token_rows(model, examples, span=span, max_length=max_length)
    layout = layout_for(max(len(row.ids) for row in rows), batch_tokens, mesh)
    chosen = Objective(objective, normalize, probes, seed)
    return directions.mean_gradient(model, rows, chosen, layout, parameters=parameters)


def directional_scores(
    model: Model,
    examples: Any,
    direction: dict[str, Any],
    *,
    objective: ObjectiveName = "sum_logits",
    span: Span = "response",
    normalize: Normalize = "mean",
    parameters: str = "lora",
    probes: int = 4,
    dtype: str | None = None,
    batch_tokens: int = 8192,
    max_length: int | None = None,
    seed: int = 0,
    attention: Attention = "xla",
    mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
    """⟨direction, ∇θ s(θ; x)⟩ for every example: [N] fp32 in the order given, or [N, m] for m stacked directions.

    Exact: one forward-mode derivative an example, no projection, nothing stored (DESIGN §2). With
    `direction = mean_gradient(model, domain, ...)` and the same options this is the example's mean kernel with the
    domain, the score of arXiv 2511.07380. Options as in `mean_gradient`; `probe` needs the same probes and seed.
    attention: `xla`, or on a GPU `pallas`, a kernel that keeps attention's scores out of memory (not measured yet);
    `auto` takes it wherever it can run.

    Raises UserError when the direction does not fit the parameters or a score is not finite (naming the example), and
    where the kernel cannot run.
    """
    model = computing_in(model, dtype)
    rows = token_rows(model, examples, span=span, max_length=max_length)
    layout = layout_for(max(len(row.ids) for row in rows), batch_tokens, mesh)
    chosen = Objective(objective, normalize, probes, seed)
    return score.directional_scores(
        model, rows, direction, chosen, layout, parameters=parameters, attention=attention
    ).values


def ntk(
    model: Model | Callable[[Any, Any], jax.Array],
    a: Any,
    b: Any = None,
    *,
    kind: exact.Kind = "trace",
    params: Any = None,
    span: Span = "response",
    parameters: str = "lora",
    method: exact.Method = "jacobian",
    probes: int = 16,
    orthogonal: bool = False,
    dtype: str | None = None,
    max_length: int | None = None,
    seed: int = 0,
    memory: int = exact.MEMORY,
    allow_fresh_lora: bool = False,
) -> np.ndarray:
    """The exact neural tangent kernel between two small sets: [Na, Nb] fp32, or [Na, Nb, V, V] for kind `full`.

    model: from `load_model`; the kernel is that of the logits averaged over the span, f̄(θ; x) ∈ R^V. Or any function
    f(params, x) -> [V] of one example, with `params` its parameters and a, b arrays (or pytrees) of examples stacked on
    the first axis. b: None is a itself.
    kind: `full`, `trace`, `centered_trace` (what softmax can see), `pseudo` (arXiv 2206.12543), `probe` (an unbiased
    estimate of `centered_trace` from `probes` random directions; `orthogonal` ones are exact when there are V of them).
    method: `jacobian` (contraction of features) or `products` (a vjp and a jvp for each direction): two exact routes.
    memory: bytes of features held on each side of a block of pairs; the result does not depend on it.
    Cost: with a frozen head D backward passes an example for the traces, whatever the vocabulary; 1 for `pseudo`,
    `probes` for `probe`. Other options as in `mean_gradient`.

    Raises UserError for empty sets, an example without a span, a fresh adapter (B = 0), a kernel that is not finite.
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
    left = stacked(token_rows(model, a, span=span, max_length=max_length))
    right = left if b is None else stacked(token_rows(model, b, span=span, max_length=max_length))
    return exact.tangent_kernel(function, theta, frozen, left, right, outputs=outputs, **how)


def sketch(
    model: Model,
    examples: Any,
    *,
    dim: int = 8192,
    projection: ProjectionKind = "rademacher",
    sparsity: int = 1,
    objective: ObjectiveName = "sum_logits",
    span: Span = "response",
    normalize: Normalize = "mean",
    parameters: str = "lora",
    probes: int = 4,
    dtype: str | None = None,
    batch_tokens: int = 8192,
    max_length: int | None = None,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    allow_fresh_lora: bool = False,
    out: str | Path | None = None,
    out_dtype: Literal["float16", "float32"] = "float16",
    block_examples: int = 2048,
) -> np.ndarray | Store:
    """Gradients of examples projected to `dim` numbers: [N, K] fp32, whose inner products are unbiased estimates of
    the kernel ⟨g(x), g(x')⟩ (arXiv 2511.07380 takes `rademacher`, K = 8192).

    projection: `rademacher` (dense signs), `countsketch` (`sparsity` nonzeros a parameter) or `kronecker` (both sides
    of every matrix); `ntk.projections` states their variances. seed: of the projection and of `probe`. Other options as
    in `mean_gradient`. For what a mean over a domain can answer, `directional_scores` is exact and cheaper; sketches
    serve cosines, pairs and diversity. The whole result is held in memory: 4 N K bytes.

    out: a folder, such as "pool.zarr"; then one block of `block_examples` rows is in memory at a time (and the tokens
    of all examples, which `ntk-jax sketch` streams too), and the store comes back, open: `store.read("sketch", start,
    stop)` gives unit rows in `out_dtype`, and times "sketch_norm" they are the rows above (`selection.sketch_store`
    lists the arrays). The same call goes on after an interruption.

    Raises UserError as `mean_gradient`, when dim is larger than the number of parameters differentiated, and when
    `out` was made by another model, from other examples or with other options (the differing one is named).
    """
    model = computing_in(model, dtype)
    if not allow_fresh_lora:
        refuse_fresh_lora(model, parameters)
    rows = token_rows(model, examples, span=span, max_length=max_length)
    layout = layout_for(max(len(row.ids) for row in rows), batch_tokens, mesh, packed=False)
    chosen, projected = Objective(objective, normalize, probes, seed), Projection(projection, dim, seed, sparsity)
    if out is None:
        return sketches(model, rows, chosen, layout, projected, parameters=parameters)
    check_width(projected, split_parameters(model, parameters)[0])  # before anything is written
    given = hash_tree([(row.id, row.ids, row.span) for row in rows])
    facts = sketch_facts(model, chosen, projected, span=span, parameters=parameters, examples={"tokens": given})
    longest = longest_id(row.id for row in rows)
    store = create_sketches(out, len(rows), block_examples, dim=dim, dtype=out_dtype, longest_id=longest, facts=facts)
    for block in sorted(set(range(store.blocks)) - done_blocks(store)):
        start, stop = store.block_range(block)
        encoded = [(row.id, row) for row in rows[start:stop]]
        ordinals = np.arange(start, stop)
        write_sketches(store, block, encoded, ordinals, model, chosen, layout, projected, parameters=parameters)
    return store


def stability(
    model: Model,
    probe_set: Any,
    checkpoints: Sequence[Any] | Mapping[str, Sequence[Any]],
    *,
    steps: Sequence[int] | None = None,
    candidates: Any = None,
    domain: Any = None,
    kind: exact.Kind = "centered_trace",
    objectives: Sequence[ObjectiveName] = ("sum_logits",),
    top: int | None = None,
    span: Span = "response",
    normalize: Normalize = "mean",
    probes: int = 4,
    dtype: str | None = None,
    batch_tokens: int = 8192,
    max_length: int | None = None,
    seed: int = 0,
    memory: int = exact.MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> StabilityReport:
    """Does fine-tuning stay in the NTK regime? Compares the kernels, and the rankings of candidates, of checkpoints.

    checkpoints: PEFT directories or LoRA trees (such as `model.lora`) in the order of training; or several such
    trajectories by name, for example one a LoRA seed. The first of each is what the others are linearised at. All must
    have the rank, scale and targets of the model's adapter. steps: their optimiser steps, by default 0, 1, ....
    probe_set: the few examples whose exact kernel is taken at every checkpoint (`kind` as in `ntk`; costs D backward
    passes an example). candidates: examples that are scored at every checkpoint, along the mean gradient of `domain`
    (by default the probe set), by each of the objectives; top: N of the top-N overlap, by default a tenth of them.
    Other options as in `mean_gradient`.

    Returns a `StabilityReport`: print it, or read `kernel_cosine`, `score_spearman`, ... [m, m] over all m checkpoints.
    Raises UserError: no checkpoints, one of another rank (naming it), an empty set, a kernel that is not finite.
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
        return [] if examples is None else token_rows(model, examples, span=span, max_length=max_length)

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
        objectives=[Objective(objective, normalize, probes, seed) for objective in objectives],
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


def token_rows(
    model: Model, examples: Any, *, span: Span = "response", max_length: int | None = None
) -> list[TokenRow]:
    """Examples as token rows by the model's tokenizer and chat template, in order.

    Raises UserError for an example that cannot be used: an array of scores has no room for gaps.
    """
    rows = []
    vocabulary, positions = model.config.vocab_size, model.config.max_positions
    longest = min(max_length or positions, positions)
    for _, row in as_rows(examples, model.tokenizer, span=span, max_length=longest, vocab_size=vocabulary):
        if isinstance(row, Dropped):
            most = f" (at most {longest} tokens; the model has {positions} positions)" if row.reason == TOO_LONG else ""
            raise UserError(f"example {row.id}: {row.reason}; leave it out{most}")
        rows.append(row)
    return rows
