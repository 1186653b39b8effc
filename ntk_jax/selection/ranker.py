"""What every way of selecting has in common: what it may look at, what it gives back, and how it is described.

A ranker is one file with a function `rank(candidates, options) -> Ranking` and one line in `selection/rankers.py`. What
is costly about a ranker (scores, sketches, hidden states of a whole pool) is computed by stages, block by block and
resumable; the function only turns what they stored into scores and an order, and touches no device for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ntk_jax.data.records import Record
from ntk_jax.errors import UserError

if TYPE_CHECKING:  # options are read before anything is computed: tensorstore must not be waited for
    from ntk_jax.storage.arrays import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Sketches:
    """The stores of the sketch stage. places: [n] ascending places in the pool of the rows of `pool`."""

    pool: Store
    domain: Store
    places: np.ndarray


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of pool and domain. blocks: streams the pool's rows [n, D], in order and anew at each call.
    places: [n] ascending places in the pool of these rows. domain: [m, D]. All of any norm and float dtype."""

    blocks: Callable[[], Iterator[np.ndarray]]
    places: np.ndarray
    domain: np.ndarray


@dataclass(frozen=True)
class Components:
    """Scores along the main directions of the domain's gradients. values: [N, k] fp32, NaN where there is none.
    energies: [k], σ_k² / m; mean: [k], the coordinates of the domain's mean gradient."""

    values: np.ndarray
    energies: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class Checkpoint:
    """Sketches at a checkpoint of the warm-up. weight: its share of the score; over all checkpoints they add to 1."""

    sketches: Sketches
    weight: float


@dataclass(frozen=True)
class Candidates:
    """What a ranker may look at. N is the number of pool examples of the run, and a place is an index below it.

    count: how many are asked for. seed: the run's. usable: [N] bool, the places that may be selected. length, span: [N]
    int32, tokens of the whole example and of its response, 0 where not usable. records: streams all N records in order,
    anew at each call. domain: the domain's usable records. selected: what earlier rankers of the same run selected,
    places best first, by the ranker's name. scores: [N] fp32 exact kernel scores, NaN where there is none. sketches,
    components, checkpoints, votes, embeddings, losses: what those stages stored. Of these and of the scores only what
    the ranker `needs` is there; the others are None.
    """

    count: int
    seed: int
    usable: np.ndarray
    length: np.ndarray
    span: np.ndarray
    records: Callable[[], Iterator[Record]]
    domain: Sequence[Record]
    selected: Mapping[str, np.ndarray] = field(default_factory=dict)
    scores: np.ndarray | None = None
    sketches: Sketches | None = None
    components: Components | None = None
    checkpoints: Sequence[Checkpoint] | None = None
    votes: tuple[np.ndarray, np.ndarray] | None = None  # [N] votes (-1 where not usable) and [N] mean similarity
    embeddings: Embeddings | None = None
    losses: tuple[np.ndarray, np.ndarray] | None = None  # [N] nats a token, base and warmed up, NaN where there is none
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class Ranking:
    """scores: [N] fp32 by place, NaN where the ranker has none. order: [count] distinct usable places, best first."""

    scores: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class Ranker:
    """A way of selecting.

    name: what it is asked for by, and the name of its files. title: for people. help: what it does, with its paper.
    rank: the function. options: the dataclass of its settings, each a `setting` with a default. needs: what of
    `scores`, `sketches`, `components`, `checkpoints`, `votes`, `embeddings`, `losses` must be there, and so what is
    computed before it. after: the rankers whose selections it looks at, by its options. label: what a selected record
    says in "method"; settings:
    {"objective": ...}.
    """

    name: str
    title: str
    help: str
    rank: Callable[[Candidates, Any], Ranking]
    options: type
    needs: tuple[str, ...] = ()
    after: Callable[[Any], tuple[str, ...]] = lambda options: ()
    label: Callable[[Any, Mapping[str, Any]], str] | None = None  # None: the name

    def label_of(self, options: Any, settings: Mapping[str, Any]) -> str:
        """What a record that it selected says in "method"."""
        return self.label(options, settings) if self.label else self.name


@dataclass(frozen=True)
class NoOptions:
    """Nothing to set."""


def needed(value: T | None, name: str, ranker: str) -> T:
    """What a ranker needs of its candidates. Raises UserError where it is not there."""
    if value is None:
        raise UserError(f"the ranker {ranker} needs {name}; give them")
    return value
