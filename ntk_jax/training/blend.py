"""Two sets of examples, a domain's and what was selected for it, in stated proportions of every step.

Shuffled together, a step has as much of the domain as the whole has: with 1,000 domain examples and 9,000 selected ones
a tenth. Here the proportion is chosen, and may change once on the way:

| mixture                | first steps                 | last steps                                               |
|------------------------|-----------------------------|----------------------------------------------------------|
| `concat`               | both sets shuffled together | the same: the order of their concatenation               |
| `domain_share`         | the domain's share of them  | the same                                                 |
| `selected_then_domain` | selected examples only      | the domain only, for its share of all steps              |
| `replay`               | selected examples only      | the domain, and a share of selected examples in each     |

A share of a step is seldom a whole number of examples: 0.3 of 4 is 1.2. So steps differ by one, and what is left over
is carried on: a set's examples are what its share comes to, to one example on the way and to half of one at the end.

Each set is read in epochs of its own, one seeded permutation after another, so that a step's examples are arithmetic on
its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from ntk_jax.data.batch import PackedBatch, TokenRow
from ntk_jax.errors import UserError
from ntk_jax.training.feed import Examples, Feed, examples_of
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.order import PLANNED_STEPS, Shapes, epoch_order, microbatches, plan_steps

MixtureName = Literal["concat", "domain_share", "selected_then_domain", "replay"]
MIXTURES: tuple[str, ...] = get_args(MixtureName)
_SELECTED = 0x5E1  # the selected examples' order is another than the domain's


@dataclass(frozen=True)
class Blend:
    """A feed of two sets, phase by phase. phases: as of `phases_of`."""

    domain: Sequence[TokenRow]
    selected: Sequence[TokenRow]
    phases: tuple[tuple[int, int, int], ...]
    seed: int
    row_length: int

    @property
    def steps(self) -> int:
        return sum(steps for steps, _, _ in self.phases)

    @property
    def examples(self) -> int:
        return sum(steps * size for steps, size, _ in self.phases)

    def identify(self, digest: Any) -> None:
        """As a `Feed`."""
        digest.update(f"{self.phases}\0".encode())
        for rows in (self.domain, self.selected):
            _plain(rows, self.seed, self.row_length).identify(digest)

    def shapes(self, config: TrainConfig, groups: int) -> Shapes:
        """As a `Feed`, from a look at the first steps of every phase, in all as many as `plan_shapes` looks at."""
        most = PLANNED_STEPS // len(self.phases)
        looked = (step for start, stop in self._ranges() for step in range(start, min(stop, start + most)))
        found = (self.rows_of(step) for step in looked)
        return plan_steps(found, config, row_length=self.row_length, groups=groups)

    def step(self, step: int, shapes: Shapes) -> tuple[list[TokenRow], list[PackedBatch]]:
        """As a `Feed`."""
        rows = self.rows_of(step)
        return rows, microbatches(rows, shapes, self.row_length)

    def rows_of(self, step: int) -> list[TokenRow]:
        """The examples of a step: the domain's first."""
        own, chosen = self.ordinals(step)
        return [*(self.domain[i] for i in own), *(self.selected[i] for i in chosen)]

    def ordinals(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(of the domain, of the selected): which of each set a step has."""
        read, own_read = 0, 0  # in the phases before: examples, of them the domain's
        for steps, size, own in self.phases:
            if step < steps:
                start, stop = (own_read + _part(own, now, steps) for now in (step, step + 1))
                chosen = read + step * size - start
                return (
                    _stream(start, stop - start, len(self.domain), self.seed),
                    _stream(chosen, size - (stop - start), len(self.selected), self.seed + _SELECTED),
                )
            step, read, own_read = step - steps, read + steps * size, own_read + own
        raise IndexError(f"the training has {self.steps} steps")

    def _ranges(self) -> list[tuple[int, int]]:
        ends = np.cumsum([steps for steps, _, _ in self.phases]).tolist()
        return [(end - steps, end) for end, (steps, _, _) in zip(ends, self.phases, strict=True)]


def blend(
    domain: Sequence[TokenRow],
    selected: Sequence[TokenRow],
    mixture: str,
    config: TrainConfig,
    *,
    steps: int,
    seed: int,
    row_length: int,
    domain_share: float | None = None,
    replay_share: float = 0.25,
) -> Feed:
    """The feed of a mixture: `steps` steps of at most `config.batch_size` examples.

    The shares are those of `phases_of`. Without selected examples every mixture is the domain alone, for as many steps.
    Raises UserError: as `phases_of`, and what `examples_of` refuses.
    """
    config = replace(config, max_steps=steps)
    plain = examples_of([*domain, *selected], config, seed, row_length)
    if not selected:
        return plain
    examples_of(domain, config, seed, row_length)
    sizes = len(domain), len(selected)
    phases = phases_of(mixture, *sizes, config.batch_size, steps, domain_share, replay_share)
    return Blend(domain, selected, phases, seed, row_length) if phases else plain


def phases_of(
    mixture: str,
    domain: int,
    selected: int,
    batch_size: int,
    steps: int,
    domain_share: float | None = None,
    replay_share: float = 0.25,
) -> tuple[tuple[int, int, int], ...]:
    """(steps, examples of each step, domain examples of all its steps together) of every phase; none for `concat`.

    domain, selected: sizes of the sets. domain_share: the domain's part of the examples (`domain_share`), or of
    the steps (the two mixtures in turns); None: its part of all examples. replay_share: of the last steps of `replay`,
    the part that is selected examples.
    Raises UserError: no such mixture, a share outside (0, 1), a step too small to hold both sets, a single step, in
    which they cannot take turns.
    """
    if mixture not in MIXTURES:
        raise UserError(f"mixture = {mixture!r} is not one of {', '.join(MIXTURES)}")
    if mixture == "concat":
        return ()
    share = domain / (domain + selected) if domain_share is None else domain_share
    size = min(batch_size, domain + selected)
    for name, value in (("domain_share", share), ("replay_share", replay_share)):
        if not 0 < value < 1:
            raise UserError(f"{name} = {value} is outside (0, 1); give a value inside")
    if mixture != "selected_then_domain" and size < 2:
        raise UserError(f"batch_size = {size} cannot hold examples of both sets; give at least 2, or mixture = concat")
    if mixture == "domain_share":
        return ((steps, size, _both(share, steps * size)),)
    if steps < 2:
        raise UserError(f"mixture = {mixture} has two phases, and the training a single step; train for more steps")
    last = min(max(round(share * steps), 1), steps - 1)
    replayed = _both(replay_share, last * size) if mixture == "replay" else 0
    return (steps - last, size, 0), (last, size, last * size - replayed)


def _both(share: float, count: int) -> int:
    """A share of so many examples: at least one, and at least one left."""
    return min(max(round(share * count), 1), count - 1)


def _part(total: int, step: int, steps: int) -> int:
    """How many of `total` examples the first `step` of `steps` steps have: to the nearest."""
    return (2 * total * step + steps) // (2 * steps)


def domain_labels(feed: Feed, domain: Sequence[TokenRow]) -> int:
    """Label tokens of domain examples over all steps of a `blend`, each counted as often as it is read."""
    labels = np.array([np.count_nonzero(row.span[:-1]) for row in domain])
    total = 0
    for step in range(feed.steps):
        if isinstance(feed, Blend):
            own = feed.ordinals(step)[0]
        else:
            assert isinstance(feed, Examples)
            own = feed.ordinals(step)
            own = own[own < len(domain)]
        total += int(labels[own].sum())
    return total


def _stream(start: int, count: int, examples: int, seed: int) -> np.ndarray:
    """Ordinals start .. start + count of an endless sequence of epochs, each a seeded permutation."""
    if not count:
        return np.zeros(0, np.int64)
    places = np.arange(start, start + count)
    epochs = range(int(places[0] // examples), int(places[-1] // examples) + 1)
    orders = {epoch: epoch_order(examples, seed, epoch) for epoch in epochs}
    return np.array([orders[int(place // examples)][place % examples] for place in places])


def _plain(rows: Sequence[TokenRow], seed: int, row_length: int) -> Examples:
    return Examples(rows, TrainConfig(), seed, row_length)
