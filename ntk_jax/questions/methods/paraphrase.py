"""The documents in other words, as in the literature on rephrasing for pre-training (WRAP, arXiv 2401.16380)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ntk_jax.questions.methods.asked import Asked, Record, answers, record_of, within, worded
from ntk_jax.questions.methods.replies import text_reader
from ntk_jax.questions.question import Chunk, passage_of
from ntk_jax.questions.voice import Voice, Wish

NAME = "paraphrase"
STYLES = {
    "plain": "in plain, everyday words and short sentences",
    "encyclopaedia": "as an entry of an encyclopaedia: neutral, exact and complete",
    "dialogue": "as a series of questions, each followed by its full answer",
    "expert": "for an expert of the field, in its own terms, as briefly as exactness allows",
    "child": "for a child of ten, with every hard word explained",
    "lecture": "as a teacher who explains it aloud, step by step",
    "letter": "as a letter to a colleague who has to act on it",
    "notes": "as notes to learn from: one statement a line, with nothing left out",
}


def paraphrase(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    """Every chunk in one style, then every chunk in a second one, until the tokens or the styles are spent.

    Differs from WRAP: eight styles instead of four, drawn for each chunk in an order of its own, and a reply that
    copies its passage is refused. Raises UserError: no chunk holds a word, nothing usable came back; as `Voice.ask`.
    """
    return within(_rewritten(worded(chunks, asked), voice, asked), voice, asked, NAME)


def _rewritten(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    for (chunk, style), said in answers(_wishes(chunks, asked), voice, asked):
        facts = {"style": style, **({"cut": True} if said.value.cut else {})}
        yield record_of(NAME, chunk, style, "", said.value.text, voice, said, **facts)


def _wishes(chunks: Sequence[Chunk], asked: Asked) -> Iterator[tuple[tuple[Chunk, str], Wish]]:
    styles = list(STYLES)
    orders = [asked.order(len(styles), NAME, chunk.id) for chunk in chunks]
    for round in range(len(styles)):
        for n in asked.order(len(chunks), NAME, "round", round):
            style = styles[orders[n][round]]
            yield (chunks[n], style), _wish(chunks[n], style, asked)


def _wish(chunk: Chunk, style: str, asked: Asked) -> Wish:
    instruction = (
        f"Say what this passage says once more, {STYLES[style]}. Keep every fact, name, date and number, and add none; "
        "use other words and another order of sentences. Keep to the language of the passage. Write only the new text."
    )
    passage = passage_of((chunk,))
    request = asked.request(f"Passage:\n\n{passage}\n\n{instruction}", NAME, chunk.id, style)
    return Wish((request, text_reader(instruction, chunk.text)))
