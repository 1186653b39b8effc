"""Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, out and in.

The files load in the `peft` package and give the same logits there (a test). The same adapter always gives the
same bytes, so a resumed run can be compared with an uninterrupted one by hash.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import save

from ntk_jax.errors import UserError
from ntk_jax.models.checkpoint import ADAPTER as CONFIG
from ntk_jax.models.checkpoint import open_file, read_object, some
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import abstract_decoder
from ntk_jax.models.hub import resolve
from ntk_jax.models.lora import LoRAConfig, target_names
from ntk_jax.models.names import MODULES, WRAPPERS
from ntk_jax.models.peft_config import Shape, check_keys, shape_of, shapes_of
from ntk_jax.parallel.hosts import on_host
from ntk_jax.storage.atomic import make_folder, write_bytes, write_json

WEIGHTS = "adapter_model.safetensors"
_FLOATS = (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)
_TENSOR = re.compile(  # base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight, and its other spellings
    r"(?:base_model\.model\.)?(?:model\.)?layers\.(\d+)\.((?:self_attn|mlp)\.\w+)\.lora_([AB])(?:\.\w+)?\.weight"
)
_LINEAR = {module: name for name, module in MODULES.items()}


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
    if lora_config.alphas:
        settings["alpha_pattern"] = dict(lora_config.alphas)
    # One metadata entry only: with several, the order in the file would vary.
    write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG, settings)


def load_adapter(folder: str | Path, model_config: ModelConfig) -> tuple[dict[str, Any], LoRAConfig]:
    """(adapter leaves in fp32, their config) of a PEFT folder or hub id.

    Ranks that differ, and layers without an adapter, are filled up with zeros (`models/lora.py`). Raises UserError for
    a variant other than plain LoRA, and for tensors missing, extra, misshapen or not finite.
    """
    folder = resolve(str(folder))
    settings, where = read_object(_config_file(folder)), folder / CONFIG
    check_keys(settings, where)
    shapes = shapes_of(settings, model_config.num_layers, where)
    tensors = _read(folder)
    if shapes is None:  # no target_modules: the tensors say which linears are adapted, in all layers
        one = shape_of(settings, settings["r"], settings["lora_alpha"])
        there = {name for _, name, _ in tensors}
        shapes = {(layer, name): one for layer in range(model_config.num_layers) for name in MODULES if name in there}
    config = _common_config(shapes, where)
    extra = [found.name for (layer, name, _), found in tensors.items() if (layer, name) not in shapes]
    if extra:
        raise UserError(f"{folder / WEIGHTS}: tensor {some(extra)} has no place in this model and {CONFIG}")
    sizes = abstract_decoder(model_config, config, jnp.float32)[1]["layers"]
    layers: dict[str, dict[str, Any]] = {}
    for name in config.targets:
        layers[name] = {part: np.zeros(sizes[name][part].shape, np.float32) for part in ("a", "b")}
    for (layer, name), shape in shapes.items():
        a, b = layers[name]["a"][layer], layers[name]["b"][layer]
        rank = shape.rank
        a[:, :rank] = _take(tensors, layer, name, "A", (rank, a.shape[0]), folder / WEIGHTS).T
        b[:rank] = _take(tensors, layer, name, "B", (b.shape[1], rank), folder / WEIGHTS).T
    return {"layers": jax.tree.map(jnp.asarray, layers)}, config


def _common_config(shapes: Mapping[tuple[int, str], Shape], where: Path) -> LoRAConfig:
    """One rank for all, the largest, and one α for each linear. Raises UserError: a linear has another scale in another
    layer."""
    if not shapes:
        raise UserError(f"{where}: no adapter for any of {', '.join(MODULES)}")
    rank = max(shape.rank for shape in shapes.values())
    alphas: dict[str, float] = {}
    for name in MODULES:
        own = {layer: shape.at(rank) for (layer, other), shape in shapes.items() if other == name}
        for layer, alpha in own.items():
            first = next(iter(own))
            if not math.isclose(alpha, own[first], rel_tol=1e-9):
                raise UserError(
                    f"{where}: {name} has the scale {own[first] / rank:g} in layer {first} and {alpha / rank:g} in "
                    f"layer {layer}; only one scale for all layers of a linear is supported"
                )
            alphas[name] = own[first]
    [(common, _)] = Counter(alphas.values()).most_common(1)
    others = tuple((name, alpha) for name, alpha in alphas.items() if alpha != common)
    return LoRAConfig(rank, common, tuple(alphas), others)


def load_adapter_like(folder: str | Path, model_config: ModelConfig, like: LoRAConfig) -> dict[str, Any]:
    """The leaves of a PEFT folder that must have the rank, the scale and the linears of `like`, as a checkpoint of the
    same training has. Raises UserError naming the folder and what differs, and as `load_adapter`."""
    lora, found = load_adapter(folder, model_config)
    wanted, has = (
        {"rank": one.rank, "linears": list(target_names(one)), "scale α/R": _one_or_all(one.scales)}
        for one in (like, found)
    )
    for key, value in wanted.items():
        if has[key] != value:
            raise UserError(
                f"{folder}: this adapter's {key} is {has[key]}, the model's {value}; load the model with the same LoRA "
                "shape (rank, alpha, targets)"
            )
    return lora


def _tensor_name(layer: int, name: str, part: str) -> str:
    return f"base_model.model.model.layers.{layer}.{MODULES[name]}.{part}.weight"


def _one_or_all(scales: Mapping[str, float]) -> Any:
    """The scale where all linears have the same, else that of each: for messages."""
    return next(iter(scales.values())) if len(set(scales.values())) == 1 else dict(scales)


def _config_file(folder: Path) -> Path:
    """adapter_config.json of the folder; UserError that says what the folder is instead."""
    file = folder / CONFIG
    if not file.is_file():
        inner = sorted(other.parent.name for other in folder.glob(f"*/{CONFIG}"))
        if inner:
            raise UserError(f"{folder} has no {CONFIG}, but its folder {some(inner)} has; give that one")
        if (folder / "config.json").is_file():
            raise UserError(f"{folder} has no {CONFIG}: it is a model, not a PEFT adapter; give it as the path")
    return file


@dataclass(frozen=True)
class _Tensor:
    name: str  # in the file
    value: np.ndarray


def _read(folder: Path) -> dict[tuple[int, str, str], _Tensor]:
    """(layer, linear, A or B) → the tensor. Raises UserError: no whole file, or a tensor that is none of LoRA's."""
    file = folder / WEIGHTS
    if not file.is_file():
        binary = folder / "adapter_model.bin"
        if binary.is_file():
            raise UserError(
                f'{binary} is not read; with torch, in its folder: python -c "import torch, safetensors.torch as s; '
                f"s.save_file(torch.load('{binary.name}', 'cpu', weights_only=True), '{file.name}')\""
            )
        raise UserError(f"{file} is missing; save the adapter as safetensors")
    found: dict[tuple[int, str, str], _Tensor] = {}
    unknown = []
    with ExitStack() as stack:
        handle = open_file(stack, file)
        for name in handle.keys():  # noqa: SIM118  (no dict)
            match = _TENSOR.fullmatch(".".join(part for part in name.split(".") if part not in WRAPPERS))
            if match is None or match[2] not in _LINEAR:
                unknown.append(name)
                continue
            key = int(match[1]), _LINEAR[match[2]], match[3]
            if key in found:
                raise UserError(f"{file}: {found[key].name} and {name} are the same tensor twice; keep one of them")
            found[key] = _Tensor(name, handle.get_tensor(name))
    if unknown:
        raise UserError(f"{file}: tensor {some(unknown)} has no place in this model; {_why(unknown[0])}")
    return found


def _why(name: str) -> str:
    if "lora_" not in name:
        return "the adapter brings weights of its own beside LoRA: merge it into the model (merge_and_unload())"
    return f"only LoRA on {', '.join(MODULES)} is supported"


def _take(
    tensors: Mapping[tuple[int, str, str], _Tensor],
    layer: int,
    name: str,
    part: str,
    shape: tuple[int, int],
    where: Path,
) -> np.ndarray:
    """The values of one tensor, checked, in fp32."""
    found = tensors.get((layer, name, part))
    if found is None:
        missing = _tensor_name(layer, name, f"lora_{part}")
        raise UserError(f"{where}: tensor {missing} is missing, which {CONFIG} asks for in this model's layers")
    value = found.value
    if value.size == 0:
        raise UserError(
            f"{where}: tensor {found.name} is empty (shape {list(value.shape)}): saved from ZeRO-3 without gathering? "
            "save the adapter again from the gathered parameters"
        )
    if value.shape != shape:
        raise UserError(
            f"{where}: tensor {found.name} has shape {list(value.shape)}, this model and {CONFIG} ask for {list(shape)}"
        )
    if value.dtype not in _FLOATS:
        raise UserError(f"{where}: tensor {found.name} is {value.dtype}; only float adapters are supported")
    if not np.isfinite(value).all():
        raise UserError(f"{where}: tensor {found.name} holds NaN or Inf; the adapter is damaged")
    return value.astype(np.float32)
