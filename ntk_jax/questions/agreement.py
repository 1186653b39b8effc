"""How far two short answers say the same, without a model.

The measure is the token F1 of reading comprehension (Rajpurkar et al. 2016, arXiv 1606.05250), on words without
articles, auxiliaries and the s of plurals, with numbers written in one way. Three things that a share of common words
does not show lower it: yes against no, other numbers or months, and a denial of what the other states. It knows no
synonyms. The words are English; answers in other languages are compared word by word.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from ntk_jax.questions.numerals import MONTHS, is_number, numbered

ALIKE = 0.8  # F1 of the other words from which a denial is of just what the other answer states

_STOPPED = (
    "a an the of to in on at by for with from as is are was were be been being am do does did has have had will shall "
    "would it its this that these those there and or such any so then s"
)
_STOP = frozenset(_STOPPED.split())
_TEXT = r"(?:the|this) (?:passage|text|document|contract|agreement|article)"
_LEAD = re.compile(
    rf"^\s*(?:(?:according to|based on|as stated in|under) {_TEXT}\s*,|"
    rf"(?:as )?{_TEXT} (?:says|states|provides)(?:\s*,| that\b)|(?:the )?answer(?: is)?\s*:)\s*",
    re.IGNORECASE,
)
# Yes or no as an answer; "No party may" has none.
PLAIN = re.compile(
    r"^(\W*)(yes|no)\b(?=\s*(?:[^\w\s]|$)|\s+(?:it|they|he|she|this|that|there|the|you|we)\b)", re.IGNORECASE
)
_NOT = frozenset(("not", "no", "never", "none", "nothing", "nobody", "neither"))
_CONTRACTED = re.compile(r"\b(\w+)n['\u2019]t\b|\b(can)not\b", re.IGNORECASE)
_WHOLE = {"ca": "can", "wo": "will", "sha": "shall"}


@dataclass(frozen=True)
class _Said:
    """An answer as it is compared. plain: yes, no or nothing. words: without denials; denials: how many, of two kinds.
    numbers: with the months that stand beside a number."""

    plain: str
    words: Counter[str]
    denials: Counter[str]
    numbers: frozenset[str]


def agreement(a: str, b: str) -> float:
    """How far two answers say the same: 1 the same, 0 nothing in common or opposite, symmetric.

    The F1 of their words. 0 where one says yes and the other no, or where one denies more than the other in nearly
    the same words. Where each has numbers (or months of a date) that the other lacks, F1 is multiplied by the share of
    numbers that they have in common, so 0 where that is none. 1 where both say the same yes or no and one says no more.
    """
    if " ".join(a.split()) == " ".join(b.split()):
        return 1.0
    first, second = _said(a), _said(b)
    if first.plain and second.plain:
        if first.plain != second.plain:
            return 0.0
        if not (first.words and second.words):
            return 1.0
    plain = Counter({first.plain: 1}) if first.plain == second.plain != "" else Counter()
    if first.denials != second.denials and _f1(first.words, second.words) >= ALIKE:
        return 0.0
    shared = first.numbers & second.numbers
    common = 1.0
    if first.numbers - shared and second.numbers - shared:
        common = len(shared) / len(first.numbers | second.numbers)
    return common * _f1(first.words + first.denials + plain, second.words + second.denials + plain)


def consistency(answers: Sequence[str]) -> float:
    """The mean agreement of all pairs; NaN where there are fewer than two answers."""
    found = [agreement(a, b) for a, b in combinations(answers, 2)]
    return sum(found) / len(found) if found else float("nan")


def _said(text: str) -> _Said:
    text = _LEAD.sub("", unicodedata.normalize("NFKC", text))
    plain = PLAIN.match(text)
    words = numbered(_CONTRACTED.sub(_apart, text[plain.end() :] if plain else text))
    numbers = set(filter(is_number, words))
    for pair in pairwise(words):
        if any(map(is_number, pair)):
            numbers.update(word for word in pair if word in MONTHS)
    denials = Counter(_denial(word) for word in words if _denial(word))
    if not denials["not"] and "nor" in words:  # elsewhere it goes on with what was denied before
        denials["not"] = 1
    others = [word for word in words if not _denial(word) and word != "nor"]
    kept = Counter(_singular(word) for word in others if word not in _STOP) or Counter(others)
    return _Said(plain[2].lower() if plain else "", kept, denials, frozenset(numbers))


def _apart(found: re.Match[str]) -> str:
    """Doesn't as does not."""
    verb = found[1] or found[2]
    return f"{_WHOLE.get(verb.lower(), verb)} not"


def _denial(word: str) -> str:
    return word if word == "without" else "not" if word in _NOT else ""


def _singular(word: str) -> str:
    """Without the s of a plural or of a verb."""
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    return f"{word[:-3]}y" if word.endswith("ies") else word[:-1]


def _f1(a: Counter[str], b: Counter[str]) -> float:
    """Twice the words in common over all words; 0 where there are none."""
    return 2 * (a & b).total() / max(1, a.total() + b.total())
