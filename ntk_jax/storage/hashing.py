"""SHA-256 of files, of nested data and of models: how a run notices that its inputs have changed."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.parallel.hosts import parts_on_host

# What decides a model's outputs on a text. Anything else in the folder (a README, an optimiser state) does not count.
_MODEL_FILES = (
    "config.json",
    "*.safetensors",
    "adapter_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
)


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes. Raises UserError: the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; correct its path or its permissions") from None


def hash_tree(tree: Any) -> str:
    """Hexadecimal SHA-256 of nested dicts and sequences of arrays, numbers, texts and bytes.

    Every value enters with its type, and arrays with dtype and shape, so that different trees have different hashes;
    the order of a dict's keys does not matter. Raises TypeError for anything else.
    """
    digest = hashlib.sha256()
    _feed(digest, tree)
    return digest.hexdigest()


def hash_model(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a model folder: configuration, weights and tokenizer, with their file names.

    path: a folder in Hugging Face or PEFT format. Raises UserError: not such a folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path} is not a model folder; give a folder with config.json and *.safetensors")
    files = sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern) if file.is_file()})
    if not files:
        raise UserError(f"{path} holds no model; give a folder with config.json and *.safetensors")
    return hash_tree({file.name: sha256_file(file) for file in files})


def _feed(digest: Any, value: Any) -> None:
    def tagged(tag: bytes, data: Any) -> None:
        # the length in front keeps neighbours apart: ["ab", "c"] is not ["a", "bc"]
        digest.update(tag + struct.pack("<q", memoryview(data).nbytes))
        digest.update(data)

    if value is None or isinstance(value, (bool, int, float)):
        tagged(b"v", repr(value).encode())
    elif isinstance(value, str):
        tagged(b"s", value.encode("utf8", "surrogatepass"))
    elif isinstance(value, (bytes, bytearray, memoryview)):
        tagged(b"b", value)
    elif isinstance(value, Mapping):
        tagged(b"d", struct.pack("<q", len(value)))
        for key in sorted(value, key=str):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        tagged(b"l", struct.pack("<q", len(value)))
        for item in value:
            _feed(digest, item)
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        tagged(b"a", f"{value.dtype}{value.shape}".encode())
        digest.update(b"b" + struct.pack("<q", value.size * value.dtype.itemsize))
        for part in parts_on_host(value) if value.size else ():
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
    else:
        raise TypeError(f"cannot hash a {type(value).__name__}")
