"""Embeddings of pool and domain as unit rows, block by block, for the rankers that compare them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.selection.ranker import Candidates, Embeddings, needed


def embedded(candidates: Candidates, ranker: str) -> tuple[Embeddings, np.ndarray, np.ndarray]:
    """(the embeddings, [n] ascending places of the usable ones of the pool, [m, D] fp32 unit rows of the domain).

    Raises UserError: they are not there, there is none of the domain, or one of it is zero or not finite.
    """
    found = needed(candidates.embeddings, "embeddings", ranker)
    if not len(found.domain):
        raise UserError(f"the ranker {ranker} compares with the domain's embeddings, and there are none; give some")

    def name(row: int) -> str:
        ids = [record.get("id") for record in candidates.domain]
        return repr(ids[row]) if len(ids) == len(found.domain) and ids[row] else f"number {row}"

    domain = np.asarray(found.domain, np.float32)
    bad = _unusable(domain)
    if bad is not None:
        raise UserError(f"domain example {name(bad)}: its embedding {_what(domain[bad])}")
    return found, found.places[candidates.usable[found.places]], _units(domain)


def unit_blocks(candidates: Candidates, found: Embeddings) -> Iterator[np.ndarray]:
    """[n, D] fp32 unit rows of the usable examples of each block, in pool order; a block without one is empty.

    Raises UserError: an embedding that is zero or not finite (its example is named), or another number of rows than of
    places.
    """
    seen = 0
    for block in found.blocks():
        places = found.places[seen : seen + len(block)]
        seen += len(block)
        if len(places) < len(block):  # more than there are places
            break
        kept = candidates.usable[places]
        rows = np.asarray(block, np.float32)[kept]
        bad = _unusable(rows)
        if bad is not None:
            raise UserError(
                f"pool example {_named(candidates, int(places[kept][bad]))}: its embedding {_what(rows[bad])}"
            )
        yield _units(rows)
    if seen != len(found.places):
        raise UserError(
            f"there are {len(found.places)} places and another number of embeddings of the pool; give one for each"
        )


def _unusable(rows: np.ndarray) -> int | None:
    """The first row without a direction."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1) | ~rows.any(axis=1))
    return int(bad[0]) if len(bad) else None


def _what(row: np.ndarray) -> str:
    if row.any() or not np.isfinite(row).all():
        return "is not finite; check the weights with `ntk-jax doctor`, or compute in float32"
    return "is zero, so it is near to nothing; leave it out, or take another pooling"


def _units(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to norm 1; the largest entry is taken out first, whose square may leave fp32's range."""
    scaled = rows / np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)


def _named(candidates: Candidates, place: int) -> str:
    """The id of the example at a place, or its number where the records are not there."""
    try:
        record = next(itertools.islice(candidates.records(), place, None), {})
    except UserError:  # of arrays alone there are no records
        record = {}
    return repr(record["id"]) if record.get("id") else f"number {place}"
