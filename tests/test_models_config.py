"""config.json is read strictly: both spellings, and a refusal for everything the decoder does not do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import hypothesis
import parity_cases as cases
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.models.config import ModelConfig, config_to_hf, parse_config
from ntk_jax.models.rope_scaling import Llama3Scaling, YarnScaling

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
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


@pytest.mark.parametrize("name", ("LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config"))
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
        ({"model_type": "phi"}, "model_type 'phi' is not supported; use one of llama, mistral, qwen2, qwen3"),
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
        ({"rope_scaling": {"type": "linear"}}, "rope_type linear needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a positive number, got 0"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "truncate": True}}, "rope_type linear takes no truncate"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2, "finetuned": True}},
            "unknown key finetuned of rope_type linear",
        ),
        ({"rope_scaling": {**YARN, "finetuned": True}}, "unknown key finetuned of rope_type yarn"),
        ({"rope_scaling": {**YARN, "low_freq_factor": 1.0}}, "rope_type yarn takes no low_freq_factor"),
        ({"rope_scaling": {**YARN, "factor": None}}, "rope_type yarn needs factor"),
        ({"rope_scaling": {**YARN, "truncate": None}}, "truncate must be true or false, got None"),
        ({"rope_scaling": {**YARN, "beta_fast": 0.5}}, "beta_fast must not be less than beta_slow"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 0.5}}, "must be a whole number, got 0.5"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_type yarn needs a rope_theta above 1"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_type 'dynamic' is not supported; only default,",
        ),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "rope_type 'longrope' is not supported"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, "rope_type 'mrope' is not supported"),
        ({"rope_scaling": {"type": "mrope", "rope_type": "default"}}, "rope_type is given twice"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}},
            "unknown key full_attention of rope_type default",
        ),
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


@pytest.mark.parametrize("kind", ("qwen2", "qwen3"))
@pytest.mark.parametrize(
    "unused",
    [
        {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 0},
        {"use_sliding_window": None, "sliding_window": 64, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 0},  # as long as the positions
        {"use_sliding_window": True, "max_window_layers": 0},  # 4096 where the file is silent
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},  # of two layers
        {"use_sliding_window": True, "sliding_window": 64},  # 28 where the file is silent
        {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["full_attention"] * 2},
        {"use_sliding_window": True, "sliding_window": 600, "layer_types": ["sliding_attention"] * 2},
    ],
)
def test_a_window_that_qwen_does_not_use_changes_nothing(kind: str, unused: dict[str, Any]) -> None:
    assert parse(model_type=kind, **unused) == parse(model_type=kind)


@pytest.mark.parametrize("kind", ("qwen2", "qwen3"))
@pytest.mark.parametrize(
    "used",
    [
        {"use_sliding_window": True, "sliding_window": 511, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]},
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 600},  # a window that is off
        {"use_sliding_window": True, "max_window_layers": 0, "max_position_embeddings": 8192},
    ],
)
def test_a_window_that_qwen_uses_is_refused(kind: str, used: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="layers with a sliding window are not supported"):
        parse(model_type=kind, **used)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer_types": ["full_attention"]}, "layer_types is for 1 layers, num_hidden_layers is 2"),
        ({"layer_types": ["chunked_attention"] * 2}, "is not supported; only full_attention is"),
        ({"model_type": "qwen2", "use_sliding_window": "yes"}, "use_sliding_window must be bool"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "2"},
            "max_window_layers must be a whole number, got '2'",
        ),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be a whole number, got 0"),
        ({"model_type": "mistral", "sliding_window": 64.5}, "sliding_window must be a whole number, got 64.5"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias = True is not supported; only False is"),
        ({"model_type": "mistral", "layer_types": ["sliding_attention"] * 2}, "only full_attention is"),
    ],
)
def test_a_window_must_make_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ("llama", "mistral"))
def test_a_window_of_all_layers_bounds_the_positions(kind: str) -> None:
    windowed, full = parse(model_type=kind, sliding_window=64), parse(model_type=kind, sliding_window=None)
    assert (windowed.max_positions, full.max_positions) == (64, 512)
    assert "64 positions (its sliding window" in windowed.limit and full.limit == "512 positions"
    assert parse(model_type=kind, sliding_window=512, max_window_layers=0) == full
    hf = config_to_hf(windowed)
    assert (hf["sliding_window"], hf["max_position_embeddings"]) == (64, 512)
    assert parse_config(hf, "again") == windowed and parse_config(config_to_hf(full), "again") == full


def test_what_a_silent_file_means_is_what_transformers_takes_it_for() -> None:
    silent = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
    silent |= {"model_type": "mistral", "num_attention_heads": 16, "max_position_embeddings": 32768}
    config = parse_config(silent, "config.json")
    assert (config.num_kv_heads, config.max_positions, config.head_dim) == (8, 4096, 4)
    assert parse_config({**silent, "num_key_value_heads": None}, "config.json").num_kv_heads == 16
    assert parse(sliding_window=64, use_sliding_window=False).max_positions == 512
    assert parse(rope_scaling={"type": "yarn", "factor": 2}).rope_scaling == YarnScaling(2.0, 512)


# What files on the hub have been seen to hold beside the model's numbers.
FOUND = {
    "_attn_implementation_autoset": True,
    "_commit_hash": "0" * 40,
    "_flash_attn_2_enabled": True,
    "_model_name_or_path": "x",
    "_anything_private": [1],
    "gradient_checkpointing": True,
    "is_llama_config": True,
    "max_sequence_length": 64,
    "model_max_length": 64,
    "neftune_noise_alpha": 5.0,
    "num_beams": 4,
    "pruned_heads": {},
    "repetition_penalty": 1.1,
    "rope_interleaved": False,
    "sep_token_id": 3,
    "tie_encoder_decoder": True,
    "tokenizer_class": "LlamaTokenizer",
    "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
    "unk_token_id": 0,
}


def test_keys_that_cannot_change_a_forward_pass_change_nothing() -> None:
    assert parse(**FOUND) == parse()


def test_every_generation_key_of_transformers_changes_nothing() -> None:
    transformers = pytest.importorskip("transformers")
    known = {"bos_token_id", "eos_token_id", "pad_token_id"}
    written = {key: "x" for key in transformers.GenerationConfig().to_dict() if key not in known}
    assert parse(**written) == parse()


@pytest.mark.parametrize("kind", ("llama", "mistral", "qwen2", "qwen3"))
def test_a_key_is_ignored_at_the_users_word_only(kind: str) -> None:
    hf = {**BASE, "model_type": kind, "brand_new_norm": True, "sub_config": {"a": 1}}
    with pytest.raises(
        UserError, match="unknown key brand_new_norm = True; .* unless you list it in ignore_config_keys"
    ):
        parse_config(hf, "config.json", ["sub_config"])
    config = parse_config(hf, "config.json", ["sub_config", "brand_new_norm", "not_there"])
    assert config.ignored_keys == ("brand_new_norm", "sub_config")
    del hf["sub_config"]
    assert parse_config(hf, "config.json", "brand_new_norm").ignored_keys == ("brand_new_norm",)
    with pytest.raises(UserError, match="unknown key brand_new_norm"):
        parse_config(hf, "config.json", "brand_new_norm_2")
    assert parse_config(config_to_hf(config), "again") == dataclasses.replace(config, ignored_keys=())


@pytest.mark.parametrize(
    "key", (*BASE, "mlp_bias", "rope_scaling", "tie_word_embeddings", "bos_token_id", "sliding_window")
)
def test_a_key_that_decides_something_cannot_be_ignored(key: str) -> None:
    has = {
        "mlp_bias": False,
        "rope_scaling": YARN,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "sliding_window": 64,
    }
    with pytest.raises(UserError, match=f"{key} decides what the model computes, so it cannot be ignored"):
        parse_config({**BASE, **has}, "config.json", [key])


@given(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()))
def test_a_key_that_nobody_knows_is_refused_whatever_it_says(key: str, value: Any) -> None:
    key = f"x{key}"  # no known key begins so, but for xla_device, which is bookkeeping
    hypothesis.assume(key != "xla_device")
    if value is None:
        assert parse(**{key: value}) == parse()
    else:
        with pytest.raises(UserError):
            parse(**{key: value})
        assert parse_config({**BASE, key: value}, "config.json", [key]).ignored_keys == (key,)


def test_the_real_configs_are_read(shared: Path) -> None:
    for name, layers in (("llama-7m", 6), ("stories260K", 5)):
        file = shared / "data/weights" / name / "config.json"
        assert parse_config(json.loads(file.read_text()), str(file)).num_layers == layers
