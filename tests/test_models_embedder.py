"""Embedders against transformers and against vectors computed here in another way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_encoder import TEXTS, write_encoder

from ntk_jax.errors import UserError
from ntk_jax.models.embedder import Embedder, load_embedder
from ntk_jax.parallel.mesh import make_mesh

TOLERANCE = 1e-5


def states_of(folder: Path, texts: list[str], max_tokens: int) -> list[np.ndarray]:
    """Of each text [T, D] by transformers, one text at a time: nothing is padded."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = load_embedder(str(folder)).tokens.tokenizer
    found = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        ids = ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]]
        with torch.inference_mode():
            found.append(model(torch.tensor([ids])).last_hidden_state[0].numpy())
    return found


def pooled(states: list[np.ndarray], pooling: str, normalize: bool) -> np.ndarray:
    """[N, D]."""
    ways = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.max(0), "last": lambda x: x[-1]}
    rows = [ways[pooling](x) for x in states]
    return np.stack([row / np.linalg.norm(row) if normalize else row for row in rows])


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert"},
        {"model_type": "bert", "hidden_act": "gelu_new", "type_vocab_size": 1},
        {"model_type": "bert", "hidden_act": "relu", "layer_norm_eps": 1e-3},
        {"model_type": "roberta", "pad_token_id": 1},
        {"model_type": "xlm-roberta", "pad_token_id": 1},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_vectors_are_those_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, **config)
    states = states_of(folder, TEXTS, 40)
    ways = ("mean", "cls", "max", "last") if config == {"model_type": "bert"} else ("mean",)  # each is compiled
    for pooling in ways:
        for normalize in (True, False):
            ours = load_embedder(str(folder), pooling=pooling, normalize=normalize).embed(TEXTS, combine="first")
            theirs = pooled(states, pooling, normalize)
            assert np.abs(ours - theirs).max() <= TOLERANCE * max(1, np.abs(theirs).max()), (pooling, normalize)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return load_embedder(str(write_encoder(tmp_path_factory.mktemp("encoder"))))


def test_a_vector_does_not_depend_on_its_neighbours(small: Embedder) -> None:
    together = small.embed(TEXTS)
    alone = np.concatenate([small.embed([text]) for text in TEXTS])
    assert np.abs(together - alone).max() < TOLERANCE
    assert np.abs(small.embed(TEXTS, batch_tokens=64) - together).max() < TOLERANCE


def test_minilm_is_that_of_transformers(minilm: Path) -> None:
    embedder = load_embedder(str(minilm))
    assert (embedder.dim, embedder.max_tokens, embedder.note) == (384, 256, None)
    long = "The heart pumps blood through the body. " * 60
    texts = ["A dog.", "Fever and a cough are signs of an infection of the lungs.", long]
    ours = embedder.embed(texts, combine="first")
    assert np.abs(ours - pooled(states_of(minilm, texts, 256), "mean", True)).max() < TOLERANCE


def test_a_long_text_is_the_mean_of_its_windows(small: Embedder) -> None:
    vectors, owner = small.embed_windows(TEXTS)
    assert np.all(np.diff(owner) >= 0) and len(owner) > len(TEXTS) and set(owner) == set(range(len(TEXTS)))
    combined = small.embed(TEXTS)
    for number in range(len(TEXTS)):
        mean = vectors[owner == number].mean(0)
        assert np.allclose(combined[number], mean / np.linalg.norm(mean), atol=1e-6)


def test_prefixes_are_those_of_the_folder_or_of_the_caller(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    plain = load_embedder(str(folder), query_prefix="", passage_prefix="")
    said = load_embedder(str(folder))
    text = TEXTS[0]
    assert np.array_equal(said.embed([text], kind="query"), plain.embed(["query: " + text]))
    assert np.array_equal(said.embed([text]), plain.embed(["passage: " + text]))
    assert said.facts["passage_prefix"] == "passage: "


def test_a_model_without_pooling_says_so() -> None:
    embedder = load_embedder("builtin:model")
    assert embedder.note == "no encoder: mean hidden state of builtin:model"
    vectors = embedder.embed(["one text", "another text", "one text"])
    assert vectors.shape == (3, embedder.dim) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-6) and not np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_mistakes_are_one_line(small: Embedder, tmp_path: Path) -> None:
    for call, message in (
        (lambda: small.embed("a text"), "a list of texts"),
        (lambda: small.embed(["x"], kind="seed"), "not one of passage, query"),
        (lambda: small.embed(["x"], combine="best"), "not one of mean, first"),
        (lambda: load_embedder(small.name, pooling="sum"), "not one of mean, cls, max, last"),
        (lambda: load_embedder(small.name, max_tokens=1000), "max_tokens = 1000 is more than the 64 positions"),
        (lambda: load_embedder(small.name, max_tokens=2), "no room"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_a_decoder_reads_its_last_token_as_transformers_does(tmp_path: Path) -> None:
    """The Qwen3-Embedding kind: a bare backbone, an end token behind every text, last-token pooling."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen3Config, Qwen3Model

    write_encoder(tmp_path)  # for its tokenizer
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    theirs = Qwen3Model(Qwen3Config(**sizes, **heads, tie_word_embeddings=True)).eval()
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1)
    theirs.save_pretrained(str(tmp_path))
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "p"}]))
    (tmp_path / "p").mkdir()
    (tmp_path / "p/config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    embedder = load_embedder(str(tmp_path))
    assert (embedder.pooling, embedder.normalize, embedder.note, embedder.max_tokens) == ("last", False, None, 40)
    texts = [*TEXTS[:3], TEXTS[5]]
    ids = [embedder.tokens.tokenizer.encode(text).ids for text in texts]
    with torch.inference_mode():
        right = np.stack([theirs(torch.tensor([own])).last_hidden_state[0, -1].numpy() for own in ids])
    ours = embedder.embed(texts)
    assert np.abs(ours - right).max() < TOLERANCE * max(1, np.abs(right).max())


def test_rows_are_shared_by_the_devices_of_a_mesh(small: Embedder) -> None:
    vectors = load_embedder(small.name, mesh=make_mesh(data=4, fsdp=2)).embed(TEXTS)
    assert np.abs(vectors - small.embed(TEXTS)).max() < TOLERANCE
