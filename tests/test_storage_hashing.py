"""Equal inputs have equal hashes, different ones do not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ntk_jax.errors import UserError
from ntk_jax.storage.hashing import hash_model, hash_tree, sha256_file


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(UserError, match="cannot read .*none: No such file or directory; correct its path"):
        sha256_file(tmp_path / "none")


def test_different_trees_have_different_hashes() -> None:
    array = np.arange(6, dtype=np.float32)
    trees = [
        None,
        True,
        1,
        1.0,
        "1",
        b"1",
        [],
        {},
        [1],
        ["ab", "c"],
        ["a", "bc"],
        [["a"], "b"],
        [["a", "b"]],
        {"a": 1, "b": 2},
        {"a": 2, "b": 1},
        {"a": {"b": 1}},
        array,
        array.reshape(2, 3),
        array.astype(np.float64),
        array.view(np.int32),
        array[::-1],
        jnp.asarray(array, jnp.bfloat16),
        np.zeros(0),
        np.float32(1),
    ]
    assert len({hash_tree(tree) for tree in trees}) == len(trees)


def test_equal_trees_have_equal_hashes() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert hash_tree({"a": 1, "b": [array]}) == hash_tree({"b": (jnp.asarray(array),), "a": 1})
    assert hash_tree(array.T) == hash_tree(np.ascontiguousarray(array.T))
    assert hash_tree(b"ab") == hash_tree(bytearray(b"ab"))
    with pytest.raises(TypeError, match="cannot hash a set"):
        hash_tree({1, 2})


def test_a_model_is_what_decides_its_outputs(tmp_path: Path) -> None:
    for name in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_text(name)
    before = hash_model(tmp_path)
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "optimizer.pt").write_text("x")
    assert hash_model(str(tmp_path)) == before
    hashes = {before}
    for name in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_text("changed")
        hashes.add(hash_model(tmp_path))
    (tmp_path / "model-00002-of-00002.safetensors").write_text("new")
    hashes.add(hash_model(tmp_path))
    assert len(hashes) == 6


def test_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model; give a folder with config.json and "):
        hash_model(tmp_path)
    with pytest.raises(UserError, match="none is not a model folder; give a folder with config.json"):
        hash_model(tmp_path / "none")
