"""An encoder's files: what is read, what is left aside, what is refused; and its attention where numbers are large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_encoder import TEXTS, write_encoder

from ntk_jax.errors import UserError
from ntk_jax.models.embedder import load_embedder
from ntk_jax.models.encoder import attend_within
from ntk_jax.models.encoder_config import EncoderConfig, parse_encoder_config
from ntk_jax.models.sentence_files import SentenceFiles, read_sentence_files

BERT = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}


def test_a_config_is_read_with_the_defaults_of_its_family() -> None:
    config = parse_encoder_config(BERT, "config.json")
    assert config == EncoderConfig("bert", 30522, 384, 1536, 6, 12, 512)
    assert (config.first_position, config.max_positions, config.head_dim) == (0, 512, 32)
    roberta = parse_encoder_config({**BERT, "model_type": "roberta", "max_position_embeddings": 514}, "config.json")
    assert (roberta.first_position, roberta.max_positions) == (2, 512)


@pytest.mark.parametrize(
    "more",
    [
        {"hidden_dropout_prob": 0.2, "classifier_dropout": 0.1, "pooler_type": "first_token_transform"},
        {"position_embedding_type": "absolute", "is_decoder": False, "use_cache": True, "_name_or_path": "x"},
    ],
)
def test_keys_that_change_nothing(more: dict[str, Any]) -> None:
    assert parse_encoder_config({**BERT, **more}, "config.json") == parse_encoder_config(BERT, "config.json")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model_type": "modernbert"}, "model_type 'modernbert' is no encoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder = True is not supported"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
        ({"rotary_base": 1000}, "unknown key rotary_base = 1000"),
        ({"hidden_size": 385}, "12 heads do not divide hidden_size 385"),
        ({"num_hidden_layers": "six"}, "num_hidden_layers must be a whole number"),
        ({"vocab_size": None}, "vocab_size must be a whole number of at least 1, got None"),
        ({"layer_norm_eps": -1}, "layer_norm_eps must be"),
        ({"quantization_config": {}}, "quantized"),
    ],
)
def test_what_would_change_the_vectors_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_encoder_config({**BERT, **more}, "config.json")


def test_an_unknown_key_can_be_answered_for_and_a_known_one_not() -> None:
    config = parse_encoder_config({**BERT, "note": 1}, "config.json", ["note", "absent"])
    assert config.ignored_keys == ("note",)
    for key in ("hidden_size", "is_decoder"):
        with pytest.raises(UserError, match=f"{key} decides what the model computes"):
            parse_encoder_config({**BERT, "is_decoder": True}, "config.json", [key])


def test_names_of_a_model_with_a_head_are_read(tmp_path: Path) -> None:
    """The prefix, old names of norms, and heads, which are left aside."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = write_encoder(tmp_path / "a")
    other = write_encoder(tmp_path / "b", prefix="bert.")
    tensors = load_file(other / "model.safetensors")
    tensors = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in tensors.items()}
    tensors |= {"cls.predictions.bias": np.ones(3, np.float32), "bert.pooler.dense.bias": np.ones(3, np.float32)}
    save_file(tensors, other / "model.safetensors")
    vectors = [load_embedder(str(folder)).embed(TEXTS[:2]) for folder in (plain, other)]
    assert np.array_equal(*vectors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layer.1.output.dense.bias": None}, "encoder.layer.1.output.dense.bias is missing"),
        ({"encoder.layer.9.output.dense.bias": np.ones(32, np.float32)}, "has no place"),
        ({"encoder.layer.1.output.dense.bias": np.ones(31, np.float32)}, "config.json asks for"),
        ({"encoder.layer.1.attention.self.key.bias": np.ones(31, np.float32)}, "config.json asks for"),
        ({"embeddings.LayerNorm.bias": np.full(32, np.nan, np.float32)}, "norm/bias holds NaN or Inf"),
        ({"embeddings.LayerNorm.bias": np.ones(32, np.int32)}, "only float weights"),
    ],
)
def test_a_damaged_checkpoint_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    tensors = load_file(folder / "model.safetensors") | change
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_embedder(str(folder))


def test_large_scores_do_not_overflow() -> None:
    random = np.random.default_rng(0)
    seen = jnp.asarray(np.kron(np.eye(2), np.ones((4, 4)))[None] > 0)
    for size in (1.0, 100.0):  # without and with the largest score taken away
        q, k, v = (jnp.asarray(random.standard_normal((1, 2, 8, 4)) * size, jnp.float32) for _ in range(3))
        scores = np.where(seen[:, None], np.einsum("bhtd,bhsd->bhts", q, k, dtype=np.float64), -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        right = np.einsum("bhts,bhsd->bhtd", weights / weights.sum(axis=-1, keepdims=True), v)
        assert np.abs(attend_within(q, k, v, seen) - right).max() < 1e-5 * size


def say(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def modules(*kinds: str) -> list[dict[str, str]]:
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    return [{"type": f"sentence_transformers.models.{kind}", "path": paths.get(kind, kind)} for kind in kinds]


def test_files_of_sentence_transformers_old_and_new(tmp_path: Path) -> None:
    assert read_sentence_files(tmp_path) == SentenceFiles()
    say(tmp_path, "modules.json", modules("Transformer", "Pooling"))
    say(tmp_path, "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    say(tmp_path, "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": True})
    assert read_sentence_files(tmp_path) == SentenceFiles("cls", False, None, None, 256, True)
    say(tmp_path, "modules.json", modules("Transformer", "Pooling", "Normalize"))
    say(tmp_path, "1_Pooling/config.json", {"embedding_dimension": 8, "pooling_mode": "lasttoken"})
    prompts = {"prompts": {"query": "Q: ", "passage": "P: "}, "default_prompt_name": None}
    say(tmp_path, "config_sentence_transformers.json", prompts)
    assert read_sentence_files(tmp_path) == SentenceFiles("last", True, "Q: ", "P: ", 256, True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("modules.json", modules("Transformer", "Pooling", "Dense"), "module of type Dense is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "weightedmean"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "is not supported"),
        ("1_Pooling/config.json", {"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "no length"),
        ("config_sentence_transformers.json", {"prompts": ["x"]}, "must map names to texts"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "not among the prompts"),
        ("modules.json", ["Transformer"], "is no module"),
    ],
)
def test_files_that_ask_for_what_is_not_here(name: str, value: Any, message: str, tmp_path: Path) -> None:
    say(tmp_path, "modules.json", modules("Transformer", "Pooling"))
    say(tmp_path, "1_Pooling/config.json", {"pooling_mode": "mean"})
    say(tmp_path, name, value)
    with pytest.raises(UserError, match=message):
        read_sentence_files(tmp_path)
