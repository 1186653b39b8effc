"""What a written seed is drawn from, as data: document types, lengths, demeanours; and industries, as domains at hand.

The kinds of dimension, and that there are 17 × 3 × 11 of them and 21 industries, are of DoPAMine (arXiv 2410.00260,
table 1); the wording is this package's. A user's own values take the place of any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ntk_jax.errors import UserError, shown


@dataclass(frozen=True)
class Length:
    """A length by name, in words."""

    name: str
    low: int
    high: int


@dataclass(frozen=True)
class Dimensions:
    """What a seed is drawn from; a *cell* is one value of each."""

    types: tuple[str, ...]
    lengths: tuple[Length, ...]
    demeanours: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many values each dimension has."""
        return len(self.types), len(self.lengths), len(self.demeanours)

    @property
    def cells(self) -> int:
        """How many cells there are."""
        types, lengths, demeanours = self.shape
        return types * lengths * demeanours


DIMENSIONS = Dimensions(
    types=(
        "report",
        "blog post",
        "news article",
        "series of short social media posts",
        "press release",
        "email",
        "technical report",
        "chapter of a textbook",
        "research paper",
        "short story",
        "advertisement",
        "product proposal",
        "research proposal",
        "status update of a project",
        "legal brief",
        "contract",
        "internal memo",
    ),
    lengths=(Length("long", 1000, 1400), Length("medium", 500, 1000), Length("short", 80, 500)),
    demeanours=(
        "professional",
        "casual",
        "enthusiastic",
        "sceptical",
        "anxious",
        "humorous",
        "solemn",
        "persuasive",
        "neutral and dry",
        "sympathetic",
        "pedantic",
    ),
)

INDUSTRIES = {
    "media and entertainment": "films, music, publishing, broadcasting, streaming, and those who make and sell them",
    "financial services": "banking, insurance, investment, accounting, taxes, credit and payments",
    "sports": "teams, athletes, competitions, training, leagues and their business",
    "public sector": "government, administration, public policy, elections, defence and services to citizens",
    "education": "schools, universities, teaching, curricula, examinations and research training",
    "gaming": "video games, board games, their makers, players, studios and tournaments",
    "retail": "shops, online commerce, merchandise, prices, customers and stock",
    "software and internet": "programs, networks, data, security, web services and those who build them",
    "travel and hospitality": "hotels, restaurants, tourism, airlines and their guests",
    "agriculture": "crops, livestock, soil, forestry, fishing, farm machines and food production",
    "utilities": "supply of electricity, gas, water, and the disposal of waste",
    "health care and life sciences": "diseases, diagnosis, treatment, drugs, nursing, biology and medical research",
    "real estate and construction": "buildings, land, architecture, civil engineering, rent and mortgages",
    "manufacturing": "factories, machines, materials, quality control, supply of parts and industrial engineering",
    "telecommunications": "telephone and data networks, mobile operators, satellites, cables and their regulation",
    "automotive": "cars, trucks, their engineering, production, sale, repair and driving",
    "services": "consulting, staffing, cleaning, repair, advertising and other work done for others",
    "consumer goods": "food, cosmetics, clothes, household appliances, brands and packaging",
    "transportation and logistics": "shipping, railways, trucking, warehouses, routes and customs",
    "law": "statutes, courts, contracts, litigation, crime, rights and legal advice",
    "energy": "oil, gas, coal, nuclear and renewable power, batteries and their markets",
}


def dimensions_of(given: Mapping[str, Any] | None) -> Dimensions:
    """The dimensions with a user's own in place of some: {types: [...], lengths: {name: [low, high]}, demeanours:
    [...]}, lengths in words.

    Raises UserError: another key, an empty or wrong list, a value that is there twice.
    """
    if given is None:
        return DIMENSIONS
    if unknown := sorted(set(map(str, given)) - {"types", "lengths", "demeanours"}):
        raise UserError(f"dimensions: {shown(unknown[0])} is none of them; there are types, lengths and demeanours")
    types = _words(given["types"], "types") if "types" in given else DIMENSIONS.types
    demeanours = _words(given["demeanours"], "demeanours") if "demeanours" in given else DIMENSIONS.demeanours
    return Dimensions(types, _lengths(given["lengths"]) if "lengths" in given else DIMENSIONS.lengths, demeanours)


def _words(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise UserError(f"dimensions: {name} must be a list of words, found {shown(value)}")
    if twice := [word for word in value if value.count(word) > 1]:
        raise UserError(f"dimensions: {name} has {shown(twice[0])} twice; keep one of them")
    return tuple(word.strip() for word in value)


def _lengths(value: Any) -> tuple[Length, ...]:
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"dimensions: lengths must be {{name: [low, high]}} in words, found {shown(value)}")
    found = []
    for name, ends in value.items():
        whole = isinstance(ends, (list, tuple)) and len(ends) == 2 and all(type(end) is int for end in ends)
        if not whole or not 0 < ends[0] < ends[1]:
            raise UserError(f"dimensions: the length {shown(name)} must be two numbers of words, the smaller one first")
        found.append(Length(str(name), ends[0], ends[1]))
    return tuple(found)
