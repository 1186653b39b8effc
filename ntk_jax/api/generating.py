"""What a model writes, and how likely it finds what others wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ntk_jax.api.inputs import SpanLike, encoded
from ntk_jax.data.packing import pack
from ntk_jax.data.templates import Rendering
from ntk_jax.errors import UserError
from ntk_jax.evaluation.packed import batch_shape, log_prob_sums, row_length_of
from ntk_jax.llm.request import Reply, Request
from ntk_jax.llm.sampler import ModelClient
from ntk_jax.models.model import Model, computing_in


def sample(
    model: Model,
    prompts: Sequence[str | Sequence[Mapping[str, str]]],
    *,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    samples: int = 1,
    template: str = "auto",
    template_options: Mapping[str, Any] | None = None,
    control_tokens: str = "literal",
    slots: int = 16,
    context: int | None = None,
    dtype: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Reply]:
    """What the model writes after prompts, in one batch that is refilled as replies end.

    A reply depends on its own prompt, the settings, `seed` and its number among the `samples`, not on the other
    prompts. In float32 and at temperature 0 it is what transformers' `generate` writes, token for token.

    Args:
        model: from `load_model`, with its tokenizer; an adapter takes part.
        prompts: texts that are continued as they stand, or talks `[{"role", "content"}, ...]`, which the chat template
            writes.
        max_tokens: of a reply at most. temperature: 0 is greedy. top_p, top_k (0: off), min_p: which tokens may be
            drawn. stop: a reply ends before the first of these texts.
        seed: of all draws. samples: replies to each prompt.
        template, template_options, control_tokens: as in `Span`.
        slots: replies that are written at a time. context: tokens of a prompt with its reply at most; None: as many as
            the model has positions.
        dtype, mesh: as in `mean_gradient`. progress: called with (replies done, of how many, a note).

    Returns:
        A `Reply` for each prompt, in order (with several samples, those of a prompt one after the other): `text`,
        `finish` (`stop`, `length`, or `failed` with a `reason`, such as a prompt that is too long), `prompt_tokens`,
        `completion_tokens`.

    Raises:
        UserError: a model without a tokenizer, a setting that nothing can be drawn with, prompts that are none.

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model")
        >>> replies = nj.sample(model, ["How is the dish?", "A cat"], max_tokens=4, temperature=0.0)
        >>> [reply.completion_tokens <= 4 for reply in replies]
        [True, True]
    """
    if samples < 1:
        raise UserError(f"samples = {samples} must be at least 1")
    _check_prompts(prompts)
    rendering = Rendering(template, control_tokens=control_tokens, options=template_options or {})
    client = ModelClient(computing_in(model, dtype), rendering=rendering, slots=slots, context=context, mesh=mesh)
    requests = [
        Request(
            prompt if isinstance(prompt, str) else tuple(prompt),
            max_tokens,
            temperature,
            top_p,
            top_k,
            min_p,
            tuple(stop),
            seed,
            number,
        )
        for prompt in prompts
        for number in range(samples)
    ]
    replies = dict(client.ask(requests, progress))
    return [replies[ordinal] for ordinal in range(len(requests))]


def _check_prompts(prompts: Any) -> None:
    """Raises UserError: one prompt where a list belongs, or something else than texts and talks."""
    if isinstance(prompts, (str, Mapping)):
        raise UserError("prompts must be a list; put the one prompt into brackets")
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            continue
        if isinstance(prompt, Mapping):
            raise UserError(
                f"prompts: number {number} is a message; a talk is a list of messages, in brackets of its own"
            )
        if not isinstance(prompt, Sequence) or not all(
            isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
            for message in prompt
        ):
            raise UserError(f"prompts: number {number} must be a text or a list of messages with role and content")


def log_likelihoods(
    model: Model,
    examples: Any,
    *,
    span: SpanLike = "response",
    dtype: str | None = None,
    batch_tokens: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
    """How likely the model finds given texts: the sum of log p over the tokens that the span predicts, in nats.

    Args:
        model, examples, span, dtype, batch_tokens, mesh: as in `mean_gradient`. The span `response` is the response
            after its prompt (with the mark that ends it), `all` every token but the first.

    Returns:
        [N] float32; NaN for an example that the span leaves out.

    Raises:
        UserError: an empty set, or an example that cannot be used.

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model")
        >>> records = [{"prompt": "A cat", "response": "purrs"}, {"prompt": "A cat", "response": "purrs loudly"}]
        >>> nj.log_likelihoods(model, records).shape
        (2,)
    """
    model = computing_in(model, dtype)
    given = encoded(model, examples, span)
    length = row_length_of(given.longest)
    batches = pack(given.kept, **batch_shape(length, batch_tokens, mesh))
    return given.spread(log_prob_sums(model, batches, len(given.kept), mesh=mesh))
