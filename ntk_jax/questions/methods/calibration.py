"""Questions about the facts that a model is least sure of (GraphGen, arXiv 2505.20416)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_jax.data.words import bare_words
from ntk_jax.errors import UserError
from ntk_jax.questions.methods.asked import (
    Asked,
    NothingWritten,
    Record,
    answered,
    answers,
    record_of,
    turns,
    waves,
    within,
    worded,
)
from ntk_jax.questions.methods.facts import FACT_WORDS, FACTS_SCHEMA, NAMES, PAIR_SCHEMA, Fact, different
from ntk_jax.questions.methods.replies import array_reader, lines_reader, pairs_reader, parts_reader
from ntk_jax.questions.question import Chunk, Likelihood, passage_of
from ntk_jax.questions.voice import Voice, Wish

NAME = "calibration"
# Facts are gathered until they have so many times the tokens that are asked for. A record has about twice the tokens of
# its fact, so that about the upper quarter of them is asked about.
POOL = 2
SPREAD = 1e-6  # nats; losses that lie within it are one number
QUESTION = "Is this statement true?\n\n{statement}\n\nAnswer with Yes or No:"
_VARIANTS = {
    "type": "object",
    "properties": {"same": {"type": "string"}, "opposite": {"type": "string"}},
    "required": ["same", "opposite"],
}


@dataclass(frozen=True)
class Claim:
    """A fact, the same in other words, and its negation."""

    fact: Fact
    same: str
    opposite: str


def calibration(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    """Facts of all chunks, of each a true rewording and a negation, the target's loss on whether these are true, and a
    question with its answer for each fact, the highest loss first.

    Differs from GraphGen: facts are sentences instead of the nodes and edges of a graph, so that every question is of
    a single fact; one rewording and one negation each; facts are gathered until they have `POOL` times the tokens.
    Raises UserError: no likelihood (`Asked.likelihood`), no chunk holds a word, nothing usable came back, the losses of
    all facts are the same; as `Voice.ask`.
    """
    if asked.likelihood is None:
        raise UserError(
            "calibration measures the target in this process, and there is none; give the target as a checkpoint, or "
            "leave the method out"
        )
    return within(_asked_about(worded(chunks, asked), voice, asked, asked.likelihood), voice, asked, NAME)


def _asked_about(chunks: Sequence[Chunk], voice: Voice, asked: Asked, likelihood: Likelihood) -> Iterator[Record]:
    ranked = _ranked(_claims(_gathered(chunks, voice, asked), voice, asked), asked, likelihood)
    wishes = ((one, _question(one[0], asked)) for one in ranked)
    for (fact, loss), said in answers(wishes, voice, asked):
        question, answer = said.value[0]
        facts = {"fact": fact.text, "loss": loss}
        yield record_of(NAME, fact.chunk, fact.number, question, answer, voice, said, **facts)


def comprehension_loss(nats: np.ndarray) -> np.ndarray:
    """How wrong a model is about a fact, in nats: the mean cross-entropy of Yes to the rewording and of No to the
    negation, with Yes and No as the only answers. log 2 is a coin.

    nats: [N, 4], the negative log-likelihoods of Yes and No to the rewording, and of Yes and No to the negation.
    Returns [N] float64.
    """
    yes, no, denied_yes, denied_no = np.asarray(nats, np.float64).T
    return (np.logaddexp(0, yes - no) + np.logaddexp(0, denied_no - denied_yes)) / 2


def _gathered(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> list[Fact]:
    """Facts of all chunks, one of each in turn, a wave of chunks after the other."""
    found: list[Fact] = []
    total = 0
    for fact in different(_listed(chunks, voice, asked), asked):
        found.append(fact)
        total += asked.count_tokens(fact.text)
        if total >= POOL * asked.tokens:
            break
    return found


def _listed(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Fact]:
    for wave in waves((chunks[n] for n in asked.order(len(chunks), NAME)), asked.wave):
        said = answered([(chunk, _facts(chunk, asked)) for chunk in wave], voice, asked)
        yield from turns([Fact(text, "", chunk, str(n)) for n, text in enumerate(one.value)] for chunk, one in said)


def _facts(chunk: Chunk, asked: Asked) -> Wish:
    named = f'Name the document ("{chunk.title}") or the thing meant' if chunk.title else "Name the thing meant"
    wish = (
        f"Passage:\n\n{passage_of((chunk,))}\n\nList the facts that this passage states: one a sentence, each short "
        f"and complete. {named} in every sentence instead of saying it, he or this, so that each can be understood "
        "without the passage. Keep to the language of the passage. "
    )
    as_json = f'{wish}Answer with one JSON object and nothing else. Its key is "facts", an array of texts.'
    as_text = f"{wish}Write one sentence a line, and nothing else."
    names = (NAME, "facts", chunk.id)
    return Wish(
        text=(asked.request(as_text, *names), lines_reader("facts", *FACT_WORDS)),
        json=(
            asked.request(as_json, *names, schema=FACTS_SCHEMA),
            array_reader("facts", *FACT_WORDS, NAMES),
        ),
    )


def _claims(found: Sequence[Fact], voice: Voice, asked: Asked) -> list[Claim]:
    claims = []
    for fact, said in answers(((fact, _variants(fact, asked)) for fact in found), voice, asked):
        same, opposite = said.value["same"], said.value["opposite"]
        if bare_words(opposite) in (bare_words(same), bare_words(fact.text)):
            asked.dropped["a negation that says the same as its fact"] += 1
        else:
            claims.append(Claim(fact, same, opposite))
    return claims


def _variants(fact: Fact, asked: Asked) -> Wish:
    wish = (
        f"A true statement:\n\n{fact.text}\n\nWrite it once in other words, so that it is still true, and once so that "
        "it is false because it says the opposite. Each is one sentence in the language of the statement. "
    )
    as_json = f'{wish}Answer with one JSON object and nothing else. Its keys are "same" and "opposite".'
    as_text = f"{wish}Write a line that begins with Same: and below it one that begins with Opposite:."
    names = (NAME, "variants", fact.chunk.id, fact.number)
    return Wish(
        text=(asked.request(as_text, *names), parts_reader(("same", "opposite"), as_json=False)),
        json=(
            asked.request(as_json, *names, schema=_VARIANTS),
            parts_reader(("same", "opposite"), as_json=True),
        ),
    )


def _ranked(claims: Sequence[Claim], asked: Asked, likelihood: Likelihood) -> list[tuple[Fact, float]]:
    """(fact, its loss in nats), the highest first; of equal ones that which was found first.

    Raises NothingWritten: the losses of two or more facts are all the same."""
    found = likelihood([record for claim in claims for record in _statements(claim)]) if claims else []
    nats = np.array([np.nan if one is None else one[0] for one in found]).reshape(-1, 4)
    known = np.flatnonzero(np.isfinite(nats).all(axis=1))
    if len(known) < len(claims):
        asked.dropped["a fact that the target could not be measured on"] += len(claims) - len(known)
    if not len(known):
        return []
    losses = comprehension_loss(nats[known])
    least, middle, most = (float(value) for value in np.quantile(losses, (0, 0.5, 1)))
    asked.found["loss"] = {"facts": len(known), "least": least, "median": middle, "most": most}
    if len(known) > 1 and most - least <= SPREAD:
        raise NothingWritten(
            f"calibration: the target's losses on {len(known)} facts are all the same, {least:.7f} to {most:.7f} nats "
            f"(spread {most - least:.1e}), and say nothing about what it does not know; take another target, or leave "
            "the method out"
        )
    return [(claims[known[n]].fact, float(losses[n])) for n in np.argsort(-losses, kind="stable")]


def _statements(claim: Claim) -> Iterator[dict[str, Any]]:
    """The records whose likelihoods are a row of `comprehension_loss`."""
    for kind, statement in (("same", claim.same), ("opposite", claim.opposite)):
        for answer in ("Yes", "No"):
            yield {
                "id": f"{NAME}:{claim.fact.chunk.id}:{claim.fact.number}:{kind}:{answer}",
                "source": claim.fact.chunk.source,
                "prompt": QUESTION.format(statement=statement),
                "response": answer,
            }


def _question(fact: Fact, asked: Asked) -> Wish:
    wish = (
        f"Passage:\n\n{passage_of((fact.chunk,))}\n\nA fact from it:\n\n{fact.text}\n\nWrite a question that this fact "
        "answers, which can be understood without the passage, and its answer in one or two full sentences, by the "
        "passage alone. Keep to its language. "
    )
    as_json = f'{wish}Answer with one JSON object and nothing else. Its keys are "question" and "answer".'
    as_text = f"{wish}Write a line that begins with Question: and below it one that begins with Answer:."
    names = (NAME, "question", fact.chunk.id, fact.number)
    return Wish(
        text=(asked.request(as_text, *names), pairs_reader(as_json=False)),
        json=(asked.request(as_json, *names, schema=PAIR_SCHEMA), pairs_reader(as_json=True)),
    )
