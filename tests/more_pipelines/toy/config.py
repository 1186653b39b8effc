"""The config of the toy."""

from __future__ import annotations

from dataclasses import dataclass

from ntk_jax.settings import Count, NotNegative, section, setting


@dataclass(frozen=True)
class ToySection:
    """What is counted."""

    file: str = setting("", "a text file")
    block_lines: Count = setting(4, "lines counted between two commits")
    pause: NotNegative = setting(0.0, "seconds that a block takes")


@dataclass(frozen=True)
class ToyConfig:
    """The letters of a text."""

    out: str = setting("", "the run directory")
    toy: ToySection = section(ToySection)
