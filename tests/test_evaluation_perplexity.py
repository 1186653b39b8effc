"""Perplexity of held-out text against one document at a time with whole logits, its units, and its intervals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_calls import logits_of
from small_texts import TOKENIZER, VOCABULARY, random_texts, reading_model, records_of
from small_tokenizers import byte_tokenizer, learnt_tokenizer

from ntk_jax.errors import UserError
from ntk_jax.evaluation.perplexity import _windows, compare_perplexities, held_out_text, perplexities
from ntk_jax.parallel.mesh import make_mesh

TEXTS = [*random_texts(5, seed=1, lengths=(9, 30)), "na\u00efve \u6f22\u5b57!"]


def nats_of(model: Any, ids: list[int], window: int, overlap: int = 1) -> float:
    """Of all tokens but the first, from whole logits of windows written out."""
    total, start, done = 0.0, 0, 1
    while done < len(ids):
        part = ids[start : start + window]
        log_probs = jax.nn.log_softmax(jnp.asarray(logits_of(model, [part]))[0])
        for place in range(done - start, len(part)):
            total -= float(log_probs[place - 1, part[place]])
        done = start + len(part)
        start = done - overlap
    return total


@pytest.mark.parametrize(("window", "overlap"), [(64, 1), (10, 1), (10, 4)])
def test_nats_are_those_of_whole_logits(window: int, overlap: int) -> None:
    model = reading_model()
    held = held_out_text(records_of(TEXTS), TOKENIZER, row_length=window, overlap=overlap)
    found = perplexities(model, held, batch_tokens=64)
    for text, document in zip(TEXTS, found["documents"], strict=True):
        ids = TOKENIZER(text)["input_ids"]
        assert document["tokens"] == len(ids) - 1
        assert document["nats"] == pytest.approx(nats_of(model, ids, window, overlap), rel=2e-5)  # type: ignore[arg-type]
    assert found["tokens"] == sum(len(row.ids) for row in held.rows)


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 70), st.integers(2, 20), st.data())
def test_windows_predict_every_token_once(length: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, window - 1))
    ids = np.arange(length, dtype=np.int32)
    rows = _windows(ids, window, overlap, "a")
    predicted = [int(row.ids[place + 1]) for row in rows for place in np.flatnonzero(row.span[:-1])]
    assert predicted == list(range(1, length))
    assert all(len(row.ids) <= window and not row.span[-1] for row in rows)
    for row in rows[1:]:
        assert row.span[: overlap - 1].sum() == 0 and row.span[overlap - 1]


def test_bytes_are_those_of_what_is_predicted() -> None:
    held = held_out_text(records_of(TEXTS), TOKENIZER, row_length=64)
    assert [each["bytes"] for each in held.documents] == [len(text.encode()) - 1 for text in TEXTS]
    with_bos = held_out_text(records_of(TEXTS), byte_tokenizer(adds_bos=True), row_length=64)
    assert [each["bytes"] for each in with_bos.documents] == [len(text.encode()) for text in TEXTS]
    assert [each["tokens"] for each in with_bos.documents] == [len(text.encode()) for text in TEXTS]
    words = "The cat sat on the mat"
    learnt = learnt_tokenizer("byte level", adds_bos=False)
    (document,) = held_out_text(records_of([words]), learnt, row_length=64).documents
    assert document["bytes"] == len(words) - len(learnt.tokenize(words)[0])

    cut = held_out_text(records_of(TEXTS), TOKENIZER, row_length=64, most_tokens=8)
    assert [(each["tokens"], each["bytes"]) for each in cut.documents[:-1]] == [(7, 7)] * (len(TEXTS) - 1)

    short = held_out_text(records_of(["a", "two words"]), TOKENIZER, row_length=64)
    assert short.dropped == {"fewer than two tokens": 1} and len(short.documents) == 1


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity() -> None:
    """Of known value: all logits equal, so ln V nats a token, and log2 V bits a byte where a token is a byte."""
    model = reading_model()
    uniform = replace(model, base={**model.base, "head": jnp.zeros_like(model.base["head"])})
    held = held_out_text(records_of(TEXTS), TOKENIZER, row_length=16)
    arms = {name: {"texts": perplexities(each, held)["documents"]} for name, each in (("u", uniform), ("m", model))}
    (about,) = compare_perplexities(arms, bootstrap=200)
    assert (about["name"], about["documents"], about["tokens"]) == ("texts", len(TEXTS), about["bytes"])
    found = about["results"]["u"]
    for key, value in (
        ("loss", np.log(VOCABULARY)),
        ("perplexity", VOCABULARY),
        ("bits_per_byte", np.log2(VOCABULARY)),
    ):
        assert [found[key][end] for end in ("value", "low", "high")] == pytest.approx([value] * 3, rel=1e-5)
    other = about["results"]["m"]
    total = sum(each["nats"] for each in arms["m"]["texts"])
    assert other["loss"]["value"] == pytest.approx(total / about["tokens"])
    assert other["loss"]["low"] < other["loss"]["value"] < other["loss"]["high"]
    (pair,) = about["paired"]
    assert (pair["a"], pair["b"]) == ("m", "u")
    assert pair["difference"] == pytest.approx(other["loss"]["value"] - found["loss"]["value"])
    assert pair["low"] <= pair["difference"] <= pair["high"]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Documents drawn from a known mean: a 90% interval misses it in about one draw in ten."""
    rng = np.random.default_rng(0)
    missed = 0
    for draw in range(200):
        tokens = rng.integers(20, 60, 40)
        nats = tokens * rng.normal(3.0, 0.5, 40)
        documents = [
            {"id": str(i), "tokens": int(t), "bytes": int(t), "nats": float(n)}
            for i, (t, n) in enumerate(zip(tokens, nats, strict=True))
        ]
        (about,) = compare_perplexities({"a": {"s": documents}}, bootstrap=200, confidence=0.9, seed=draw)
        loss = about["results"]["a"]["loss"]
        missed += not loss["low"] <= 3.0 <= loss["high"]
    assert 8 <= missed <= 40  # 20 of 200 expected; 5 standard deviations


def test_devices_do_not_matter() -> None:
    model, held = reading_model(), held_out_text(records_of(TEXTS), TOKENIZER, row_length=16)
    one, many = (
        [each["nats"] for each in perplexities(model, held, batch_tokens=64, mesh=mesh)["documents"]]
        for mesh in (None, make_mesh(4, 2))
    )
    assert many == pytest.approx(one, rel=1e-5)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r"the file: no document to measure perplexity on \(all 2 have fewer than two"):
        held_out_text(records_of(["a", "b"]), TOKENIZER, row_length=8, where="the file")
    with pytest.raises(UserError, match="no document to measure perplexity on .there are none"):
        held_out_text([], TOKENIZER, row_length=8)
    with pytest.raises(UserError, match="overlap = 8 must be at least 1 and less than the 8 tokens"):
        held_out_text(records_of(TEXTS), TOKENIZER, row_length=8, overlap=8)
    with pytest.raises(UserError, match="most_tokens = 1 leaves nothing to predict"):
        held_out_text(records_of(TEXTS), TOKENIZER, row_length=8, most_tokens=1)
    model = reading_model()
    broken = replace(model, base={**model.base, "norm": model.base["norm"] * jnp.nan})
    with pytest.raises(UserError, match="document '0' has a loss that is not finite"):
        perplexities(broken, held_out_text(records_of(TEXTS), TOKENIZER, row_length=16))
    with pytest.raises(UserError, match="no arms to compare"):
        compare_perplexities({})
    documents = [{"id": "a", "tokens": 3, "bytes": 3, "nats": 1.0}]
    with pytest.raises(UserError, match="arms x and y read other documents of s"):
        compare_perplexities({"x": {"s": documents}, "y": {"s": [{**documents[0], "tokens": 4}]}})
