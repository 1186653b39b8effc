"""The neighbours of queries in a store of vectors, exactly and by faiss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ntk_jax.errors import UserError
from ntk_jax.mining import nearest as module
from ntk_jax.mining.nearest import faiss_index, nearest
from ntk_jax.storage import arrays

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((500, 12)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
QUERIES = VECTORS[[3, 77, 499]]


def assert_exact(score: np.ndarray, at: np.ndarray) -> None:
    right = -np.sort(-(QUERIES @ VECTORS.T), axis=1)[:, : score.shape[1]]
    assert np.allclose(score, right, atol=1e-5) and at[:, 0].tolist() == [3, 77, 499]
    assert np.allclose(np.einsum("qd,qkd->qk", QUERIES, VECTORS[at]), score, atol=1e-5)


def test_a_store_is_read_block_by_block(tmp_path: Path) -> None:
    store = arrays.create(tmp_path / "store", {"vectors": ((12,), np.float32)}, 500, 128)
    for block in range(store.blocks):
        start, stop = store.block_range(block)
        arrays.write_block(store, block, {"vectors": VECTORS[start:stop]})
    assert_exact(*nearest(store, QUERIES, 20))


def test_a_threshold_leaves_out_what_is_below() -> None:
    score, at = nearest([VECTORS[:200], VECTORS[200:]], QUERIES, 50, threshold=0.5)
    expected = ((QUERIES @ VECTORS.T) >= 0.5).sum(axis=1)
    assert ((at >= 0).sum(axis=1) == expected).all() and (score[at < 0] == -np.inf).all() and (expected < 50).all()


def test_fewer_vectors_than_neighbours() -> None:
    score, at = nearest([VECTORS[:4]], QUERIES, 9)
    assert (np.sort(at[:, :4], axis=1) == np.arange(4)).all() and (at[:, 4:] == -1).all()
    assert (score[:, 4:] == -np.inf).all()


def test_faiss_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    assert_exact(*nearest([VECTORS], QUERIES, 20, backend="faiss"))
    monkeypatch.setattr(module, "_EXACT_INDEX", 100)
    monkeypatch.setattr(module, "_SAMPLE", 4)
    index = faiss_index([VECTORS[:250], VECTORS[250:]])
    _, at = nearest([], QUERIES, 3, backend="faiss", index=index)
    assert at[:, 0].tolist() == [3, 77, 499], "an approximate index finds what is there itself"


def test_mistakes_are_one_line() -> None:
    for call, message in (
        (lambda: nearest([VECTORS], QUERIES, 0), "k = 0"),
        (lambda: nearest([VECTORS], QUERIES, 1, backend="usearch"), "give exact or faiss"),
        (lambda: nearest([VECTORS], QUERIES[:, :4], 1), "two encoders"),
        (lambda: nearest([], QUERIES, 1), "no vectors"),
    ):
        with pytest.raises(UserError, match=message):
            call()
