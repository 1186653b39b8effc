"""`nj.log_likelihoods` against whole logits."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_calls import logits_of
from small_tokenizers import byte_tokenizer

import ntk_jax as nj
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.model import random_model


def test_log_likelihoods_are_those_of_whole_logits() -> None:
    model = replace(random_model(ModelConfig("llama", 264, 32, 48, 1, 2, 2, 16)), tokenizer=byte_tokenizer())
    span = nj.Span(max_length=64, overflow="drop")
    records = [{"prompt": "A dog " * 200, "response": "barks"}, {"prompt": "A cat", "response": "purrs loudly"}]
    left_out, found = nj.log_likelihoods(model, records, span=span)
    _, row = nj.token_rows(model, records, span=span)
    assert row is not None and np.isnan(left_out)
    log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(logits_of(model, [row.ids]))[0]))
    labels = np.flatnonzero(row.span[:-1])  # a token of the span predicts the next one
    assert len(labels) > 3 and found == pytest.approx(log_probs[labels, row.ids[labels + 1]].sum(), rel=2e-5)
