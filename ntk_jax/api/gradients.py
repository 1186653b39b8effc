"""The mean gradient of a set, the kernel of every example with it, and the logits behind both."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ntk_jax.api.inputs import ObjectiveLike, SpanLike, encoded, objective_of
from ntk_jax.data.batch import TokenRow
from ntk_jax.kernels import direction as directions
from ntk_jax.kernels import logits as span_logits
from ntk_jax.kernels import score
from ntk_jax.kernels.parameters import refuse_fresh_lora
from ntk_jax.kernels.rows import layout_for
from ntk_jax.models.attention_kernel import Attention
from ntk_jax.models.model import Model, computing_in


def mean_gradient(
    model: Model,
    examples: Any,
    *,
    objective: ObjectiveLike = "sum_logits",
    span: SpanLike = "response",
    parameters: str = "lora",
    normalize: str | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    batch_tokens: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
    allow_fresh_lora: bool = False,
) -> dict[str, Any]:
    """The mean gradient ḡ of an objective over examples: a direction, shaped like the parameters differentiated.

    Args:
        model: from `load_model` or `finetune`.
        examples: a path (or glob, `builtin:`, `tfds:`, `hf:`), several, an iterable of records, or token rows
            `{"input_ids": [...], "span": [0/1, ...]}`, which bypass templates and tokenizers.
        objective: `sum_logits` (arXiv 2511.07380), `probe`, `cross_entropy`, `target_logit`, a callable
            f(hidden [..., D], targets [...], head [V, D]) -> [...] of values per token, or an `Objective` that also
            says how it is normalised and how many probes it has.
        span: which positions count, `response`, `all` or `last`; or a `Span`, which also has the length rule
            (`max_length`, `overflow`) and the template. With the settings of a run it gives the rows of that run.
        parameters: `lora`, `lora[-k:]` (of the last k layers), `all`, or a regular expression over names such as
            "base/layers/q_proj/kernel".
        normalize: `mean` over the span, `sum` or `none` (no division). None: the objective's own, `mean`.
        seed: of the probes. None: the objective's own, 0.
        dtype: compute in `float32` or `bfloat16` instead of the model's own.
        batch_tokens: tokens of one compiled step over all devices. mesh: the devices, as the model was loaded on.
        allow_fresh_lora: differentiate where B = 0, so that every gradient of A vanishes.

    Returns:
        A nested dict of fp32 arrays; under `probe` with one leading axis, a gradient for each probe. Examples that the
        span leaves out do not count.

    Raises:
        UserError: an empty set, an example that cannot be used (under the span's overflow `error`), an adapter that is
            still fresh, or a gradient that is not finite.

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2))
        >>> domain = [{"prompt": "A cat", "response": "purrs"}]
        >>> direction = nj.mean_gradient(model, domain, objective="cross_entropy", allow_fresh_lora=True)
        >>> direction["layers"]["q_proj"]["b"].shape == model.lora["layers"]["q_proj"]["b"].shape
        True
    """
    model = computing_in(model, dtype)
    if not allow_fresh_lora:
        refuse_fresh_lora(model, parameters)
    given = encoded(model, examples, span)
    layout = layout_for(given.longest, batch_tokens, mesh)
    chosen = objective_of(objective, normalize, seed)
    return directions.mean_gradient(model, given.kept, chosen, layout, parameters=parameters)


def directional_scores(
    model: Model,
    examples: Any,
    direction: dict[str, Any],
    *,
    objective: ObjectiveLike = "sum_logits",
    span: SpanLike = "response",
    parameters: str = "lora",
    normalize: str | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    batch_tokens: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
    attention: Attention = "xla",
) -> np.ndarray:
    """⟨direction, ∇θ s(θ; x)⟩ for every example, exactly: one forward-mode derivative each, no projection, no storage.

    With `direction = mean_gradient(model, domain, ...)` and the same options this is the example's mean kernel with the
    domain, the score of arXiv 2511.07380.

    Args:
        direction: from `mean_gradient`, `stack_directions`, or anything shaped like the parameters differentiated.
        attention: `xla`, or on a GPU `pallas`, a kernel that keeps attention's scores out of memory;
            `auto` takes it wherever it can run.
        model, examples, objective, span, parameters, normalize, seed, dtype, batch_tokens, mesh: as in `mean_gradient`;
            `probe` needs the same probes and seed.

    Returns:
        [N] fp32 in the order given, or [N, m] for m stacked directions; NaN for an example that the span leaves out.

    Raises:
        UserError: the direction does not fit the parameters, an example cannot be used, a score is not finite (naming
            the example), or the attention asked for cannot run.

    Example:
        >>> import numpy as np
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2))
        >>> pool = [{"prompt": "A cat", "response": "purrs"}, {"prompt": "A dog " * 200, "response": "barks"}]
        >>> span = nj.Span(max_length=64, overflow="drop")
        >>> direction = nj.mean_gradient(model, pool[:1], span=span, allow_fresh_lora=True)
        >>> scores = nj.directional_scores(model, pool, direction, span=span)
        >>> bool(scores[0] > 0), bool(np.isnan(scores[1]))
        (True, True)
    """
    model = computing_in(model, dtype)
    given = encoded(model, examples, span)
    layout = layout_for(given.longest, batch_tokens, mesh)
    chosen = objective_of(objective, normalize, seed)
    found = score.directional_scores(
        model, given.kept, direction, chosen, layout, parameters=parameters, attention=attention
    )
    return given.spread(found.values)


def logits(
    model: Model,
    examples: Any,
    *,
    span: SpanLike = "response",
    dtype: str | None = None,
    batch_tokens: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
) -> list[np.ndarray]:
    """The next-token logits at the positions of the span, for looking at a few examples.

    Everything is held in memory, 4 n V bytes for n positions: a thousand positions of a vocabulary of 128,000 are half
    a gigabyte. What needs log-probabilities of many examples takes `evaluate` or an objective instead.

    Args:
        model, examples, span, dtype, batch_tokens, mesh: as in `mean_gradient`.

    Returns:
        For each example, in order, an array [n_span, V] fp32: row t are the logits that position t of the span gives
        for the token after it. [0, V] for an example that the span leaves out.

    Raises:
        UserError: an empty set, or an example that cannot be used.

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model")
        >>> found = nj.logits(model, [{"prompt": "A cat", "response": "purrs"}], span="last")
        >>> found[0].shape == (1, model.config.vocab_size)
        True
    """
    model = computing_in(model, dtype)
    given = encoded(model, examples, span)
    found = iter(span_logits.span_logits(model, given.kept, layout_for(given.longest, batch_tokens, mesh)))
    empty = np.zeros((0, model.config.vocab_size), np.float32)
    return [next(found) if isinstance(row, TokenRow) else empty for row in given.examples]
