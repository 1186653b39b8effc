"""Where a quotation stands in a text, and how many annotated spans a set of questions reaches.

Quotations of language models are seldom exact to the character: quotes and dashes are of another kind, lines are broken
elsewhere, capitals differ, the middle is left out with an ellipsis. All of this is overlooked; other words are not.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.data.words import bare_words, written_words
from ntk_jax.evaluation.wilson import wilson

LEAST_WORDS = 3  # of a quotation without a number
LEAST_RUN = 4  # words in common, or all of a shorter one: "of the agreement" alone is no overlap

_QUOTES = dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`", "'") | dict.fromkeys(
    "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'
)
_DASHES = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
_UNSEEN = dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", "")
_PLAIN = {**_QUOTES, **_DASHES, **_UNSEEN}
_GAP = re.compile(r"[\[(<]?\s*(?:\.\s?){3,}\s*[\])>]?|<omitted>")
_ENDS = " \"'.,;:"

Span = tuple[int, int]


@dataclass(frozen=True)
class _Folded:
    """A text as it is compared. at: the character of the text that each character of `text` comes from."""

    text: str
    at: Sequence[int]


def locate(quote: str, text: str) -> Span | None:
    """The characters (start, stop) of the text that the quotation is of, or None.

    White space, kinds of quotes and dashes, and capitals do not count, nor punctuation at the quotation's ends. Where
    it is not there as it stands, an ellipsis in it may stand for words that were left out: its parts must come in
    order, each of two words or with a number. It begins and ends with whole words. A quotation of fewer than three
    words counts only if it has a number or is the whole text.
    """
    wanted, whole = _folded(quote).text.strip(), _folded(text)
    words = len(written_words(wanted))
    if not bare_words(wanted):
        return None
    if words < LEAST_WORDS and not _has_digit(wanted) and wanted.strip(_ENDS) != whole.text.strip().strip(_ENDS):
        return None
    for parts in ([wanted], [wanted.strip(_ENDS)], [part.strip(_ENDS) for part in _GAP.split(wanted)]):
        given = [part for part in parts if part]
        if len(given) > 1 and any(len(written_words(part)) < 2 and not _has_digit(part) for part in given):
            continue
        found = _in_order(given, whole.text)
        if found is not None:
            return whole.at[found[0]], whole.at[found[1] - 1] + 1
    return None


def spans_of(records: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """{document: [(category, text of a span), ...]} of records with `document_id`, `category` and `spans`; a document
    whose records have no span is there with none."""
    found: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        own = found.setdefault(str(record["document_id"]), [])
        own += [(str(record.get("category", "")), str(span)) for span in record.get("spans") or ()]
    return found


def reached(
    spans_by_document: Mapping[str, Sequence[tuple[str, str]]], quotes_by_document: Mapping[str, Iterable[str]]
) -> dict[str, Any]:
    """How many annotated spans some quotation of the same document overlaps.

    They overlap where half of the words of the shorter one, and at least `LEAST_RUN` of them or all, stand in the other
    as one run; capitals and punctuation do not count. A quotation of fewer than three words and without a number
    overlaps nothing. Of a span that was abridged (an ellipsis, <omitted>), one part is enough.
    Returns {"spans", "reached", "share", "interval" (Wilson, 95%)} of all, and under "by_category" and "by_document"
    the same for each; a share of no spans is None. Documents without spans are left out.
    """
    by_category: dict[str, list[bool]] = {}
    by_document: dict[str, list[bool]] = {}
    for document, spans in spans_by_document.items():
        quotes = [words for quote in quotes_by_document.get(document, ()) for words in _parts(quote, short=False)]
        for category, span in spans:
            hit = any(_overlap(part, quote) for part in _parts(span, short=True) for quote in quotes)
            by_category.setdefault(category, []).append(hit)
            by_document.setdefault(document, []).append(hit)
    return {
        **_share([hit for hits in by_document.values() for hit in hits]),
        "by_category": {name: _share(by_category[name]) for name in sorted(by_category)},
        "by_document": {name: _share(by_document[name]) for name in sorted(by_document)},
    }


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    count, right = len(hits), sum(hits)
    share = right / count if count else None
    return {"spans": count, "reached": right, "share": share, "interval": list(wilson(right, count))}


def _parts(text: str, short: bool) -> list[list[str]]:
    """The bare words of each part of a text between its gaps. short: parts of few words count too."""
    found = [bare_words(part) for part in _GAP.split(_folded(text).text)]
    return [words for words in found if words and (short or len(words) >= LEAST_WORDS or any(map(_has_digit, words)))]


def _overlap(a: Sequence[str], b: Sequence[str]) -> bool:
    shorter = min(len(a), len(b))
    run = max(-(-shorter // 2), min(shorter, LEAST_RUN))
    return not _runs(a, run).isdisjoint(_runs(b, run))


def _runs(words: Sequence[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[n : n + length]) for n in range(len(words) - length + 1)}


@functools.lru_cache(maxsize=256)
def _folded(text: str) -> _Folded:
    """With plain quotes and dashes, one space for white space, no capitals, and the letters of ligatures apart."""
    found: list[str] = []
    at: list[int] = []
    for place, character in enumerate(text):
        plain = _PLAIN.get(character)
        if plain is None:
            plain = " " if character.isspace() else unicodedata.normalize("NFKC", character).casefold()
        if plain.strip() or (plain and not (found and found[-1] == " ")):
            plain = plain.strip() or " "
            found += plain
            at += [place] * len(plain)
    return _Folded("".join(found), at)


def _in_order(parts: Sequence[str], text: str) -> Span | None:
    """The first place that has all parts in order, none over another; from there back the shortest stretch."""
    places = [_places(part, text) for part in parts]
    stop = 0
    for part, own in zip(parts, places, strict=True):
        start = next((place for place in own if place >= stop), None)
        if start is None:
            return None
        stop = start + len(part)
    first = stop
    for part, own in zip(reversed(parts), reversed(places), strict=True):
        first = max(place for place in own if place + len(part) <= first)
    return (first, stop) if parts else None


def _places(part: str, text: str) -> list[int]:
    """Where a part stands in a text with whole words at both ends."""
    found = []
    place = text.find(part)
    while place >= 0:
        if not _joined(text, place) and not _joined(text, place + len(part)):
            found.append(place)
        place = text.find(part, place + 1)
    return found


def _joined(text: str, place: int) -> bool:
    """Whether the characters before and at a place are of one word or number."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if unicodedata.category(after)[0] == "M":
        return True
    if before.isalnum() and after.isalnum():
        return len(written_words(before + after)) == 1
    if before in ".,":
        return after.isdigit() and text[place - 2 : place - 1].isdigit()
    return after in ".," and before.isdigit() and text[place + 1 : place + 2].isdigit()


def _has_digit(text: str) -> bool:
    return any(character.isdigit() for character in text)
