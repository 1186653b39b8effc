"""What a backbone is: `config.json` of Hugging Face read strictly into one small frozen dataclass.

Strict, because a silently ignored key (a rope variant, a sliding window, a bias) gives a model that runs and
is wrong. Every key is either understood here, known to have no effect on a forward pass (`_INERT`), or allowed
at one value only (`_FIXED`); anything else is a `UserError` that names the key. Both spellings are read: the
one of hub files (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of transformers 5 (`rope_parameters`,
`dtype`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ntk_jax.errors import UserError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Keys that do not change hidden states: bookkeeping, initialisation, generation, and training-time machinery.
_INERT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "use_cache",
        "initializer_range",
        "pretraining_tp",
        "max_window_layers",
        "sliding_window",
        "output_hidden_states",
        "output_attentions",
        "return_dict",
        "id2label",
        "label2id",
        "problem_type",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "task_specific_params",
        "finetuning_task",
        "num_labels",
        "unsloth_fixed",
        "unsloth_version",
        "temperature",
        "top_p",
        "top_k",
        "do_sample",
    }
)
# Keys that may be written down as long as they say what this decoder does.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "attention_dropout": (0.0,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "use_mrope": (False,),
}
_ROPE_KEYS = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "partial_rotary_factor",
    }
)
_DEFAULT_THETA = 10000.0  # of all three families, where the file is silent


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the slow rotary frequencies; see `rope.inverse_frequencies`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class ModelConfig:
    """The numbers and flags by which Llama 2/3.x, Qwen2.5 and Qwen3 dense models differ."""

    model_type: str  # llama, qwen2, qwen3
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = _DEFAULT_THETA
    rope_scaling: Llama3Scaling | None = None
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False  # RMS norm of every query and key head before the rotation (Qwen3)
    tied: bool = False  # the head is the embedding
    max_positions: int = 2048
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @property
    def special_tokens(self) -> dict[str, tuple[int, ...]]:
        """The ids that config.json gives for `bos` and `eos`; empty where it gives none."""
        return {
            name: value if isinstance(value, tuple) else () if value is None else (value,)
            for name, value in (("bos", self.bos_token_id), ("eos", self.eos_token_id))
        }


def parse_config(hf: Mapping[str, Any], where: str) -> ModelConfig:
    """Reads a Hugging Face `config.json` mapping; `where` names it in messages.

    Raises UserError for another model type, a missing or ill-typed key, an unknown key, and for every feature
    that this decoder does not have.
    """
    rest = {key: value for key, value in hf.items() if value is not None}
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
    # The class default of Qwen3 is 128 whatever the width; the other two divide.
    head_dim = take("head_dim", int, 128 if kind == "qwen3" else hidden // heads)
    # Qwen2 has biases on q, k and v by construction and no key for them; the others have one key for all four.
    bias = kind != "qwen2" and take("attention_bias", bool, False)
    max_positions = take("max_position_embeddings", int)
    theta, scaling = _take_rope(rest, where, max_positions)
    config = ModelConfig(
        model_type=kind,
        vocab_size=take("vocab_size", int),
        hidden_size=hidden,
        intermediate_size=take("intermediate_size", int),
        num_layers=take("num_hidden_layers", int),
        num_heads=heads,
        num_kv_heads=take("num_key_value_heads", int, heads),
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=take("rms_norm_eps", float, 1e-6),
        qkv_bias=kind == "qwen2" or bias,
        o_bias=bias,
        qk_norm=kind == "qwen3",
        tied=take("tie_word_embeddings", bool, False),
        max_positions=max_positions,
        bos_token_id=_take_token(rest, "bos_token_id", where),
        eos_token_id=_take_token(rest, "eos_token_id", where, many=True),
        pad_token_id=_take_token(rest, "pad_token_id", where),
    )
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise UserError(
            f"{where}: {heads} heads over {config.num_kv_heads} key/value heads of {head_dim} values do not fit; "
            "heads must divide evenly and head_dim be even"
        )
    kinds = rest.pop("layer_types", [])
    if not isinstance(kinds, list) or any(layer != "full_attention" for layer in kinds):
        raise UserError(f"{where}: layer_types {kinds!r} is not supported; only full_attention is")
    for key, value in rest.items():
        if key in _FIXED:
            if value not in _FIXED[key]:
                raise UserError(f"{where}: {key} = {value!r} is not supported; only {_FIXED[key][0]!r} is")
        elif key not in _INERT:
            raise UserError(f"{where}: unknown key {key} = {value!r}; it may change the model, so it is not ignored")
    return config


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
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    if config.model_type != "qwen2":
        if config.qkv_bias != config.o_bias:
            raise UserError(f"{config.model_type} files say biases on all of q, k, v, o or on none; use qwen2")
        hf["attention_bias"] = config.o_bias
    if config.rope_scaling is not None:
        hf["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_positions,
        }
    return hf


def _take_token(rest: dict[str, Any], key: str, where: str, many: bool = False) -> Any:
    value = rest.pop(key, None)
    if many and isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    if value is not None and type(value) is not int:
        raise UserError(f"{where}: {key} must be an integer{' or a list of them' if many else ''}, got {value!r}")
    return value


def _take_rope(rest: dict[str, Any], where: str, max_positions: int) -> tuple[float, Llama3Scaling | None]:
    """Joins `rope_theta`, `rope_scaling` and `rope_parameters`, which must not contradict one another."""
    joined: dict[str, Any] = {}
    top = {"rope_theta": rest.pop("rope_theta")} if "rope_theta" in rest else {}
    for name, source in [("rope_theta", top), *((k, rest.pop(k, {})) for k in ("rope_scaling", "rope_parameters"))]:
        if not isinstance(source, Mapping):
            raise UserError(f"{where}: {name} must be a mapping, got {source!r}")
        for key, value in source.items():
            if key not in _ROPE_KEYS:
                raise UserError(f"{where}: unknown key {name}.{key}; this rope variant is not supported")
            key = "rope_type" if key == "type" else key  # the older name
            if value is not None and joined.setdefault(key, value) != value:
                raise UserError(f"{where}: {key} is given twice, as {joined[key]!r} and {value!r}; keep one")
    if joined.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor below 1 is not supported")
    theta = _number(joined.pop("rope_theta", _DEFAULT_THETA), "rope_theta", where)
    kind = joined.pop("rope_type", "default")
    if kind == "default":
        if joined:
            raise UserError(f"{where}: rope_type default takes no {', '.join(sorted(joined))}; remove them")
        return theta, None
    if kind != "llama3":
        raise UserError(f"{where}: rope_type {kind!r} is not supported; only default and llama3 are")

    def take(key: str, default: float | None = None) -> float:
        if key not in joined and default is None:
            raise UserError(f"{where}: rope_type llama3 needs {key}")
        return _number(joined.get(key, default), key, where)

    scaling = Llama3Scaling(
        factor=take("factor"),
        low_freq_factor=take("low_freq_factor"),
        high_freq_factor=take("high_freq_factor"),
        original_max_positions=int(take("original_max_position_embeddings", max_positions)),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UserError(f"{where}: high_freq_factor must exceed low_freq_factor")
    return theta, scaling


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**63:
        raise UserError(f"{where}: {key} must be a positive number, got {value!r}")
    return float(cast(float, value))
