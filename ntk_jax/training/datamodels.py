"""What a score predicts of training: the loss after training on random subsets against the sum of their scores.

The linear datamodeling score (LDS) of TRAK (Park et al., arXiv 2303.14186, after datamodels, arXiv 2202.00622):
Spearman over subsets S of Σ_{j∈S} s_j with minus the held-out loss after training on S. Here S is trained on beside
fixed rows, and all scores are held against the same subsets. `ranker_worth` adds the comparison with the metagradient,
example by example (`metagradient.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.agreement import partial_spearman, spearman, top_overlap
from ntk_jax.models.model import Model
from ntk_jax.training.digest import digest, parts_of
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.trail import keep_arrays, kept_arrays
from ntk_jax.training.unrolled import Course, HeldOut, course, example_losses, held_out_rows, trained

RESAMPLES = 1000
TOGETHER = 4  # subsets trained on between two files
LEAST = 4  # candidates or subsets for a correlation
ENOUGH = 10  # of them for an interval: resamples of a few pairs in order are all in order, and look certain


def random_subsets(candidates: int, count: int, size: int | None, seed: int) -> np.ndarray:
    """[count, size] ordinals of the candidates of each subset, ascending; size None: half of them, as in TRAK.

    Raises UserError: no subset, or a size that is not between 1 and candidates - 1.
    """
    size = max(1, candidates // 2) if size is None else size
    if count < 1:
        raise UserError(f"subsets = {count}: at least one subset must be trained on")
    if not 1 <= size < candidates:
        raise UserError(
            f"subsets of {size} of {candidates} candidates do not differ; give a size below the number of candidates"
        )
    rng = np.random.default_rng([seed, 0x1D5])
    return np.stack([np.sort(rng.permutation(candidates)[:size]) for _ in range(count)])


def subset_losses(
    model: Model,
    candidates: Sequence[TokenRow],
    held_out: Sequence[TokenRow],
    subsets: np.ndarray,
    *,
    fixed: Sequence[TokenRow] = (),
    config: TrainConfig,
    seed: int,
    row_length: int,
    mesh: Mesh | None = None,
    keep: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """([m, H] fp64 summed -log p of each held-out example's labels after training on each subset, [H] their labels).

    Each training starts from the model's adapter and is that on [*fixed, *candidates], from whose batches the other
    candidates are left out; a step is divided by the labels that stay. So every example keeps its place in the order
    for all subsets, as MAGIC has it (arXiv 2504.16430): shuffled anew, subsets differ by their order at least as much
    as by their members. keep: a folder in which the losses are kept, a few subsets a file (`trail.py`); another call
    with all the same, or with more subsets behind the same, goes on there. progress(subsets done, of how many).

    Raises UserError: no candidates, subsets of others, no held-out labels, a loss that is not finite, a kept file that
    is damaged or of something else, and as `train`.
    """
    subsets = np.asarray(subsets)
    if not len(candidates) or subsets.ndim != 2 or not subsets.size or subsets.max() >= len(candidates):
        raise UserError(f"subsets must be [m, size] ordinals of the {len(candidates)} candidates")
    run = course(model, [*fixed, *candidates], config, seed=seed, row_length=row_length, mesh=mesh)
    held = held_out_rows(held_out, config, row_length, mesh)
    about = [] if keep is None else parts_of(model, run, held_out)
    losses = np.zeros((len(subsets), len(held_out)))
    for begin in range(0, len(subsets), TOGETHER):
        end = min(begin + TOGETHER, len(subsets))
        path = None if keep is None else keep / f"subsets-{begin:06d}-{end:06d}.npz"
        key = digest([*about, len(fixed), subsets[begin:end]])
        if path is not None and path.exists():
            losses[begin:end] = kept_arrays(path, key)["losses"]
            if progress:
                progress(end, len(subsets))
            continue
        for number in range(begin, end):
            losses[number] = _losses_after(run, held, len(fixed), subsets[number])
            if not np.isfinite(losses[number]).all():
                raise UserError(
                    f"training on subset {number} ends in a loss that is not finite; lower the learning rate"
                )
            if path is not None and number + 1 == end:
                keep_arrays(path, key, losses=losses[begin:end])
            if progress:
                progress(number + 1, len(subsets))
    return losses, held.labels


def _losses_after(run: Course, held: HeldOut, fixed: int, subset: np.ndarray) -> np.ndarray:
    """[H] after training on a subset beside the `fixed` first rows."""
    among = np.arange(len(run.feed.rows)) < fixed
    among[fixed + subset] = True
    return example_losses(run, trained(run, among=among), held)


def lds(
    scores: Mapping[str, np.ndarray],
    subsets: np.ndarray,
    losses: np.ndarray,
    labels: np.ndarray,
    *,
    control: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """{name: {value, low, high, by_example, scored}} of scores [M], high for what is thought to help.

    value: Spearman over the subsets [m, size] of the summed scores with minus the mean loss a label token; low, high:
    its 95% bootstrap interval over subsets, whose draws all names share. by_example: the mean over held-out examples of
    the same with the example's own loss, TRAK's figure where a score is of one example. losses, labels: from
    `subset_losses`. A score that is not finite counts as the mean of the others; scored: how many are. None where there
    is no correlation (low and high of fewer than ten subsets): fewer than four subsets, fewer than four scores where
    there are more candidates, or all sums alike.
    control: [M] of the candidates, such as their lengths, of which a subset with more leaves what is fixed less of the
    loss, whatever the scores say; adds `partial` {value, low, high}: the partial rank correlation given its sums.
    """
    mean = losses.sum(axis=1) / labels.sum()
    given = None if control is None else np.asarray(control, np.float64)[subsets].sum(axis=1)
    each = losses[:, labels > 0]
    return {name: _of_subsets(values, subsets, mean, each, given, seed) for name, values in scores.items()}


def ranker_worth(
    scores: Mapping[str, np.ndarray],
    metagradients: np.ndarray,
    *,
    top: int,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """{name: {spearman: {value, low, high}, precision: {value, low, high, chance, top}, scored}} of scores [M] against
    metagradients [M], whose sign is turned: what lowers the held-out loss is worth something.

    precision: the share of the `top` best by score that are among the `top` best by the metagradient; chance: what a
    random order has. Both are of the candidates that have a finite score (`scored`), whose best are fewer where they
    are fewer than `top`. 95% bootstrap intervals over candidates, whose draws all names share as far as the same are
    scored; no interval (None) of fewer than ten. Raises UserError: scores of another length, no `top`.
    """
    if top < 1:
        raise UserError(f"top = {top}: at least the best one must be looked at")
    found = {}
    for name, values in scores.items():
        values = np.asarray(values, np.float64)
        if values.shape != metagradients.shape:
            raise UserError(f"scores of {name!r} are of shape {list(values.shape)}, not [{len(metagradients)}]")
        known = np.isfinite(values)
        found[name] = _of_candidates(values[known], -np.asarray(metagradients, np.float64)[known], top, seed)
    return found


def _of_candidates(values: np.ndarray, worth: np.ndarray, top: int, seed: int) -> dict[str, Any]:
    top = min(top, len(values))
    if len(values) < LEAST:
        nothing = {"value": None, "low": None, "high": None}
        return {"spearman": nothing, "precision": {**nothing, "chance": None, "top": top}, "scored": len(values)}
    precision = functools.partial(top_overlap, count=top)
    chance = {"chance": top / len(values), "top": top}
    return {
        "spearman": _interval(spearman, seed, values, worth),
        "precision": {**_interval(precision, seed, values, worth), **chance},
        "scored": len(values),
    }


def _of_subsets(
    values: np.ndarray, subsets: np.ndarray, mean: np.ndarray, losses: np.ndarray, given: np.ndarray | None, seed: int
) -> dict[str, Any]:
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    none = {"value": None, "low": None, "high": None}
    nothing = {**none, "by_example": None, "scored": int(known.sum())} | ({} if given is None else {"partial": none})
    if len(subsets) < LEAST or known.sum() < min(LEAST, len(values)):
        return nothing
    sums = np.where(known, values, values[known].mean())[subsets].sum(axis=1)
    each = [spearman(sums, -losses[:, example]) for example in range(losses.shape[1])]
    found: dict[str, Any] = {
        "by_example": None if np.isnan(each).all() else float(np.nanmean(each)),
        "scored": int(known.sum()),
    }
    if given is not None:
        found["partial"] = _interval(partial_spearman, seed, sums, -mean, given)
    return {**_interval(spearman, seed, sums, -mean), **found}


def _interval(statistic: Callable[..., float], seed: int, *arrays: np.ndarray) -> dict[str, float | None]:
    """A statistic of arrays [n] that belong together, with its 95% percentile bootstrap interval over them, where they
    are enough for one."""
    value, count = statistic(*arrays), len(arrays[0])
    if np.isnan(value) or count < ENOUGH:
        return {"value": None if np.isnan(value) else value, "low": None, "high": None}
    rng = np.random.default_rng([seed, 0xB00])
    draws = (rng.integers(0, count, count) for _ in range(RESAMPLES))
    low, high = np.nanquantile([statistic(*(array[d] for array in arrays)) for d in draws], [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high)}
