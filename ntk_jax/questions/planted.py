"""Pairs of answers of which it is known whether they say the same, made by rule from questions and right answers: what
a judge, or a measure, of how far two answers are apart is calibrated on.

identical: the same text. paraphrase: in other words that mean the same: a lead-in, contractions, words of a short list,
numbers spelled out, and sentences in another order where none leans on the one before. vague: on the question, but with
nothing of the answer. contradiction: yes for no, other numbers, a negation put in or taken out; where none of that can
be done, the answer to another question. The rules are for English.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ntk_jax.questions.agreement import PLAIN, agreement
from ntk_jax.questions.numerals import LARGE, NUMBER, SMALL, number_at
from ntk_jax.questions.voice import seed_of

KINDS = ("identical", "paraphrase", "vague", "contradiction")
SAME = ("identical", "paraphrase")

Item = tuple[str, str, str]  # question, passage, answer


@dataclass(frozen=True)
class Planted:
    """A pair. first: the right answer. second: what was made of it. same: whether they say the same. how: by what
    rules."""

    kind: str
    question: str
    passage: str
    first: str
    second: str
    same: bool
    how: str = ""


_LEADS = ("According to the passage, ", "As the passage says, ", "The passage says that ")
# Words that begin a sentence and lose their capital behind a lead-in.
_SMALL_FIRST = re.compile(
    r"(?:The|A|An|This|That|These|Those|It|They|He|She|Each|Every|Either|Neither|Both|All|No|Any|There|Yes|If|In|On|"
    r"After|Before|Under|Within|By|For|When|Upon)\b"
)
_SAME_MEANING = (
    ("prior to", "before"),
    ("in the event that", "if"),
    ("pursuant to", "under"),
    ("is required to", "must"),
    ("are required to", "must"),
    ("is obligated to", "must"),
    ("is entitled to", "has the right to"),
    ("are entitled to", "have the right to"),
    ("commences", "starts"),
    ("commence", "start"),
    ("begins", "starts"),
    ("begin", "start"),
    ("terminates", "ends"),
    ("obtain", "get"),
    ("approximately", "about"),
    ("entire", "whole"),
    ("additional", "further"),
    ("annually", "every year"),
)
_CONTRACTIONS = (
    *((f"{verb} not", f"{verb}n't") for verb in ("does", "do", "did", "is", "are", "was", "were", "has", "have")),
    *((f"{verb} not", f"{verb}n't") for verb in ("should", "would", "could", "must")),
    ("cannot", "can't"),
    ("will not", "won't"),
    ("it is", "it's"),
    ("they are", "they're"),
)
# A sentence that leans on the one before, or ends in the middle.
_CLINGS = re.compile(
    r"^(?:It|Its|This|That|These|Those|They|Their|He|She|Such|However|But|And|Or|So|Also|Therefore|Thus|Then|Otherwise|"
    r"Yes|No|In addition|Instead|Additionally|Finally|First|Second|Third)\b|"
    r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Inc|Co|Corp|Ltd|No|Sec|Art|vs)\.$"
)
_UNIT = re.compile(
    r"(?<![\w.,-])([1-9][0-9]?)( (?:calendar |business )?(?:days?|weeks?|months?|years?|hours?|percent)\b)"
)
_VAGUE = (
    "This depends on the terms that apply and on the circumstances.",
    "The passage deals with this in its own terms, and different readings are possible.",
    "There are several aspects to consider here, and each of them has to be weighed.",
    "It is a matter of how the relevant provisions are understood and applied.",
    "As to the question \u201c{}\u201d, the answer follows from the provisions that bear on it.",
    "Whoever asks \u201c{}\u201d should look at the wording closely, as much turns on the details.",
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_AUXILIARY = r"(?:is|are|was|were|may|must|shall|will|can|could|should|would|does|do|did)"
_TURNED = (  # of those that begin at one place the first counts
    (re.compile(rf"\b({_AUXILIARY}) not\b", re.IGNORECASE), r"\1"),
    (re.compile(r"\b(can)not\b", re.IGNORECASE), r"\1"),
    (re.compile(r"\b(do|does|did|is|are|was|were|could|should|would|must)n['\u2019]t\b", re.IGNORECASE), r"\1"),
    (re.compile(r"\bcan['\u2019]t\b", re.IGNORECASE), "can"),
    (re.compile(r"\bwon['\u2019]t\b", re.IGNORECASE), "will"),
    (re.compile(r"\bwithout\b"), "with"),
    (re.compile(r"\bnever\b"), "always"),
    (re.compile(r"^No\b(?= \w+ (?:may|must|shall|will|can|is|are)\b)"), "Every"),
    (re.compile(r"\bNeither\b"), "Either"),
    (re.compile(r"\bneither\b"), "either"),
    (re.compile(r"\b(has|have|had|is|are|was|were) no\b"), r"\1 some"),
    (re.compile(rf"\b({_AUXILIARY})\b"), r"\1 not"),
)
_SMALL = "|".join(sorted(SMALL.keys() - {"one"}, key=len, reverse=True))
_IN_WORDS = "|".join((_SMALL, "one", *LARGE))
_ANY_NUMBER = re.compile(
    rf"(?<![\w.,]){NUMBER}(?![\w]|[.,][0-9])|"
    rf"\b(?:{_SMALL}|one(?=[\s-]+(?:hundred|thousand|million|days?|weeks?|months?|years?|percent|\()))"
    rf"(?:[\s-]+(?:and\s+)?(?:{_IN_WORDS}))*\b",
    re.IGNORECASE,
)
_SECTION = re.compile(
    r"(?:sections?|articles?|clauses?|paragraphs?|exhibits?|schedules?|part|\u00a7)\s*$", re.IGNORECASE
)
LITTLE = 0.2  # agreement below which the answer to another question is taken for a wrong one


def planted_pairs(items: Sequence[Item], seed: int) -> list[Planted]:
    """The pairs of each (question, passage, answer), one of each kind; the same for the same seed. An item without an
    answer gives none; one without a contradiction, as nothing can be turned and no other item has another answer, gives
    none of that kind."""
    answers = list(dict.fromkeys(answer.strip() for _, _, answer in items if answer.strip()))
    found = []
    for number, (question, passage, written) in enumerate(items):
        answer = written.strip()
        if not answer:
            continue
        rng = np.random.default_rng(seed_of(seed, "planted", number))
        vague = str(rng.choice(_VAGUE)).replace("{}", " ".join(question.split()))
        made = {
            "identical": (answer, "the same text"),
            "paraphrase": paraphrased(answer, rng),
            "vague": (vague, "no answer"),
            "contradiction": contradicted(answer, rng) or _another(answer, answers, rng),
        }
        for kind, pair in made.items():
            if pair is not None:
                found.append(Planted(kind, question, passage, answer, pair[0], kind in SAME, pair[1]))
    return found


def paraphrased(answer: str, rng: np.random.Generator) -> tuple[str, str]:
    """(the answer in other words, by what rules)."""
    how = ["a lead-in"]
    text = answer
    sentences = _SENTENCE.split(text)
    if len(sentences) > 1 and all(len(one.split()) > 3 and not _CLINGS.search(one) for one in sentences):
        text = " ".join([*sentences[1:], sentences[0]])
        how.append("order of sentences")
    spelled = _UNIT.sub(lambda found: _spelled(int(found[1])) + found[2], text)
    if spelled != text:
        text = spelled
        how.append("numbers in words")
    for name, pairs in (("contractions", _CONTRACTIONS), ("synonyms", _SAME_MEANING)):
        changed = text
        for old, new in pairs:
            changed = re.sub(rf"\b{old}\b", functools.partial(_like, new), changed, flags=re.IGNORECASE)
        if changed != text:
            text = changed
            how.append(name)
    lead = str(rng.choice(_LEADS[:2] if PLAIN.match(text) or not _SMALL_FIRST.match(text) else _LEADS))
    text = text[0].lower() + text[1:] if _SMALL_FIRST.match(text) else text
    return lead + text, ", ".join(how)


def contradicted(answer: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """(an answer that cannot be right if this one is, by what rules), or None where no rule applies."""
    plain = PLAIN.match(answer)
    if plain:
        other = _like("no" if plain[2].lower() == "yes" else "yes", plain, 2)
        return plain[1] + other + _negated(answer[plain.end() :]), "yes and no"
    numbers = _other_numbers(answer, rng)
    if numbers != answer:
        return numbers, "numbers"
    negated = _negated(answer)
    return (negated, "negation") if negated != answer else None


def _another(answer: str, answers: Sequence[str], rng: np.random.Generator) -> tuple[str, str] | None:
    """The answer of another item, drawn among those that have little in common with this one."""
    for place in rng.permutation(len(answers)):
        if agreement(answers[place], answer) < LITTLE:
            return answers[place], "another answer"
    return None


def _negated(text: str) -> str:
    """In every sentence the first negation taken out, or one put in where that can be done earlier."""
    sentences = []
    for sentence in _SENTENCE.split(text):
        found = [(match.start(), match.expand(new), match) for p, new in _TURNED if (match := p.search(sentence))]
        if found:
            _, new, match = min(found, key=lambda one: one[0])
            sentence = sentence[: match.start()] + new + sentence[match.end() :]
        sentences.append(sentence)
    return " ".join(sentences)


def _other_numbers(text: str, rng: np.random.Generator) -> str:
    """With every number changed but those of sections; the same number becomes the same."""
    known: dict[str, int] = {}

    def other(value: int) -> int:
        key = str(value)
        if key not in known:
            known[key] = _other(value, rng)
        return known[key]

    def changed(found: re.Match[str]) -> str:
        if _SECTION.search(text, max(0, found.start() - 20), found.start()):
            return found[0]
        if not found[0][0].isdigit():
            number = number_at(re.findall(r"[a-z]+", found[0].lower()), 0)
            return found[0] if number is None else _like(_spelled(other(number[0])), found)
        whole, point, rest = found[0].replace(",", "").partition(".")
        if len(whole) > 15:
            return found[0]
        made = other(int(whole))
        return (f"{made:,}" if "," in found[0] else str(made)) + point + rest

    return _ANY_NUMBER.sub(changed, text)


def _other(value: int, rng: np.random.Generator) -> int:
    """Another number of the same kind: of a day or a few, of a year, or an amount."""
    if value <= 28:
        return int((value - 1 + rng.integers(1, 28)) % 28 + 1)
    if 1900 <= value <= 2100:
        return value + int(rng.integers(2, 12)) * int(rng.choice([-1, 1]))
    return value * int(rng.integers(2, 5))


def _spelled(value: int) -> str:
    """A number in words up to 99, in digits above."""
    names = {number: word for word, number in SMALL.items()}
    if value in names or value > 99:
        return names.get(value, str(value))
    return f"{names[value // 10 * 10]}-{names[value % 10]}"


def _like(word: str, found: re.Match[str], group: int = 0) -> str:
    """The word with a capital where what was found has one."""
    return word[0].upper() + word[1:] if found[group][0].isupper() else word
