"""Study strategies that the model proposes itself and then applies ("Learning Facts at Scale with Active Reading",
arXiv 2508.09494)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ntk_jax.questions.methods.asked import Asked, Record, answers, by_document, record_of, within, worded
from ntk_jax.questions.methods.naming import parts_of
from ntk_jax.questions.methods.replies import array_reader, lines_reader, text_reader
from ntk_jax.questions.question import Chunk, passage_of
from ntk_jax.questions.voice import Voice, Wish

NAME = "strategies"
WANTED = 8  # strategies of a document
_SCHEMA = {
    "type": "object",
    "properties": {"strategies": {"type": "array", "items": {"type": "string"}}},
    "required": ["strategies"],
}


def strategies(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    """Asks for ways to study each document, then has every chunk studied in one of its document's ways, then in a
    second one, until the tokens or the ways are spent.

    Differs from Active Reading: strategies are proposed for a document's first part (`Asked.part_words`) and applied to
    its chunks, without a task in view; a reply that only copies its passage is refused.
    Raises UserError: no chunk holds a word, nothing usable came back; as `Voice.ask`.
    """
    return within(_studied(worded(chunks, asked), voice, asked), voice, asked, NAME)


def _studied(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    ways: dict[str, list[str]] = {}
    rows = by_document(chunks)
    for document, said in answers(((row[0].document, _proposal(row, asked)) for row in rows), voice, asked):
        ways[document] = said.value[:WANTED]
    asked.found["strategies"] = sum(map(len, ways.values()))
    left = [chunk for chunk in chunks if chunk.document in ways]
    if len(left) < len(chunks):
        asked.dropped["a chunk of a document without strategies"] += len(chunks) - len(left)
    for (chunk, number), said in answers(_wishes(left, ways, asked), voice, asked):
        facts = {"strategy": ways[chunk.document][number], **({"cut": True} if said.value.cut else {})}
        yield record_of(NAME, chunk, number, "", said.value.text, voice, said, **facts)


def _proposal(row: Sequence[Chunk], asked: Asked) -> Wish:
    part = parts_of(row, asked.part_words)[0]
    wish = (
        f"Document:\n\n{passage_of(part)}\n\nSomebody has to know this document by heart and be able to use it. "
        f"Propose {WANTED} different ways to study it that suit what it holds, each in one sentence that says what the "
        "learner is to write down. "
    )
    as_json = f'{wish}Answer with one JSON object and nothing else. Its key is "strategies", an array of texts.'
    as_text = f"{wish}Write one a line, and nothing else."
    names = (NAME, "proposal", part[0].document)
    return Wish(
        text=(asked.request(as_text, *names), lines_reader("strategies", 3, 80)),
        json=(
            asked.request(as_json, *names, schema=_SCHEMA),
            array_reader("strategies", 3, 80, ("strategy", "description", "text")),
        ),
    )


def _wishes(
    chunks: Sequence[Chunk], ways: dict[str, list[str]], asked: Asked
) -> Iterator[tuple[tuple[Chunk, int], Wish]]:
    orders = [asked.order(len(ways[chunk.document]), NAME, chunk.id) for chunk in chunks]
    for round in range(max(map(len, orders), default=0)):
        for n in asked.order(len(chunks), NAME, "round", round):
            if round < len(orders[n]):
                number = orders[n][round]
                yield (chunks[n], number), _wish(chunks[n], ways[chunks[n].document][number], number, asked)


def _wish(chunk: Chunk, way: str, number: int, asked: Asked) -> Wish:
    instruction = (
        f"Study this passage in this way: {way}\n\nWrite out in full what comes of it, with the passage's own facts, "
        "names and numbers, and in its language. Write only that."
    )
    text = f"Passage:\n\n{passage_of((chunk,))}\n\n{instruction}"
    return Wish((asked.request(text, NAME, chunk.id, number), text_reader(instruction, chunk.text)))
