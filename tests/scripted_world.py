"""A small world in which it is known what a model does not know: passages of facts, and models that answer by rules.

Each passage states some facts of one place, one of them twice with different values, so that a question on it is
ambiguous. The target knows all but a few of the facts, its planted gaps. Whoever writes questions prefers what is well
known, and now and then asks for something that no passage says.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ntk_jax.llm.request import Progress, Reply, Request
from ntk_jax.questions.question import Chunk

NAMES = [a + b for a in ("Ard", "Bel", "Cor", "Dun", "Esk", "Fen") for b in ("mouth", "wick", "holm", "ford", "by")]
ATTRIBUTES = ("ferry fare", "market day", "bridge toll", "harbour depth", "mill tax", "gate hour", "well charge")
ATTRIBUTES += ("school term", "salt price", "watch pay", "bread weight", "cart limit", "dog fine", "inn rate")
ATTRIBUTES += (
    "lamp oil",
    "rope length",
    "coal ration",
    "fish tithe",
    "mooring fee",
    "stall rent",
    "bell hour",
    "wall height",
)
STATED, GAPS = 8, 2  # facts of a passage that have one value, and how many of them the target does not know
STRAY = 0.15  # chance that a writer asks for what the passage does not say
_FACT = re.compile(r"The ([a-z ]+) of ([A-Z][a-z]+) is (\d+) pence\.")
_QUESTION = re.compile(r"What is the ([a-z ]+) of ([A-Z][a-z]+)\?")
Fact = tuple[str, str]  # attribute, name


@dataclass
class World:
    """chunks: the passages. facts: {fact: values}. gaps: facts that the target does not know. twice: those with two
    values."""

    chunks: list[Chunk] = field(default_factory=list)
    facts: dict[Fact, list[int]] = field(default_factory=dict)
    gaps: set[Fact] = field(default_factory=set)
    twice: set[Fact] = field(default_factory=set)

    def is_trap(self, question: str) -> bool:
        """Whether it has no answer, or more than one."""
        fact = fact_of(question)
        return fact not in self.facts or fact in self.twice


def world(seed: int, chunks: int = 20) -> World:
    """A world of so many passages."""
    draw, made = random.Random(seed), World()
    for number, name in enumerate(draw.sample(NAMES, chunks)):
        attributes = draw.sample(ATTRIBUTES, STATED + 1)
        sentences = []
        for place, attribute in enumerate(attributes):
            values = draw.sample(range(10, 100), 2 if place == STATED else 1)
            made.facts[attribute, name] = values
            sentences += [f"The {attribute} of {name} is {value} pence." for value in values]
        made.twice.add((attributes[-1], name))
        made.gaps |= {(attribute, name) for attribute in draw.sample(attributes[:STATED], GAPS)}
        draw.shuffle(sentences)
        made.chunks.append(Chunk(f"doc-{number}#0", f"doc-{number}", name, "scripted", " ".join(sentences)))
    return made


def fact_of(question: str) -> Fact | None:
    """The fact that a question asks for."""
    found = _QUESTION.search(question)
    return (found[1], found[2]) if found else None


class Scripted:
    """A `Client` that answers whatever the package asks by rules of the world, with random numbers of the request's
    own."""

    def __init__(self, world: World, name: str = "scripted", seed: int = 0) -> None:
        self.world, self.name, self.seed = world, name, seed
        self.calls = 0

    def ask(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[tuple[int, Reply]]:
        order = list(range(len(requests)))
        random.Random(len(requests)).shuffle(order)  # replies come in any order
        for done, place in enumerate(order):
            self.calls += 1
            text = self.answer(requests[place])
            if progress is not None:
                progress(done + 1, len(requests), "")
            yield place, Reply(text, "stop", 100, 20)

    def answer(self, request: Request) -> str:
        """What stands in the reply."""
        text = str(request.messages[0]["content"])  # type: ignore[index,call-overload]
        digest = hashlib.sha256(f"{self.seed} {request.seed} {request.sample} {request.temperature} {text}".encode())
        draw = random.Random(digest.hexdigest())
        if "how far apart" in text:
            return self._divergence(str(request.messages[0]["content"]))  # type: ignore[index,call-overload]
        if "Judge by the passage alone" in text:
            return self._verdict(text, draw)
        if "Another answer:" in text:
            return "The other answer shows what is known. Ask for a detail that was not asked for yet."
        if "copy word for word" in text:
            return self._expert(text, request, draw)
        if "Write one question" in text:
            return json.dumps({"question": self._question(text, draw)})
        return self._target(text, draw)

    def _question(self, text: str, draw: random.Random) -> str:
        stated = [(found[1], found[2]) for found in _FACT.finditer(text.split("It is about this part")[0])]
        name = stated[0][1]
        earlier = {fact_of(line) for line in text.splitlines() if line.startswith("- ")}
        earlier |= {fact_of(line) for line in text.splitlines() if line.startswith("This question was asked")}
        if draw.random() < STRAY:
            unsaid = [a for a in ATTRIBUTES if (a, name) not in stated and (a, name) not in earlier]
            return f"What is the {draw.choice(unsaid)} of {name}?"
        rest = sorted(set(stated) - earlier) or sorted(set(stated))
        # Who has not read of the target's answers writes what is well known; the reviser goes through what is left.
        first = "This question was asked" not in text
        common = [4 if first and fact not in self.world.gaps else 1 for fact in rest]
        attribute, _ = draw.choices(rest, common)[0]
        return f"What is the {attribute} of {name}?"

    def _expert(self, text: str, request: Request, draw: random.Random) -> str:
        fact = fact_of(text)
        said = [found for found in _FACT.finditer(text.split("Question:")[0]) if (found[1], found[2]) == fact]
        if not said or fact is None:
            return json.dumps({"stated": False, "answer": "The passage does not state it.", "quotes": []})
        found = draw.choice(said) if request.temperature > 0 else said[0]
        answer = f"The {fact[0]} of {fact[1]} is {found[3]} pence."
        return json.dumps({"stated": True, "answer": answer, "quotes": [found[0]]})

    def _target(self, text: str, draw: random.Random) -> str:
        fact = fact_of(text)
        if fact is None or fact not in self.world.facts:
            return "I would say 50 pence."
        value = draw.choice(self.world.facts[fact])
        return f"The {fact[0]} of {fact[1]} is {value + 100 * (fact in self.world.gaps)} pence."

    def _divergence(self, text: str) -> str:
        """How far two answers are apart: by the number that each names."""
        first, second = (
            re.findall(r"(\d+) pence", part) for part in text.split("First answer:")[1].split("Second answer:")
        )
        score = 0 if set(first) & set(second) else 4 if first and second else 3
        return json.dumps({"reason": "by the numbers", "score": score})

    def _verdict(self, text: str, draw: random.Random) -> str:
        """A lenient judge: half the time it overlooks that there are two answers."""
        fact = fact_of(text)
        values = self.world.facts.get(fact, []) if fact is not None else []
        if "does not answer this question" in text:
            stated = {(found[1], found[2]) for found in _FACT.finditer(text.split("\nQuestion:")[0])}
            right = not values or fact not in stated
        else:
            said = re.findall(r"(\d+) pence", text.split("\nAnswer:")[1])
            right = any(int(value) in values for value in said) and (len(values) < 2 or draw.random() < 0.5)
        return json.dumps({"reason": "as it reads", "answer": "yes" if right else "no"})


def likelihood(made: World) -> Any:
    """Of the target: an answer that the passage in view gives is likely, one that it knows as well, others are not."""

    def of(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, int] | None]:
        found: list[tuple[float, int] | None] = []
        for record in records:
            question, answer = record["messages"][-2]["content"], record["messages"][-1]["content"]
            fact, tokens = fact_of(question), len(answer.split())
            noise = random.Random(question + answer).random() / 10
            if "Here is a passage" in question:
                each = 0.2
            else:
                each = 3.0 if fact in made.gaps else 2.5 if fact in made.twice else 0.4
            found.append(((each + noise) * tokens, tokens))
        return found

    return of
