"""The model's own yes or no about a text: what it is computed from, and the arm of a mining run that goes by it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_reference import tiny_config
from small_tokenizers import byte_tokenizer
from tiny_mine import mine_config, write_mine_inputs
from tiny_run import quiet

from ntk_jax import pipelines
from ntk_jax.data.templates import Rendering
from ntk_jax.data.tokens import encode_question
from ntk_jax.engine.plan import Command
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.mining.autods import PLAIN_END, QUESTION, yes_log_odds, yes_scores
from ntk_jax.mining.turns import in_turn
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix
from ntk_jax.models.model import Model, random_model
from ntk_jax.pipelines.mine import arms
from ntk_jax.pipelines.mine.state import open_run
from ntk_jax.storage.arrays import done_blocks, open_store

TEXTS = ["the heart", "a court of law and of stone", "", "blood " * 9]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module")
def model() -> Model:
    tokenizer = byte_tokenizer()
    config = tiny_config("llama", vocab_size=len(tokenizer), num_layers=1, hidden_size=16, intermediate_size=24)
    config = dataclasses.replace(config, max_positions=512)
    return dataclasses.replace(random_model(config, std=0.3), tokenizer=tokenizer)


def with_chat(model: Model) -> Model:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    return dataclasses.replace(model, tokenizer=tokenizer)


def by_hand(model: Model, ids: list[int], answers: str) -> float:
    """Odds of two characters behind tokens, from all logits of this text alone."""
    tokens = np.asarray([ids], np.int32)
    hidden = hidden_states(
        model.graphdef, model.lora or {}, model.base, tokens, np.arange(len(ids))[None], np.ones_like(tokens)
    )
    logits = np.asarray(hidden[0, -1], np.float64) @ np.asarray(head_matrix(model.base), np.float64).T
    yes, no = (model.tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in answers)  # type: ignore[misc]
    return float(logits[yes] - logits[no])


def test_scores_are_those_of_each_text_alone(model: Model) -> None:
    """A chat model's answer begins with its letter; all texts of one call are packed."""
    chatting, asked = with_chat(model), QUESTION.format(name="law", description="courts")
    expected = []
    for text in TEXTS:
        turns = [{"role": "user", "content": f"{text}\n\n{asked}"}]
        expected.append(by_hand(chatting, encode_question(turns, chatting.tokenizer)[0], "YN"))
    seen: list[tuple[int, int]] = []
    found = yes_log_odds(chatting, TEXTS, "law", "courts", progress=lambda *now: seen.append(now))
    assert found.dtype == np.float32 and seen[-1] == (4, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len(set(np.round(found, 4))) == 4
    scores = yes_scores(chatting, TEXTS, "law", "courts")
    np.testing.assert_allclose(scores, np.exp(expected) / (np.exp(expected) + 1), rtol=1e-4)
    assert np.abs(found - yes_log_odds(chatting, TEXTS, "medicine", "hearts")).max() > 1e-3
    assert yes_scores(chatting, [], "law", "courts").shape == (0,)


def test_a_long_text_loses_its_start_and_never_the_question(model: Model) -> None:
    chatting = with_chat(model)
    room = len(encode_question([{"role": "user", "content": QUESTION}], chatting.tokenizer)[0]) + 30
    long, end = "x" * 300 + " at the very end", "y" * 300 + " at the very end"
    found = yes_log_odds(chatting, [long + "z" * 40, end + "z" * 40], "law", "courts", max_length=room)
    assert found[0] == pytest.approx(found[1], abs=1e-6)  # what differs was cut
    with pytest.raises(
        UserError, match="text 0: the question leaves no room for a text in 60 tokens; raise max_length"
    ):
        yes_log_odds(chatting, [long], "law", "courts", max_length=60)


def test_what_cannot_be_asked(model: Model) -> None:
    with pytest.raises(UserError, match="loaded without a tokenizer"):
        yes_log_odds(dataclasses.replace(model, tokenizer=None), TEXTS, "law", "courts")
    assert PLAIN_END.endswith(":")  # a byte tokenizer writes the space before both answers by itself
    with pytest.raises(UserError, match="begins YES and NO with the same token"):
        yes_log_odds(model, TEXTS, "law", "courts", rendering=Rendering("plain"))


def test_the_arm_scores_the_corpus_once_block_by_block(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Path = tmp_path_factory.mktemp("autods")
    write_mine_inputs(folder)
    config = mine_config(folder, pretrain={"tokens": 600, "arms": ["autods"]})
    run_folder = pipelines.run("mine", config, Command(only="corpus"), progress=quiet)
    run, asked, most = open_run(config, Job(run_folder, quiet)), [], [3]
    words = {"medicine": "heart", "law": "court"}

    def odds(model: Any, texts: list[str], name: str, description: str, **options: Any) -> np.ndarray:
        if len(asked) == most[0]:
            raise KeyboardInterrupt
        asked.append((name, len(texts)))
        assert options["max_length"] == 64 and description
        return np.asarray([text.lower().count(words[name]) for text in texts], np.float32)

    monkeypatch.setattr(arms, "yes_log_odds", odds)
    monkeypatch.setattr(arms, "ODDS_BLOCK", 100)
    (run_folder / "pretrain").mkdir()
    with pytest.raises(KeyboardInterrupt):
        arms.chunks_of(run, "autods")  # in the second block, between two domains
    store = open_store(run_folder / "pretrain" / arms.ODDS)
    assert set(done_blocks(store)) == {0} and store.blocks == 2
    asked.clear()
    order = arms.chunks_of(run, "autods")
    assert asked == [("medicine", store.rows - 100), ("law", store.rows - 100)]
    most[0] = 2  # nothing is asked again
    assert sorted(order) == list(range(store.rows)) and arms.chunks_of(run, "autods").tolist() == order.tolist()
    texts = [text.lower() for _, text in arms.texts_of(run, "autods")]
    counts = np.array([[text.count(word) for word in words.values()] for text in texts])
    assert in_turn(counts.astype(np.float32)).tolist() == list(range(len(texts)))  # they are in their order
    assert (counts[:2].max(axis=0) == counts.max(axis=0)).all() and counts[0].max() > counts[-1].max()
