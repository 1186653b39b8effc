"""Questions and grounded answers without a target and without feedback: the loop's questions at round 0, asked until
there are enough. What the loop is worth shows against these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ntk_jax.data.near_duplicates import like, signature
from ntk_jax.questions.methods.asked import Asked, Record, answered, record_of, waves, within, worded
from ntk_jax.questions.question import Answer, Chunk, Slot
from ntk_jax.questions.slots import part_of
from ntk_jax.questions.verify import fault_of_answer, found_quotes
from ntk_jax.questions.voice import Voice, Wish, seed_of
from ntk_jax.questions.wording import answer_wish, question_wish

NAME = "static"
PARTS = 4  # of a chunk, which its questions go through in turn
MOST = 40  # questions of a chunk at most
_QUESTION_TOKENS = 120
ALIKE = 0.7  # Jaccard similarity from which on a question is the same as an earlier one


def static(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    """One question of every chunk, then a second of every chunk, and so on, each with an answer from the chunk whose
    quote stands there (or is found there). Raises UserError: none came, with the commonest reasons."""
    yield from within(_records(worded(chunks, asked), voice, asked), voice, asked, NAME)


def _records(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    known: dict[str, list[str]] = {chunk.id: [] for chunk in chunks}
    heard: dict[str, list[np.ndarray]] = {chunk.id: [] for chunk in chunks}  # their signatures
    for number in range(MOST):
        slots = [Slot(f"{chunk.id}/{number}", "answerable", (chunk,), number) for chunk in chunks]
        wishes = [(slot, _question(slot, known[slot.chunks[0].id], asked)) for slot in slots]
        fresh = False
        # Question and answer of a wave before the next, so that no more is asked for than is needed.
        for part in waves(wishes, asked.wave):
            questions = [(slot, str(said.value)) for slot, said in answered(part, voice, asked)]
            questions = [pair for pair in questions if not _repeats(pair[1], heard[pair[0].chunks[0].id], asked)]
            for slot, question in questions:
                known[slot.chunks[0].id].append(question)
            given = [
                ((s, q), answer_wish(s, q, seed=seed_of(asked.seed, NAME, s.id, "answer"), max_tokens=asked.max_tokens))
                for s, q in questions
            ]
            for (slot, question), said in answered(given, voice, asked):
                fresh = True
                answer: Answer = found_quotes(slot, said.value)
                fault = fault_of_answer(slot, answer)
                if fault is not None:
                    asked.dropped[fault] += 1
                    continue
                facts = {"quotes": list(answer.quotes), "kind": slot.kind, "chunks": [slot.chunks[0].id]}
                yield record_of(NAME, slot.chunks[0], number, question, answer.text, voice, said, **facts)
        if not fresh:
            return


def _question(slot: Slot, earlier: Sequence[str], asked: Asked) -> Wish:
    return question_wish(
        slot,
        earlier,
        part_of(slot.chunks[0].text, slot.number % PARTS, PARTS),
        seed=seed_of(asked.seed, NAME, slot.id),
        sample=0,
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=_QUESTION_TOKENS,
    )


def _repeats(question: str, heard: list[np.ndarray], asked: Asked) -> bool:
    """Whether a question is like an earlier one, whose signatures it joins if it is not."""
    own = signature(question)
    if heard and like(np.stack(heard), own, ALIKE).any():
        asked.dropped["nearly the same words as an earlier question"] += 1
        return True
    heard.append(own)
    return False
