"""The user's own documents as the labelled set: cut into chunks as the corpus is, each with the domains it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ntk_jax.data.chunks import chunks_of
from ntk_jax.errors import UserError
from ntk_jax.mining.seeds.own import seeds_of_documents

EVERY = "*"  # a file whose records name their domains themselves
_WHOLE = 10**9  # words: no document is cut short


def labelled_documents(
    files: Mapping[str, Sequence[str]], names: Sequence[str], *, words: int, min_words: int = 1
) -> list[dict[str, Any]]:
    """The chunks {"text", "domains", "document"} of own documents, those of a document one behind the other.

    files: {domain, or `*`: its files}. A text that is there under several domains is one document of all of them.
    words: of a chunk at most; one with fewer than `min_words` is left out, unless its document has no other.
    Raises UserError: a file that cannot be read, an unknown domain, a domain of `names` without a document.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, paths in files.items():
        for one in seeds_of_documents(list(paths), None if name == EVERY else name, names, max_words=_WHOLE):
            where = f"{one.facts['source']}, {one.facts['document']}"
            known = found.setdefault(one.text, {"document": where, "domains": []})
            known["domains"] += [own for own in one.domains if own not in known["domains"]]
    bare = [name for name in names if not any(name in each["domains"] for each in found.values())]
    if bare:
        raise UserError(f"{bare[0]} has no labelled document; give it files, or leave the domain out")
    rows = []
    for text, facts in found.items():
        cut = chunks_of(text, words)
        long = [(start, stop) for start, stop, count in cut if count >= min_words] or [cut[0][:2]]
        rows += [{"text": text[start:stop], **facts} for start, stop in long]
    return rows
