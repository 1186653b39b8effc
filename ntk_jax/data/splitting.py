"""Documents apart: which of them a model is trained on, and which it never sees.

Questions about one document share its words, so that a split by question lets a model answer from what it has read. A
document's place in the order is a hash of its name, so it does not depend on what other documents there are, and a
larger share only adds to a smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ntk_jax.errors import UserError


def split_documents(names: Iterable[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """(trained, unseen): the documents, each once, in the order given.

    names: of documents; those that occur again count once. share: of them that are trained on, between 0 and 1; where
    there are two or more, each side has one at least. Raises UserError: a share outside, no documents.
    """
    found = list(dict.fromkeys(map(str, names)))
    if not found:
        raise UserError("there are no documents to split; give at least one")
    if not 0.0 < share < 1.0:
        raise UserError(f"the share of documents to train on is {share}; give a number between 0 and 1")
    count = round(share * len(found))
    if len(found) > 1:
        count = min(max(count, 1), len(found) - 1)
    trained = set(
        sorted(found, key=lambda name: hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest())[:count]
    )
    return [name for name in found if name in trained], [name for name in found if name not in trained]
