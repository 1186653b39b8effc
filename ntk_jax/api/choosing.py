"""From scores to a selection, by any of the rankers, without a run directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ntk_jax.data.account import KEPT
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import Record
from ntk_jax.data.sources import count_records, read_records
from ntk_jax.errors import UserError
from ntk_jax.selection.ranker import Candidates, Checkpoint, Components, Embeddings, Ranking, Sketches
from ntk_jax.selection.rankers import make_options, ranker_of
from ntk_jax.storage.arrays import Store


def select(
    scores: Any,
    count: int,
    *,
    by: str = "kernel",
    options: Any = None,
    rows: Sequence[TokenRow | None] | None = None,
    pool: Any = None,
    domain: Any = None,
    sketches: tuple[Store, Store] | None = None,
    components: tuple[Any, Any, Any] | None = None,
    checkpoints: Sequence[tuple[Store, Store, float]] | None = None,
    votes: tuple[np.ndarray, np.ndarray] | None = None,
    embeddings: tuple[np.ndarray, np.ndarray] | None = None,
    losses: tuple[np.ndarray, np.ndarray] | None = None,
    selected: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Ranking:
    """The `count` examples of a pool that a ranker puts first.

    Args:
        scores: [N], from `directional_scores`; NaN is an example without a score. None for rankers that look at none.
        count: how many to select.
        by: the ranker, one of `RANKERS`: `kernel` (the largest scores), `sketch`, `less`, `low_rank`, `votes`,
            `kernel_residual`, `embedding`, `tsds`, `perplexity`, `perplexity_lowest`, `paths`, `bm25`, `dsir`,
            `random`, `length_matched`.
        options: its options, such as `{"by": "max"}` for `sketch`; what is not given has its default.
        rows: the pool's examples from `token_rows`: None marks those that may not be selected. Without them that is
            whatever has no score. `length_matched` and `kernel_residual` take the lengths of responses from them.
        pool, domain: for `bm25`, records or what `read_records` takes; the pool is streamed twice.
        sketches: for `sketch`, the open stores of pool and domain from `sketch(..., out=)`.
        components: for `low_rank`, [N, k] scores along k directions from `directional_scores`, NaN without one; [k]
            mean energies σ_k² / m of the domain's m gradients along these; [k] the mean gradient's coordinates.
        checkpoints: for `less`, of each checkpoint the open stores of pool and domain and its weight, such as those
            below `less/` of a run; `domain` has the domain's records, for their subtasks.
        votes: for `votes`, [N] votes (-1: may not be selected) and [N] mean similarity, which decides between equals.
        embeddings: for `embedding` and `tsds`, those of pool [N, D] and domain [m, D], as from `embeddings`; a row of
            NaN is an example that may not be selected.
        losses: for `perplexity` and `paths`, those of the pool before and after a warm-up, [N] each, as from `losses`;
            NaN is an example without one.
        selected: for `length_matched`, the selections of other rankers by name, places best first. One that is not here
            is made first, with that ranker's default options.
        seed: of what is drawn.

    Returns:
        A `Ranking`: order [count], places in the pool, best first, and scores [N] fp32, NaN where the ranker has none.

    Raises:
        UserError: an unknown ranker or option, something that the ranker needs and that was not given, arrays of
            different lengths, or fewer examples than `count`.

    Example:
        >>> import numpy as np
        >>> import ntk_jax as nj
        >>> nj.select(np.array([0.1, 0.7, np.nan, 0.4]), 2).order.tolist()
        [1, 3]
        >>> pool = [{"prompt": "A cat", "response": "purrs"}, {"prompt": "A dog", "response": "barks"}]
        >>> nj.select(None, 1, by="bm25", pool=pool, domain=[{"prompt": "My dog", "response": "ran"}]).order.tolist()
        [1]
    """
    ranker = ranker_of(by)
    if options is None or isinstance(options, Mapping):
        options = make_options(ranker, options or {})
    if isinstance(pool, Iterator):
        pool = list(pool)  # it is read twice
    known = None if scores is None else np.asarray(scores, np.float32)
    if known is not None and known.ndim != 1:
        raise UserError(f"scores have shape {known.shape}; give one score an example, [N]")
    near = None if embeddings is None else _embeddings(*map(np.asarray, embeddings))
    steps = [Checkpoint(Sketches(a, b, np.arange(a.rows)), weight) for a, b, weight in checkpoints or ()] or None
    along = None if components is None else _components(*map(np.asarray, components))
    values = known if along is None or known is not None else along.values[:, 0]
    stores = sketches or (None if steps is None else (steps[0].sketches.pool, steps[0].sketches.domain))
    size = _size(values, rows, pool, stores, votes, embeddings, losses)
    earlier = {name: np.asarray(order) for name, order in (selected or {}).items()}
    for other in set(ranker.after(options)) - set(earlier):
        if other == by:
            raise UserError(f"the ranker {by} cannot look at its own selection; name another")
        made = select(
            scores, count, by=other, rows=rows, pool=pool, domain=domain, sketches=sketches, components=components,
            checkpoints=checkpoints, votes=votes, embeddings=embeddings, losses=losses, selected=earlier, seed=seed,
        )  # fmt: skip
        earlier[other] = made.order
    length, span = _lengths(size, rows)
    candidates = Candidates(
        count=count,
        seed=seed,
        usable=_usable(size, values, rows, stores, votes, embeddings, losses),
        length=length,
        span=span,
        records=lambda: _records(pool, by),
        domain=[] if domain is None else list(read_records(domain)),
        selected=earlier,
        scores=known,
        sketches=None if sketches is None else Sketches(*sketches, np.arange(size)),
        components=along,
        checkpoints=steps,
        votes=None if votes is None else (np.asarray(votes[0]), np.asarray(votes[1], np.float32)),
        embeddings=near,
        losses=None if losses is None else (np.asarray(losses[0], np.float32), np.asarray(losses[1], np.float32)),
    )
    return ranker.rank(candidates, options)


def _size(
    scores: np.ndarray | None,
    rows: Sequence[TokenRow | None] | None,
    pool: Any,
    sketches: tuple[Store, Store] | None,
    votes: tuple[np.ndarray, np.ndarray] | None,
    embeddings: tuple[np.ndarray, np.ndarray] | None,
    losses: tuple[np.ndarray, np.ndarray] | None,
) -> int:
    """N, on which all that is given must agree. Files are counted only where nothing else says how many there are."""
    sizes = {
        "scores": None if scores is None else len(scores),
        "rows": None if rows is None else len(rows),
        "sketches": None if sketches is None else sketches[0].rows,
        "votes": None if votes is None else len(votes[0]),
        "embeddings": None if embeddings is None else len(embeddings[0]),
        "losses before": None if losses is None else len(losses[0]),
        "losses after": None if losses is None else len(losses[1]),
    }
    given = {name: size for name, size in sizes.items() if size is not None}
    if not given:
        if pool is None:
            raise UserError("nothing says how many examples there are; give scores, rows or pool")
        return count_records(pool)
    if len(set(given.values())) > 1:
        raise UserError("they are not of one pool: " + ", ".join(f"{size} {name}" for name, size in given.items()))
    return next(iter(given.values()))


def _lengths(size: int, rows: Sequence[TokenRow | None] | None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of whole examples and of their responses, [N] each, 0 where not known."""
    length, span = np.zeros(size, np.int32), np.zeros(size, np.int32)
    for place, row in enumerate(rows or ()):
        if row is not None:
            length[place], span[place] = len(row.ids), int(row.span.sum())
    return length, span


def _usable(
    size: int,
    scores: np.ndarray | None,
    rows: Sequence[TokenRow | None] | None,
    sketches: tuple[Store, Store] | None,
    votes: tuple[np.ndarray, np.ndarray] | None,
    embeddings: tuple[np.ndarray, np.ndarray] | None,
    losses: tuple[np.ndarray, np.ndarray] | None,
) -> np.ndarray:
    """[N] bool. Rows know best; what was not scored may still be drawn at random where they are given."""
    if rows is not None:
        return np.array([row is not None for row in rows], bool)
    usable = np.ones(size, bool)
    if scores is not None:
        usable &= ~np.isnan(scores)
    if sketches is not None:
        usable &= sketches[0].read("status") == KEPT
    if votes is not None:
        usable &= np.asarray(votes[0]) >= 0
    if embeddings is not None:
        usable &= ~np.isnan(embeddings[0]).all(axis=1)
    if losses is not None:
        usable &= ~(np.isnan(losses[0]) | np.isnan(losses[1]))
    return usable


def _components(values: np.ndarray, energies: np.ndarray, mean: np.ndarray) -> Components:
    if values.ndim != 2 or not energies.shape == mean.shape == values.shape[1:]:
        raise UserError(
            f"components have shapes {values.shape}, {energies.shape} and {mean.shape}; give scores [N, k] along k "
            "directions, and of each direction its energy [k] and the mean's coordinate [k]"
        )
    return Components(values, energies, mean)


def _embeddings(pool: np.ndarray, domain: np.ndarray) -> Embeddings:
    if pool.ndim != 2 or domain.ndim != 2 or pool.shape[1] != domain.shape[1]:
        raise UserError(
            f"the embeddings of pool and domain have shapes {pool.shape} and {domain.shape}; give [N, D] and [m, D] of "
            "one model"
        )
    return Embeddings(lambda: iter((pool,)), np.arange(len(pool)), domain)


def _records(pool: Any, ranker: str) -> Iterator[Record]:
    if pool is None:
        raise UserError(f"the ranker {ranker} reads the pool's records; give pool")
    return read_records(pool)
