"""The documents as they are: continual pre-training on the raw text, without a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ntk_jax.questions.methods.asked import Asked, Record, within, worded
from ntk_jax.questions.question import Chunk
from ntk_jax.questions.voice import Voice

NAME = "documents"


def documents(chunks: Sequence[Chunk], voice: Voice, asked: Asked) -> Iterator[Record]:
    """Each chunk once as a text, in a drawn order, so that few tokens are of all documents and not of the first alone.

    voice: is not asked. Raises UserError: no chunk holds a word.
    """
    found = worded(chunks, asked)
    return within((_record(found[n]) for n in asked.order(len(found), NAME)), voice, asked, NAME)


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
