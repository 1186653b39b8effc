"""TSDS (Liu, Karbasi & Rekatsinas, Data Selection for Task-Specific Model Finetuning, arXiv 2410.11303): the pool's
probabilities are an optimal transport of the domain's, spread over more of the pool than the nearest, and over
near-duplicates together.

    minimize  α/C Σ_ij γ_ij d_ij + (1 - α) m max_ij ρ_j γ_ij    over γ ≥ 0 with Σ_j γ_ij = 1/m for each i

with d_ij the distance of the unit embeddings of domain example i and pool example j, C the scale of distances, and ρ_j
= Σ_j' max(0, 1 - d_jj'² / σ²) how many near-duplicates j has, itself included. The solution is greedy: with s = 1 / (m
max ρ γ) each i fills its nearest examples with 1 / (m s ρ_j) until its mass is spent; s grows until the transport that
one more step costs exceeds the gain. The probability of j is Σ_i γ_ij.

As in the reference code, only the `neighbours` nearest of each domain example can receive mass, densities are counted
among these neighbours, and the penalty looks at mass above the mean alone. There the distances are those of raw
embeddings, C 5 and σ 0.75; unit rows take both by a fifth. Differences: neighbours are exact, not those of an index;
all neighbours are looked at for ρ, not the nearest 1,000; s does not pass the point where the neighbours of one domain
example are all filled, so γ is optimal for the neighbours there are.

There the examples are drawn with replacement, and come several times. Here they are distinct: drawn without
replacement in proportion to the probabilities, by the run's seed, or with `sample: false` the most probable. Where
fewer than `count` have a probability above 0, those nearest to one domain example follow.

Source: the embeddings that the stage embed stored. Cost: N m D products for the neighbours, and on the device u² D for
the densities of the u ≤ m k different ones (a minute for some 40,000 with D 512 on a busy core); fewer `neighbours`
make u smaller. Two readings of the pool's embeddings. Memory: some 120 m k bytes, and 4 u D, these on the device too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ntk_jax.selection.dsir import gumbel
from ntk_jax.selection.ranker import Candidates, Ranker, Ranking
from ntk_jax.selection.sketch import best_per_target
from ntk_jax.selection.top import check_count
from ntk_jax.selection.unit_embeddings import embedded, unit_blocks
from ntk_jax.settings import Count, Fraction, NotNegative, Positive, setting

_STREAM = 0x75D5
_ROWS = 1024  # whose products with all others are in memory at a time


@dataclass(frozen=True)
class TsdsOptions:
    """Optimal transport of the domain's embeddings onto the pool's."""

    alpha: Fraction = setting(0.5, "weight of nearness against spread: 1 takes the nearest alone, 0 spreads evenly")
    scale: Positive = setting(1.0, "C, what distances of unit embeddings are divided by")
    sigma: NotNegative = setting(0.15, "distance below which two examples are near-duplicates; 0: none are")
    neighbours: Count = setting(
        5000, "nearest pool examples of each domain example that can be taken; at most the pool"
    )
    sample: bool = setting(True, "draw in proportion to the probabilities; false: take the most probable")


def rank(candidates: Candidates, options: TsdsOptions) -> Ranking:
    """A sample of the usable examples that have an embedding, distinct; scores are the probabilities of one draw.

    Raises UserError: as `embedded` and `unit_blocks`, or fewer examples than `count`.
    """
    embeddings, places, domain = embedded(candidates, "tsds")
    check_count(candidates.count, len(places))
    nearest = [np.zeros(0, np.float32)]

    def cosines() -> Iterator[np.ndarray]:
        for rows in unit_blocks(candidates, embeddings):
            found = rows @ domain.T
            nearest.append(found.max(axis=1))
            yield found

    near, where = best_per_target(cosines(), min(options.neighbours, len(places)))  # [m, k] each
    different, number = np.unique(where, return_inverse=True)
    rows = _rows_at(unit_blocks(candidates, embeddings), different)
    density = kernel_density(rows, options.sigma, candidates.progress)[number.reshape(where.shape)]
    gamma = transport(
        np.sqrt(np.maximum(2.0 - 2.0 * near.astype(np.float64), 0.0)), density, options.alpha, options.scale
    )
    mass = np.bincount(where.ravel(), gamma.ravel(), minlength=len(places))
    noise = gumbel(len(candidates.usable), candidates.seed, _STREAM)[places] if options.sample else 0.0
    with np.errstate(divide="ignore"):
        key = np.log(mass) + noise
    order = np.lexsort((-np.concatenate(nearest), -key))  # where the mass is 0, the key is -inf and nearness decides
    scores = np.full(len(candidates.usable), np.nan, np.float32)
    scores[places] = mass
    return Ranking(scores, places[order[: candidates.count]])


def transport(distances: np.ndarray, density: np.ndarray, alpha: float, scale: float) -> np.ndarray:
    """[m, k] float64: γ of the problem above, over the k nearest of each of m domain examples.

    distances: [m, k], ascending in each row. density: [m, k], ρ of the same examples, at least 1.
    """
    count = len(distances)
    room = 1.0 / density
    filled = np.cumsum(room, axis=1)  # s at which the first 1, 2, ... of a row are full
    # Beyond s = filled[i, j] row i moves mass to its neighbour j + 1: the slope of the transport, times s², steps up.
    steps = (np.diff(distances, axis=1) * filled[:, :-1]).ravel()
    at = filled[:, :-1].ravel()
    order = np.argsort(at, kind="stable")
    enough = np.flatnonzero(alpha / scale * np.cumsum(steps[order]) >= (1.0 - alpha) * count)
    most = filled[:, -1].min()  # beyond it a row has no neighbour left
    s = min(at[order[enough[0]]], most) if len(enough) else most
    return np.clip(s - (filled - room), 0.0, room) / (count * s)


def kernel_density(
    rows: np.ndarray, sigma: float, progress: Callable[[int, int], None] = lambda done, total: None
) -> np.ndarray:
    """[n] float64: ρ of unit rows [n, D] among themselves, each counting itself as 1; all 1 for sigma 0."""
    density = np.ones(len(rows))
    if not sigma:
        return density
    import jax.numpy as jnp  # here: the ranker's options are read without jax

    from ntk_jax.selection.nearest import duplicates_among

    everyone = jnp.asarray(rows, jnp.float32)
    for start in range(0, len(rows), _ROWS):
        some = everyone[start : start + _ROWS]
        density[start : start + _ROWS] = np.asarray(duplicates_among(some, everyone, jnp.float32(sigma)))
        progress(min(start + _ROWS, len(rows)), len(rows))
    return np.maximum(density, 1.0)  # each counts itself, whatever rounding makes of it


def _rows_at(blocks: Iterable[np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """[u, D]: the rows of these ascending numbers, counted over all blocks."""
    found, seen = [], 0
    for block in blocks:
        first, last = np.searchsorted(wanted, (seen, seen + len(block)))
        found.append(block[wanted[first:last] - seen])
        seen += len(block)
    return np.concatenate(found)


RANKER = Ranker(
    name="tsds",
    title="TSDS",
    help="optimal transport of the domain's embeddings onto the pool, near-duplicates together (arXiv 2410.11303)",
    rank=rank,
    options=TsdsOptions,
    needs=("embeddings",),
)
