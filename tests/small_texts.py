"""Small stores of tokens and a model that reads them, for the tests of continual pre-training."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from kernel_reference import tiny_model
from small_tokenizers import byte_tokenizer

from ntk_jax.data.sources import read_records
from ntk_jax.data.token_store import TokenStore, write_tokens
from ntk_jax.models.model import Model, without_adapter

TOKENIZER = byte_tokenizer()
VOCABULARY = len(TOKENIZER)


def random_texts(
    count: int, *, seed: int = 0, letters: str = "abcdefgh ", lengths: Sequence[int] = (1, 9, 40, 90)
) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(letters), rng.choice(lengths))) for _ in range(count)]


def records_of(texts: Sequence[str]) -> list[dict[str, Any]]:
    return list(
        read_records([{"id": f"{number}", "source": "made", "text": text} for number, text in enumerate(texts)])
    )


def store_of(folder: Path, texts: Sequence[str], **options: Any) -> TokenStore:
    records = records_of(texts)

    def rest(start: int) -> Iterator[dict[str, Any]]:
        return itertools.islice(records, start, None)

    return write_tokens(folder, rest, TOKENIZER, **options)


@functools.cache
def reading_model(adapter: bool = True) -> Model:
    """A tiny model with the byte tokenizer; without an adapter its weights alone."""
    model = replace(tiny_model(vocab_size=VOCABULARY), tokenizer=TOKENIZER)
    return model if adapter else without_adapter(model)
