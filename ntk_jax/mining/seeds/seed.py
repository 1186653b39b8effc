"""What a seed is, and the file that holds seeds: one JSON object a line.

    {"id": "medicine-00017", "text": "...", "domains": ["medicine"], "origin": "written", "type": "email",
     "length": "short", "demeanour": "pedantic", "topic": "...", "prompt_id": "5b0c..."}

`text` and `domains` must be there; `id` is filled in; every other key is carried through untouched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.files import read_rows
from ntk_jax.errors import UserError, listed, shown
from ntk_jax.mining.seeds.dimensions import INDUSTRIES
from ntk_jax.storage.atomic import write_lines


@dataclass(frozen=True)
class Seed:
    """A text that stands for one domain or several. facts: all else that is known of it (`origin`: written, document or
    keyword; `type`, `length`, `demeanour`, `topic`, `premise`, `author`, `audience`, `motive`, `prompt_id`, ...)."""

    id: str
    text: str
    domains: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As a line of the file has it."""
        return {"id": self.id, "text": self.text, "domains": list(self.domains), **self.facts}


def check_domains(domains: Mapping[str, str | None] | Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """{name: description}, in the order given. domains: such a mapping, or pairs (name, description); one of
    `dimensions.INDUSTRIES` needs no description.

    Raises UserError: there is none, a name is empty or there twice (capitals make no difference), a description is
    empty.
    """
    found: dict[str, str] = {}
    for name, description in domains.items() if isinstance(domains, Mapping) else domains:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"a domain has no name, found {shown(name)}; give every domain a name and a description")
        if name.strip().casefold() in {other.casefold() for other in found}:
            raise UserError(f"the domain {shown(name)} is named twice; keep one of them")
        description = INDUSTRIES.get(name.strip()) if description is None else description
        if not isinstance(description, str) or not description.strip():
            raise UserError(f"the domain {shown(name)} has no description; say in a sentence what belongs to it")
        found[name.strip()] = description.strip()
    if not found:
        raise UserError("there is no domain; give at least one, such as {medicine: 'diseases, drugs, patients'}")
    return found


def domain_matrix(seeds: Sequence[Seed], domains: Iterable[str]) -> np.ndarray:
    """[S, M] bool: which seed stands for which domain, in the order of `domains`."""
    names = list(domains)
    return np.array([[name in seed.domains for name in names] for seed in seeds], bool).reshape(len(seeds), len(names))


def write_file(path: str | Path, seeds: Iterable[Seed]) -> None:
    """Writes seeds to a file of JSON lines. Raises UserError: the disk is full or not writable."""
    write_lines(path, (json.dumps(seed.record(), ensure_ascii=False, allow_nan=False) for seed in seeds))


def read_file(path: str | Path, domains: Iterable[str] | None = None) -> list[Seed]:
    """The seeds of a file. domains: those that a seed may name; None: any.

    Raises UserError (file and line): not readable, no text, a domain that is unknown or named twice in a seed, no
    domain, an id that occurs twice, no seed at all.
    """
    path, known = Path(path), None if domains is None else list(domains)
    found: list[Seed] = []
    ids: set[str] = set()
    for number, line, parse in read_rows(path):
        where = f"{path}:{line}"
        seed = seed_of(parse(), where, f"{path.name.split('.')[0]}-{number}", known)
        if seed.id in ids:
            raise UserError(f"{where}: the id {shown(seed.id)} occurs a second time; give every seed its own id")
        ids.add(seed.id)
        found.append(seed)
    if not found:
        raise UserError(f"{path}: no seed in it; give at least one for each domain")
    return found


def seed_of(row: Any, where: str, default_id: str, known: Sequence[str] | None = None) -> Seed:
    """The seed in a row of a file. where: the file and line, for messages. Raises UserError as `read_file`."""
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: a seed is a JSON object, found {shown(row)}; put one object on each line")
    text, names = row.get("text"), row.get("domains")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{where}: the seed has no "text"; give the text that stands for its domains')
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f'{where}: the seed has no "domains"; give a list of names, such as ["medicine"]')
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: the seed names the domain {shown(twice[0])} twice; keep one of them")
    if known is not None and (unknown := [name for name in names if name not in known]):
        raise UserError(f"{where}: {shown(unknown[0])} is no domain of this run; there are: {listed(known)}")
    given = row.get("id")
    facts = {key: value for key, value in row.items() if key not in ("id", "text", "domains") and value is not None}
    return Seed(default_id if given in (None, "") else str(given), text, tuple(names), facts)
