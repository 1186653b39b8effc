"""Rankings by embeddings against cosines that are written out, and what is wrong with an embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.selection.embedding import EmbeddingOptions, rank
from ntk_jax.selection.ranker import Candidates, Embeddings


def candidates_of(
    pool: np.ndarray,
    domain: np.ndarray,
    count: int,
    *,
    usable: np.ndarray | None = None,
    cuts: Sequence[int] = (),
    places: np.ndarray | None = None,
) -> Candidates:
    """Those of a pool's embeddings [n, D], which come in blocks that end at `cuts`."""
    places = np.arange(len(pool)) if places is None else places
    size = int(places.max(initial=-1)) + 1
    return Candidates(
        count=count,
        seed=0,
        usable=np.ones(size, bool) if usable is None else usable,
        length=np.ones(size, np.int32),
        span=np.ones(size, np.int32),
        records=lambda: iter([{"id": f"p-{i}", "prompt": "", "response": "r"} for i in range(size)]),
        domain=[{"id": f"d-{i}"} for i in range(len(domain))],
        embeddings=Embeddings(lambda: iter(np.split(pool, list(cuts))), places, domain),
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def taking_turns(cosines: np.ndarray, count: int) -> list[int]:
    """[m, n]: each domain example in its turn takes its nearest that nobody has taken."""
    order: list[int] = []
    while len(order) < count:
        row = cosines[len(order) % len(cosines)]
        order.append(min((i for i in range(len(row)) if i not in order), key=lambda i: (-row[i], i)))
    return order


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 25), m=st.integers(1, 6), data=st.data())
def test_nearness_is_what_it_says(seed, n, m, data):
    rng = np.random.default_rng(seed)
    pool, domain = rng.standard_normal((n, 4)) * rng.gamma(1.0, size=(n, 1)), rng.standard_normal((m, 4))
    usable = rng.random(n) < 0.8
    usable[rng.integers(n)] = True
    kept = np.flatnonzero(usable)
    count = data.draw(st.integers(1, len(kept)))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
    candidates = candidates_of(pool, domain, count, usable=usable, cuts=cuts)
    cosines = np.array([[cosine(pool[i], d) for i in kept] for d in domain])
    for by, expected in (("mean", cosines.mean(axis=0)), ("max", cosines.max(axis=0))):
        found = rank(candidates, EmbeddingOptions(by))
        np.testing.assert_allclose(found.scores[kept], expected, atol=1e-6)
        assert np.isnan(found.scores[~usable]).all() and len(set(found.order.tolist())) == count
        assert usable[found.order].all() and (np.diff(found.scores[found.order]) <= 0).all()
        assert np.sort(expected)[-count] <= expected[np.searchsorted(kept, found.order)].min() + 1e-6
    turns = rank(candidates, EmbeddingOptions("round_robin"))
    assert turns.order.tolist() == kept[taking_turns(cosines.astype(np.float32), count)].tolist()


def test_places_that_are_not_all_of_the_pool():
    """As after pre-selection: the third embedding is of place 7."""
    pool, domain = np.eye(4), np.eye(4)[2:3]
    found = rank(candidates_of(pool, domain, 1, places=np.array([1, 4, 7, 9]), cuts=[1]), EmbeddingOptions("max"))
    assert found.order.tolist() == [7] and np.flatnonzero(~np.isnan(found.scores)).tolist() == [1, 4, 7, 9]


def test_one_domain_example_takes_every_turn():
    pool = np.array([[1, 0], [1, 1], [0, 1]], np.float16)
    for by in ("mean", "max", "round_robin"):
        assert rank(candidates_of(pool, np.array([[0, 3.0]]), 3), EmbeddingOptions(by)).order.tolist() == [2, 1, 0]


def test_more_domain_examples_than_turns():
    """The first `count` of the domain take one each."""
    found = rank(candidates_of(np.eye(6), np.eye(6)[[4, 1, 3, 0]], 2), EmbeddingOptions("round_robin"))
    assert found.order.tolist() == [4, 1]


def test_norms_do_not_count_however_large():
    pool = np.array([[1e30, 0], [0, 1e-30], [1e25, 1e25]], np.float32)
    found = rank(candidates_of(pool, np.array([[1e30, 1e30]], np.float32), 3), EmbeddingOptions("max"))
    np.testing.assert_allclose(found.scores, [0.5**0.5, 0.5**0.5, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.0, "is zero, so it is near to nothing"), (np.nan, "is not finite"), (np.inf, "is not finite")],
)
def test_embeddings_without_a_direction_are_named(value, message):
    broken, domain = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:2]
    broken[1] = value
    with pytest.raises(UserError, match=f"^pool example 'p-1': its embedding {message}"):
        rank(candidates_of(broken, domain, 1, cuts=[1]), EmbeddingOptions())
    usable = np.array([True, False, True])
    rank(candidates_of(broken, domain, 1, usable=usable), EmbeddingOptions())  # what is not usable may be anything
    with pytest.raises(UserError, match=f"^domain example 'd-1': its embedding {message}"):
        rank(candidates_of(np.eye(3), broken, 1), EmbeddingOptions())

    def gone():
        raise UserError("no records")

    bare = dataclasses.replace(candidates_of(broken, domain, 1), records=gone, domain=[])
    with pytest.raises(UserError, match="^pool example number 1: its embedding"):
        rank(bare, EmbeddingOptions())


def test_no_domain_and_another_number_of_rows():
    with pytest.raises(UserError, match="compares with the domain's embeddings, and there are none"):
        rank(candidates_of(np.eye(3), np.zeros((0, 3)), 1), EmbeddingOptions())
    for rows in (2, 4):
        with pytest.raises(UserError, match="there are 3 places and another number of embeddings"):
            rank(candidates_of(np.eye(4)[:rows], np.eye(4), 1, places=np.arange(3)), EmbeddingOptions())
    with pytest.raises(UserError, match="there are 3 places and another number of embeddings"):
        rank(candidates_of(np.eye(4), np.eye(4), 1, places=np.arange(3), cuts=[3]), EmbeddingOptions())
