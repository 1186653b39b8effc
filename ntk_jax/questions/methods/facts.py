"""Facts about a document's entities as instructions (Knowledge-Instruct, arXiv 2504.05571)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ntk_jax.data.near_duplicates import MinHash, near_duplicates
from ntk_jax.questions.methods.asked import Asked, Record, answered, answers, record_of, turns, waves, within, worded
from ntk_jax.questions.methods.naming import Entity, Named, name_entities
from ntk_jax.questions.methods.replies import array_reader, lines_reader, pairs_reader
from ntk_jax.questions.question import Chunk, passage_of
from ntk_jax.questions.voice import Voice, Wish

NAME = "facts"
REWORDED = 3  # questions with the fact in other words, of each fact
SAME = 0.7  # overlap of runs of three words from which two facts are one
FACT_WORDS = (4, 80)
NAMES = ("fact", "statement", "text")  # what models call the text of a fact that they write as an object
FACTS_SCHEMA = {
    "type": "object",
    "properties": {"facts": {"type": "array", "items": {"type": "string"}}},
    "required": ["facts"],
}
PAIR_SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
}
PAIRS_SCHEMA = {
    "type": "object",
    "properties": {"pairs": {"type": "array", "items": PAIR_SCHEMA}},
    "required": ["pairs"],
}


@dataclass(frozen=True)
class Fact:
    """text: a sentence that stands by itself. number: of its entity's facts, behind the entity's own."""

    text: str
    entity: str
    chunk: Chunk
    number: str


def facts(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    """Entities, facts about each, each fact made self-contained, near-duplicates left out, and of every fact a question
    with the fact itself and questions with it in other words.

    Differs from Knowledge-Instruct: facts are asked for one entity at a time, from the chunks that name it; a fact that
    names its entity and its document's title already is not asked about again; questions come with the rewordings
    from the model instead of from fixed phrases. Raises UserError: no chunk holds a word, nothing usable came back; as
    `Voice.ask`.
    """
    return within(_instructions(worded(chunks, asked), voice, asked), voice, asked, NAME)


def _instructions(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    named = name_entities(chunks, voice, asked)
    new = different(_clear(_listed(named, voice, asked), voice, asked), asked)
    for fact, said in answers(((fact, _questions(fact, asked)) for fact in new), voice, asked):
        for n, (question, answer) in enumerate(said.value[: REWORDED + 1]):
            # The first question is for the fact as it stands, so that it is trained on as the document has it.
            response = answer if n else fact.text
            kept = {"entity": fact.entity, "fact": fact.text}
            yield record_of(NAME, fact.chunk, f"{fact.number}-{n}", question, response, voice, said, **kept)


def _listed(named: Sequence[Named], voice: Voice, asked: Asked) -> Iterator[Fact]:
    """The facts about each entity, one entity of every document in turn."""

    def drawn(one: Named) -> Iterator[tuple[tuple[Entity, int], Wish]]:
        for n in asked.order(len(one.entities), NAME, one.chunks[0].document):
            yield (one.entities[n], n), _about(one, one.entities[n], asked)

    for (entity, n), said in answers(turns(map(drawn, named)), voice, asked):
        for number, text in enumerate(said.value):
            yield Fact(text, entity.name, entity.chunk, f"{n}-{number}")


def _about(one: Named, entity: Entity, asked: Asked) -> Wish:
    shown = one.naming(entity)
    wish = (
        f'Passages:\n\n{passage_of(shown)}\n\nList what these passages say about "{entity.name}": one fact a sentence, '
        "each short, complete and true by the passages alone. Name it in every sentence instead of saying it, he or "
        "this. Keep to the language of the passages. "
    )
    as_json = f'{wish}Answer with one JSON object and nothing else. Its key is "facts", an array of texts.'
    as_text = f"{wish}Write one sentence a line, and nothing else."
    names = (NAME, "about", shown[0].document, entity.name)
    return Wish(
        text=(asked.request(as_text, *names), lines_reader("facts", *FACT_WORDS)),
        json=(
            asked.request(as_json, *names, schema=FACTS_SCHEMA),
            array_reader("facts", *FACT_WORDS, NAMES),
        ),
    )


def _clear(found: Iterable[Fact], voice: Voice, asked: Asked) -> Iterator[Fact]:
    """Each fact as a sentence that stands by itself; where none comes back, it is left out."""
    for wave in waves(found, asked.wave):
        unclear = [(n, _standing(fact, asked)) for n, fact in enumerate(wave) if not _stands(fact)]
        clear = {n: said.value[0] for n, said in answered(unclear, voice, asked)}
        unclear_places = {n for n, _ in unclear}
        for n, fact in enumerate(wave):
            if n in clear or n not in unclear_places:
                yield replace(fact, text=clear.get(n, fact.text))


def _stands(fact: Fact) -> bool:
    text = fact.text.casefold()
    return fact.entity.casefold() in text and fact.chunk.title.casefold() in text


def _standing(fact: Fact, asked: Asked) -> Wish:
    where = f'the document "{fact.chunk.title}"' if fact.chunk.title else "the passage below"
    passage = "" if fact.chunk.title else f"\n\nPassage:\n\n{fact.chunk.text}"
    text = (
        f"A fact from {where}, about {fact.entity}:\n\n{fact.text}{passage}\n\nWrite it as one sentence that somebody "
        "understands who has not seen the document: with full names instead of pronouns"
        f"{', and with the name of the document' if fact.chunk.title else ''}. Add nothing that the fact does not say, "
        "and keep to its language. Write only the sentence."
    )
    request = asked.request(text, NAME, "stands", fact.chunk.id, fact.number)
    return Wish((request, lines_reader("sentence that stands by itself", *FACT_WORDS)))


def different(found: Iterable[Fact], asked: Asked) -> Iterator[Fact]:
    """Those that say nearly the same as none before."""
    kept: list[str] = []
    asked.found["facts"] = 0
    for wave in waves(found, asked.wave):
        asked.found["facts"] += len(wave)
        texts = kept + [fact.text for fact in wave]
        first = near_duplicates(texts, SAME, hashing=MinHash(words=3))
        new = [fact for n, fact in enumerate(wave, len(kept)) if first[n] == n]
        if len(new) < len(wave):
            asked.dropped["a near-duplicate of another fact"] += len(wave) - len(new)
        kept += [fact.text for fact in new]
        yield from new


def _questions(fact: Fact, asked: Asked) -> Wish:
    wish = (
        f"A fact{f' from {fact.chunk.title}' if fact.chunk.title else ''}:\n\n{fact.text}\n\nWrite {REWORDED + 1} "
        "different questions that this fact answers. Each can be understood without the document, and comes with its "
        "answer: the whole fact in one sentence, in other words each time. Keep to the language of the fact. "
    )
    as_json = (
        f'{wish}Answer with one JSON object and nothing else. Its key is "pairs", an array of objects with the keys '
        '"question" and "answer".'
    )
    as_text = f"{wish}Write a line that begins with Question: and below it one that begins with Answer:, for each."
    names = (NAME, "questions", fact.chunk.id, fact.number)
    return Wish(
        text=(asked.request(as_text, *names), pairs_reader(as_json=False)),
        json=(asked.request(as_json, *names, schema=PAIRS_SCHEMA), pairs_reader(as_json=True)),
    )
