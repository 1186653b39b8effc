"""A model's config.json: which keys are read, which decide nothing, and which are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from files_found.case import Case
from ntk_jax.errors import UserError
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.hub import read_config
from ntk_jax.models.rope import inverse_frequencies
from ntk_jax.models.rope_scaling import YarnScaling
from ntk_jax.pipelines.common.inputs import facts
from ntk_jax.pipelines.common.model import check_length
from ntk_jax.pipelines.common.sections import ModelSection
from ntk_jax.pipelines.kernel.config import KernelConfig

TITLE = "`config.json` of a model"
_SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
Check = Callable[[Path], None]


def _read(folder: Path, ignore: tuple[str, ...] = (), **more: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps({**_SMALL, **more}))
    return read_config(folder, ignore)


def _change_nothing(*several: dict[str, Any], **like: Any) -> Check:
    """Each of these files is read as `like` alone is."""

    def check(folder: Path) -> None:
        for more in several:
            assert _read(folder, **like, **more) == _read(folder, **like), more

    return check


def _are_refused(message: str, *several: dict[str, Any]) -> Check:
    """Each of these files is refused, in one line that names it."""

    def check(folder: Path) -> None:
        for more in several:
            with pytest.raises(UserError) as caught:
                _read(folder, **more)
            text = str(caught.value)
            assert text.startswith(str(folder / "config.json")) and message in text and "\n" not in text, text

    return check


def _ignored_at_the_users_word(folder: Path) -> None:
    unknown = {"brand_new_norm": True}
    _are_refused("unknown key brand_new_norm = True", unknown)(folder)
    assert _read(folder, ("brand_new_norm", "not_there"), **unknown).ignored_keys == ("brand_new_norm",)
    model = ModelSection(path=str(folder), ignore_config_keys=("brand_new_norm", "not_there"))
    assert facts(KernelConfig(model=model)) == {"ignored_config_keys": ["brand_new_norm"]}


def _cannot_be_ignored(folder: Path) -> None:
    with pytest.raises(UserError, match="hidden_size decides what the model computes, so it cannot be ignored"):
        _read(folder, ("hidden_size",))


def _both_spellings(folder: Path) -> None:
    old = _read(folder, rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048})
    new = _read(folder, rope_theta=None, rope_parameters={**_YARN, "rope_theta": 500000.0})
    assert old == new and old.rope_theta == 500000.0
    _are_refused("rope_theta is given twice", {"rope_parameters": {"rope_theta": 10000.0}})(folder)


def _scalings(folder: Path) -> None:
    plain = inverse_frequencies(_read(folder))
    linear = _read(folder, rope_scaling={"type": "linear", "factor": 4.0})
    np.testing.assert_allclose(inverse_frequencies(linear), plain / 4, rtol=1e-6)
    yarn = _read(folder, rope_scaling=_YARN)
    assert isinstance(yarn.rope_scaling, YarnScaling)
    assert yarn.rope_scaling.attention_scale == pytest.approx(0.1 * np.log(4) + 1)
    stretched = plain / inverse_frequencies(yarn)
    assert stretched[0] == pytest.approx(1) and stretched[-1] == pytest.approx(4)


def _factor_counts(folder: Path) -> None:
    scaling = _read(folder, rope_scaling={**_YARN, "factor": 3.0}).rope_scaling
    assert isinstance(scaling, YarnScaling) and (scaling.factor, scaling.original_max_positions) == (3.0, 2048)


def _window_bounds(folder: Path) -> None:
    shape = _read(folder, model_type="mistral", sliding_window=1024)
    assert shape.max_positions == 1024
    check_length(ModelSection(path="it", max_length=1024), shape)
    with pytest.raises(UserError, match="more than the 1024 positions .its sliding window.* of it; lower it"):
        check_length(ModelSection(path="it", max_length=1025), shape)


def _silent_window(folder: Path) -> None:
    assert _read(folder, model_type="mistral").max_positions == 4096
    assert _read(folder, model_type="mistral", sliding_window=None).max_positions == 8192


def _long_window(folder: Path) -> None:
    for kind in ("llama", "qwen2", "qwen3"):
        _change_nothing({"sliding_window": 8192}, {"sliding_window": None}, model_type=kind)(folder)
    full = _read(folder, model_type="mistral", sliding_window=None)
    assert _read(folder, model_type="mistral", sliding_window=8192) == full and full.max_positions == 8192


def _only_at_one_value(folder: Path) -> None:
    asked = ({"mlp_bias": True}, {"attention_dropout": 0.1}, {"partial_rotary_factor": 0.5}, {"is_causal": False})
    _are_refused("is not supported", *asked)(folder)
    _change_nothing({"mlp_bias": False, "attention_dropout": 0.0, "is_causal": True})(folder)


_USED = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4096}
CASES: list[Case] = [
    Case(
        "keys that begin with `_`, such as `_name_or_path`, `_attn_implementation_autoset`, `_flash_attn_2_enabled`",
        "no effect",
        _change_nothing(
            {"_name_or_path": "x", "_model_name_or_path": "x", "_commit_hash": "0" * 40},
            {"_attn_implementation_autoset": True, "_flash_attn_2_enabled": True, "_of_somebody": {"a": [1]}},
        ),
    ),
    Case(
        "bookkeeping: `tokenizer_class`, `unk_token_id`, `model_max_length`, `max_sequence_length`, `is_llama_config`, "
        "`transformers.js_config`, `tie_encoder_decoder`, ...",
        "no effect",
        _change_nothing(
            {"tokenizer_class": "LlamaTokenizer", "unk_token_id": 0, "model_max_length": 64, "max_sequence_length": 64},
            {"is_llama_config": True, "transformers.js_config": {"dtype": "q4"}, "tie_encoder_decoder": True},
        ),
    ),
    Case(
        "keys of generation, which older files have here: `temperature`, `num_beams`, `repetition_penalty`, ...",
        "no effect",
        _change_nothing({"temperature": 0.6, "num_beams": 4, "repetition_penalty": 1.1, "max_length": 20}),
    ),
    Case(
        "keys of training: `gradient_checkpointing`, `neftune_noise_alpha`, `initializer_range`",
        "no effect",
        _change_nothing({"gradient_checkpointing": True, "neftune_noise_alpha": 5, "initializer_range": 0.02}),
    ),
    Case(
        "`torch_dtype` or `dtype`",
        "no effect; `model.dtype` decides",
        _change_nothing({"torch_dtype": "bfloat16"}, {"dtype": "float16"}),
    ),
    Case(
        "another `model_type` than llama, mistral, qwen2, qwen3",
        "refused",
        _are_refused("is not supported; use one of llama, mistral, qwen2, qwen3", {"model_type": "gemma2"}),
    ),
    Case(
        "a key that nobody here knows",
        "refused by name; `model.ignore_config_keys: [KEY]` takes it at your word, as the report and `doctor` then say",
        _ignored_at_the_users_word,
    ),
    Case("a known key in `model.ignore_config_keys`", "refused: it decides what is computed", _cannot_be_ignored),
    Case(
        "`mlp_bias`, `attention_dropout`, `partial_rotary_factor`, `is_causal`, ... that ask for what is not done here",
        "refused by name; at the value that changes nothing they are read",
        _only_at_one_value,
    ),
    Case(
        "`quantization_config`",
        "refused; use the unquantized checkpoint",
        _are_refused("quantized weights are not supported", {"quantization_config": {"bits": 4}}),
    ),
    Case(
        "`rope_theta` and `rope_scaling`, or `rope_parameters` of transformers 5",
        "read alike; refused where they contradict one another",
        _both_spellings,
    ),
    Case(
        "rope scaling `linear`, `llama3`, `yarn` (all its numbers)",
        "as transformers computes it, at every length",
        _scalings,
    ),
    Case(
        "`yarn` whose `factor` is not the ratio of the two position counts",
        "`factor` counts, as in transformers 5",
        _factor_counts,
    ),
    Case(
        "rope scaling `dynamic`, `longrope`, `mrope`",
        "refused by name",
        _are_refused(
            "is not supported; only default, linear, llama3 and yarn are",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}},
            {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        ),
    ),
    Case(
        "an unknown key in rope scaling",
        "refused by name",
        _are_refused("unknown key finetuned of rope_type yarn", {"rope_scaling": {**_YARN, "finetuned": True}}),
    ),
    Case(
        "Mistral's `sliding_window`, shorter than `max_position_embeddings`",
        "examples are held to the window: that long, attention is full; `model.max_length` above it is refused",
        _window_bounds,
    ),
    Case("a Mistral file without `sliding_window`", "4,096, as in transformers; `null` means none", _silent_window),
    Case(
        "`sliding_window` of null, or at least `max_position_embeddings`",
        "no effect",
        _long_window,
    ),
    Case(
        "a window that Qwen's file gives to some layer (`use_sliding_window`, `max_window_layers`, `layer_types`)",
        "refused",
        _are_refused(
            "layers with a sliding window are not supported",
            {**_USED, "max_window_layers": 1},
            {**_USED, "layer_types": ["full_attention", "sliding_attention"]},
        ),
    ),
    Case(
        "a window that Qwen's file gives to no layer",
        "no effect",
        _change_nothing(
            {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 0},
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
            {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["full_attention"] * 2},
            model_type="qwen2",
        ),
    ),
]
