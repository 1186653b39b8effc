"""An encoder's weights from Hugging Face files: the name table, and reading by it.

Strict as `hub.py`: every tensor that the forward pass needs is there once with its shape, finite, and nothing is there
that has no place. What other heads a checkpoint brings along (pooler, masked-language head) is left aside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ntk_jax.errors import UserError
from ntk_jax.models.checkpoint import open_tensors, some
from ntk_jax.models.encoder_config import ENCODERS, EncoderConfig
from ntk_jax.models.names import WRAPPERS
from ntk_jax.parallel.rules import replicate

# Ours -> the tensors that lie side by side in it. Stacked leaves are one tensor a layer.
_EMBEDDINGS = {
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "norm/scale": "embeddings.LayerNorm.weight",
    "norm/bias": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "mlp_norm": ("output.LayerNorm",),
}
# What a forward pass to the hidden states does not read: heads, and buffers that are made anew.
_ASIDE = re.compile(r"(pooler|cls|lm_head|classifier|qa_outputs)\..*|embeddings\.(position_ids|token_type_ids)")
_FLOATS = ("F32", "BF16", "F16", "F64")


def load_encoder_weights(
    folder: Path, config: EncoderConfig, shapes: Mapping[str, Any], mesh: Mesh | None = None
) -> dict[str, Any]:
    """The parameter tree of the checkpoint in `folder`, each leaf in the dtype of `shapes` (`abstract_encoder`), whole
    on every device of the mesh, or on the first device.

    Raises UserError: missing, extra, misshapen, non-float or non-finite tensors.
    """
    with open_tensors(folder) as found:
        tensors = _by_plain_name(folder, found, ENCODERS[config.model_type])
        read = _reader(folder, tensors)

        def leaf(path: Any, shape: Any) -> np.ndarray:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            value = _leaf(name, config, read)
            if value.shape != shape.shape:
                raise UserError(f"{folder}: {name} has shape {value.shape}, config.json asks for {shape.shape}")
            value = value.astype(shape.dtype)
            if not np.isfinite(value).all():
                raise UserError(f"{folder}: {name} holds NaN or Inf (as {shape.dtype}); the checkpoint is damaged")
            return value

        weights = jax.tree_util.tree_map_with_path(leaf, shapes)
    if tensors:
        raise UserError(f"{folder}: tensor {some(sorted(tensors))} has no place in the model of its config.json")
    return replicate(weights, mesh) if mesh is not None else jax.device_put(weights)


def _by_plain_name(folder: Path, found: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The tensors under the names of the table: without the prefix of a model with a head, and what was around it."""
    tensors: dict[str, Any] = {}
    for name, tensor in found.items():
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS).removeprefix(prefix)
        plain = plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if _ASIDE.fullmatch(plain):
            continue
        if plain in tensors:
            raise UserError(f"{folder}: {name} and another tensor both stand for {plain}; keep one of them")
        tensors[plain] = tensor
    return tensors


def _reader(folder: Path, tensors: dict[str, Any]) -> Callable[[str], np.ndarray]:
    """Takes a tensor out of `tensors` and reads it."""

    def read(name: str) -> np.ndarray:
        if name not in tensors:
            raise UserError(f"{folder}: tensor {name} is missing; the checkpoint is not complete")
        tensor = tensors.pop(name)
        if tensor.get_dtype() not in _FLOATS:
            raise UserError(f"{folder}: tensor {name} is {tensor.get_dtype()}; only float weights are supported")
        value: np.ndarray = tensor[:]
        return value

    return read


def _leaf(name: str, config: EncoderConfig, read: Callable[[str], np.ndarray]) -> np.ndarray:
    """One leaf in our layout: linears are [in, out], those side by side joined in `out`, layers stacked."""
    if name in _EMBEDDINGS:
        return read(_EMBEDDINGS[name])
    _, part, kind = name.split("/")  # layers/qkv/kernel
    suffix = {"kernel": "weight", "scale": "weight", "bias": "bias"}[kind]

    def of_layer(number: int) -> np.ndarray:
        pieces = [read(f"encoder.layer.{number}.{module}.{suffix}") for module in _LAYER[part]]
        return _joined([piece.T if kind == "kernel" else piece for piece in pieces], np.concatenate, axis=-1)

    return _joined([of_layer(number) for number in range(config.num_layers)], np.stack)


def _joined(pieces: list[np.ndarray], join: Callable[..., np.ndarray], **how: int) -> np.ndarray:
    """The pieces as one array; where they do not fit each other, an empty one, which the check of shapes refuses."""
    return join(pieces, **how) if len({piece.shape for piece in pieces}) == 1 else np.empty(0)
