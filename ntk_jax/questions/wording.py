"""What is asked of the models, and how their replies are read. The words are this package's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ntk_jax.data.words import written_words
from ntk_jax.llm.parsing import Parsed, parse_json, without_thoughts
from ntk_jax.llm.request import Reply, Request
from ntk_jax.llm.usable import Unusable, failure_of, first_sentences, plain_text, unusable
from ntk_jax.llm.verdicts import SCHEMA as VERDICT
from ntk_jax.llm.verdicts import read_verdict
from ntk_jax.questions.agreement import PLAIN
from ntk_jax.questions.question import Answer, Slot
from ntk_jax.questions.voice import Wish

NOT_STATED = "The document does not say this."  # where an expert said so in no words of its own
QUESTION_WORDS = (4, 80)  # of a question, at least and at most
_FOCUS_WORDS = 60  # of the part of a passage that a question is to be about
_EARLIER = 12  # questions on the same passage that are shown, the latest
_QUESTION = {
    "type": "object",
    "properties": {"question": {"type": "string"}},
    "required": ["question"],
    "additionalProperties": False,
}
_ANSWER = {
    "type": "object",
    "properties": {
        "stated": {"type": "boolean"},
        "answer": {"type": "string"},
        "quotes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["stated", "answer", "quotes"],
    "additionalProperties": False,
}
_AIMS = {
    "answerable": "Write one question that a careful reader of the passage can answer from it alone.",
    "negative": "Write one question that a careful reader of the passage can answer from it alone, and whose right "
    "answer is no: ask whether something is so, or is allowed, that the passage rules out.",
    "unanswerable": "Write one question on the subject of the passage that the passage does not answer, although a "
    "hasty reader would believe that it does.",
    "cross": "Write one question that can be answered only with both passages together, as by comparing what they say.",
}
_RULES = (
    "Ask for a detail that is easy to get wrong: a condition, an exception, a number, who is bound, what follows when. "
    "The question must make sense to somebody who does not have the passage at hand: name the document, the parties or "
    "the things that it is about, and never say 'the passage' or 'this document'. It has one right answer."
)
# Small models copy what they are shown instead of doing what it says: no list of things, no earlier questions.
_PLAIN_RULES = "Ask for one thing that it says. Use the names that stand in it."
_YES_OR_NO = "Begin the answer with Yes or with No. "  # where no is the right one, if the question is as it should be
_JSON_QUESTION = 'Reply with one JSON object and nothing else: {"question": "..."}'
_TEXT_QUESTION = "Reply with the question and nothing else."
_ASKS = "?\uff1f\u061f\u037e"  # question marks: Latin, Chinese and Japanese, Arabic, Greek
_SENTENCE = re.compile(r"(?<=[.!\u3002\uff01])\s*(?<=[\s\u3002\uff01])(?=\S)")
_ABBREVIATED = re.compile(r"\b(?:\w|Inc|Co|Corp|Ltd|Mr|Mrs|Ms|Dr|No|Nos|Sec|Art|Para|Ex|Jr|Sr|St|vs)\.$")
_LABEL = re.compile(r"^\W*(?:(?:revised |new |final |harder )?question)\W*\d*\W*:\W*", re.IGNORECASE)
_PARTS = re.compile(r"^\W*(answer|quotes?)\W*\d*\W*:[ \t*]*", re.IGNORECASE | re.MULTILINE)
_DOES_NOT = r"s? (?:does|do) not (?:say|state|mention|specify|provide|answer|address|contain)"
_UNSAID = re.compile(rf"\bnot stated\b|\b(?:passage|document|text|article){_DOES_NOT}", re.IGNORECASE)
# Of a contract it may be the answer itself: with words that show it, it is.
_RULED_OUT = re.compile(rf"\b(?:agreement|contract){_DOES_NOT}", re.IGNORECASE)


# -- questions -------------------------------------------------------------------------------------------------------


def question_wish(
    slot: Slot, earlier: Sequence[str], focus: str | None, *, seed: int, sample: int, temperature: float, top_p: float,
    max_tokens: int,
) -> Wish:  # fmt: skip
    """A question for a slot. earlier: questions on the same passage, which it may not repeat. focus: the part of the
    passage that it is to be about. sample: which try at this slot it is."""
    part = f'It is about this part: "{_short(focus, _FOCUS_WORDS)}"' if focus and slot.kind != "cross" else ""
    begin = [_shown(slot), _AIMS[slot.kind]]
    how: dict[str, Any] = {"seed": seed, "sample": sample, "temperature": temperature, "top_p": top_p}
    return _question_wish([*begin, _PLAIN_RULES, part], [*begin, _RULES, part, *_others(earlier)], max_tokens, how)


def revision_wish(
    slot: Slot, question: str, feedback: str | None, earlier: Sequence[str], *, seed: int, sample: int,
    temperature: float, top_p: float, max_tokens: int,
) -> Wish:  # fmt: skip
    """A harder question in the place of one. feedback: what was said of the answers to it; None: nothing was."""
    begin = [
        _shown(slot),
        f"This question was asked: {question}",
        f"What was seen in the answers: {feedback}" if feedback else "",
        "Rewrite it, or ask for something else that the passage says, so that somebody who knows the subject in "
        "general, but not this passage, answers wrongly. " + _AIMS[slot.kind],
    ]
    how: dict[str, Any] = {"seed": seed, "sample": sample, "temperature": temperature, "top_p": top_p}
    return _question_wish([*begin, _PLAIN_RULES], [*begin, _RULES, *_others(earlier)], max_tokens, how)


def _question_wish(plain: Sequence[str], json: Sequence[str], max_tokens: int, how: dict[str, Any]) -> Wish:
    """plain, json: the paragraphs of the prompt in both forms; empty ones are left out."""

    def text(parts: Sequence[str]) -> str:
        return "\n\n".join(filter(None, parts))

    def reader(is_json: bool) -> Any:
        return lambda reply: read_question(reply, is_json=is_json)

    return Wish(
        (_request(text([*plain, _TEXT_QUESTION]), max_tokens, **how), reader(False)),
        (_request(text([*json, _JSON_QUESTION]), max_tokens, schema=_QUESTION, **how), reader(True)),
    )


def read_question(reply: Reply, *, is_json: bool) -> str | Unusable:
    """The question in a reply: one line."""
    text = _body(reply)
    if isinstance(text, Unusable):
        return text
    if is_json:
        value = parse_json(text)
        if not isinstance(value, Parsed):
            return Unusable(value.reason, again=True)
        text = plain_text(_folded(value.value).get("question"))
        if not text:
            return Unusable("no question in the JSON", again=True)
    question = _question_in([_LABEL.sub("", line).strip(" \t\"'*`#>-") for line in text.splitlines()])
    words = len(written_words(question))
    if not question:
        return Unusable("no question; cut at max_tokens" if reply.finish == "length" else "no question")
    if not QUESTION_WORDS[0] <= words <= QUESTION_WORDS[1]:
        return Unusable("a question of too few words" if words < QUESTION_WORDS[0] else "a question of too many words")
    return " ".join(question.split())


def _question_in(lines: Sequence[str]) -> str:
    """The first line that is a question; else the sentence that asks in the first line that holds one, with those
    before it as long as it is too short by itself: `Inc. pays?` is none."""
    whole = next((line for line in lines if line.endswith(tuple(_ASKS))), None)
    if whole is not None:
        return whole
    found = next((match[0] for line in lines if (match := re.match(rf"[^{_ASKS}]*[{_ASKS}]", line))), "")
    sentences = _SENTENCE.split(found)
    question = sentences.pop().strip()
    while sentences and (len(written_words(question)) < QUESTION_WORDS[0] or _cut_off(sentences[-1], question)):
        question = f"{sentences.pop().strip()} {question}"
    return question


def _cut_off(before: str, sentence: str) -> bool:
    """Whether a sentence goes on what seemed to end before it: with the point of an abbreviation."""
    return sentence[0].islower() or sentence[0].isdigit() or bool(_ABBREVIATED.search(before))


# -- answers ---------------------------------------------------------------------------------------------------------


def answer_wish(
    slot: Slot, question: str, *, seed: int = 0, sample: int = 0, temperature: float = 0.0, max_tokens: int = 200
) -> Wish:
    """The expert's answer, from the passage, with the words that show it."""
    text = f"{_shown(slot)}\n\nQuestion: {question}\n\n{_YES_OR_NO if slot.kind == 'negative' else ''}"
    json = (
        "Answer from the passage alone, precisely and completely, in one to three sentences that can be understood "
        "without it; name the parties, numbers and conditions. Then copy word for word what shows it. Reply with one "
        'JSON object and nothing else: {"stated": true, "answer": "...", "quotes": ["..."]}. Where the passage does '
        'not answer the question, "stated" is false, "answer" says in a sentence what is not said, and "quotes" is '
        "empty."
    )
    plain = (
        "Write two lines and nothing else.\nANSWER: the answer from the passage alone, in one or two full sentences, "
        "or NOT STATED if the passage does not say it\nQUOTE: the words of the passage that show it, copied"
    )
    how: dict[str, Any] = {"seed": seed, "sample": sample, "temperature": temperature}
    return Wish(
        (_request(text + plain, max_tokens, **how), lambda reply: read_answer(reply, is_json=False)),
        (_request(text + json, max_tokens, schema=_ANSWER, **how), lambda reply: read_answer(reply, is_json=True)),
    )


def read_answer(reply: Reply, *, is_json: bool) -> Answer | Unusable:
    """The expert's answer in a reply."""
    text = _body(reply)
    if isinstance(text, Unusable):
        return text
    stated: bool | None = None
    if is_json:
        value = parse_json(text)
        if not isinstance(value, Parsed):
            return Unusable(value.reason, again=True)
        found = _folded(value.value)
        answer = plain_text(found.get("answer"))
        given = found.get("quotes", found.get("quote"))
        quotes = [plain_text(item) for item in (given if isinstance(given, list) else [given])]
        stated = _flag(found.get("stated"))
        if not answer and stated is not False:
            return Unusable("no answer in the JSON", again=True)
    else:
        parts = list(_PARTS.finditer(text))
        ends = [part.start() for part in parts[1:]] + [len(text)] * bool(parts)
        named = [(part[1].lower(), text[part.end() : end].strip()) for part, end in zip(parts, ends, strict=True)]
        answers = [body for name, body in named if name == "answer" and body]
        answer = answers[0] if answers else text[: parts[0].start()].strip() if parts else text
        quotes = [body for name, body in named if name != "answer"]
    cut = reply.finish == "length" and not any(quotes)
    if cut:
        answer = first_sentences(answer)
    if stated is None:  # a plain yes or no, with words that show it, says what the document has to say
        shown = any(quotes)
        unsaid = _UNSAID.search(answer) or (not shown and _RULED_OUT.search(answer))
        stated = not unsaid or bool(shown and PLAIN.match(answer))
    if not stated:
        bare = re.fullmatch(r"\W*not stated\W*", answer, re.IGNORECASE)
        return Answer(NOT_STATED if bare or not answer else _line(answer), (), False, cut)
    reason = unusable(answer, min_words=1)
    if reason:
        return Unusable(reason)
    return Answer(_line(answer), tuple(_line(quote.strip("\"'“”‘’ ")) for quote in quotes if quote.strip()), True, cut)


def target_messages(question: str, passage: str | None) -> list[dict[str, str]]:
    """What the model that is to learn reads: the question, after the passage where it sees that."""
    if passage is None:
        return [{"role": "user", "content": question}]
    asked = f"Question: {question}\n\nAnswer from the passage, in one to three sentences."
    text = f"Here is a passage.\n\n{passage}\n\n{asked}"
    return [{"role": "user", "content": text}]


def target_wish(
    question: str, passage: str | None, *, seed: int = 0, sample: int = 0, temperature: float = 0.0,
    max_tokens: int = 200,
) -> Wish:  # fmt: skip
    """The answer of the model that is to learn, in its own words."""
    talk = tuple(target_messages(question, passage))
    request = Request(talk, max_tokens=max_tokens, seed=seed, sample=sample, temperature=temperature)

    def read(reply: Reply) -> str | Unusable:
        text = _body(reply)
        if isinstance(text, Unusable):
            return text
        return _line(first_sentences(text) if reply.finish == "length" else text)

    return Wish((request, read))


# -- feedback and verdicts -------------------------------------------------------------------------------------------


def feedback_wish(slot: Slot, question: str, expert: str, target: str, *, seed: int, max_tokens: int) -> Wish:
    """What the other answer shows of who gave it, and where the next question should press."""
    text = (
        f"{_shown(slot)}\n\nQuestion: {question}\nRight answer: {expert}\nAnother answer: {target or '(none)'}\n\n"
        "Say in at most three sentences what the other answer gets right, where it is wrong or vague, and which detail "
        "of the passage the next question should ask for, so that whoever gave it fails while the passage still has "
        "the answer."
    )

    def read(reply: Reply) -> str | Unusable:
        found = _body(reply)
        if isinstance(found, Unusable):
            return found
        reason = unusable(found, min_words=3)
        return Unusable(reason) if reason else _line(first_sentences(found, 120))

    return Wish((_request(text, max_tokens, seed=seed, temperature=0.0), read))


def support_wish(slot: Slot, question: str, answer: str, *, max_tokens: int) -> Wish:
    """Whether an answer stands: True or False. Of an unanswerable question: whether the passage is silent."""
    asked = (
        "Is it true that the passage does not answer this question?"
        if slot.kind == "unanswerable"
        else "Does the passage show that this answer is right and complete, and is the question clear enough to have "
        "this answer and no other?"
    )
    shown = f"{_shown(slot)}\n\nQuestion: {question}\nAnswer: {answer}\n\n"
    text = f"{shown}{asked} Judge by the passage alone, and be strict. "
    as_json = f'{text}Reply with JSON only, as {{"reason": "one short sentence", "answer": "yes"}} or with "no".'
    as_text = f"{text}Reply with one word, yes or no."

    def read(reply: Reply) -> bool | Unusable:
        if reply.finish == "failed":
            return Unusable(failure_of(reply))
        found = read_verdict(reply)
        return bool(found[0]) if isinstance(found, tuple) else Unusable(found.reason, again=bool(found.raw))

    return Wish(
        text=(_request(as_text, max_tokens, temperature=0.0), read),
        json=(_request(as_json, max_tokens, temperature=0.0, schema=VERDICT), read),
    )


# -- parts -----------------------------------------------------------------------------------------------------------


def _request(text: str, max_tokens: int, **options: Any) -> Request:
    return Request(({"role": "user", "content": text},), max_tokens=max_tokens, **options)


def _shown(slot: Slot) -> str:
    return ("Here are two passages." if len(slot.chunks) > 1 else "Here is a passage.") + f"\n\n{slot.passage}"


def _others(earlier: Sequence[str]) -> list[str]:
    if not earlier:
        return []
    shown = "\n".join(f"- {question}" for question in earlier[-_EARLIER:])
    return [f"These were asked before; ask for something else:\n{shown}"]


def _body(reply: Reply) -> str | Unusable:
    """What was written behind any thoughts, or why nothing is there."""
    if reply.finish == "failed":
        return Unusable(failure_of(reply))
    if not reply.text.strip():
        return Unusable("an empty reply")
    text = without_thoughts(reply.text)
    if not text:
        return Unusable("nothing but thoughts")
    return Unusable("the model declined") if unusable(text, min_words=0) == "the model declined" else text


def _flag(value: Any) -> bool | None:
    """True or false as models write it; None: neither."""
    return {"true": True, "yes": True, "false": False, "no": False}.get(str(value).strip().casefold())


def _folded(value: dict[str, Any]) -> dict[str, Any]:
    return {str(key).strip().casefold(): item for key, item in value.items()}


def _line(text: str) -> str:
    return " ".join(text.split())


def _short(text: str, words: int) -> str:
    found = text.split()
    return " ".join(found if len(found) <= words else [*found[:words], "..."])
