"""Whether a text is made of words, or is what is left of a page that could not be read: bad scans, wrong encodings.

The rule knows no language and no dictionary, only how words look in any script, so Chinese, Arabic and Cyrillic pass as
English does. A text with many control characters is no text. Else it looks at two shares, and a text fails where one of
them is low:

- of the characters, those that are letters, marks or digits. White space does not count, and of a run of one sign only
  the first does: lines to write on and dots that lead to a page number are no fault of a page.
- of the words with a letter or digit, those that look like one (`looks_like_a_word`).

It is meant for texts that are rubbish as a whole. Prose with a few bad lines passes, and so do tables and programs.
"""

from __future__ import annotations

import re
import unicodedata

from ntk_jax.data.words import written_words

LEAST_READABLE = 0.5  # share of the characters; prose has more than 0.9, a table of figures may have 0.6
LEAST_WORDS = 0.5  # share of the words; prose has more than 0.9
MOST_CONTROLS = 0.02  # share of the characters; a text has none but a page break or a bell here and there

_SAME_AGAIN = re.compile(r"([\W_])\1+")
_WEB = re.compile(r"://|@|^www\.", re.IGNORECASE)
_INSIDE = re.compile(r"['\u2019\u02bc\u00b7\u200c\u200d\u00ad\-\u2010-\u2015./:,_&+]")  # joins the parts of a word
# Q4, EX-10, 30th, 10-K, 1,000.50, 2020-01-05: letters before the digits or behind them
_NUMBER = re.compile(r"(?:([^\W\d_]{1,3})\W?)?\d+(?:\W\d+)*(?:\W?([^\W\d_]{1,4}))?")
_VOWELS = frozenset("aeiouyw\u00e6\u0153\u0131\u00f8")


def unreadable(text: str) -> str | None:
    """Why a text is rubbish, or None. A text without a word or number is."""
    if sum(map(_is_control, text)) > MOST_CONTROLS * len(text):
        return "control characters"
    characters = [c for c in _SAME_AGAIN.sub(r"\1", text) if not c.isspace()]
    readable = sum(unicodedata.category(c)[0] in "LMN" for c in characters)
    if readable < LEAST_READABLE * len(characters) or not readable:
        return "hardly any letters"
    bare = [word for word in map(_bare, written_words(text)) if word]
    if sum(map(looks_like_a_word, bare)) < LEAST_WORDS * len(bare):
        return "hardly any words"
    return None


def looks_like_a_word(word: str) -> bool:
    """Whether a word without the punctuation around it might be one of some language, or a number.

    A letter alone is none where the script has capitals; nor is what mixes letters and digits as no number does
    (c0mpany), changes to capitals twice inside (aGrEe), has a letter four times in a row, a sign inside that joins no
    words (com~pany), or five Latin letters or more without a vowel."""
    if _WEB.search(word):
        return True
    if number := _NUMBER.fullmatch(word):
        return number[1] is None or (number[2] is None and not any(c.islower() for c in number[1]))
    parts = [part for part in _INSIDE.split(word) if part]
    letters = "".join(parts)
    if len(letters) == 1:
        return letters.lower() == letters.upper()
    if any(unicodedata.category(c)[0] not in "LM" for c in letters) or re.search(r"(.)\1{3}", letters):
        return False
    # between the parts of a compound word capitals are usual
    if any(sum(a.islower() and b.isupper() for a, b in zip(part, part[1:], strict=False)) > 1 for part in parts):
        return False
    return all(len(part) < 5 or not _latin(part) or _has_vowel(part) for part in parts)


def _is_control(c: str) -> bool:
    return unicodedata.category(c) == "Cc" and not c.isspace()


def _bare(word: str) -> str:
    """Without what is neither letter nor digit at both ends; empty where nothing else is there."""
    start, stop = 0, len(word)
    while start < stop and unicodedata.category(word[start])[0] not in "LMN":
        start += 1
    while stop > start and unicodedata.category(word[stop - 1])[0] not in "LMN":
        stop -= 1
    return word[start:stop]


def _latin(part: str) -> bool:
    return all(c.isascii() or "\u00c0" <= c <= "\u024f" for c in part)


def _has_vowel(part: str) -> bool:
    return not _VOWELS.isdisjoint(unicodedata.normalize("NFD", part.lower()))
