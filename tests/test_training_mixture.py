"""Mixtures of texts: shares and budgets are exact, order and rows are functions of the step, nothing is read twice."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_texts import random_texts, store_of
from small_tokenizers import byte_tokenizer

from ntk_jax.data.token_store import write_tokens
from ntk_jax.errors import UserError
from ntk_jax.training.mixture import Mixture, mix
from ntk_jax.training.optimizer import TrainConfig

L = 16


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("texts")
    return {
        "mined": store_of(home / "mined", random_texts(9, seed=1), block_characters=100),
        "general": store_of(home / "general", random_texts(40, seed=2, letters="ijklmnop ")),
        "more": store_of(home / "more", random_texts(20, seed=3)),
    }


def mixture(texts: dict[str, Any], shares: dict[str, float] | None = None, **changes: Any) -> Mixture:
    options: dict[str, Any] = dict(tokens=3000, row_length=L, batch_size=4, seed=5) | changes
    return mix(texts, shares or {"mined": 0.25, "general": 0.75}, **options)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(2, 4000),
    batch_size=st.integers(1, 9),
    shares=st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9)),
    seed=st.integers(0, 3),
)
def test_every_token_of_the_budget_once(
    texts: dict[str, Any], tokens: int, batch_size: int, shares: tuple[int, int, int], seed: int
) -> None:
    given_shares = dict(zip(texts, map(float, shares), strict=True))
    feed = mixture(texts, given_shares, tokens=tokens, batch_size=batch_size, seed=seed)
    steps = [feed.rows_of(step) for step in range(feed.steps)]
    assert [row for rows in steps for row in rows] == list(range(feed.examples))
    sizes = [len(rows) for rows in steps]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    windows = [feed.window(row) for row in range(feed.examples)]
    assert sum(stop - start for *_, start, stop in windows) == tokens
    assert max(Counter(window[:3] for window in windows).values()) == 1  # no window twice in one pass
    read = Counter[str]()
    for row, (name, _, start, stop) in enumerate(windows):
        read[name] += 1
        for other, share in given_shares.items():  # at every moment
            assert abs(read[other] - (row + 1) * share / sum(shares)) < 1.5
        assert start % L == 0 and stop <= texts[name].tokens
    about = feed.account()
    assert sum(each["tokens"] for each in about.values()) == tokens
    for name, each in about.items():
        own = [window for window in windows if window[0] == name]
        assert each["tokens"] == sum(stop - start for *_, start, stop in own)
        assert int(np.ceil(each["passes"])) == len({epoch for _, epoch, *_ in own})


def test_turns_go_on_behind_their_period(texts: dict[str, Any]) -> None:
    feed = mixture(texts, {"mined": 1.0, "general": 2.0}, tokens=L * 25_000)
    rows = [feed.window(row) for row in (0, 9_999, 10_000, 10_001, 20_000, 24_999)]
    counted = Counter(name for name in feed.turns for _ in range(2))
    assert counted[0] == 2 * 3333 and counted[1] == 2 * 6667
    windows = texts["mined"].tokens // L
    assert feed.account()["mined"]["passes"] == pytest.approx(25_000 / 3 / windows, rel=1e-3)
    # An epoch of a source holds all its windows, also across the border of the pattern.
    own = [feed.window(row) for row in range(9_000, 12_000)]
    epochs = Counter(epoch for name, epoch, *_ in own if name == "mined")
    inner = sorted(epochs)[1:-1]
    assert len(inner) > 10 and {epochs[epoch] for epoch in inner} == {windows}
    assert rows == [feed.window(row) for row in (0, 9_999, 10_000, 10_001, 20_000, 24_999)]


def test_rows_hold_the_documents_pieces(texts: dict[str, Any]) -> None:
    feed = mixture(texts)
    shapes = feed.shapes(TrainConfig(tokens_per_microbatch=2 * L), 1)
    assert (shapes.rows, shapes.labels) == (2, 32)
    for step in range(feed.steps):
        rows, packed = feed.step(step, shapes)
        assert {batch.batch.tokens.shape for batch in packed} == {(2, L)}
        assert {batch.batch.label_target.shape for batch in packed} == {(1, 32)}
        assert sum(len(row.ids) for row in rows) == sum(
            stop - start for *_, start, stop in map(feed.window, feed.rows_of(step))
        )
        labels = 0
        for batch in packed:
            for tokens, segments, positions, index in zip(
                batch.batch.tokens, batch.batch.segments, batch.batch.positions, batch.index, strict=True
            ):
                for segment in range(1, segments.max() + 1):
                    piece = rows[index[segment - 1]]
                    assert tokens[segments == segment].tolist() == piece.ids.tolist()
                    assert positions[segments == segment].tolist() == list(range(len(piece.ids)))
            labels += int((batch.batch.label_segment > 0).sum())
        assert labels == sum(len(row.ids) - 1 for row in rows)


def test_arms_read_what_they_share_alike(texts: dict[str, Any]) -> None:
    """The same general text in the same order, whatever stands beside it, and as many rows of it."""

    def general(feed: Mixture) -> list[tuple[str, int, int, int]]:
        return [window for window in map(feed.window, range(feed.examples)) if window[0] == "general"]

    one, other = (general(mixture(texts, {name: 0.25, "general": 0.75})) for name in ("mined", "more"))
    assert one == other
    assert general(mixture(texts, seed=6)) != one
    alone = general(mixture(texts, {"general": 1.0}))
    assert alone[: len(one)] == [(*window[:3], window[2] + L) for window in one]  # the budget's end cut the last one
    assert mixture(texts, {"mined": 0.25, "general": 0.75, "more": 0.0}).sources.keys() == {"mined", "general"}


def test_what_is_refused(texts: dict[str, Any], tmp_path: Path) -> None:
    def refused(message: str, shares: Any = None, **changes: Any) -> None:
        with pytest.raises(UserError, match=message):
            mixture(texts, shares, **changes)

    refused("tokens = 1, row_length = 16 and batch_size = 4 train nothing", tokens=1)
    refused("a share of minde, but no text of that name; there are mined, general, more", {"minde": 1.0})
    for shares in ({"mined": 0.0}, {"mined": -0.5, "general": 1.0}, {"mined": float("nan")}):
        refused("must be numbers of at least 0", shares)
    refused("the text mined has .* tokens, fewer than a row of 4096; give more text", row_length=4096)
    records = [{"id": "a", "prompt": "", "response": "some words of another tokenizer"}]
    other = write_tokens(tmp_path, lambda start: itertools.islice(records, start, None), byte_tokenizer(eos=False))
    with pytest.raises(UserError, match="general, other were written with different tokenizers"):
        mix({**texts, "other": other}, {"general": 0.5, "other": 0.5}, tokens=99, row_length=8, batch_size=1)
