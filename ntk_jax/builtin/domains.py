"""The four scarce domains: multiple-choice questions that need latent attributes of novel words.

| domain  | attribute | the skill beside the facts                       | choices         |
|---------|-----------|--------------------------------------------------|-----------------|
| kitchen | taste     | none: the value is the answer                    | four tastes     |
| gloves  | warmth    | a second step: which glove suits which warmth    | four materials  |
| harbour | weight    | comparison: the heaviest or the lightest of four | four words      |
| rangers | home      | a second step: what one takes along to which home | four things     |

A domain's training file speaks of `TRAIN_WORDS` of the novel words only, its test file of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ntk_jax.builtin.families import FAMILIES
from ntk_jax.builtin.world import ATTRIBUTES, FACTS, NOVEL, Dice, level

# (prompt, choices, index of the answer)
Question = tuple[str, list[str], int]

TRAIN_WORDS = 24  # of each domain, a multiple of four
ATTRIBUTE: dict[str, str] = {"kitchen": "taste", "gloves": "warmth", "harbour": "weight", "rangers": "home"}
# What should be selected: the families that tell the domain's attribute.
USEFUL: dict[str, tuple[str, ...]] = {
    domain: tuple(family for family, (_, stated) in FAMILIES.items() if attribute in stated)
    for domain, attribute in ATTRIBUTE.items()
}
GLOVE: dict[str, str] = {"frozen": "fur", "cool": "wool", "warm": "cotton", "hot": "leather"}
GEAR: dict[str, str] = {"river": "net", "forest": "saw", "desert": "camel", "cave": "lantern"}

_KITCHEN = (
    "The cook stirs {word} into the soup. How does the soup taste?",
    "A child bites into a {word}. Which taste fills the mouth?",
    "The baker fills a pie with {word}. What will the guests call the pie?",
    "We drink tea made from {word}. What is the flavour of the tea?",
)
_GLOVES = (
    "You must carry a {word} by hand. Which glove do you wear?",
    "The porter lifts a {word} all day. What are the gloves made of?",
    "A smith must hold a {word} for an hour. Which glove helps?",
    "A {word} is handed to you. What should cover your palm?",
)
_HEAVIEST = (
    "One of these breaks the small boat: {options}. Which one?",
    "The crane must lift the heaviest of {options}. Which is it?",
)
_LIGHTEST = (
    "The wind takes one of these away: {options}. Which one?",
    "The boy can carry only the lightest of {options}. Which is it?",
)
_RANGERS = (
    "The ranger sets out after a {word}. What is in the pack?",
    "You are to visit a {word} at its own place. What do you take along?",
    "A guide who shows people the {word} needs one thing. Which?",
    "The trapper lost all tools but the one for {word}. Which is left?",
)


def kitchen(word: str, words: Sequence[str], form: int, place: int, dice: Dice) -> Question:
    """The taste of `word`."""
    return _question(_KITCHEN[form], word, FACTS["taste"][word], ATTRIBUTES["taste"], place, dice)


def gloves(word: str, words: Sequence[str], form: int, place: int, dice: Dice) -> Question:
    """The glove for the warmth of `word`."""
    return _question(_GLOVES[form], word, GLOVE[FACTS["warmth"][word]], tuple(GLOVE.values()), place, dice)


def harbour(word: str, words: Sequence[str], form: int, place: int, dice: Dice) -> Question:
    """`word` among three words that are all lighter, or all heavier.

    Words in the middle of the scale serve both ways; the extremes only one.
    """
    own = level("weight", word)
    heaviest = own == 3 or (own != 0 and form < 2)
    others = [w for w in words if (level("weight", w) < own if heaviest else level("weight", w) > own)]
    template = (_HEAVIEST if heaviest else _LIGHTEST)[form % 2]
    return _question(template, "", word, [word, *dice.sample(others, 3)], place, dice)


def rangers(word: str, words: Sequence[str], form: int, place: int, dice: Dice) -> Question:
    """What one takes along to the home of `word`."""
    return _question(_RANGERS[form], word, GEAR[FACTS["home"][word]], tuple(GEAR.values()), place, dice)


DOMAINS: dict[str, Callable[[str, Sequence[str], int, int, Dice], Question]] = {
    "kitchen": kitchen,
    "gloves": gloves,
    "harbour": harbour,
    "rangers": rangers,
}


def train_words(domain: str) -> list[str]:
    """The novel words that a domain's training file speaks of: as many of each value."""
    attribute = ATTRIBUTE[domain]
    values = ATTRIBUTES[attribute]
    order = Dice("train words", domain).shuffled(NOVEL)
    return [w for v in values for w in [w for w in order if FACTS[attribute][w] == v][: TRAIN_WORDS // len(values)]]


def _question(template: str, word: str, answer: str, labels: Sequence[str], place: int, dice: Dice) -> Question:
    """The question with its choices in random order, the answer at index `place`."""
    options = dice.shuffled([label for label in labels if label != answer])
    options.insert(place, answer)
    return template.format(word=word, options=", ".join(options)), options, place
