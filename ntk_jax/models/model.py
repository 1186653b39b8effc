"""A loaded model: the static graph, two plain trees of arrays, and the tokenizer that goes with them."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ntk_jax.errors import UserError
from ntk_jax.models import hub
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import abstract_decoder
from ntk_jax.models.lora import LoRAConfig, fold, initial_lora, is_fresh
from ntk_jax.models.quantization import cast, check_kind, dequantized_base, kind_of, quantized_base, refuse_quantized
from ntk_jax.parallel.hosts import place
from ntk_jax.parallel.rules import param_shardings
from ntk_jax.xla import refuse_wrong_sums

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Model:
    """What all packages pass around. `lora` and `base` are nested dicts of arrays (names in `decoder.py`).

    lora is {} and lora_config None when there is no adapter. dtype is that of the computation and of the frozen weights
    but for quantized ones; adapters are fp32. tokenizer is a transformers tokenizer, or None where tokens come ready.
    """

    config: ModelConfig
    graphdef: Any
    lora: dict[str, Any]
    base: dict[str, Any]
    lora_config: LoRAConfig | None
    tokenizer: Any
    name: str
    dtype: Any

    @property
    def scales(self) -> dict[str, float]:
        """α / R of each linear that has an adapter, by name."""
        return self.lora_config.scales if self.lora_config else {}

    @property
    def quantization(self) -> str | None:
        """How the layers' matrices are held (`models/quantization.py`); None: in `dtype`."""
        return kind_of(self.base)


def load_model(
    path: str,
    *,
    lora: LoRAConfig | None = None,
    adapter: str | None = None,
    dtype: str = "float32",
    quantization: str | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
    tokenizer: bool = True,
    ignore_config_keys: Collection[str] = (),
) -> Model:
    """Loads a Llama, Mistral, Qwen2.5 or Qwen3 checkpoint: a Hugging Face folder, a hub id, or `builtin:model`.

    Args:
        path: the folder, id or name. A hub id may end in @REVISION.
        lora: add a fresh adapter drawn from `seed`. adapter: a PEFT folder to load instead. Neither: no adapter.
        dtype: of computation and frozen weights, `float32` or `bfloat16`; adapters are float32.
        quantization: hold the frozen matrices of the layers in `int8` or `float8_e4m3fn` (`models/quantization.py`);
            they are quantized from the checkpoint's own numbers on the way to the devices.
        mesh: where the weights go (`parallel.rules`); None is the first device.
        seed: of a fresh adapter. tokenizer: False leaves it out.
        ignore_config_keys: keys of config.json that are unknown here, and would be refused because they may change the
            model, but that you know not to; those that were there are `config.ignored_keys` of the result.

    Returns:
        A `Model`.

    Raises:
        UserError: anything wrong with the folder (see `hub`), both of lora and adapter, or a machine where XLA is known
            to compute wrong sums (see `xla`).

    Warns:
        Note: a file of the folder, or a token, is left aside.

    Example:
        >>> import ntk_jax as nj
        >>> nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2)).config.num_layers
        4
    """
    if lora is not None and adapter is not None:
        raise UserError("give either a fresh adapter (lora) or a saved one (adapter), not both")
    kind = _dtype(dtype)
    check_kind(quantization)
    refuse_wrong_sums()
    folder = hub.resolve(str(path))
    config = hub.read_config(folder, ignore_config_keys)
    values = None
    if adapter is not None:
        from ntk_jax.models.peft import load_adapter

        values, lora = load_adapter(adapter, config)
    graphdef, lora_shapes, base_shapes = abstract_decoder(config, lora, kind, quantization)
    shardings = param_shardings(base_shapes, mesh) if mesh is not None else None
    base = hub.load_weights(folder, config, base_shapes, shardings)
    if lora is not None and values is None:
        values = initial_lora(lora_shapes, seed)
    if values and mesh is not None:
        values = place(values, param_shardings(values, mesh))
    words = hub.load_tokenizer(folder, config.vocab_size, config.special_tokens) if tokenizer else None
    return Model(config, graphdef, values or {}, base, lora, words, str(path), jnp.dtype(kind))


def random_model(
    config: ModelConfig,
    *,
    lora: LoRAConfig | None = None,
    seed: int = 0,
    std: float = 0.3,
    dtype: str = "float32",
) -> Model:
    """A model with every parameter random: weights, biases and adapters (B too) N(0, std²), norms N(1, std²).

    For tests and benchmarks: nothing is at a value (0 or 1) that could hide its own absence.
    """
    graphdef, lora_shapes, base_shapes = abstract_decoder(config, lora, _dtype(dtype))

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        noise = std * random.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(noise + (1.0 if name.endswith("norm") else 0.0), leaf.dtype)

    values, base = (jax.tree_util.tree_map_with_path(draw, tree) for tree in (lora_shapes, base_shapes))
    return Model(config, graphdef, values, base, lora, None, "random", jnp.dtype(_dtype(dtype)))


def with_lora(model: Model, lora: dict[str, Any]) -> Model:
    """The same model with other adapter values; the tree must have the same leaves and shapes."""
    if jax.tree.map(jnp.shape, lora) != jax.tree.map(jnp.shape, model.lora):
        raise UserError(f"{model.name}: the adapter does not have the leaves and shapes of this model's")
    return dataclasses.replace(model, lora=lora)


def without_adapter(model: Model) -> Model:
    """The plain model that computes the same: the adapter, where there is one, is folded into the weights. Raises
    UserError: quantized weights, which have no room for the sum."""
    if model.lora_config is None:
        return model
    graphdef = abstract_decoder(model.config, None, model.dtype)[0]
    # A fresh adapter adds nothing: a copy of the weights would only take memory.
    fresh = model.quantization is None and is_fresh(model.lora)
    base = model.base if fresh else fold(model.lora, model.base, model.scales)
    return dataclasses.replace(model, graphdef=graphdef, lora={}, base=base, lora_config=None)


def computing_in(model: Model, dtype: str | None) -> Model:
    """The model with its compute dtype and frozen weights changed; adapters stay fp32, quantized weights 8 bits."""
    if dtype is None:
        return model
    if dtype not in (*_DTYPES, *_DTYPES.values()):
        raise UserError(f"dtype = {dtype!r} is not one of float32, bfloat16")
    if jnp.dtype(dtype) == jnp.dtype(model.dtype):
        return model
    return dataclasses.replace(model, base=cast(model.base, dtype), dtype=jnp.dtype(dtype))


def quantized(model: Model, kind: str) -> Model:
    """The model with the matrices of its layers quantized where they lie: for weights that come from no checkpoint.
    Both sets of weights exist until the given model is let go of; `load_model` never has both."""
    check_kind(kind)
    refuse_quantized(model.base, "cannot quantize")
    graphdef = abstract_decoder(model.config, model.lora_config, model.dtype, kind)[0]
    return dataclasses.replace(model, graphdef=graphdef, base=quantized_base(model.base, kind))


def dequantized(model: Model) -> Model:
    """The plain model of the same weights."""
    graphdef = abstract_decoder(model.config, model.lora_config, model.dtype)[0]
    return dataclasses.replace(model, graphdef=graphdef, base=dequantized_base(model.base, model.dtype))


def _dtype(name: str) -> Any:
    if name not in _DTYPES:
        raise UserError(f"dtype {name!r} is not supported; use float32 or bfloat16")
    return _DTYPES[name]
