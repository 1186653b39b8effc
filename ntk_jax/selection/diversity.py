"""The N of M ranked candidates that cover most, or repeat each other least: greedy maximisation of

    F(S) = (1 - λ) f(S) / f_max + λ / N Σ_{j in S} q_j

with q_j = 1 - j / M of the j-th best candidate: by its rank, not its score, so that every ranker has it and no scale
decides. λ = 1 is the ranking itself, λ = 0 looks at nothing but the features, unit rows x_j.

| method              | f(S)                                | f_max        | source                            |
|---------------------|-------------------------------------|--------------|-----------------------------------|
| `facility_location` | Σ_i max_{j in S} max(0, ⟨x_i, x_j⟩) | M            | Lin & Bilmes, ACL 2011            |
| `dpp`               | log det(I + β X_S X_Sᵀ)             | N log(1 + β) | Chen et al., arXiv 1709.05135     |

Both are monotone and submodular with f(∅) = 0, and so is F: what greedy finds has at least 1 - 1/e = 0.63 of the
largest F that any N candidates have (Nemhauser, Wolsey & Fisher 1978); with quotas for groups at least a half (Fisher,
Nemhauser & Wolsey 1978). The order is that in which they are picked, so its first n are what greedy finds for n.

`facility_location` keeps the gain of every candidate exact: a pick changes it only by the rows i that it covers better
than before, which are few after the first picks, so nothing is looked at in vain and no lazy bound is needed. `dpp` is
the greedy MAP of a determinantal point process with the kernel I + β X Xᵀ (the identity keeps more than D picks
possible); instead of Chen et al.'s Cholesky rows, N M numbers, it keeps the D x D inverse of the dual (Kulesza &
Taskar, arXiv 1207.6083, section 3.3), which gives the same gains. Gains of f that differ by less than rounding can make
of them are equal, and of equal ones the better ranked is picked: so every machine picks the same.

Source: features, M D numbers. Cost: M² D products and for each row that is covered better M D, 5.5 M times in all of
3,000 texts and N = 750, for `facility_location`; N (M D + D²) for `dpp`. Memory: 4 M D bytes (`dpp`: 12), and 512 rows
of M. NumPy only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.selection.top import check_count
from ntk_jax.settings import Count, Fraction, Positive, Range, setting

METHODS = ("facility_location", "dpp")
_BATCH = 512  # rows whose products with all candidates are held at once
_ROWS = 6.5  # rows, over M, whose products facility location needs: M at first, 5.5 M for its picks (measured)
_DIGITS = 5  # behind the point, of gains that are compared: sums of fp32 products are no more exact


@dataclass(frozen=True)
class DiversityOptions:
    """Which of the best candidates are taken, by what they cover together. Simply the best, by default."""

    method: Literal["none", "facility_location", "dpp"] = setting(
        "none", "facility_location: those most like all candidates; dpp: those least like each other"
    )
    features: Literal["text", "sketch"] = setting(
        "text", "what is compared: hashed words and pairs of words, or sketches of gradients"
    )
    candidates: Annotated[float, Range(1)] = setting(4.0, "candidates are the best so many times N")
    quality: Fraction = setting(
        0.1, "λ, weight of a candidate's rank against what it adds: 1 is the ranking, 0 the features alone"
    )
    dim: Count = setting(512, "D, columns of the features; more tell candidates apart better, and cost more")
    beta: Positive = setting(10.0, "β of dpp: the larger, the more two alike cost")
    methods: tuple[str, ...] | None = setting(
        None, "methods that it is for; null: all but those that match another's selection, as length_matched does"
    )


class _Gains(Protocol):
    def best(self, open: np.ndarray) -> int: ...

    def pick(self, one: int) -> None: ...


def diversify(
    features: np.ndarray,
    count: int,
    *,
    method: str = "facility_location",
    quality: float = 0.1,
    beta: float = 10.0,
    groups: Sequence[str] | None = None,
    caps: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """[count] places among M candidates in the order in which greedy picks them. `ntk_jax/selection/diversity.py` says
    what is maximised.

    features: [M, D], a row a candidate, best ranked first; rows are scaled to norm 1. quality: λ. groups: [M] names,
    of which caps gives the most that may be picked. progress(done, total).
    Raises UserError: an unknown method, features that are not finite, λ outside [0, 1], β not above 0, fewer candidates
    than `count`, or caps that leave fewer.
    """
    if method not in METHODS:
        raise UserError(f"method = {method!r} is not one of {', '.join(METHODS)}")
    if not 0 <= quality <= 1 or not beta > 0:
        raise UserError(f"quality = {quality} must be in [0, 1] and beta = {beta} above 0")
    rows = unit(features)
    check_count(count, len(rows))
    weight = quality / count * (1 - np.arange(len(rows)) / len(rows))
    gains: _Gains
    if method == "facility_location":
        gains = _Coverage(rows, (1 - quality) / len(rows), weight)
    else:
        gains = _Volume(rows, beta, (1 - quality) / (count * np.log1p(beta)), weight)
    open, taken = np.ones(len(rows), bool), Counter[str]()
    members = _members(groups, caps)
    for group, places in members.items():
        open[places] = (caps or {})[group] > 0
    order = np.zeros(count, np.int64)
    for number in range(count):
        if not open.any():
            raise UserError(f"quotas leave {number} candidates for a selection of {count}; raise them")
        order[number] = one = gains.best(open)
        gains.pick(one)
        open[one] = False
        if groups is not None and caps is not None:
            taken[groups[one]] += 1
            if taken[groups[one]] >= caps.get(groups[one], count):
                open[members[groups[one]]] = False
        if progress:
            progress(number + 1, count)
    return order


def diversity_flops(method: str, count: int, candidates: int, dim: int) -> float:
    """Of picking `count` of M candidates with features [M, D], on the host."""
    if method == "dpp":
        return 2.0 * count * (candidates * dim + dim**2)
    return 2.0 * _ROWS * candidates**2 * dim


def coverage(features: np.ndarray, picked: np.ndarray) -> float:
    """Σ_i max_{j in picked} max(0, cos(x_i, x_j)) / M, in [0, 1]: what facility location maximises."""
    rows = unit(features)
    found = np.zeros(len(rows))
    for part in _parts(picked):
        found = np.maximum(found, (rows @ rows[part].T).max(axis=1))
    return float(found.mean())


def log_volume(features: np.ndarray, picked: np.ndarray, beta: float = 10.0) -> float:
    """log det(I + β X Xᵀ) of the picked rows, scaled to norm 1: what `dpp` maximises."""
    rows = unit(features)[picked].astype(np.float64)
    small = rows.T @ rows if rows.shape[1] < len(rows) else rows @ rows.T  # both have the same determinant
    return float(np.linalg.slogdet(np.eye(len(small)) + beta * small)[1])


def unit(features: np.ndarray) -> np.ndarray:
    """[M, D] fp32 of norm 1; a row of zeros stays. Raises UserError: not a matrix, or a value that is not finite."""
    rows = np.asarray(features, np.float32)
    if rows.ndim != 2:
        raise UserError(f"features have shape {rows.shape}; give a row a candidate, [M, D]")
    if not np.isfinite(rows).all():
        raise UserError(f"the features of candidate {int(np.argwhere(~np.isfinite(rows))[0][0])} are not finite")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


class _Coverage:
    """Gains of facility location: Σ_i max(0, ⟨x_i, x_j⟩ - c_i) with c_i the cover of row i by what is picked."""

    def __init__(self, rows: np.ndarray, scale: float, weight: np.ndarray) -> None:
        self._rows, self._scale, self._weight = rows, scale, weight
        self._cover = np.zeros(len(rows), np.float32)
        self._gain = np.zeros(len(rows))
        for part in _parts(np.arange(len(rows))):
            self._gain += np.maximum(rows @ rows[part].T, 0).sum(axis=1, dtype=np.float64)

    def best(self, open: np.ndarray) -> int:
        """The open candidate of the largest gain."""
        gains = self._scale * np.round(self._gain, _DIGITS) + self._weight
        return int(np.argmax(np.where(open, gains, -np.inf)))

    def pick(self, one: int) -> None:
        """Covers what it covers better, and takes that off the gains of the others."""
        cover = np.maximum(self._cover, self._rows @ self._rows[one])
        for part in _parts(np.flatnonzero(cover > self._cover)):
            likeness = self._rows @ self._rows[part].T  # this way round BLAS is several times faster for few rows
            less = np.maximum(likeness - self._cover[part], 0)
            less -= np.maximum(likeness - cover[part], 0)
            self._gain -= less.sum(axis=1, dtype=np.float64)
        self._cover = cover


class _Volume:
    """Gains of log det(I + β X_S X_Sᵀ): log(1 + β x A⁻¹ x) with A = I + β Σ_{j in S} x_j x_jᵀ."""

    def __init__(self, rows: np.ndarray, beta: float, scale: float, weight: np.ndarray) -> None:
        self._rows, self._beta, self._scale, self._weight = rows.astype(np.float64), beta, scale, weight
        self._inverse = np.eye(rows.shape[1])
        self._left = np.square(self._rows).sum(axis=1)

    def best(self, open: np.ndarray) -> int:
        """The open candidate of the largest gain."""
        gains = self._scale * np.round(np.log1p(self._beta * self._left), _DIGITS) + self._weight
        return int(np.argmax(np.where(open, gains, -np.inf)))

    def pick(self, one: int) -> None:
        """A rank-one update of A⁻¹ (Sherman & Morrison), and of what is left of each row."""
        direction = self._inverse @ self._rows[one]
        shrink = self._beta / (1 + self._beta * self._left[one])
        self._left = np.maximum(self._left - shrink * np.square(self._rows @ direction), 0)
        self._inverse -= shrink * np.outer(direction, direction)


def _members(groups: Sequence[str] | None, caps: Mapping[str, int] | None) -> dict[str, np.ndarray]:
    """The places of each group that has a cap."""
    if groups is None or caps is None:
        return {}
    names = np.array(list(groups), object)
    return {group: np.flatnonzero(names == group) for group in dict.fromkeys(groups) if group in caps}


def _parts(places: np.ndarray) -> Iterator[np.ndarray]:
    yield from (places[start : start + _BATCH] for start in range(0, len(places), _BATCH))
