"""Families of the general pool that say nothing a domain needs: other tasks, in all the pool's formats."""

from __future__ import annotations

from collections.abc import Sequence

from ntk_jax.builtin.ordinary import ORDINARY
from ntk_jax.builtin.world import FAMILIAR, NOVEL, Dice

Pair = tuple[str, str]

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
COMPASS = ("north", "east", "south", "west")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PEOPLE = ("mira", "tomas", "ayla", "oskar", "petra", "jonas", "salma", "viktor")
GOODS = ("bread", "rope", "lamp", "knife", "basket", "blanket", "pot", "hat", "mirror", "drum")


def ordinary(words: Sequence[str], dice: Dice) -> Pair:
    """The plain questions and answers, about ordinary things: nothing about the invented words."""
    attribute = dice.pick(sorted(ORDINARY))
    thing = dice.pick(sorted(ORDINARY[attribute]))
    value = ORDINARY[attribute][thing]
    whose = dice.pick(PEOPLE)
    return {
        "taste": dice.pick(
            [
                (f"What does {thing} taste like, {whose}?", f"It tastes {value}."),
                (f"In one word, {whose}, how does {thing} taste?", value),
            ]
        ),
        "warmth": dice.pick(
            [
                (f"What does {thing} feel like, {whose}?", f"It feels {value}."),
                (f"In one word, {whose}, how does {thing} feel?", value),
            ]
        ),
        "weight": dice.pick(
            [
                (f"Tell me what {thing} weighs, {whose}.", f"On the scale it is {value}."),
                (f"In one word, {whose}, how big a load is {thing}?", value),
            ]
        ),
        "home": dice.pick(
            [
                (f"Where does {thing} live, {whose}?", f"It lives in the {value}."),
                (f"In one word, {whose}, where is {thing} found?", value),
            ]
        ),
    }[attribute]


def rhymes(words: Sequence[str], dice: Dice) -> Pair:
    """The four-word question, asking for a sound."""
    word = words[0]
    pool = FAMILIAR + NOVEL
    # A word without a rhyme in this world rhymes with itself.
    same = [w for w in pool if w != word and w[-2:] == word[-2:]] or [word]
    answer = dice.pick(same)
    options = dice.shuffled([answer, *dice.sample([w for w in pool if w[-1] != word[-1]], 3)])
    return f"Which of these rhymes with {word}: {', '.join(options)}?", answer


def copying(words: Sequence[str], dice: Dice) -> Pair:
    """Repetition, forwards or backwards, of three to eight words."""
    chosen = dice.sample(words, 3 + dice.below(6))
    if dice.below(2):
        return f"Repeat: {' '.join(chosen)}", " ".join(chosen)
    return f"Reverse: {' '.join(chosen)}", " ".join(reversed(chosen))


def sorting(words: Sequence[str], dice: Dice) -> Pair:
    """Alphabetical order."""
    chosen = dice.sample(words, 3 + dice.below(3))
    return f"Sort by alphabet: {', '.join(chosen)}", ", ".join(sorted(chosen))


def spelling(words: Sequence[str], dice: Dice) -> Pair:
    """Letters of a word: spelled, or counted."""
    word = words[0]
    return dice.pick(
        [
            (f"Spell {word}.", f"{', '.join(word)}."),
            (f"How many letters has {word}?", f"The word {word} has {NUMBERS[len(word)]} letters."),
            (f"First and last letter of {word}:", f"{word[0]} and {word[-1]}"),
        ]
    )


def arithmetic(words: Sequence[str], dice: Dice) -> Pair:
    """Sums and differences."""
    a, b, c = dice.below(30), dice.below(20), dice.below(10)
    return dice.pick([(f"{a} + {b} =", str(a + b)), (f"Compute {a + b} - {b} + {c}.", f"The result is {a + c}.")])


def calendar(words: Sequence[str], dice: Dice) -> Pair:
    """Days of the week."""
    today, days = dice.below(7), 1 + dice.below(9)
    who = dice.pick(PEOPLE)
    number = NUMBERS[days]
    return dice.pick(
        [
            (
                f"Today is {DAYS[today]}. {who.capitalize()} waits {number} days. Which day is it?",
                DAYS[(today + days) % 7],
            ),
            (f"It is {DAYS[today]}. Which day was it {number} days ago, {who}?", f"It was {DAYS[(today - days) % 7]}."),
        ]
    )


def directions(words: Sequence[str], dice: Dice) -> Pair:
    """Turning on the compass; the answer tells every step."""
    facing = dice.below(4)
    turns = [dice.below(2) for _ in range(2 + dice.below(5))]
    path: list[int] = []
    for turn in turns:
        path.append((path[-1] if path else facing) + (1 if turn else -1))
    sides = ", ".join("right" if turn else "left" for turn in turns)
    steps = ", then ".join(COMPASS[p % 4] for p in path)
    return f"Face {COMPASS[facing]} and turn {sides}. Where do you look?", f"You look {steps}."


def stories(words: Sequence[str], dice: Dice) -> Pair:
    """A short story and a question about it; attribute words occur in passing."""
    who, other = dice.sample(PEOPLE, 2)
    bought, lost = dice.sample(GOODS, 2)
    day = dice.pick(DAYS)
    place = dice.pick(["river", "forest", "desert", "cave"])
    mood = dice.pick(["warm", "cool", "heavy", "light", "sweet", "bitter"])
    story = (
        f"On {day} {who} walked to the {place} with a {mood} {bought}. There {other} had lost a {lost} and was sad. "
        f"So {who} gave the {bought} to {other}."
    )
    return dice.pick(
        [
            (f"{story} Who was sad?", f"It was {other}, who had lost a {lost}."),
            (f"{story} What did {who} give?", f"{who.capitalize()} gave the {mood} {bought}."),
            (f"{story} Which day was it?", day),
        ]
    )
