"""Near-duplicates: the estimate beside exact overlaps, the banding, and that order and batches change nothing."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntk_jax.data import near_duplicates as near
from ntk_jax.data.near_duplicates import MinHash, near_duplicates
from ntk_jax.data.words import bare_words


def words(count: int, first: int = 0) -> list[str]:
    return [f"w{number}" for number in range(first, first + count)]


def exact(a: str, b: str, length: int = 5) -> float:
    one, two = ({tuple(t.split()[i : i + length]) for i in range(len(t.split()) - length + 1)} for t in (a, b))
    return len(one & two) / len(one | two)


def test_copies_are_found_whatever_their_case_and_punctuation():
    texts = ["The cat sat on a mat, today.", "something else entirely is here", "the CAT sat on a mat today", ""]
    assert near_duplicates(texts).tolist() == [0, 1, 0, 3]
    assert near_duplicates(iter(texts)).tolist() == [0, 1, 0, 3]
    assert near_duplicates([]).tolist() == []
    assert near_duplicates(["", "...", "!"]).tolist() == [0, 0, 0]


def test_the_estimate_is_that_of_exact_overlaps():
    hashing = MinHash(permutations=1024)
    base = words(300)
    for cut in (10, 60, 150):
        a, b = " ".join(base), " ".join(base[cut:] + words(cut, 5000))
        estimate = float((near.signature(a, hashing) == near.signature(b, hashing)).mean())
        true = exact(a, b)
        assert abs(estimate - true) < 5 * np.sqrt(true * (1 - true) / 1024)


def test_datasketch_finds_the_same_overlaps():
    datasketch = pytest.importorskip("datasketch")

    def theirs(text):
        made = datasketch.MinHash(num_perm=512)
        parts = text.split()
        made.update_batch([" ".join(parts[i : i + 5]).encode() for i in range(len(parts) - 4)])
        return made

    a, b = " ".join(words(400)), " ".join(words(350) + words(50, 900))
    hashing = MinHash(permutations=512)
    ours = float((near.signature(a, hashing) == near.signature(b, hashing)).mean())
    assert abs(ours - theirs(a).jaccard(theirs(b))) < 0.1


def test_pairs_over_the_threshold_are_found_and_pairs_under_it_are_not():
    texts = []
    for number in range(60):
        base = words(200, 1000 * number)
        texts += [" ".join(base), " ".join([*base[:-4], "one", "two", "three", "four"])]  # 0.96
        texts += [" ".join(base[:100] + words(100, 1000 * number + 500))]  # 0.32
    first = near_duplicates(texts, 0.8)
    expected = [3 * (n // 3) if n % 3 < 2 else n for n in range(len(texts))]
    assert first.tolist() == expected


def test_a_band_is_shared_by_nearly_all_pairs_at_the_threshold():
    for threshold in (0.1, 0.5, 0.8, 0.95, 1.0):
        count, rows = near.bands(threshold, 128)
        assert count * rows <= 128
        assert 1 - (1 - threshold**rows) ** count >= 0.99
    for bad in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="threshold"):
            near.bands(bad, 128)


def test_signatures_are_these_bytes():
    """What was written yesterday, or by another machine, must fit what is written today."""
    made = near.signature("A page about the heart, its valves and how they are repaired.", MinHash())
    assert made.dtype == np.uint32 and made.shape == (128,)
    assert hashlib.sha256(made.tobytes()).hexdigest()[:16] == "e8ace5cd06476b1b"
    assert not np.array_equal(made, near.signature("A page about the heart", MinHash(seed=1)))


def test_chinese_is_cut_into_characters():
    assert bare_words("心臓 heart弁a") == ["心", "臓", "heart", "弁", "a"]


@given(st.lists(st.text(alphabet="abc ", max_size=30), max_size=12), st.sampled_from([0.3, 0.6, 1.0]))
def test_the_first_of_a_kind_is_kept_and_none_points_forward(texts, threshold):
    hashing = MinHash(words=2, permutations=32)
    first = near_duplicates(texts, threshold, hashing=hashing)
    assert (first <= np.arange(len(texts))).all() and (first[first] == first).all()
    kept = [text for ordinal, text in enumerate(texts) if first[ordinal] == ordinal]
    assert near_duplicates(kept, threshold, hashing=hashing).tolist() == list(range(len(kept)))


@given(st.text(max_size=200), st.integers(1, 6))
def test_shingles_are_the_different_runs_of_words(text, length):
    found = bare_words(text)
    length = min(length, len(found))
    runs = {tuple(found[i : i + length]) for i in range(len(found) - length + 1)} if found else set()
    assert len(near.shingles(text, max(length, 1))) == len(runs)


def test_a_long_text_takes_the_same_signature_in_parts(monkeypatch):
    text = " ".join(words(700))
    whole = near.signature(text)
    monkeypatch.setattr(near, "_SHINGLES", 64)
    assert np.array_equal(whole, near.signature(text))
