"""config.json is read strictly: both spellings, and a refusal for everything the decoder does not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import parity_cases as cases
import pytest

from ntk_jax.errors import UserError
from ntk_jax.models.config import Llama3Scaling, ModelConfig, config_to_hf, parse_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 500000.0,
}


def parse(**changes: Any) -> ModelConfig:
    return parse_config({**BASE, **changes}, "config.json")


def test_a_hub_file_and_a_transformers_5_file_say_the_same() -> None:
    old = parse(rope_scaling={**LLAMA3, "type": "llama3"}, torch_dtype="bfloat16")
    new = {key: value for key, value in BASE.items() if key != "rope_theta"}
    new |= {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}, "dtype": "bfloat16"}
    assert old == parse_config(new, "config.json")
    assert old.rope_theta == 500000.0 and old.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    assert parse(rope_scaling=None) == parse(rope_parameters={"rope_type": "default"}) == parse()


def test_the_families_differ_by_flags() -> None:
    llama, qwen2, qwen3 = parse(), parse(model_type="qwen2"), parse(model_type="qwen3")
    assert (llama.qkv_bias, llama.o_bias, llama.qk_norm, llama.head_dim) == (False, False, False, 16)
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm, qwen2.head_dim) == (True, False, False, 16)
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.qk_norm, qwen3.head_dim) == (False, False, True, 128)
    biased = parse(attention_bias=True)
    assert biased.qkv_bias and biased.o_bias


@pytest.mark.parametrize("case", cases.CASES)
def test_what_is_written_is_read_back(case: str) -> None:
    config = parse_config(cases.CASES[case], case)
    assert parse_config(json.loads(json.dumps(config_to_hf(config))), case) == config
    several = parse(eos_token_id=[5, 6], bos_token_id=1, pad_token_id=0)
    assert several.eos_token_id == (5, 6) and parse_config(config_to_hf(several), "again") == several


@pytest.mark.parametrize("name", ("LlamaConfig", "Qwen2Config", "Qwen3Config"))
def test_every_key_that_transformers_writes_is_known_at_its_default(name: str) -> None:
    import transformers

    written = getattr(transformers, name)().to_dict()
    config = parse_config(written, name)
    ours = config_to_hf(config)
    for key in set(ours) & set(written) - {"architectures"}:
        assert ours[key] == written[key], key


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "mistral"}, "model_type 'mistral' is not supported; use one of llama, qwen2, qwen3"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"brand_new_norm": True}, "unknown key brand_new_norm = True"),
        ({"model_type": "qwen2", "attention_bias": True}, "unknown key attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window = True is not supported; only False is"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": 5}, "layer_types 5 is not supported"),
        ({"model_type": ["llama"]}, "model_type ['llama'] is not supported"),
        ({"mlp_bias": True}, "mlp_bias = True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; only 'silu' is"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1 is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantized weights are not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "alpha": 2.0}}, "unknown key rope_scaling.alpha"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type llama3 needs low_freq_factor"),
        ({"rope_scaling": {"rope_type": "default", "factor": 8.0}}, "rope_type default takes no factor"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor must exceed low_freq_factor"),
        ({"rope_scaling": "llama3"}, "rope_scaling must be a mapping"),
        ({"rope_parameters": {"rope_theta": 10000.0}}, "rope_theta is given twice"),
        ({"rope_theta": "big"}, "rope_theta must be a positive number"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size must be int, got '64'"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be int, got True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be positive"),
        ({"num_key_value_heads": 3}, "4 heads over 3 key/value heads"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be bool"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be an integer or a list"),
    ],
)
def test_what_the_decoder_does_not_do_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(**changes)
    assert str(caught.value).startswith("config.json: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_qwen2_with_an_unused_window_is_read() -> None:
    parse(model_type="qwen2", use_sliding_window=False, sliding_window=131072, max_window_layers=21)


def test_the_real_configs_are_read(shared: Path) -> None:
    for name, layers in (("llama-7m", 6), ("stories260K", 5)):
        file = shared / "data/weights" / name / "config.json"
        assert parse_config(json.loads(file.read_text()), str(file)).num_layers == layers
