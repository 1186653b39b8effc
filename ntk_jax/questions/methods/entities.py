"""How the entities of a document relate (EntiGraph, "Synthetic continued pretraining", arXiv 2409.07431)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import comb

from ntk_jax.errors import listed
from ntk_jax.questions.methods.asked import Asked, Record, answers, record_of, turns, within, worded
from ntk_jax.questions.methods.naming import SHOWN, Named, name_entities
from ntk_jax.questions.methods.replies import text_reader
from ntk_jax.questions.question import Chunk, passage_of
from ntk_jax.questions.voice import Voice, Wish

NAME = "entities"


def entities(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    """Names each document's entities, then has a text written about each pair of them, then about each triple, in a
    drawn order and one document after the other in turn, until the tokens or the triples are spent.

    Differs from EntiGraph: a long document is read in parts, and a text is written with the document's summary and the
    chunks that name its entities in view instead of the whole document; at most `naming.MOST` entities a document.
    Raises UserError: no chunk holds a word, nothing usable came back; as `Voice.ask`.
    """
    return within(_related(worded(chunks, asked), voice, asked), voice, asked, NAME)


def _related(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    named = name_entities(chunks, voice, asked)
    lonely = sum(len(one.entities) < 2 for one in named)
    if lonely:
        asked.dropped["a document with a single entity"] += lonely
    for (one, places), said in answers(_wishes(named, asked), voice, asked):
        facts = {"entities": [one.entities[n].name for n in places], **({"cut": True} if said.value.cut else {})}
        first, number = one.entities[places[0]].chunk, "-".join(map(str, places))
        yield record_of(NAME, first, number, "", said.value.text, voice, said, **facts)


def _wishes(named: Sequence[Named], asked: Asked) -> Iterator[tuple[tuple[Named, tuple[int, ...]], Wish]]:
    for size in (2, 3):
        for one, places in turns(_subsets(one, size, asked) for one in named):
            yield (one, places), _wish(one, places, asked)


def _subsets(one: Named, size: int, asked: Asked) -> Iterator[tuple[Named, tuple[int, ...]]]:
    """Every subset of `size` entities once, in a drawn order; of many only the numbers of the order are held."""
    count = comb(len(one.entities), size)
    for rank in asked.order(count, NAME, one.chunks[0].document, size):
        yield one, subset(rank, len(one.entities), size)


def subset(rank: int, count: int, size: int) -> tuple[int, ...]:
    """The rank-th of the ascending subsets of range(count) in lexicographic order."""
    found: list[int] = []
    for n in range(count):
        if len(found) == size:
            break
        with_n = comb(count - n - 1, size - len(found) - 1)
        if rank < with_n:
            found.append(n)
        else:
            rank -= with_n
    return tuple(found)


def _wish(one: Named, places: tuple[int, ...], asked: Asked) -> Wish:
    some = [one.entities[n] for n in places]
    shown = tuple(dict.fromkeys(entity.chunk for entity in some))[:SHOWN]
    names = listed((f'"{entity.name}"' for entity in some), most=1000)
    about = f"The document these passages are from: {one.summary}\n\n" if one.summary else ""
    instruction = (
        f"Explain how {names} have to do with each other, in the light of this document: what each of them is, how one "
        "bears on the other, and what follows. Rely on the document alone. Keep to its language. Write only the "
        "explanation, in full sentences."
    )
    text = f"{about}Passages:\n\n{passage_of(shown)}\n\n{instruction}"
    passage = "\n".join(chunk.text for chunk in shown)
    return Wish((asked.request(text, NAME, one.chunks[0].document, *places), text_reader(instruction, passage)))
