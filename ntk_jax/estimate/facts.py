"""The grounds of an estimate: every value it rests on, with where the value comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fact:
    """One ground. text: the value for people. assumed: nobody counted or read it here."""

    name: str
    value: Any
    text: str
    source: str
    assumed: bool


@dataclass
class Facts:
    """The grounds in the order in which they were laid."""

    found: list[Fact] = field(default_factory=list)

    def known(self, name: str, value: Any, text: str, source: str) -> None:
        """A value that was counted, read or measured."""
        self.found.append(Fact(name, value, text, source, False))

    def assume(self, name: str, value: Any, text: str, source: str) -> None:
        """A value that was given, or is this command's own rule."""
        self.found.append(Fact(name, value, text, source, True))
