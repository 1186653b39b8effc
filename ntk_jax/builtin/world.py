"""The micro-world: invented words with latent attributes, and a generator of random numbers that never changes.

There are two kinds of words. *Familiar* words occur in the model's pre-training with every attribute
stated in every form. *Novel* words occur there only where no attribute matters (copying, spelling,
rhymes); the pool and the domains tell or ask their attributes. So the small model knows what it means
to be sweet or heavy, and how to compare, but must learn from the pool which novel words are so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

SEED = 2511
FAMILIAR_COUNT = 160
NOVEL_COUNT = 96

# The four attributes that domains ask for; the order of warmth and weight is their scale.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "taste": ("sweet", "sour", "bitter", "salty"),
    "warmth": ("frozen", "cool", "warm", "hot"),
    "weight": ("tiny", "light", "heavy", "massive"),
    "home": ("river", "forest", "desert", "cave"),
}
# Attributes that no domain asks for: facts of the same kind, learnable and useless.
SIDE_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": ("red", "blue", "green", "yellow"),
    "owner": ("mira", "tomas", "ayla", "oskar"),
    "price": ("three", "five", "seven", "nine"),
}

_ONSETS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_LAST_VOWELS = "aiou"  # a final e makes too many real words
_CODAS = ("", "", "", "n", "l", "k", "m")
# Strings the dice below throw that are words or names somewhere; mended by hand.
_REAL = {
    "devi", "gigi", "kevin", "lama", "loti", "luma", "mali", "nila", "pizan", "rama", "rita",
    "salo", "sana", "sepal", "situ", "tuna", "vasu", "vero", "vivo", "zena", "zina",
}  # fmt: skip


class Dice:
    """Random choices built on `random.Random.random` alone, the one stream Python promises to keep."""

    def __init__(self, *names: object) -> None:
        self._random = random.Random("/".join(str(name) for name in (SEED, *names)))

    def below(self, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self._random.random() * count)

    def pick(self, items: Sequence[Item]) -> Item:
        """One item."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All items in a random order."""
        keys = [self._random.random() for _ in items]
        return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different items."""
        return self.shuffled(items)[:count]


def _make_words(count: int) -> list[str]:
    """Invented words of four or five letters; no two differ in one letter only, so that none is read as another."""
    dice = Dice("words")
    words: list[str] = []
    while len(words) < count:
        word = "".join(dice.pick(part) for part in (_ONSETS, _VOWELS, _ONSETS, _LAST_VOWELS, _CODAS))
        distinct = all(len(w) != len(word) or sum(a != b for a, b in zip(w, word, strict=True)) > 1 for w in words)
        if word not in _REAL and distinct and not any(word.startswith(w) or w.startswith(word) for w in words):
            words.append(word)
    return words


def _assign(words: Sequence[str], attribute: str, values: Sequence[str]) -> dict[str, str]:
    """Each value to the same number of words, independently of the other attributes."""
    order = Dice("assign", attribute, len(words)).shuffled(words)
    return {word: values[i % len(values)] for i, word in enumerate(order)}


_WORDS = _make_words(FAMILIAR_COUNT + NOVEL_COUNT)
FAMILIAR: tuple[str, ...] = tuple(_WORDS[:FAMILIAR_COUNT])
NOVEL: tuple[str, ...] = tuple(_WORDS[FAMILIAR_COUNT:])

# FACTS["taste"]["lumok"] == "sweet"
FACTS: dict[str, dict[str, str]] = {
    name: {**_assign(FAMILIAR, name, values), **_assign(NOVEL, name, values)}
    for name, values in {**ATTRIBUTES, **SIDE_ATTRIBUTES}.items()
}


def level(attribute: str, word: str) -> int:
    """The place of the word's value on its attribute's scale, 0 to 3."""
    return ATTRIBUTES[attribute].index(FACTS[attribute][word])
