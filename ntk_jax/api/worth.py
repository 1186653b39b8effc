"""What examples and scores are worth: derivatives of a whole training, and losses after training on subsets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_jax.api.inputs import Encoded, SpanLike, encoded
from ntk_jax.data.packing import row_length_for
from ntk_jax.errors import UserError
from ntk_jax.models.model import Model, computing_in
from ntk_jax.training import datamodels
from ntk_jax.training import metagradient as metagradients
from ntk_jax.training.metagradient import By, Metagradients
from ntk_jax.training.optimizer import TrainConfig


def metagradient(
    model: Model,
    candidates: Any,
    held_out: Any,
    *,
    fixed: Any = None,
    training: TrainConfig | None = None,
    weights: np.ndarray | None = None,
    by: By = "token",
    span: SpanLike = "response",
    dtype: str | None = None,
    seed: int = 0,
    segments: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    keep: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Metagradients:
    """d(held-out loss after fine-tuning)/d(weight of each candidate in the training loss), exactly, through all steps.

    What every score of an example tries to foresee (MAGIC, arXiv 2504.16430). The fine-tuning is that of `finetune` on
    [*fixed, *candidates] with the same settings and seed, from the model's adapter as it is, which may be fresh.

    Args:
        model: from `load_model` with lora= or adapter=, or from `finetune`.
        candidates, held_out: examples as in `mean_gradient`. fixed: more that are trained on, always with weight 1 (the
            domain); None: none.
        training: as in `finetune`. In a step a candidate's summed loss is multiplied by its weight, and the step is
            divided by the labels of all its examples, whatever their weights.
        weights: [N] where the derivative is taken; None: 1.
        by: the held-out loss is the mean over label `token`s, or over `example`s of each one's mean.
        span, dtype, seed, mesh: as in `finetune`.
        segments: the training is gone back through in so many parts, each trained through once more: for K steps the
            host keeps 4 K / segments + 3 segments states of the size of the adapter. None: 1 where they take 1 GiB at
            most, else √K.
        keep: a folder in which what is done is kept: the same call once more, after this one was killed, goes on there
            and ends in the same numbers (with another mesh or size of microbatch to rounding); finished, it is read
            there. It takes 3 (segments + 1) states of the size of the adapter, with segments=None and a training that
            fits into one 3 (√K + 1) for K steps. Several hosts need one that all of them see. None: nothing is kept.
        progress: called with (steps done, of how many, a note), forth and back.

    Returns:
        `Metagradients`: values [N] fp64 in nats, negative where a candidate helps, NaN where the span leaves it out;
        seen [N], how often it was trained on; before and after, the held-out loss; losses [K] of the steps; flops.

    Raises:
        UserError: no candidates, no held-out labels, no adapter, too little memory (saying what to lower), what is not
            finite, a `keep` with files that are damaged or of another call, and as `finetune`.

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2))
        >>> pool = [{"prompt": "A cat", "response": "purrs"}, {"prompt": "3 + 4 =", "response": "7"}]
        >>> found = nj.metagradient(model, pool, pool[:1], training=nj.TrainConfig(max_steps=3, learning_rate=1e-2))
        >>> found.values.shape, found.seen.tolist(), bool(found.after < found.before)
        ((2,), [3, 3], True)
    """
    model = computing_in(model, dtype)
    given, others, measured = _three(model, candidates, fixed, held_out, span)
    result = metagradients.metagradient(
        model,
        given.kept,
        measured.kept,
        fixed=others.kept if others else (),
        config=training or TrainConfig(),
        seed=seed,
        row_length=_row_length(given, others, measured),
        mesh=mesh,
        weights=None if weights is None else _kept(given, weights, "weights"),
        by=by,
        segments=segments,
        keep=None if keep is None else Path(keep),
        progress=progress,
    )
    seen = np.zeros(len(given.examples), np.int64)
    seen[given.places] = result.seen
    return dataclasses.replace(result, values=given.spread(result.values), seen=seen)


def lds(
    model: Model,
    candidates: Any,
    held_out: Any,
    scores: Mapping[str, np.ndarray] | np.ndarray,
    *,
    fixed: Any = None,
    training: TrainConfig | None = None,
    subsets: int = 50,
    subset_size: int | None = None,
    control: np.ndarray | None = None,
    span: SpanLike = "response",
    dtype: str | None = None,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    keep: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """The linear datamodeling score of scores (TRAK, arXiv 2303.14186): what they foresee of training on subsets.

    The model is fine-tuned as by `finetune` on [*fixed, *candidates], with the candidates of a random subset left in
    their batches and the others left out; the subsets are the same for all scores. The result is Spearman's rank
    correlation of the subsets' summed scores with minus the held-out loss after training.

    Args:
        model, candidates, held_out, fixed, training, span, dtype, seed, mesh: as in `metagradient`; the seed draws the
            subsets, too.
        scores: [N] by name, or one [N] (called `scores`); high for what is thought to help (so minus the values of
            `metagradient`). One that is not finite counts as the mean of the others.
        subsets: how many. subset_size: candidates of each; None: half.
        control: [N] of the candidates, such as the lengths of their responses: the correlation is also taken with its
            sums taken out of both. Longer responses leave less of a token's mean to what is `fixed`, so that scores
            which follow length may foresee something by that alone.
        keep: a folder in which the losses are kept, a few subsets a file: the same call once more, with the same or
            other scores or with more subsets, does not train on these again. May be that of `metagradient`. Several
            hosts need one that all of them see. None: nothing is kept.
        progress: called with (subsets trained on, of how many).

    Returns:
        {name: {"value", "low", "high" (95% bootstrap interval over subsets), "by_example" (mean over held-out examples
        of the correlation with the example's own loss), "scored", and given a control "partial" (value, low, high)}};
        None where there is no correlation.

    Raises:
        UserError: no candidates, scores or a control of another length, a control that is not finite, subsets of a size
            that cannot be, no held-out labels, a loss that is not finite, a `keep` with files that are damaged or of
            another call, and as `finetune`.

    Example:
        >>> import numpy as np
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2))
        >>> pool = [{"prompt": f"{n} + 1 =", "response": str(n + 1)} for n in range(6)]
        >>> training = nj.TrainConfig(max_steps=2, learning_rate=1e-2)
        >>> found = nj.lds(model, pool, pool[:2], np.arange(6.0), training=training, subsets=5)
        >>> -1.0 <= found["scores"]["value"] <= 1.0
        True
    """
    model = computing_in(model, dtype)
    given, others, measured = _three(model, candidates, fixed, held_out, span)
    named = dict(scores) if isinstance(scores, Mapping) else {"scores": scores}
    if not named:
        raise UserError("there are no scores to compare; give at least one array")
    values = {name: _kept(given, found, f"scores of {name!r}") for name, found in named.items()}
    taken = None if control is None else _kept(given, control, "control")
    if taken is not None and not np.isfinite(taken).all():
        raise UserError("control has numbers that are not finite; give one for each of the candidates")
    chosen = datamodels.random_subsets(len(given.kept), subsets, subset_size, seed)
    losses, labels = datamodels.subset_losses(
        model,
        given.kept,
        measured.kept,
        chosen,
        fixed=others.kept if others else (),
        config=training or TrainConfig(),
        seed=seed,
        row_length=_row_length(given, others, measured),
        mesh=mesh,
        keep=None if keep is None else Path(keep),
        progress=progress,
    )
    return datamodels.lds(values, chosen, losses, labels, control=taken, seed=seed)


def _three(
    model: Model, candidates: Any, fixed: Any, held_out: Any, span: SpanLike
) -> tuple[Encoded, Encoded | None, Encoded]:
    others = None if fixed is None else encoded(model, fixed, span)
    return encoded(model, candidates, span), others, encoded(model, held_out, span)


def _row_length(*sets: Encoded | None) -> int:
    return row_length_for(max(found.longest for found in sets if found))


def _kept(given: Encoded, values: Any, what: str) -> np.ndarray:
    """The values of the candidates that are used."""
    try:
        values = np.asarray(values, np.float64)
    except (TypeError, ValueError):  # words, or rows of several lengths
        raise UserError(f"{what} are not numbers; give one for each of the {len(given.examples)} candidates") from None
    if values.shape != (len(given.examples),):
        raise UserError(f"{what} must be one number for each of the {len(given.examples)} candidates")
    return values[given.places]
