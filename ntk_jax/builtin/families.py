"""The general pool: task families, each a function from words and dice to one (prompt, response).

Content and format are crossed, so that a selector that looks at format only gains nothing. Each attribute a
domain needs is stated in three formats, plain questions, scenes and comparisons, and together with
another attribute in a fourth; `colours`, `owners` and `prices` tell useless attributes in the same three formats.
`ordinary` has the plain questions and their answers, but about things whose attributes are known already;
`rhymes` has the four-word form of comparisons and of one domain; `stories` use attribute words in passing. Short and
long answers occur in nearly every family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ntk_jax.builtin.other_families import (
    Pair,
    arithmetic,
    calendar,
    copying,
    directions,
    ordinary,
    rhymes,
    sorting,
    spelling,
    stories,
)
from ntk_jax.builtin.world import FACTS, Dice, level

Maker = Callable[[Sequence[str], Dice], Pair]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _fact(attribute: str, word: str) -> str:
    return FACTS[attribute][word]


# --- families that tell an attribute a domain needs ------------------------------------------------------------


def flavour_notes(words: Sequence[str], dice: Dice) -> Pair:
    """taste of one word, asked plainly."""
    word, value = words[0], _fact("taste", words[0])
    return dice.pick(
        [
            (f"What does {word} taste like?", f"It tastes {value}."),
            (f"Flavour of {word}:", value),
            (f"In one word, how does {word} taste?", value),
            (f"Tell me how {word} tastes.", f"On the tongue {word} is {value}."),
        ]
    )


def recipes(words: Sequence[str], dice: Dice) -> Pair:
    """taste, in a scene."""
    word, value = words[0], _fact("taste", words[0])
    other, second = words[1], _fact("taste", words[1])
    return dice.pick(
        [
            (f"Someone dropped {word} into plain water. What is the water like?", value),
            (f"The first bite of the salad was {word}. What did the eater note?", f"A {value} leaf."),
            (f"Boil {word}, then add {other}. What is the dish?", f"First {value}, then {second}."),
            (f"Fry {word} with {other}. Describe the plate.", f"The {word} is {value}, the {other} is {second}."),
        ]
    )


def taste_twins(words: Sequence[str], dice: Dice) -> Pair:
    """taste, words compared."""
    if dice.below(2):
        return _pick_out("taste", "Which of {options} is {value} in a dish?", words, dice)
    return _same_or_not("taste", f"Could {words[0]} replace {words[1]} in a dish?", words)


def touch_reports(words: Sequence[str], dice: Dice) -> Pair:
    """warmth of one word, asked plainly."""
    word, value = words[0], _fact("warmth", words[0])
    return dice.pick(
        [
            (f"What does {word} feel like?", f"It feels {value}."),
            (f"Touch of {word}:", value),
            (f"In one word, how does {word} feel?", value),
            (f"Tell me how {word} feels.", f"In the hand {word} is {value}."),
        ]
    )


def baths(words: Sequence[str], dice: Dice) -> Pair:
    """warmth, in a scene."""
    word, value = words[0], _fact("warmth", words[0])
    other, second = words[1], _fact("warmth", words[1])
    return dice.pick(
        [
            (f"A bather sits on {word}. What is the bath like?", value),
            (f"Yesterday {word} sank into the pond. What is the pond like?", f"It is {value} now."),
            (f"Throw {word} into the tub, then {other}. What happens?", f"It turns {value}, then {second}."),
            (
                f"On the shelf lie {word} and {other}. Describe them.",
                f"The {word} is {value}, the {other} is {second}.",
            ),
        ]
    )


def hearth(words: Sequence[str], dice: Dice) -> Pair:
    """warmth, words compared."""
    if dice.below(2):
        return _pick_out("warmth", "Which of {options} is {value} near the hearth?", words, dice)
    return _more("warmth", f"Near the hearth lie {words[0]} and {words[1]}. Which has more warmth?", words)


def crate_labels(words: Sequence[str], dice: Dice) -> Pair:
    """weight of one word, asked plainly."""
    word, value = words[0], _fact("weight", words[0])
    return dice.pick(
        [
            (f"How is a crate of {word} to lift?", f"It lifts as a {value} one."),
            (f"Weight of {word}:", value),
            (f"In one word, how big a load is {word}?", value),
            (f"Tell me what {word} weighs.", f"On the scale {word} is {value}."),
        ]
    )


def ferries(words: Sequence[str], dice: Dice) -> Pair:
    """weight, in a scene."""
    word, value = words[0], _fact("weight", words[0])
    other, second = words[1], _fact("weight", words[1])
    return dice.pick(
        [
            (f"The ferry carries nothing but {word}. What is its load like?", value),
            (f"A mule went uphill with {word}. What did the driver shout?", f"Such a {value} burden!"),
            (f"Load {word}, then {other}. What does the deck hand report?", f"First {value}, then {second}."),
            (f"The cart holds {word} and {other}. Describe them.", f"The {word} is {value}, the {other} is {second}."),
        ]
    )


def scales(words: Sequence[str], dice: Dice) -> Pair:
    """weight, words compared."""
    if dice.below(2):
        return _pick_out("weight", "Which of {options} is {value} on a balance?", words, dice)
    return _more("weight", f"Put {words[0]} and {words[1]} on a balance. Which side drops?", words)


def habitats(words: Sequence[str], dice: Dice) -> Pair:
    """home of one word, asked plainly."""
    word, value = words[0], _fact("home", words[0])
    return dice.pick(
        [
            (f"Where does {word} live?", f"It lives in the {value}."),
            (f"Habitat of {word}:", value),
            (f"In one word, where is {word} found?", value),
            (f"Tell me where {word} sleeps.", f"At night {word} is in the {value}."),
        ]
    )


def tracks(words: Sequence[str], dice: Dice) -> Pair:
    """home, in a scene."""
    word, value = words[0], _fact("home", words[0])
    other, second = words[1], _fact("home", words[1])
    return dice.pick(
        [
            (f"The hunter follows {word} to the end of its trail. What is there?", value),
            (f"A lost {word} was set free. What did it run to?", f"The nearest {value}."),
            (f"First seek {word}, then {other}. What is the way?", f"First the {value}, then the {second}."),
            (
                f"The map shows {word} and {other}. Describe it.",
                f"The {word} is by the {value}, the {other} by the {second}.",
            ),
        ]
    )


def meetings(words: Sequence[str], dice: Dice) -> Pair:
    """home, words compared."""
    if dice.below(2):
        return _pick_out("home", "Which of {options} walks in the {value}?", words, dice)
    return _same_or_not("home", f"Could {words[0]} meet {words[1]} on a walk?", words)


def captions(words: Sequence[str], dice: Dice) -> Pair:
    """taste and warmth together, one word."""
    word = words[0]
    taste, warmth = _fact("taste", word), _fact("warmth", word)
    return dice.pick(
        [
            (f"Caption for a photo of {word}:", f"A {warmth} piece of {word}, {taste} to eat."),
            (f"Write a label for a plate with {word}.", f"Served {warmth}: {word}, pleasantly {taste}."),
            (f"What is on the tray with {word}?", f"Something {taste} and {warmth}."),
        ]
    )


def field_guide(words: Sequence[str], dice: Dice) -> Pair:
    """weight and home together, one word."""
    word = words[0]
    weight, home = _fact("weight", word), _fact("home", word)
    return dice.pick(
        [
            (f"Field guide entry for {word}:", f"A {weight} being of the {home}, the {word} is seldom seen."),
            (f"Describe {word} to a traveller.", f"Look in the {home} for something {weight}: that is {word}."),
            (f"What do we know of {word}?", f"Its size is {weight}, its country the {home}."),
        ]
    )


# --- the same three formats about attributes that no domain needs -----------------------------------------------


def colours(words: Sequence[str], dice: Dice) -> Pair:
    """A useless attribute asked plainly, word for word like `flavour_notes`."""
    word, value = words[0], _fact("colour", words[0])
    return dice.pick(
        [
            (f"What does {word} look like?", f"It looks {value}."),
            (f"Colour of {word}:", value),
            (f"In one word, how does {word} look?", value),
            (f"Tell me how {word} looks.", f"To the eye {word} is {value}."),
        ]
    )


def owners(words: Sequence[str], dice: Dice) -> Pair:
    """A useless attribute in a scene, in the form of the domains' questions."""
    word, value = words[0], _fact("owner", words[0])
    other, second = words[1], _fact("owner", words[1])
    return dice.pick(
        [
            (f"Someone left a {word} at the door. Whose is it?", value),
            (f"The judge asks who owns the {word}. What is the name?", f"It is {value}."),
            (f"The {word} was lost, then the {other}. Who will weep?", f"First {value}, then {second}."),
            (
                f"Two thieves took {word} and {other}. Who was robbed?",
                f"The {word} was with {value}, the {other} with {second}.",
            ),
        ]
    )


def prices(words: Sequence[str], dice: Dice) -> Pair:
    """A useless attribute of words compared."""
    if dice.below(2):
        return _pick_out("price", "Which of {options} costs {value} coins?", words, dice)
    a, b = words[0], words[1]
    one, two = _fact("price", a), _fact("price", b)
    if one == two:
        answer = f"Neither, both are {one} coins."
    else:
        winner = a if NUMBERS.index(one) > NUMBERS.index(two) else b
        answer = f"The {winner}: {a} is {one} coins and {b} is {two}."
    return f"On the stall lie {a} and {b}. Which costs more?", answer


def _same_or_not(attribute: str, prompt: str, words: Sequence[str]) -> Pair:
    """The answer to "are these two alike?"."""
    a, b = words[0], words[1]
    one, two = _fact(attribute, a), _fact(attribute, b)
    the = "of the " if attribute == "home" else ""
    if one == two:
        return prompt, f"Yes, both are {the}{one}."
    return prompt, f"No, {a} is {the}{one} and {b} is {the}{two}."


def _more(attribute: str, prompt: str, words: Sequence[str]) -> Pair:
    """The answer to "which of these two is more ...?"."""
    a, b = words[0], words[1]
    one, two = _fact(attribute, a), _fact(attribute, b)
    if one == two:
        return prompt, f"Neither, both are {one}."
    winner = a if level(attribute, a) > level(attribute, b) else b
    return prompt, f"The {winner}: {a} is {one} and {b} is {two}."


def _pick_out(attribute: str, template: str, words: Sequence[str], dice: Dice) -> Pair:
    """The one of four words that has the value of the first."""
    word, value = words[0], _fact(attribute, words[0])
    others = [w for w in words[1:] if _fact(attribute, w) != value][:3]
    options = ", ".join(dice.shuffled([word, *others]))
    return template.format(options=options, value=value), word


# Family -> (maker, the attributes it tells about its words). The order is the order of the pool's table.
FAMILIES: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "flavour_notes": (flavour_notes, ("taste",)),
    "recipes": (recipes, ("taste",)),
    "taste_twins": (taste_twins, ("taste",)),
    "touch_reports": (touch_reports, ("warmth",)),
    "baths": (baths, ("warmth",)),
    "hearth": (hearth, ("warmth",)),
    "crate_labels": (crate_labels, ("weight",)),
    "ferries": (ferries, ("weight",)),
    "scales": (scales, ("weight",)),
    "habitats": (habitats, ("home",)),
    "tracks": (tracks, ("home",)),
    "meetings": (meetings, ("home",)),
    "captions": (captions, ("taste", "warmth")),
    "field_guide": (field_guide, ("weight", "home")),
    "colours": (colours, ()),
    "owners": (owners, ()),
    "prices": (prices, ()),
    "ordinary": (ordinary, ()),
    "rhymes": (rhymes, ()),
    "copying": (copying, ()),
    "sorting": (sorting, ()),
    "spelling": (spelling, ()),
    "arithmetic": (arithmetic, ()),
    "calendar": (calendar, ()),
    "directions": (directions, ()),
    "stories": (stories, ()),
}
# Families that say nothing about attributes of invented words: pre-training may use novel words in them.
NEUTRAL = ("rhymes", "copying", "sorting", "spelling")
