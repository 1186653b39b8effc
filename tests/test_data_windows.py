"""Texts cut into windows, and windows laid in rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_encoder import write_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from ntk_jax.data.windows import SHORTEST_ROW, WindowTokens, batches, fill, plan_rows, row_length


def cutter(folder: Path, max_tokens: int) -> WindowTokens:
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return WindowTokens(tokenizer, (2,), (3,), max_tokens)


def test_windows_hold_the_whole_text_in_parts_of_about_one_length(tmp_path: Path) -> None:
    cut = cutter(tmp_path, 10)
    for words in (0, 1, 8, 9, 17, 100):
        (windows,) = cut.windows(["heart " * words])
        assert sum(len(window) - 2 for window in windows) == words and len(windows) == max(1, -(-words // 8))
        assert all(window[0] == 2 and window[-1] == 3 and len(window) <= 10 for window in windows)
        assert max(map(len, windows)) - min(map(len, windows)) <= 1
        (first,) = cut.windows(["heart " * words], first_only=True)
        assert len(first) == 1 and len(first[0]) == min(words, 8) + 2


def test_a_prefix_stands_before_every_window(tmp_path: Path) -> None:
    cut = cutter(tmp_path, 10)
    prefix = cut.tokenizer.encode("query : ", add_special_tokens=False).ids
    (windows,) = cut.windows(["heart " * 20], "query : ")
    assert len(windows) == 4 and all(window[1:3].tolist() == prefix for window in windows)
    assert sum(len(window) - 4 for window in windows) == 20


def test_a_space_that_is_part_of_the_first_word_belongs_to_the_text() -> None:
    words = {"\u2581query:": 0, "\u2581": 1, "\u2581the": 2, "\u2581heart": 3, "?": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # as XLM-RoBERTa's: a space stands before its word
    cut = WindowTokens(tokenizer, (), (), 8)
    assert tokenizer.encode("query: ").ids == [0, 1]
    (windows,) = cut.windows(["the" + " heart" * 20], "query: ")
    assert [2 in window for window in windows] == [True, False, False]
    assert all(window[0] == 0 for window in windows) and sum(len(window) - 1 for window in windows) == 21


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 256), max_size=60),
    batch_tokens=st.sampled_from([64, 512, 4096]),
    multiple=st.sampled_from([1, 3, 8]),
)
def test_every_window_is_in_one_place_alone(lengths: list[int], batch_tokens: int, multiple: int) -> None:
    windows = [np.arange(1, length + 1, dtype=np.int32) for length in lengths]
    rows = plan_rows(lengths, 256, 16)
    found: list[int] = []
    for planned in batches(rows, batch_tokens, multiple):
        batch = fill(planned, windows, 16)
        count, length = batch.tokens.shape
        assert count % multiple == 0 and length <= 256 and (count == multiple or count * length <= batch_tokens)
        for b, s in np.argwhere(batch.index >= 0):
            own = batch.segments[b] == s + 1
            ordinal = int(batch.index[b, s])
            assert np.array_equal(batch.tokens[b, own], windows[ordinal])
            assert np.array_equal(batch.positions[b, own], np.arange(lengths[ordinal]))
            found.append(ordinal)
    assert sorted(found) == list(range(len(lengths)))


def test_rows_are_few_in_kind_and_little_of_them_is_padding() -> None:
    kinds = {row_length(longest, 256) for longest in range(1, 257)}
    assert len(kinds) == 13 and min(kinds) == SHORTEST_ROW and max(kinds) == 256
    lengths = np.random.default_rng(0).integers(3, 250, 2000).tolist()
    rows = plan_rows(lengths, 256, 16)
    assert sum(length for length, _ in rows) < 1.05 * sum(lengths)
