"""The documents as they are: continual pre-training on the raw text, without a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ntk_jax.questions.methods.asked import Asked, Record, worded
from ntk_jax.questions.question import Chunk
from ntk_jax.questions.voice import Voice

NAME = "documents"


def documents(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    """Each chunk once as a text, in a drawn order. They cost no call, so all of them are given, also where fewer have
    the tokens that are asked for: an arm that reads a part of the documents over and over is no fair one.

    voice: is not asked. Raises UserError: no chunk holds a word.
    """
    found = worded(chunks, asked)
    return (_record(found[n]) for n in asked.order(len(found), NAME))


def _record(chunk: Chunk) -> Record:
    return {
        "id": f"{NAME}:{chunk.id}:0",
        "source": chunk.source,
        "prompt": "",
        "response": chunk.text,
        "document_id": chunk.document,
        "method": NAME,
        "chunk": chunk.id,
    }
