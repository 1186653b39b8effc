"""Hashed n-grams, and the linear classifier on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.mining.classifier import load_head
from ntk_jax.mining.hashing import blocks_of, hashed_counts, hashed_ngrams, total_counts, words_of
from ntk_jax.mining.ngrams import NgramConfig, load_ngrams, train_ngrams

QUICK = NgramConfig(buckets=512, steps=120, batch=64)
FIELDS = {
    "medicine": "dose fever patient nurse vein",
    "law": "court clause judge tort lease",
    "": "tree river bread sky",
}
texts = st.text(alphabet="ab Éé_1.\n", max_size=30)


def corpus(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Texts of 12 words, five of them of a field, and the labels of medicine and law."""
    rng = np.random.default_rng(seed)
    common, made, labels = ["the", "of", "and", "to", "in", "is", "it", "that"], [], []
    for _ in range(count):
        field = str(rng.choice(list(FIELDS), p=[0.25, 0.25, 0.5]))
        words = [*rng.choice(FIELDS[field].split(), 5), *rng.choice(common, 7)]
        made.append(" ".join(rng.permutation(words)))
        labels.append([field == "medicine", field == "law"])
    return made, np.array(labels, np.float32)


@settings(deadline=None)
@given(texts, st.integers(1, 3), st.sampled_from([7, 1 << 20]))
def test_every_run_of_words_is_an_ngram(text, longest, buckets):
    words = words_of(text)
    found = hashed_ngrams(text, buckets, longest)
    expected = [
        int(hashed_ngrams(" ".join(words[start : start + length]), buckets, length)[-1])
        for length in range(1, longest + 1)
        for start in range(len(words) - length + 1)
    ]
    assert found.tolist() == expected and ((found >= 0) & (found < buckets)).all()
    places, times = hashed_counts(text, buckets, longest)
    np.testing.assert_array_equal(np.repeat(places, times), np.sort(found))
    np.testing.assert_array_equal(total_counts([text, text], 7, longest), 2 * total_counts([text], 7, longest))


def test_the_same_buckets_on_every_machine():
    assert hashed_ngrams("The court, the COURT", 10_000).tolist() == [3077, 4771, 3077, 4771, 7097, 976, 7097]


def test_order_matters_to_pairs():
    assert hashed_ngrams("a b", 1 << 30)[-1] != hashed_ngrams("b a", 1 << 30)[-1]


def test_buckets_are_even():
    found = hashed_ngrams(" ".join(f"word{n}" for n in range(20_000)), 64)
    counts = np.bincount(found, minlength=64)
    assert len(found) == 39_999 and np.ptp(counts) < 6 * np.sqrt(len(found) / 64)


def test_blocks_in_order():
    assert list(blocks_of("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]] and list(blocks_of([], 2)) == []


def test_it_finds_the_domains_and_reads_back(tmp_path: Path):
    train, labels = corpus(500, seed=0)
    labels[::7, 0] = np.nan
    model = train_ngrams(train, labels, ["medicine", "law"], config=QUICK)
    unseen, truth = corpus(300, seed=1)
    probabilities = model.probabilities(unseen)
    assert ((probabilities >= model.thresholds) == truth).mean() > 0.97
    assert model.probabilities(iter([])).shape == (0, 2) and np.isfinite(model.probabilities(["", "?"])).all()
    np.testing.assert_allclose(model.logits(unseen, rows=7), model.logits(unseen), rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "c")
    np.testing.assert_array_equal(load_ngrams(tmp_path / "c").probabilities(unseen), probabilities)
    with pytest.raises(UserError, match="of the kind 'n-grams', not 'embedding head'"):
        load_head(tmp_path / "c")
    again = train_ngrams(train, labels, ["medicine", "law"], config=QUICK)
    np.testing.assert_array_equal(again.weights["w"], model.weights["w"])


def test_the_logit_is_the_formula():
    train, labels = corpus(60, seed=0)
    model = train_ngrams(train, labels, ["medicine", "law"], config=QUICK)
    places, times = hashed_counts(train[0], 512, 2)
    value = (1 + np.log(times)) * model.weights["idf"][places]
    by_hand = value / np.linalg.norm(value) @ model.weights["w"][places] + model.weights["b"]
    np.testing.assert_allclose(model.logits(train[:1])[0], by_hand, rtol=1e-4, atol=1e-5)


def test_labels_in_random_order_teach_nothing():
    train, labels = corpus(500, seed=0)
    shuffled = labels[np.random.default_rng(0).permutation(500)]
    model = train_ngrams(train, shuffled, ["medicine", "law"], config=QUICK)
    unseen, truth = corpus(300, seed=1)
    right, wrong = (model.probabilities(unseen)[:, 0][truth[:, 0] == value].mean() for value in (1, 0))
    assert abs(right - wrong) < 0.15


def test_a_domain_without_positives():
    with pytest.raises(UserError, match="the domain law has no positive example"):
        train_ngrams(["a", "b"], np.array([[1.0, 0.0], [0.0, 0.0]]), ["medicine", "law"], config=QUICK)
