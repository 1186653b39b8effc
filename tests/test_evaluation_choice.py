"""Choice likelihoods with the prompt shared, against every (prompt, choice) read on its own with whole logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_reference import tiny_model
from small_tokenizers import CHAT, byte_tokenizer

from ntk_jax.data.tokens import ChoiceRow
from ntk_jax.errors import UserError
from ntk_jax.evaluation.choice import choice_log_likelihoods, score_choice_rows
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix
from ntk_jax.models.model import Model
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.training.flops import forward_flops

RECORDS: list[dict[str, Any]] = [
    {"id": "q1", "prompt": "The sky is", "choices": ["blue", "a kind of cheese", "up"], "answer": 0},
    {"id": "q2", "prompt": "Two and two?\n", "choices": ["4", "22"], "answer": 0},
    {"id": "q3", "prompt": "Who came?", "choices": ["I", "you", "he", "she", "nobody at all"], "answer": 4},
]


def text_model(family: str = "llama", chat: str | None = None) -> Model:
    return replace(tiny_model(family, vocab_size=300), tokenizer=byte_tokenizer(chat=chat, adds_bos=True))


def random_questions(count: int, seed: int = 0) -> list[ChoiceRow]:
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(0, 97, rng.integers(low, high)).astype(np.int32)

    return [
        ChoiceRow(ids(1, 12), tuple(ids(1, 6) for _ in range(rng.integers(2, 5))), f"q{number}")
        for number in range(count)
    ]


def alone(model: Model, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Sum of log p(choice | prompt) of each pair, one a row, by log_softmax of the whole logits."""
    length = max(len(prompt) + len(choice) for prompt, choice in pairs)
    ids = np.zeros((len(pairs), length), np.int32)
    counted = np.zeros((len(pairs), length - 1))
    for row, (prompt, choice) in enumerate(pairs):
        whole = np.concatenate([prompt, choice])
        ids[row, : len(whole)] = whole
        counted[row, len(prompt) - 1 : len(whole) - 1] = 1.0
    positions = np.broadcast_to(np.arange(length), ids.shape)

    @jax.jit
    def log_probs(base: Any) -> jax.Array:
        hidden = hidden_states(model.graphdef, model.lora, base, ids, positions, np.ones_like(ids))
        logits = jax.nn.log_softmax(hidden @ head_matrix(base).T)
        return jnp.take_along_axis(logits[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]

    return (np.asarray(log_probs(model.base), np.float64) * counted).sum(axis=1)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_shared_prompt_changes_no_number(family: str) -> None:
    model, rows = tiny_model(family), random_questions(12)
    expected = alone(model, [(row.prompt, choice) for row in rows for choice in row.choices])
    for batch_tokens in (64, 4096):
        values = score_choice_rows(model, rows, batch_tokens=batch_tokens)
        assert [len(v) for v in values] == [len(row.choices) for row in rows]
        np.testing.assert_allclose(np.concatenate(values), expected, rtol=1e-5, atol=1e-5)


def test_devices_do_not_matter() -> None:
    model, rows = tiny_model(), random_questions(12)
    one = np.concatenate(score_choice_rows(model, rows))
    many = np.concatenate(score_choice_rows(model, rows, batch_tokens=512, mesh=make_mesh(4, 2)))
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chat", [None, CHAT])
def test_records_are_scored_as_their_text_reads(chat: str | None) -> None:
    model = text_model(chat=chat)
    notes: list[tuple[int, int]] = []
    scores = choice_log_likelihoods(
        model, RECORDS, max_length=60, progress=lambda *note: notes.append(note), batch_tokens=128
    )

    def ids(text: str) -> np.ndarray:
        return np.asarray(model.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    pairs = []
    for record in RECORDS:
        prompt = f"<|user|>{record['prompt']}<|end|><|assistant|>" if chat else record["prompt"]
        words = prompt.rstrip()  # white space at the end belongs to the choice, and one space is there at least
        gap = "" if chat else prompt[len(words) :] or " "
        pairs += [(ids("<bos>" + words), ids(gap + choice)) for choice in record["choices"]]
    values = [v for v in scores.log_likelihoods if v is not None]
    np.testing.assert_allclose(np.concatenate(values), alone(model, pairs), rtol=1e-5, atol=1e-5)
    lengths = [v for v in scores.lengths if v is not None]
    assert np.concatenate(lengths).tolist() == [len(choice) for _, choice in pairs]
    assert scores.dropped == {} and scores.label_tokens == sum(len(choice) for _, choice in pairs)
    first = np.cumsum([0] + [len(record["choices"]) for record in RECORDS[:-1]])
    assert scores.tokens == scores.label_tokens + sum(len(pairs[i][0]) for i in first)  # each prompt once
    adapter = sum(leaf.size for leaf in jax.tree.leaves(model.lora))
    assert scores.flops == forward_flops(model.config, scores.tokens, scores.label_tokens, lora_parameters=adapter)
    assert notes[-1][:2] == (3, 3)
    assert [note[0] for note in notes] == sorted(note[0] for note in notes)


def test_long_questions_are_counted_and_left_out() -> None:
    model = text_model()
    long = {"id": "long", "prompt": "x" * 100, "choices": ["a", "b"], "answer": 1}
    scores = choice_log_likelihoods(model, [RECORDS[0], long, RECORDS[1]], max_length=40)
    assert scores.dropped == {"too long": 1} and scores.reasons == [None, "too long", None]
    cut = choice_log_likelihoods(model, [RECORDS[0], long, RECORDS[1]], max_length=40, overflow="truncate")
    assert cut.dropped == {} and all(values is not None for values in cut.log_likelihoods)
    assert scores.log_likelihoods[1] is None and scores.lengths[1] is None
    expected = choice_log_likelihoods(model, RECORDS[:2], max_length=40).log_likelihoods
    answered = [v for v in scores.log_likelihoods if v is not None]
    for got, want in zip(answered, expected, strict=True):
        assert want is not None
        np.testing.assert_allclose(got, want, rtol=1e-5)
    assert choice_log_likelihoods(model, [long], max_length=40).log_likelihoods == [None]


def test_user_mistakes() -> None:
    model = text_model()
    plain = {"id": "p7", "prompt": "a", "response": "b"}
    for record, message in (
        (plain, "exam.jsonl: record 'p7' has no choices; evaluation needs multiple-choice records"),
        (plain | {"choices": ["a"], "answer": 0}, "exam.jsonl: record 'p7' has fewer than two choices"),
        (plain | {"choices": ["a", "b"]}, "exam.jsonl: the answer of record 'p7' is None"),
        (plain | {"choices": ["a", "b"], "answer": 2}, "exam.jsonl: the answer of record 'p7' is 2; .* its 2 choices"),
        (plain | {"choices": ["a", "b"], "answer": True}, "exam.jsonl: the answer of record 'p7' is True"),
    ):
        with pytest.raises(UserError, match=message):
            choice_log_likelihoods(model, [RECORDS[0], record], max_length=40, where="exam.jsonl")
    with pytest.raises(UserError, match="there are no questions"):
        choice_log_likelihoods(model, [], max_length=40)
    with pytest.raises(UserError, match="random was loaded without a tokenizer"):
        choice_log_likelihoods(tiny_model(), RECORDS, max_length=40)
    broken = replace(model, base={**model.base, "norm": model.base["norm"] * jnp.nan})
    with pytest.raises(UserError, match="exam.jsonl: question 'q1' has a log likelihood that is not finite"):
        choice_log_likelihoods(broken, RECORDS, max_length=60, where="exam.jsonl")
