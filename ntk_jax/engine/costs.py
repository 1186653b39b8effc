"""What an estimate is made of: the work of each stage, the files it leaves, and the grounds that all of it rests on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Work:
    """What a stage computes, or a part of it.

    tokens: real ones. flops: of these, by formula. computed: FLOPs with the padding of the rows, what a device does.
    kind: what its time is like, a forward (or forward-mode) or a backward pass. memory: bytes on the fullest device.
    part: where a stage has several lines, which this is.
    """

    examples: float
    tokens: float
    flops: float
    computed: float
    kind: Literal["forward", "backward"] = "forward"
    memory: float = 0.0
    part: str | None = None


@dataclass(frozen=True)
class Disk:
    """Bytes. kept: when the stage is done. passing: at most beside them while it works."""

    kept: float
    passing: float = 0.0


@dataclass(frozen=True)
class Cost:
    """The cost of a stage; no work where it computes nothing to speak of."""

    works: tuple[Work, ...] = ()
    disk: Disk = Disk(0.0)


@dataclass(frozen=True)
class Ground:
    """A value that an estimate rests on. text: the value for people. assumed: nobody counted or read it here."""

    name: str
    value: Any
    text: str
    source: str
    assumed: bool


@dataclass
class Grounds:
    """The grounds in the order in which they were found."""

    found: list[Ground] = field(default_factory=list)

    def known(self, name: str, value: Any, text: str, source: str) -> None:
        """A value that was counted, read or measured."""
        self.found.append(Ground(name, value, text, source, False))

    def assume(self, name: str, value: Any, text: str, source: str) -> None:
        """A value that was given, or is this command's own rule."""
        self.found.append(Ground(name, value, text, source, True))
