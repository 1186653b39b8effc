"""The control for length: a random draw whose responses are as long as those of another selection.

A kernel score can prefer responses of some length for no other reason than how it is normalised; against this control
only what is not length is left.

The rule. With S the other ranker's selection, best first:
1. Each example of S takes, in that order, a random usable example outside S whose response has as many tokens.
2. Then each that found none takes, in that order, one outside S of the nearest length still there; of two equally near
   lengths the shorter.
3. Only when nothing outside S is left, a random example of S of its own length.
No place is drawn twice, and the n-th place drawn stands for the n-th of S. What is drawn first within a length is by
the seed.

Source: the span lengths that encoding counted. Cost: a permutation of the usable places, and a binary search for each
example. Memory: some 100 N bytes.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.selection.ranker import Candidates, Ranker, Ranking
from ntk_jax.selection.top import check_count
from ntk_jax.settings import setting

_STREAM = 0x1E6  # apart from every other use of the run's seed


@dataclass(frozen=True)
class LengthMatchedOptions:
    """A random draw with the response lengths of another selection."""

    to: str = setting("kernel", "the ranker whose selection's response lengths are matched")


def rank(candidates: Candidates, options: LengthMatchedOptions) -> Ranking:
    """`count` usable places, the n-th as long as the n-th that `to` selected; no place has a score.

    Raises UserError: `to` has selected nothing yet or fewer than `count`, there are fewer usable examples, or the
    lengths are not there.
    """
    if options.to not in candidates.selected:
        known = ", ".join(candidates.selected) or "none"
        raise UserError(f"to = {options.to!r}: there is no selection of that ranker to match; there are: {known}")
    model = np.asarray(candidates.selected[options.to])[: candidates.count]
    check_count(candidates.count, int(candidates.usable.sum()))
    if len(model) < candidates.count:
        raise UserError(f"count = {candidates.count}, but {options.to} selected {len(model)}; ask for as many")
    if not candidates.span[candidates.usable].all():
        raise UserError("some usable examples have no response length; give the lengths in tokens of all of them")
    rng = np.random.default_rng([candidates.seed, _STREAM])
    outside = candidates.usable.copy()
    outside[model] = False
    spare = _Supply(rng.permutation(np.flatnonzero(outside)), candidates.span)
    own = _Supply(rng.permutation(model), candidates.span)
    wanted = [int(candidates.span[place]) for place in model]
    drawn: list[int | None] = [spare.take(length) for length in wanted]
    for number, length in enumerate(wanted):
        if drawn[number] is None:
            nearest = spare.nearest(length)
            drawn[number] = own.take(length) if nearest is None else spare.take(nearest)
    order = np.asarray(drawn, np.int64)
    return Ranking(np.full(len(candidates.usable), np.nan, np.float32), order)


class _Supply:
    """Places by response length, each taken once."""

    def __init__(self, places: Iterable[int], span: np.ndarray) -> None:
        self._places: dict[int, list[int]] = {}
        for place in places:
            self._places.setdefault(int(span[place]), []).append(int(place))
        self._lengths = sorted(self._places)

    def take(self, length: int) -> int | None:
        """One place of this length, None where there is none left."""
        places = self._places.get(length)
        if not places:
            return None
        place = places.pop()
        if not places:
            self._lengths.remove(length)
        return place

    def nearest(self, length: int) -> int | None:
        """The nearest length that is left, of two the shorter; None when all is taken."""
        at = bisect.bisect_left(self._lengths, length)
        near = self._lengths[max(at - 1, 0) : at + 1]
        return min(near, key=lambda found: (abs(found - length), found), default=None)


def _after(options: LengthMatchedOptions) -> tuple[str, ...]:
    return (options.to,)


RANKER = Ranker(
    name="length_matched",
    title="random, length-matched",
    help="a random draw with the response lengths of another selection: the control for length",
    rank=rank,
    options=LengthMatchedOptions,
    after=_after,
)
