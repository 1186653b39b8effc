"""The search of a block against the whole matrix of scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.mining.search import Block, best_of_block, merge_top
from ntk_jax.mining.seed_layout import lay_out


def drawn(
    chunks: int, seeds: int, domains: int, number: int, most: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(vectors, owner, seeds, domains of seeds) at random, unit vectors of 16 numbers."""
    random = np.random.default_rng(number)
    owner = np.repeat(np.arange(chunks), random.integers(1, most + 1, chunks))
    vectors, of_seeds = random.standard_normal((len(owner), 16)), random.standard_normal((seeds, 16))
    mask = random.random((seeds, domains)) < 0.4
    mask[np.arange(seeds), random.integers(0, domains, seeds)] = True
    unit = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (vectors, of_seeds)]
    return unit[0], owner, unit[1], mask


def chunk_scores(vectors: np.ndarray, owner: np.ndarray, seeds: np.ndarray, combine: str) -> np.ndarray:
    """[n, S] in fp64, chunk by chunk."""
    scores = vectors.astype(np.float64) @ seeds.T.astype(np.float64)
    reduce = np.max if combine == "best" else np.mean
    return np.stack([reduce(scores[owner == chunk], axis=0) for chunk in range(owner[-1] + 1)])


def assert_right(block: Block, scores: np.ndarray, mask: np.ndarray, top: int, first: int, close: float) -> None:
    """Values agree with the matrix; a seed or chunk may be another one only where its score is as good."""
    n, _ = scores.shape
    for m in range(mask.shape[1]):
        among = np.where(mask[:, m], scores, -np.inf)
        if not mask[:, m].any():
            assert (block.best[:, m] == -np.inf).all() and (block.best_seed[:, m] == -1).all()
            continue
        assert np.abs(block.best[:, m] - among.max(axis=1)).max() < close
        assert mask[block.best_seed[:, m], m].all()
        assert np.abs(scores[np.arange(n), block.best_seed[:, m]] - block.best[:, m]).max() < 1e-5
    k = min(top, n)
    right = -np.sort(-scores.T, axis=1)[:, :k]
    assert np.abs(block.top_score[:, :k] - right).max() < close
    chunk = block.top_chunk[:, :k] - first
    assert np.abs(np.take_along_axis(scores.T, chunk, axis=1) - block.top_score[:, :k]).max() < 1e-5
    assert all(len(set(row)) == k for row in chunk.tolist())
    assert (block.top_chunk[:, k:] == -1).all() and (block.top_score[:, k:] == -np.inf).all()


@settings(max_examples=12, deadline=None)
@given(
    chunks=st.integers(1, 150),
    seeds=st.integers(1, 30),
    domains=st.integers(1, 5),
    top=st.sampled_from([1, 3, 200]),
    combine=st.sampled_from(["best", "mean"]),
    number=st.integers(0, 99),
)
def test_a_block_is_what_the_whole_matrix_says(
    chunks: int, seeds: int, domains: int, top: int, combine: str, number: int
) -> None:
    vectors, owner, of_seeds, mask = drawn(chunks, seeds, domains, number)
    block = best_of_block(vectors, owner, chunks, of_seeds, mask, top=top, combine=combine, first=10**12)
    assert_right(block, chunk_scores(vectors, owner, of_seeds, combine), mask, top, 10**12, 1e-5)


def test_many_seeds_and_chunks_take_several_steps() -> None:
    vectors, owner, of_seeds, mask = drawn(700, 1100, 6, 0, most=1)
    mask[:, 5] = False
    mask[~mask.any(axis=1), 0] = True
    block = best_of_block(vectors, owner, 700, lay_out(of_seeds, mask), top=5)
    assert_right(block, chunk_scores(vectors, owner, of_seeds, "best"), mask, 5, 0, 1e-5)


def test_bf16_is_scored_again_in_fp32() -> None:
    vectors, owner, of_seeds, mask = drawn(200, 60, 3, 1)
    block = best_of_block(vectors, owner, 200, of_seeds, mask, top=4, dtype="bfloat16")
    assert_right(block, chunk_scores(vectors, owner, of_seeds, "best"), mask, 4, 0, 8e-3)


@pytest.mark.parametrize("top", [7, 40])
def test_merged_blocks_are_one_block(top: int) -> None:
    """With and without the floor that the blocks before have set, below which nothing needs to be sorted."""
    vectors, owner, of_seeds, mask = drawn(300, 20, 2, 2)
    whole = best_of_block(vectors, owner, 300, of_seeds, mask, top=top)
    for with_floor in (True, False):
        score, chunk = np.full((20, top), -np.inf, np.float32), np.full((20, top), -1)
        for start, stop in ((0, 3), (3, 200), (200, 290), (290, 300)):
            here = (owner >= start) & (owner < stop)
            above = score[:, -1] if with_floor else None
            own = owner[here] - start
            block = best_of_block(vectors[here], own, stop - start, of_seeds, mask, top=top, first=start, above=above)
            score, chunk = merge_top((score, chunk), (block.top_score, block.top_chunk))
        assert np.allclose(score, whole.top_score, atol=1e-6) and np.array_equal(chunk, whole.top_chunk)


def test_mistakes_are_one_line() -> None:
    vectors, owner, of_seeds, mask = drawn(5, 4, 2, 3)
    bad = vectors.copy()
    bad[-1, 0] = np.nan
    nobody = mask.copy()
    nobody[2] = False
    for call, message in (
        (lambda: best_of_block(vectors[:, :8], owner, 5, of_seeds, mask, top=1), "two encoders"),
        (lambda: best_of_block(bad, owner, 5, of_seeds, mask, top=1), "chunk 4 of this block holds NaN"),
        (lambda: best_of_block(vectors, owner, 6, of_seeds, mask, top=1), "each of the 6 chunks"),
        (lambda: best_of_block(vectors, owner, 5, of_seeds, mask, top=0), "top = 0"),
        (lambda: best_of_block(vectors, owner, 5, of_seeds, top=1), "with domains of shape"),
        (lambda: lay_out(of_seeds, nobody), "seed 2 has no domain"),
        (lambda: lay_out(bad, np.ones((len(bad), 1), bool)), "holds NaN or Inf"),
    ):
        with pytest.raises(UserError, match=message):
            call()
