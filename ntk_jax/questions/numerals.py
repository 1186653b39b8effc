"""Numbers, dates and amounts of a text in one way of writing, so that they can be compared: "thirty (30) days", "30
days" and "30 Days" are the same two words. English words for numbers are known."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal

from ntk_jax.data.words import bare_words

_UNDER_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SMALL = {word: value for value, word in enumerate(_UNDER_TWENTY.split())} | {
    word: 10 * n for n, word in enumerate(_TENS, 2)
}
LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_MONTHS = "january february march april may june july august september october november december"
MONTHS = tuple(_MONTHS.split())
_SHORT_MONTHS = {month[:3]: month for month in MONTHS} | {"sept": "september"}
# "one" is a number in "one year", and none in these.
_BEFORE_ONE = frozenset(("no", "any", "each", "every", "some", "either", "this", "that", "which", "another", "such"))
_AFTER_ONE = frozenset(("of", "or", "another", "party", "such", "may", "shall", "must", "who", "which", "side"))

NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
_ALONE = re.compile(rf"(?<!\w)((?:(?<!\S)-)?{NUMBER})(?:st|nd|rd|th)?(?!\w)")
_DATE = re.compile(r"(?<!\w)([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})(?!\w)")
_AMOUNT = re.compile(rf"([$\u20ac\u00a3])\s*({NUMBER}(?:\s+(?:{'|'.join(LARGE)})\b)?)")
_CURRENCY = {"$": "dollars", "\u20ac": "euros", "\u00a3": "pounds"}


def numbered(text: str) -> list[str]:
    """The bare words of a text, its numbers each as one word of digits; what is written twice in a row, in words and in
    digits, is there once."""
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2212", "-")
    text = _DATE.sub(_date, text)
    text = _AMOUNT.sub(lambda found: f" {found[2]} {_CURRENCY[found[1]]} ", text)
    text = text.replace("%", " percent ").replace("per cent", "percent")
    words: list[str] = []
    end = 0
    for found in _ALONE.finditer(text):
        words += [*bare_words(text[end : found.start()]), plain_number(found[1])]
        end = found.end()
    return _once(_months(_in_digits([*words, *bare_words(text[end:])])))


def plain_number(written: str) -> str:
    """A number without commas, needless zeros and point: 1,000.50 is 1000.5, -007 is -7."""
    whole, _, rest = written.replace(",", "").removeprefix("-").partition(".")
    rest = rest.rstrip("0")
    number = (whole.lstrip("0") or "0") + (f".{rest}" if rest else "")
    return f"-{number}" if written[0] == "-" and number != "0" else number


def number_at(words: Sequence[str], start: int) -> tuple[int, int] | None:
    """(the number that words spell from `start` on, where it ends), or None."""
    total, current, last, place = 0, None, "", start
    while place < len(words):
        word = words[place]
        if word in SMALL:
            value = SMALL[word]
            fits = last == "hundred" or (last == "tens" and 0 < value < 10)
            if current is not None and not fits:
                break
            current = (current or 0) + value
            last = "tens" if value >= 20 else "unit"
        elif word in LARGE:
            scaled = (1 if current is None else current) * LARGE[word]
            total, current = (total, scaled) if word == "hundred" else (total + scaled, 0)
            last = "hundred"
        elif not (word == "and" and last == "hundred" and words[place + 1 : place + 2] and words[place + 1] in SMALL):
            break
        place += 1
    return None if current is None else (total + current, place)


def is_number(word: str) -> bool:
    """Whether a word of `numbered` is a number."""
    return word.removeprefix("-")[:1].isdigit()


def _in_digits(words: list[str]) -> list[str]:
    found: list[str] = []
    place = 0
    while place < len(words):
        word, number = words[place], number_at(words, place)
        if number is not None and not _is_pronoun(words, place, number[1]):
            found.append(str(number[0]))
            place = number[1]
            continue
        scale = LARGE.get(words[place + 1]) if place + 1 < len(words) else None
        if scale and len(word) < 20 and re.fullmatch(f"-?{NUMBER}", word):
            found.append(plain_number(f"{Decimal(word) * scale:f}"))
            place += 2
            continue
        found.append(word)
        place += 1
    return found


def _is_pronoun(words: Sequence[str], start: int, stop: int) -> bool:
    if words[start:stop] != ["one"]:
        return False
    return (start > 0 and words[start - 1] in _BEFORE_ONE) or (stop < len(words) and words[stop] in _AFTER_ONE)


def _date(found: re.Match[str]) -> str:
    month = int(found[2])
    return f" {found[3]} {MONTHS[month - 1]} {found[1]} " if 1 <= month <= 12 else found[0]


def _months(words: list[str]) -> list[str]:
    """Names of months whole, where a number stands beside them."""
    beside = [any(map(is_number, words[max(n - 1, 0) : n + 2])) for n in range(len(words))]
    return [_SHORT_MONTHS.get(word, word) if near else word for word, near in zip(words, beside, strict=True)]


def _once(words: list[str]) -> list[str]:
    """Without a number, alone or with its unit, that stands twice in a row."""
    found: list[str] = []
    for word in words:
        found.append(word)
        if len(found) > 1 and is_number(word) and found[-2] == word:
            found.pop()
        elif len(found) > 3 and is_number(found[-2]) and found[-2:] == found[-4:-2]:
            del found[-2:]
    return found
