"""A pad token that was added to a tokenizer and never given a row of the embedding.

Many fine-tuning scripts add one, with the first id behind the vocabulary, and do not resize the model. Padding here is
by position and needs no token, so that it can go. It must go: a text that spells it out would be read as an id without
a row, where the model knows ordinary characters.
"""

from __future__ import annotations

import json
from typing import Any

# What `from_pretrained` notes about where a tokenizer comes from, beside what it is made of.
_PLACES = ("vocab_file", "tokenizer_file", "name_or_path", "is_local", "local_files_only", "added_tokens_decoder")


def is_only_beyond(tokenizer: Any, rows: int) -> bool:
    """True where the pad token is the one token whose id is not below `rows`, and was added to the vocabulary."""
    beyond = {name for name, number in tokenizer.get_vocab().items() if number >= rows}
    return beyond == {tokenizer.pad_token} and tokenizer.pad_token in tokenizer.get_added_vocab()


def without_pad(tokenizer: Any) -> Any:
    """The tokenizer without its pad token: a text that spells it out is ordinary characters."""
    from tokenizers import Tokenizer

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != tokenizer.pad_token]
    spec["padding"] = None
    kept = {key: value for key, value in tokenizer.init_kwargs.items() if key not in _PLACES and key != "pad_token"}
    return type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), **kept)
