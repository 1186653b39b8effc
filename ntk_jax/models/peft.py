"""Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, out and in.

The files load in the `peft` package and give the same logits there (a test). The same adapter always gives the
same bytes, so a resumed run can be compared with an uninterrupted one by hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ntk_jax.errors import UserError
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import abstract_decoder
from ntk_jax.models.hub import read_object, resolve, some
from ntk_jax.models.lora import LoRAConfig, target_names
from ntk_jax.models.names import MODULES
from ntk_jax.parallel.hosts import on_host
from ntk_jax.storage.atomic import make_folder, write_bytes, write_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Keys of adapter_config.json that do not change what the adapter computes. Every other key must be empty or
# false: PEFT keeps growing variants (DoRA, rsLoRA, layer patterns, ...), each switched on by a key of its own.
_INERT = frozenset(
    {
        "alora_invocation_tokens",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)


def save_adapter(
    folder: str | Path, lora: Mapping[str, Any], lora_config: LoRAConfig, model_config: ModelConfig, base_name: str
) -> None:
    """Writes the adapter; `base_name` is recorded as the model it belongs to. Raises UserError on a full disk."""
    folder = make_folder(folder)
    tensors = {}
    for name, leaf in lora["layers"].items():
        for part, ours in (("lora_A", "a"), ("lora_B", "b")):
            stacked = np.asarray(on_host(leaf[ours]), np.float32)
            for layer in range(model_config.num_layers):
                tensors[_tensor_name(layer, name, part)] = np.ascontiguousarray(stacked[layer].T)
    alpha = lora_config.alpha
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora_config.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(lora["layers"]),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
    # One metadata entry only: with several, the order in the file would vary.
    write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG, settings)


def load_adapter(folder: str | Path, model_config: ModelConfig) -> tuple[dict[str, Any], LoRAConfig]:
    """(adapter leaves in fp32, their config) of a PEFT folder or hub id.

    Raises UserError for a variant other than plain LoRA, and for tensors missing, extra, misshapen or not finite.
    """
    folder = resolve(str(folder))
    settings = read_object(folder / CONFIG)
    _check_settings(settings, folder / CONFIG)
    try:
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"{folder / WEIGHTS} is missing; save the adapter as safetensors") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS}: not a whole safetensors file ({error}); copy it again") from None

    # The tensors say which linears are adapted: `target_modules` may be a pattern over the whole model.
    targets = tuple(name for name in MODULES if _tensor_name(0, name, "lora_A") in tensors)
    config = LoRAConfig(rank=settings["r"], alpha=float(settings["lora_alpha"]), targets=targets)
    if not targets:
        raise UserError(f"{folder / WEIGHTS}: no adapter for any of {', '.join(MODULES)} of layer 0")
    shapes = abstract_decoder(model_config, config, jnp.float32)[1]
    layers: dict[str, dict[str, Any]] = {}
    for name in targets:
        layers[name] = {}
        for part, ours in (("lora_A", "a"), ("lora_B", "b")):
            expected = shapes["layers"][name][ours].shape
            parts = [
                _take(tensors, _tensor_name(layer, name, part), expected[:0:-1], folder / WEIGHTS)
                for layer in range(model_config.num_layers)
            ]
            layers[name][ours] = jnp.asarray(np.stack([value.T for value in parts]))
    if tensors:
        raise UserError(f"{folder / WEIGHTS}: tensor {some(list(tensors))} has no place in this model")
    return {"layers": layers}, config


def load_adapter_like(folder: str | Path, model_config: ModelConfig, like: LoRAConfig) -> dict[str, Any]:
    """The leaves of a PEFT folder that must have the rank, the scale and the linears of `like`, as a checkpoint of the
    same training has. Raises UserError naming the folder and what differs, and as `load_adapter`."""
    lora, found = load_adapter(folder, model_config)
    wanted = {"rank": like.rank, "scale α/R": like.scale, "linears": list(target_names(like))}
    has = {"rank": found.rank, "scale α/R": found.scale, "linears": list(found.targets)}
    for key, value in wanted.items():
        if has[key] != value:
            raise UserError(
                f"{folder}: this adapter's {key} is {has[key]}, the model's {value}; load the model with the same LoRA "
                "shape (rank, alpha, targets)"
            )
    return lora


def _tensor_name(layer: int, name: str, part: str) -> str:
    return f"base_model.model.model.layers.{layer}.{MODULES[name]}.{part}.weight"


def _check_settings(settings: Mapping[str, Any], where: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type {settings.get('peft_type')!r} is not supported; only LORA is")
    for key in ("r", "lora_alpha"):
        value = settings.get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int if key == "r" else (int, float))
            or not 0 < value < 2**31  # also no NaN
        ):
            raise UserError(f"{where}: {key} must be a positive number, got {value!r}")
    if settings.get("init_lora_weights", True) not in (True, False, "gaussian"):
        # pissa, olora and the like also change the frozen weights, which are not in these files.
        raise UserError(f"{where}: init_lora_weights {settings['init_lora_weights']!r} is not supported")
    for key, value in settings.items():
        if key not in _INERT and key != "init_lora_weights" and value not in (None, False, "none") and value:
            raise UserError(f"{where}: {key} = {value!r} is not supported; only plain LoRA on linears is")


def _take(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], where: Path) -> np.ndarray:
    value = tensors.pop(name, None)
    if value is None:
        raise UserError(f"{where}: tensor {name} is missing; an adapter must cover all layers of this model")
    if value.shape != shape:
        raise UserError(f"{where}: tensor {name} has shape {list(value.shape)}, this model asks for {list(shape)}")
    if not np.isfinite(value).all():
        raise UserError(f"{where}: tensor {name} holds NaN or Inf; the adapter is damaged")
    return value.astype(np.float32)
