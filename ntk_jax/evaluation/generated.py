"""Generated answers: the model writes a reply to the question, and a rule finds the answer in it.

Four rules. `exact`: the reply is the record's response, but for case, white space and the marks around it. `number`:
the last number of the reply is the last one of the response (as of GSM8K, whose responses end in "#### 42"). `letter`:
the choices are listed behind the question under letters, and the reply names one, or spells a choice out. `regex`: what
a pattern finds last in the reply is what it finds last in the response, or the response itself. Replies are greedy, and
thoughts between <think> and </think> are no part of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ntk_jax.data.records import response_text
from ntk_jax.data.templates import Rendering, uses_chat
from ntk_jax.data.tokens import encode_question
from ntk_jax.errors import UserError
from ntk_jax.evaluation.balanced import add_balanced, balanced_of
from ntk_jax.evaluation.bootstrap import accuracy_at, differences_at, drawn, group_of, groups_of, resampled_means
from ntk_jax.evaluation.shots import BETWEEN, fitted
from ntk_jax.llm.parsing import without_thoughts
from ntk_jax.llm.request import Request
from ntk_jax.llm.sampler import ModelClient
from ntk_jax.models.model import Model

RULES = ("auto", "exact", "number", "letter", "regex")
INSTRUCTION = "Answer with the letter of the right choice."
NO_REPLY = "no reply"

Progress = Callable[[int, int], None]
Answer = dict[str, Any]

_NUMBER = re.compile(r"(?:(?<!\w)[-+\u2212])?\$?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)")
_NO_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_EDGES = " \t\r\n.,;:!?\"'`*()[]{}"


@dataclass(frozen=True)
class Grading:
    """How replies are asked for and read. rule: of RULES; `auto`: `letter` where a record has choices, `number` where
    its response is a number or ends in "#### number", else `exact`. pattern: of the rule `regex`; its first group, or
    all of it, is the answer. max_tokens: of a reply. stop: texts that end one. slots: replies at a time.

    Raises UserError: no such rule; a pattern that is missing, not needed or no regular expression.
    """

    rule: str = "auto"
    pattern: str | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    slots: int = 16

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UserError(f"rule {self.rule!r} is not one of {', '.join(RULES)}")
        if (self.pattern is not None) != (self.rule == "regex"):
            raise UserError("pattern goes with the rule regex, and that rule needs one")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise UserError(f"pattern {self.pattern!r} is no regular expression: {error}") from None


def generated_answers(
    model: Model,
    records: Sequence[Mapping[str, Any]],
    *,
    grading: Grading = Grading(),  # noqa: B008 (it cannot change)
    max_length: int | None = None,
    rendering: Rendering = Rendering(),  # noqa: B008
    mesh: Mesh | None = None,
    where: str = "the questions",
    shots: Sequence[dict[str, Any]] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Replies of one model to checked records: {"answers", "dropped", "tokens"}.

    answers: a dict a record, in order: id, reply, found (the answer in it, or None), expected, correct, finish, and
    choices and answer of a record that has them; or id and dropped (why). max_length: tokens of a prompt with its
    reply. tokens: read and written by the model. where: the file, for messages. shots: solved examples before each
    question; an answer then has how many, as `shots`.
    Raises UserError: no records, a record or shot that the rule cannot be used for.
    """
    if not records:
        raise UserError(f"{where}: there are no questions; give a file that has some")
    rules = [rule_of(record, grading.rule, where) for record in records]
    most = model.config.max_positions
    client = ModelClient(
        model, rendering=rendering, slots=grading.slots, context=min(max_length or most, most), mesh=mesh
    )
    asked, counts, stop = before_replies(
        records, shots, model.tokenizer, grading=grading, context=client.context, rendering=rendering, where=where
    )
    requests = [Request(messages, grading.max_tokens, temperature=0.0, stop=stop) for messages in asked]
    tell = None if progress is None else lambda done, total, _: progress(done, total)
    replies = dict(client.ask(requests, tell))
    answers: list[Answer] = []
    for number, (record, rule) in enumerate(zip(records, rules, strict=True)):
        reply = replies[number]
        if reply.finish == "failed":
            answers.append({"id": record["id"], "dropped": reply.reason or NO_REPLY})
            continue
        found, expected = read_answer(reply.text, record, rule, grading.pattern), expected_answer(record, rule, grading)
        correct = found is not None and found == expected
        answers.append({"id": record["id"], "reply": reply.text, "found": found, "expected": expected})
        answers[-1] |= {"correct": correct, "finish": reply.finish} | ({"shots": counts[number]} if shots else {})
        answers[-1] |= {key: record[key] for key in ("choices", "answer") if record.get("choices")} | group_of(record)
    return {
        "answers": answers,
        "dropped": dict(Counter(answer["dropped"] for answer in answers if "dropped" in answer)),
        "tokens": sum(reply.prompt_tokens + reply.completion_tokens for reply in replies.values()),
    }


def before_replies(
    records: Sequence[Mapping[str, Any]],
    shots: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    grading: Grading,
    context: int,
    rendering: Rendering,
    where: str = "the questions",
) -> tuple[list[tuple[Mapping[str, str], ...]], list[int], tuple[str, ...]]:
    """(the talk that is answered for each record, behind as many shots as leave room for a whole reply, how many those
    are, the texts that end a reply).

    A shot's answer is its response, or its letter. Without a chat template a model goes on with another example when it
    has answered, so the empty line between two examples ends a reply, unless an answer of the shots has one.
    """

    def solved(record: Mapping[str, Any], place: str) -> dict[str, Any]:
        rule = rule_of(record, grading.rule, place)
        answer = expected_answer(record, rule, grading) if rule == "letter" else response_text(record)
        messages = [*question(record, rule), {"role": "assistant", "content": answer}]
        return {"id": record["id"], "messages": messages}

    def has_room(messages: Sequence[Mapping[str, str]], name: str) -> bool:
        try:
            ids, _ = encode_question(messages, tokenizer, rendering, name)
        except UserError:  # the template refuses so many turns; where it refuses the question alone, that is no reply
            return False
        return len(ids) + grading.max_tokens <= context

    def fits(tried: list[dict[str, Any]]) -> list[bool]:
        return [has_room(record["messages"][:-1], record["id"]) for record in tried]

    asked, before = [solved(record, where) for record in records], [solved(shot, "the shots") for shot in shots]
    if not shots:
        return [tuple(record["messages"][:-1]) for record in asked], [0] * len(asked), grading.stop
    chat = uses_chat(tokenizer, rendering)
    found, counts = fitted(asked, before, lambda tried: fits([_as_talk(record) for record in tried]), chat=chat)
    short = not chat and not any(BETWEEN in shot["messages"][-1]["content"] for shot in before)
    stop = (*grading.stop, BETWEEN) if short and BETWEEN not in grading.stop else grading.stop
    return [tuple(_as_talk(record)["messages"][:-1]) for record in found], counts, stop


def _as_talk(record: dict[str, Any]) -> dict[str, Any]:
    if "messages" in record:
        return record
    turns = [{"role": "user", "content": record["prompt"]}, {"role": "assistant", "content": record["response"]}]
    return {"id": record["id"], "messages": turns}


def rule_of(record: Mapping[str, Any], rule: str, where: str) -> str:
    """The rule for a record. Raises UserError, naming file and id, for one that it cannot be used for."""
    response = response_text(record)
    if rule == "auto":
        last = response.rsplit("####", 1)
        is_number = _value(response.strip(_EDGES)) is not None or (len(last) > 1 and _last_number(last[1]) is not None)
        return "letter" if record.get("choices") else "number" if is_number else "exact"
    if rule == "letter" and not record.get("choices"):
        raise UserError(f"{where}: record {record['id']!r} has no choices, and the rule letter needs them")
    if rule == "number" and _last_number(response) is None:
        raise UserError(
            f"{where}: the response of record {record['id']!r} has no number, and the rule number needs one"
        )
    return rule


def question(record: Mapping[str, Any], rule: str) -> tuple[Mapping[str, str], ...]:
    """The talk that is answered: the record's, with the choices listed behind its last message for `letter`."""
    messages = record["messages"][:-1] if "messages" in record else [{"role": "user", "content": record["prompt"]}]
    if rule != "letter":
        return tuple(messages)
    listed = "\n".join(f"{_letter(number)}. {choice}" for number, choice in enumerate(record["choices"]))
    *before, last = messages
    return (*before, {**last, "content": f"{last['content']}\n\n{listed}\n\n{INSTRUCTION}"})


def read_answer(reply: str, record: Mapping[str, Any], rule: str, pattern: str | None = None) -> str | None:
    """The answer that a reply gives, in the form of `expected_answer`; None: it gives none."""
    reply = without_thoughts(reply)
    if rule == "number":
        return _last_number(reply)
    if rule == "letter":
        return _chosen(reply, record["choices"])
    if rule == "regex":
        return _last_match(reply, pattern or "")
    return _plain(reply) or None


def expected_answer(record: Mapping[str, Any], rule: str, grading: Grading) -> str:
    """What `read_answer` gives for a right reply."""
    response = response_text(record)
    if rule == "letter":
        return _letter(record["answer"])
    if rule == "regex":
        return _last_match(response, grading.pattern or "") or _plain(response)
    return (_last_number(response) if rule == "number" else None) or _plain(response)


def compare_generated(
    arms: Mapping[str, Mapping[str, Sequence[Answer]]],
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The comparison of all arms: {"tasks", "average", "paired"}, the key `generated` of results.json, and `balanced`
    where there are classifications (see `balanced.add_balanced`).

    arms: {arm: {task: answers}}. The same questions count for every arm: those that all of them have a reply to.
    Accuracies are fractions, `low` and `high` bound the percentile bootstrap interval over questions; `unread` is how
    many replies gave no answer, `cut` how many ended at max_tokens. `average` is the plain mean over tasks, `paired`
    the difference of these means of each two arms (a later one minus an earlier one), that of a task their difference
    on it. resampled: "questions", or
    "documents" where every answer has a `group`.
    """
    names = list(arms)
    if not names:
        raise UserError("evaluation: there are no arms to compare; give at least one")
    tasks, columns, balanced = [], [], []
    for number, task in enumerate(arms[names[0]]):
        kept = _answered_by_all(arms, task)
        correct = np.asarray([[answer["correct"] for answer in kept[arm]] for arm in names], np.float64).T
        groups = groups_of(kept[names[0]])
        draws: dict[str, Any] = {"resamples": bootstrap, "seed": (seed, number), "groups": groups}
        columns.append((correct.mean(axis=0), resampled_means(correct, **draws)))
        balanced.append(balanced_of(kept[names[0]], correct, **draws))
        tasks.append(
            {
                "name": task,
                "questions": len(correct),
                **drawn(groups),
                "dropped": len(arms[names[0]][task]) - len(correct),
                "results": {
                    arm: {
                        **accuracy_at(columns[-1], place, confidence),
                        "unread": sum(answer["found"] is None for answer in kept[arm]),
                        "cut": sum(answer["finish"] == "length" for answer in kept[arm]),
                    }
                    for place, arm in enumerate(names)
                },
                "paired": differences_at(columns[-1], names, (None,), confidence),
            }
        )
    average = (np.mean([column[0] for column in columns], axis=0), np.mean([column[1] for column in columns], axis=0))
    results = {
        "tasks": tasks,
        "average": {arm: accuracy_at(average, place, confidence) for place, arm in enumerate(names)},
        "paired": differences_at(average, names, (None,), confidence),
    }
    add_balanced(results, balanced, names, (None,), confidence)
    return results


def _answered_by_all(arms: Mapping[str, Mapping[str, Sequence[Answer]]], task: str) -> dict[str, list[Answer]]:
    """Raises UserError: no question is, or arms were asked others."""
    first = next(iter(arms))
    for arm, found in arms.items():
        if [answer["id"] for answer in found[task]] != [answer["id"] for answer in arms[first][task]]:
            raise UserError(f"evaluation: arms {first} and {arm} answered other questions of {task}; redo both")
    rows = list(zip(*(found[task] for found in arms.values()), strict=True))
    kept = [row for row in rows if all("dropped" not in answer for answer in row)]
    if not kept:
        why = next((str(answer["dropped"]) for row in rows for answer in row if "dropped" in answer), "there are none")
        raise UserError(f"evaluation: no question of {task} has a reply ({why}); raise max_length")
    return {arm: [row[place] for row in kept] for place, arm in enumerate(arms)}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(_EDGES)


def _value(text: str) -> str | None:
    """A number in one spelling: without separators, signs of currency and zeros that say nothing."""
    if not _NUMBER.fullmatch(text):
        return None
    try:
        value = Decimal(text.replace("\u2212", "-").replace("$", "").replace(",", ""))
    except InvalidOperation:
        return None
    return "0" if value == 0 else format(value.normalize(), "f")


def _last_number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return _value(found[-1]) if found else None


def _last_match(text: str, pattern: str) -> str | None:
    found = list(re.finditer(pattern, text))
    answer = (found[-1][1] if found[-1].re.groups else found[-1][0]) if found else None  # a group may match nothing
    return _plain(answer) if answer else None


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def _chosen(reply: str, choices: Sequence[str]) -> str | None:
    """The letter that a reply names: what it begins with, or follows "answer is" or the like, or its only letter that
    stands alone; else the one choice that it spells out."""
    letters = [_letter(number) for number in range(len(choices))]
    one = "|".join(letters)
    text = reply.strip()
    begins = re.match(rf"[(\[*\"']*({one})(?![\w'])", text)
    if begins and (begins.end() == len(text) or text[begins.end()] in '.):]*,\n"' or begins[0][0] in "([*"):
        return begins[1]
    named = re.findall(rf"(?i:answer|choice|option)(?i:\s+is)?\s*:?\s*[(\[*\"']*({one})(?![\w'])", text)
    if named:
        return named[-1]
    alone = set(re.findall(rf"(?<![\w'])({one})(?![\w'])", text)) - {"A", "I"}
    if len(alone) == 1:
        return alone.pop()
    words, plain = _plain(text), list(map(_plain, choices))
    exact = [letter for letter, choice in zip(letters, plain, strict=True) if choice == words]
    spelled = [letter for letter, choice in zip(letters, plain, strict=True) if choice and _stands_in(choice, words)]
    return exact[0] if len(exact) == 1 else spelled[0] if len(spelled) == 1 else None


def _stands_in(choice: str, words: str) -> bool:
    """Whether a text holds a choice that is no part of a longer word or number; Chinese and Japanese have no spaces."""
    if _NO_SPACES.search(choice):
        return choice in words
    return re.search(rf"(?<!\w){re.escape(choice)}(?!\w)(?!\.\d)", words) is not None
