"""The order in which several domains take their turns."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ntk_jax.mining.turns import in_turn


@given(st.integers(0, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_every_prefix_has_the_best_of_every_column(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, allowed = rng.integers(0, 4, (rows, columns)).astype(np.float32), rng.random((rows, columns)) < 0.7
    for mask in (allowed, None):
        order = in_turn(scores, mask)
        whole = np.ones_like(allowed) if mask is None else mask
        assert sorted(order) == np.flatnonzero(whole.any(axis=1)).tolist()
        for column in range(columns):
            own = np.flatnonzero(whole[:, column])
            ranked = own[np.argsort(-scores[own, column], kind="stable")]
            for taken in range(
                1, len(ranked) + 1
            ):  # the first `taken` of a column are within the first columns x taken
                assert set(ranked[:taken]) <= set(order[: taken * columns])


def test_one_column_is_its_own_order_and_scales_do_not_matter() -> None:
    scores = np.array([[0.1, 90.0], [0.3, 10.0], [0.2, 80.0]])
    assert in_turn(scores[:, :1]).tolist() == [1, 2, 0]
    assert in_turn(scores).tolist() == in_turn(scores * [50.0, 0.01]).tolist() == [1, 0, 2]
