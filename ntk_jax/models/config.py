"""What a backbone is: `config.json` of Hugging Face read strictly into one small frozen dataclass.

Strict, because a silently ignored key (a rope variant, a sliding window, a bias) gives a model that runs and
is wrong. Every key is either understood here, known to have no effect on a forward pass (`config_keys.is_inert`), or
allowed at one value only (`config_keys.FIXED`); anything else is a `UserError` that names the key, unless the user
answers for it. Both spellings are read: the one of hub files (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of
transformers 5 (`rope_parameters`, `dtype`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ntk_jax.errors import UserError
from ntk_jax.models.config_keys import FIXED, is_inert
from ntk_jax.models.rope_scaling import DEFAULT_THETA, Scaling, rope_to_hf, take_rope

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_WITH_BIAS_KEY = ("llama", "qwen3")
# What a file leaves out is what transformers takes for it.
_HEAD_DIM = {"qwen3": 128}  # whatever the width; the others divide it by the heads
_KV_HEADS = {"mistral": 8}  # the others have as many as query heads
_WINDOW, _FULL_LAYERS = 4096, 28  # Mistral's and Qwen's window, and the layers of Qwen below it


@dataclass(frozen=True)
class ModelConfig:
    """The numbers and flags by which Llama 2/3.x, Mistral, Qwen2.5 and Qwen3 dense models differ."""

    model_type: str  # of ARCHITECTURES
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = DEFAULT_THETA
    rope_scaling: Scaling | None = None
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False  # RMS norm of every query and key head before the rotation (Qwen3)
    tied: bool = False  # the head is the embedding
    max_positions: int = 2048  # tokens of an example at most
    # max_position_embeddings of a file whose sliding window is shorter. max_positions then is that window: where no
    # example is longer, every token sees all before it, which is what this decoder computes.
    positions_beyond_window: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    ignored_keys: tuple[str, ...] = ()  # keys of the file that nobody here knows and the user answers for

    @property
    def limit(self) -> str:
        """What bounds the length of an example, in words."""
        window = " (its sliding window, within which attention is full)" if self.positions_beyond_window else ""
        return f"{self.max_positions} positions{window}"

    @property
    def special_tokens(self) -> dict[str, tuple[int, ...]]:
        """The ids that config.json gives for `bos` and `eos`; empty where it gives none."""
        return {
            name: value if isinstance(value, tuple) else () if value is None else (value,)
            for name, value in (("bos", self.bos_token_id), ("eos", self.eos_token_id))
        }


def parse_config(hf: Mapping[str, Any], where: str, ignore: Collection[str] = ()) -> ModelConfig:
    """Reads a Hugging Face `config.json` mapping; `where` names it in messages.

    ignore: keys that would be refused as unknown, and are not.

    Raises UserError for another model type, a missing or ill-typed key, an unknown key, every feature that this decoder
    does not have, and a key to ignore that does decide what is computed.
    """
    rest = {key: value for key, value in hf.items() if value is not None}
    ignore = (ignore,) if isinstance(ignore, str) else ignore
    kind = rest.pop("model_type", None)
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(f"{where}: model_type {kind!r} is not supported; use one of {', '.join(ARCHITECTURES)}")
    if "quantization_config" in rest:
        raise UserError(f"{where}: quantized weights are not supported; use the unquantized checkpoint")

    def take(key: str, kind_of: type, default: Any = None) -> Any:
        value = rest.pop(key, default)
        if value is None:
            raise UserError(f"{where}: {key} is missing; copy the model's own config.json")
        if kind_of is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31:
            value = float(value)
        if not isinstance(value, kind_of) or (kind_of is not bool and isinstance(value, bool)):
            raise UserError(f"{where}: {key} must be {kind_of.__name__}, got {value!r}")
        most = 2**31 if key != "num_hidden_layers" else 2**12
        if kind_of is not bool and not 0 < cast(float, value) < most:  # also no NaN
            raise UserError(f"{where}: {key} must be positive and below {most:,}, got {value!r}")
        return value

    hidden, heads = take("hidden_size", int), take("num_attention_heads", int)
    head_dim = take("head_dim", int, _HEAD_DIM.get(kind, hidden // heads))
    kv_heads = heads if "num_key_value_heads" in hf else _KV_HEADS.get(kind, heads)
    # Qwen2 has biases on q, k and v by construction, Mistral none; the others have one key for all four.
    bias = kind in _WITH_BIAS_KEY and take("attention_bias", bool, False)
    layers, positions = take("num_hidden_layers", int), take("max_position_embeddings", int)
    theta, scaling = take_rope(rest, where, positions)
    window = _take_window(rest, hf, where, layers, positions)
    config = ModelConfig(
        model_type=kind,
        vocab_size=take("vocab_size", int),
        hidden_size=hidden,
        intermediate_size=take("intermediate_size", int),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=take("num_key_value_heads", int, kv_heads),
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=take("rms_norm_eps", float, 1e-6),
        qkv_bias=kind == "qwen2" or bias,
        o_bias=bias,
        qk_norm=kind == "qwen3",
        tied=take("tie_word_embeddings", bool, False),
        max_positions=window or positions,
        positions_beyond_window=positions if window else None,
        bos_token_id=_take_token(rest, "bos_token_id", where),
        eos_token_id=_take_token(rest, "eos_token_id", where, many=True),
        pad_token_id=_take_token(rest, "pad_token_id", where),
    )
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise UserError(
            f"{where}: {heads} heads over {config.num_kv_heads} key/value heads of {head_dim} values do not fit; "
            "heads must divide evenly and head_dim be even"
        )
    return dataclasses.replace(config, ignored_keys=_check_others(rest, hf, where, kind, ignore))


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The mapping that `parse_config` reads back, in the spelling that transformers 4 and 5 both accept."""
    hf: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.positions_beyond_window or config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    if config.positions_beyond_window or config.model_type == "mistral":  # whose files mean a window by silence
        hf["sliding_window"] = config.max_positions if config.positions_beyond_window else None
    if config.model_type in _WITH_BIAS_KEY:
        if config.qkv_bias != config.o_bias:
            raise UserError(f"{config.model_type} files say biases on all of q, k, v, o or on none; use qwen2")
        hf["attention_bias"] = config.o_bias
    return hf | rope_to_hf(config.rope_scaling)


def _take_token(rest: dict[str, Any], key: str, where: str, many: bool = False) -> Any:
    value = rest.pop(key, None)
    if many and isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    if value is not None and type(value) is not int:
        raise UserError(f"{where}: {key} must be an integer{' or a list of them' if many else ''}, got {value!r}")
    return value


def _take_window(rest: dict[str, Any], hf: Mapping[str, Any], where: str, layers: int, positions: int) -> int | None:
    """The sliding window that all layers have, where it is shorter than the positions; None: attention is full.

    Raises UserError: some layers have one. Their examples could be held to the window too, but these files (Qwen's) say
    that the model is meant for more."""
    kinds = rest.pop("layer_types", None)
    if kinds is not None:
        if not isinstance(kinds, list) or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
            raise UserError(f"{where}: layer_types {kinds!r} is not supported; only full_attention is")
        if len(kinds) != layers:
            raise UserError(f"{where}: layer_types is for {len(kinds)} layers, num_hidden_layers is {layers}")
    kind, mixed = hf["model_type"], kinds is not None and "sliding_attention" in kinds
    # A null switches the window off; of a key that is not there the family has its own opinion.
    window = rest.pop("sliding_window", None if "sliding_window" in hf or kind == "llama" else _WINDOW)
    if kind in ("qwen2", "qwen3"):
        used, full = rest.pop("use_sliding_window", False), rest.pop("max_window_layers", _FULL_LAYERS)
        if not isinstance(used, bool):
            raise UserError(f"{where}: use_sliding_window must be bool, got {used!r}")
        if kinds is None:
            mixed = used and window is not None and _whole(full, "max_window_layers", where) < layers
        if not mixed or (used and window is not None and _whole(window, "sliding_window", where) >= positions):
            return None
        raise UserError(
            f"{where}: layers with a sliding window are not supported (use_sliding_window = {used}, sliding_window = "
            f"{window!r}); if no example is longer than the window, say use_sliding_window = false and no layer_types "
            "in a copy of the file: that long, it changes nothing"
        )
    rest.pop("max_window_layers", None)  # says nothing where all layers are alike
    if mixed:
        raise UserError(f"{where}: layer_types {kinds!r} is not supported; only full_attention is")
    if kind == "llama" and hf.get("use_sliding_window") is False:
        return None
    return window if window is not None and _whole(window, "sliding_window", where) < positions else None


def _check_others(
    rest: Mapping[str, Any], hf: Mapping[str, Any], where: str, kind: str, ignore: Collection[str]
) -> tuple[str, ...]:
    """The keys that are ignored at the user's word. rest: those of hf that no number was read from."""
    fixed = FIXED | ({"attention_bias": (False,)} if kind == "mistral" else {})
    for key in ignore:
        if hf.get(key) is not None and (key not in rest or key in fixed):
            raise UserError(f"{where}: {key} decides what the model computes, so it cannot be ignored")
    ignored = []
    for key, value in rest.items():
        if key in fixed:
            if value not in fixed[key]:
                raise UserError(f"{where}: {key} = {value!r} is not supported; only {fixed[key][0]!r} is")
        elif not is_inert(key):
            if key not in ignore:
                raise UserError(
                    f"{where}: unknown key {key} = {value!r}; it may change the model, so it is not ignored unless you "
                    "list it in ignore_config_keys"
                )
            ignored.append(key)
    return tuple(ignored)


def _whole(value: Any, key: str, where: str) -> int:
    if type(value) is not int or not (key == "sliding_window") <= value < 2**63:
        raise UserError(f"{where}: {key} must be a whole number, got {value!r}")
    return value
