"""At most so many examples of a group: of a source, a task, or whatever a key of the records names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.errors import UserError, shown
from ntk_jax.selection.clean import QUOTA, Refusal
from ntk_jax.settings import setting


@dataclass(frozen=True)
class QuotaOptions:
    """The most examples of a selection that may be of one group. No limit, by default."""

    by: str = setting("auto", "the record key that names a group; auto: task if present, else source")
    most: float | None = setting(None, "share of the selection, above 0 and at most 1, that any one group may have")
    groups: Mapping[str, Any] | None = setting(
        None,
        "for groups by name instead: {name: share as 0.25, or number of examples as 500}; 0: none of this group",
    )

    @property
    def on(self) -> bool:
        """Whether any group has a limit."""
        return self.most is not None or bool(self.groups)


def caps_of(options: QuotaOptions, names: Iterable[str], count: int) -> dict[str, int]:
    """{group: the most examples of it} of a selection of `count`; shares are rounded down, to one example at least.
    A group without a limit has `count`.

    Raises UserError: a share outside (0, 1], or what is neither a share nor a number of examples.
    """
    if options.most is not None and not 0 < options.most <= 1:
        raise UserError(f"most = {options.most:g}: a share of a selection is above 0 and at most 1")
    given = {name: _cap(name, value, count) for name, value in (options.groups or {}).items()}
    other = count if options.most is None else _share(options.most, count)
    return {name: min(count, given.get(name, other)) for name in dict.fromkeys(names)}


def _cap(name: str, value: Any, count: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise UserError(f"groups: {name} = {shown(value)} is neither a share, as 0.25, nor a number of examples")
    if isinstance(value, int):
        return value
    if value > 1:
        raise UserError(f"groups: {name} = {value:g}: a share is at most 1; write a number of examples without a point")
    return _share(value, count) if value else 0


def _share(share: float, count: int) -> int:
    return max(1, int(share * count + 1e-9))  # 0.29 of 100 are 29


def check_filled(caps: Mapping[str, int], available: Mapping[str, int], count: int) -> None:
    """Raises UserError: the groups together cannot fill a selection of `count`; names those that their limit holds
    back. available: {group: examples that there are}."""
    most = {name: min(caps.get(name, count), there) for name, there in available.items()}
    total = sum(most.values())
    if total >= count:
        return
    held = sorted((name for name in most if most[name] < available[name]), key=lambda name: (most[name], name))
    said = ", ".join(f"{name} {most[name]} of {available[name]}" for name in held[:8]) or "none is held back"
    more = f" and {len(held) - 8} more groups" if len(held) > 8 else ""
    raise UserError(
        f"quotas leave {total} examples for a selection of {count}; they hold back {said}{more}; raise these quotas "
        "or lower the number to select"
    )


class Quotas:
    """Refuses what is of a group that has as many as it may. groups: the group of each place. caps: {group: most}."""

    def __init__(self, groups: Sequence[str], caps: Mapping[str, int]) -> None:
        self._groups, self._caps = groups, caps
        self._taken: Counter[str] = Counter()

    def refuse(self, place: int) -> Refusal | None:
        """See `clean.Check`."""
        group = self._groups[place]
        return Refusal(QUOTA, group, "selection") if self._taken[group] >= self._caps[group] else None

    def keep(self, place: int) -> None:
        """See `clean.Check`."""
        self._taken[self._groups[place]] += 1
