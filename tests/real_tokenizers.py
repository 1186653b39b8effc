"""Tokenizers of real models, from files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer


@functools.cache
def real_tokenizer(folder: Path) -> Any:
    """Read once a process, for it takes seconds; so no test may change it."""
    return AutoTokenizer.from_pretrained(folder)
