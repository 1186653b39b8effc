"""The text the built-in model grows up on: all forms about familiar words, and novel words where none is stated.

It knows the domains' questions, the pool's forms and what to do with an attribute, so that a fact
about a novel word learned in one form can serve in another. The facts about novel words it cannot know.
"""

from __future__ import annotations

from collections.abc import Iterator

from ntk_jax.builtin.domains import DOMAINS
from ntk_jax.builtin.families import FAMILIES, NEUTRAL, Pair
from ntk_jax.builtin.world import FAMILIAR, NOVEL, Dice

DOMAIN_SHARE = 0.3  # of the examples are questions of the four domains


def examples(count: int, dice: Dice) -> Iterator[Pair]:
    """`count` (prompt, response) pairs."""
    families = list(FAMILIES)
    domains = list(DOMAINS)
    for _ in range(count):
        if dice.below(1000) < 1000 * DOMAIN_SHARE:
            word = dice.pick(FAMILIAR)
            prompt, choices, answer = DOMAINS[dice.pick(domains)](word, FAMILIAR, dice.below(4), dice.below(4), dice)
            yield prompt, choices[answer]
        else:
            family = dice.pick(families)
            words = FAMILIAR + NOVEL if family in NEUTRAL else FAMILIAR
            yield FAMILIES[family][0](dice.sample(words, 9), dice)
