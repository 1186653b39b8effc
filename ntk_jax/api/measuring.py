"""What a forward pass alone says of examples: embeddings and losses, for the rankers that select by them."""

from __future__ import annotations

from typing import get_args

import jax
import numpy as np

from ntk_jax.api.inputs import SpanLike, encoded
from ntk_jax.errors import UserError
from ntk_jax.evaluation.loss import mean_losses, refuse_nonfinite
from ntk_jax.kernels.names import Pooling
from ntk_jax.kernels.rows import layout_for
from ntk_jax.kernels.score import pooled_hidden_states
from ntk_jax.models.model import Model, computing_in


def embeddings(
    model: Model,
    examples: object,
    *,
    pooling: Pooling = "position",
    span: SpanLike = "all",
    dtype: str | None = None,
    batch_tokens: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
    """The hidden states behind the last layer, averaged over each example's span.

    Args:
        pooling: `position`, the i-th token of the example counts i times, as RDS+ has it (arXiv 2503.01807); or `mean`.
        span: which positions are averaged, as in `token_rows`.
        model, examples, dtype, batch_tokens, mesh: as in `mean_gradient`; no adapter is needed.

    Returns:
        [N, D] fp32 in the order given, of any norm; NaN for an example that the span leaves out.

    Raises:
        UserError: another pooling, an example that cannot be used, or a state that is not finite (naming the example).

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model")
        >>> pool = [{"prompt": "A cat", "response": "purrs"}, {"prompt": "A dog", "response": "barks"}]
        >>> both = nj.embeddings(model, pool), nj.embeddings(model, pool[1:])
        >>> nj.select(None, 1, by="embedding", embeddings=both).order.tolist()
        [1]
    """
    if pooling not in get_args(Pooling):
        raise UserError(f"pooling = {pooling!r} is not one of {', '.join(get_args(Pooling))}")
    model = computing_in(model, dtype)
    given = encoded(model, examples, span)
    layout = layout_for(given.longest, batch_tokens, mesh)
    return given.spread(pooled_hidden_states(model, given.kept, layout, pooling=pooling, over="response"))


def losses(
    model: Model,
    examples: object,
    *,
    span: SpanLike = "response",
    dtype: str | None = None,
    batch_tokens: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
    """The loss of each example: the mean of −log p over the tokens of its span, in nats a token.

    Args:
        model, examples, span, dtype, batch_tokens, mesh: as in `mean_gradient`; no adapter is needed.

    Returns:
        [N] fp32 in the order given; NaN for an example that the span leaves out.

    Raises:
        UserError: an example that cannot be used, one whose span predicts no token, or a loss that is not finite.

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model")
        >>> found = nj.losses(model, [{"prompt": "A cat", "response": "purrs"}, {"prompt": "Cat", "response": "s s s"}])
        >>> found.shape, bool((found > 0).all())
        ((2,), True)
    """
    model = computing_in(model, dtype)
    given = encoded(model, examples, span)
    found = mean_losses(model, given.kept, batch_tokens, mesh)
    refuse_nonfinite(model, given.kept, found)
    return given.spread(found.astype(np.float32))
