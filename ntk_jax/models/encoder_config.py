"""What an encoder of the BERT type is: its `config.json` read strictly, as `config.py` does for decoders.

A key is understood here, known to change no forward pass, or allowed at one value only; anything else is refused by
name, unless the user answers for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ntk_jax.errors import UserError
from ntk_jax.models.config_keys import is_inert

# The prefix that the tensors of a saved head model have, by model_type.
ENCODERS = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta."}
_EXACT, _TANH = "exact", "tanh"
_ACTIVATIONS = {
    "gelu": _EXACT,
    "gelu_python": _EXACT,
    "gelu_new": _TANH,
    "gelu_pytorch_tanh": _TANH,
    "gelu_python_tanh": _TANH,
    "relu": "relu",
}
# Of BERT's files, beside what all files have: dropout, heads for other purposes, notes of old exporters.
_INERT_KEYS = """
    attention_probs_dropout_prob hidden_dropout_prob classifier_dropout bos_token_id eos_token_id tie_word_embeddings
    directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
    output_past
"""
_INERT = frozenset(_INERT_KEYS.split())
_FIXED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
}


@dataclass(frozen=True)
class EncoderConfig:
    """The numbers and flags of BERT, RoBERTa and XLM-RoBERTa: learned positions, token types, layer norms behind each
    block."""

    model_type: str  # of ENCODERS
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    position_rows: int  # of the table of learned positions
    type_rows: int = 2
    norm_eps: float = 1e-12
    activation: str = _EXACT  # gelu with erf (`exact`), its `tanh` form, or `relu`
    pad_token_id: int = 0
    ignored_keys: tuple[str, ...] = ()

    @property
    def first_position(self) -> int:
        """The row of the position table that a text's first token has: RoBERTa counts from behind its padding."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1

    @property
    def max_positions(self) -> int:
        """Tokens of a text at most, special ones included."""
        return self.position_rows - self.first_position

    @property
    def head_dim(self) -> int:
        """The width of an attention head."""
        return self.hidden_size // self.num_heads


def is_encoder(hf: Mapping[str, Any]) -> bool:
    """Whether a `config.json` mapping is of an encoder that is read here."""
    return hf.get("model_type") in ENCODERS


def parse_encoder_config(hf: Mapping[str, Any], where: str, ignore: Collection[str] = ()) -> EncoderConfig:
    """Reads a Hugging Face `config.json` mapping; `where` names it in messages; ignore: unknown keys that are no error.

    Raises UserError: another model type, a missing or ill-typed key, an unknown key, a feature that is not here, or a
    key to ignore that does decide what is computed.
    """
    rest = {key: value for key, value in hf.items() if value is not None}
    ignore = (ignore,) if isinstance(ignore, str) else ignore
    kind = rest.pop("model_type", None)
    if kind not in ENCODERS:
        raise UserError(f"{where}: model_type {kind!r} is no encoder that is read here; use {', '.join(ENCODERS)}")
    if "quantization_config" in rest:
        raise UserError(f"{where}: quantized weights are not supported; use the unquantized checkpoint")

    def take(key: str, default: int | None = None, least: int = 1) -> int:
        value = rest.pop(key, default)
        if type(value) is not int or not least <= value < 2**31:
            raise UserError(f"{where}: {key} must be a whole number of at least {least}, got {value!r}")
        return value

    activation = rest.pop("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise UserError(f"{where}: hidden_act {activation!r} is not supported; use one of {', '.join(_ACTIVATIONS)}")
    eps = rest.pop("layer_norm_eps", 1e-12)
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise UserError(f"{where}: layer_norm_eps must be a number between 0 and 1, got {eps!r}")
    config = EncoderConfig(
        model_type=str(kind),
        vocab_size=take("vocab_size"),
        hidden_size=take("hidden_size"),
        intermediate_size=take("intermediate_size"),
        num_layers=take("num_hidden_layers"),
        num_heads=take("num_attention_heads"),
        position_rows=take("max_position_embeddings"),
        type_rows=take("type_vocab_size", 2),
        norm_eps=float(eps),
        activation=_ACTIVATIONS[activation],
        pad_token_id=take("pad_token_id", 0 if kind == "bert" else 1, least=0),
        ignored_keys=_check_others(rest, hf, where, ignore),
    )
    if config.hidden_size % config.num_heads:
        raise UserError(f"{where}: {config.num_heads} heads do not divide hidden_size {config.hidden_size}")
    if config.max_positions < 3:
        raise UserError(f"{where}: max_position_embeddings {config.position_rows} leaves no room for a text")
    return config


def _check_others(
    rest: Mapping[str, Any], hf: Mapping[str, Any], where: str, ignore: Collection[str]
) -> tuple[str, ...]:
    """The unknown keys that are ignored at the user's word. rest: what is left of hf."""
    for key in ignore:
        if hf.get(key) is not None and (key not in rest or key in _FIXED):
            raise UserError(f"{where}: {key} decides what the model computes, so it cannot be ignored")
    ignored = []
    for key, value in rest.items():
        if key in _FIXED:
            if value not in _FIXED[key]:
                raise UserError(f"{where}: {key} = {value!r} is not supported; only {_FIXED[key][0]!r} is")
        elif not (key in _INERT or is_inert(key)):
            if key not in ignore:
                raise UserError(
                    f"{where}: unknown key {key} = {value!r}; it may change the model, so it is not ignored unless you "
                    "list it in ignore_config_keys"
                )
            ignored.append(key)
    return tuple(ignored)
