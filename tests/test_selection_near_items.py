"""Evaluation items that are found by their embeddings, in blocks, against all cosines at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ntk_jax as nj
from ntk_jax.errors import UserError
from ntk_jax.selection import near_items
from ntk_jax.selection.clean import NEAR_ITEM
from ntk_jax.selection.near_items import NearItems, nearest_items

POOL = [{"prompt": f"{word} is red", "response": "Yes"} for word in ("one", "two", "three")]
ITEMS = [{"id": "q0", "prompt": "Name a colour", "response": "Red"}, {"id": "q1", "prompt": "Is it", "response": "No"}]
PLANE = np.array([[2.0, 0.0], [0.6, 0.8], [0.0, -1.0]]), np.array([[5.0, 0.0], [0.0, 0.1]])


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 1000),
    st.sampled_from([1, 3, 7]),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([np.float16, np.float32]),
)
def test_the_nearest_of_all_items_whatever_the_blocks(seed: int, block: int, at_once: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    rows, items = rng.normal(size=(8, 3)).astype(dtype), rng.normal(size=(5, 3)).astype(dtype)
    rows[2], rows[5], items[1], items[3] = 0.0, np.nan, 0.0, items[4]
    cosines = np.full((8, 5), -np.inf)
    for i, row in enumerate(rows.astype(float)):
        for j, item in enumerate(items.astype(float)):
            if row.any() and item.any():
                cosines[i, j] = row @ item / np.linalg.norm(row) / np.linalg.norm(item)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_items, "ITEMS_AT_ONCE", at_once)
        nearest, found = nearest_items((rows[i : i + block] for i in range(0, 8, block)), items)
    known = [i for i in range(8) if i not in (2, 5)]
    assert np.isnan(found[[2, 5]]).all()
    np.testing.assert_allclose(found[known], cosines[known].max(axis=1), atol=1e-6)
    np.testing.assert_allclose(cosines[known, nearest[known]], cosines[known].max(axis=1), atol=1e-6)
    assert 4 not in nearest and 1 not in nearest[known], "the first of equals, and no item without a direction"


def test_what_has_no_embedding_is_not_compared() -> None:
    check = NearItems(0.9, ("a",), ("file",), np.zeros(3, np.int64), np.array([0.95, 0.85, np.nan], np.float32), 1)
    refusal = check.refuse(0)
    assert refusal and (refusal.reason, refusal.of, refusal.where) == (NEAR_ITEM, "a", "file")
    assert refusal.similarity == pytest.approx(0.95) and check.refuse(1) is None and check.refuse(2) is None


def test_what_is_the_same_has_a_cosine_of_one() -> None:
    """Whatever rounding makes of it."""
    rows = np.random.default_rng(0).normal(size=(200, 48)).astype(np.float16)
    nearest, cosine = nearest_items([rows], rows)
    check = NearItems(1.0, [str(n) for n in range(200)], ["file"] * 200, nearest, cosine, 200)
    assert all(check.refuse(place) is not None for place in range(200))


def test_decontaminate_by_words_first_and_then_by_embeddings() -> None:
    drops = nj.decontaminate(POOL, ITEMS, shortest=9, cosine=0.75, embeddings=PLANE)
    assert [(d.place, d.refusal.reason, d.refusal.of) for d in drops] == [(0, NEAR_ITEM, "q0"), (1, NEAR_ITEM, "q1")]
    assert [d.refusal.similarity for d in drops] == pytest.approx([1.0, 0.8])
    by_words = [*ITEMS, {"id": "q2", "prompt": "one is red", "response": "Yes"}]
    embeddings = PLANE[0], np.vstack([PLANE[1], [[1.0, 0.0]]])
    drops = nj.decontaminate(POOL, by_words, shortest=3, cosine=0.75, embeddings=embeddings)
    assert [(d.place, d.refusal.reason) for d in drops] == [(0, "contamination"), (1, NEAR_ITEM)]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"cosine": 0.9}, "cosine and embeddings go together"),
        ({"embeddings": PLANE}, "cosine and embeddings go together"),
        ({"cosine": 0.0, "embeddings": PLANE}, "cosine = 0.0: a threshold is a number above 0"),
        ({"cosine": "0.9", "embeddings": PLANE}, "cosine = '0.9': a threshold is a number above 0"),
        ({"cosine": 0.9, "embeddings": PLANE[0]}, "embeddings are two"),
        ({"cosine": 0.9, "embeddings": (PLANE[0], np.full_like(PLANE[1], np.nan))}, "all are zero or not finite"),
        ({"cosine": 0.9, "embeddings": (PLANE[0], PLANE[1][:1])}, r"shapes \(3, 2\) and \(1, 2\); give"),
        ({"cosine": 0.9, "embeddings": (PLANE[0][:2], PLANE[1])}, "more records than the 2 embeddings"),
        ({"cosine": 0.9, "embeddings": (np.ones((4, 2)), PLANE[1])}, "3 records and 4 embeddings"),
    ],
)
def test_bad_input(given_: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        nj.decontaminate(POOL, ITEMS, shortest=9, **given_)
